"""The console command `wisp-gym`: its help, its sub-commands' names, what a missing extra says, and the progress bar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wisp_gym import __version__
from wisp_gym.__main__ import COMMANDS, main
from wisp_gym.cli import Bar, Commands, progress

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flags", [["--help"], []])
def test_the_help_fits_a_screen(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == (0 if flags else 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS.modules)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "wisp_gym", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"wisp-gym {__version__}\n"


def command_names() -> list[str]:
    """Every command, those of groups by both names; a group alone where it stands for one of its own."""
    names = []
    for name, (module, _) in COMMANDS.modules.items():
        if isinstance(module, Commands):
            names += [f"{name} {inner}" for inner in module.modules]
        if not isinstance(module, Commands) or module.default:
            names.append(name)
    return names


@pytest.mark.parametrize("name", command_names())
def test_every_sub_command_says_its_name_and_refuses_unknown_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--nonsense"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    module = COMMANDS.modules[name][0] if name in COMMANDS.modules else None
    full = f"{name} {module.default}" if isinstance(module, Commands) else name
    assert err.startswith(f"wisp-gym {full}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "nearest"), [(["evalute"], "evaluate"), (["capacty"], "capacity"), (["benchmark", "servng"], "serving")]
)
def test_an_unknown_command_is_answered_with_the_nearest(
    words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"'{words[-1]}'" in err
    assert f"did you mean '{nearest}'" in err


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["server"], "grpc", "testbed"),
        (["device"], "torch", "testbed"),
        (["soak"], "torch", "testbed"),
        (["export", "aligned", "-o", "a.onnx"], "onnx", "export"),
        (["evaluate", "--plot", "a.png"], "matplotlib", "plot"),
        (["timeline", "--png", "a.png"], "matplotlib", "plot"),
    ],
)
def test_a_missing_extra_is_one_line(words: list[str], package: str, extra: str) -> None:
    missing = f"import sys; sys.modules.update(dict.fromkeys({('grpc', 'torch', 'onnx', 'matplotlib')}))"
    done = python(f"{missing}; from wisp_gym.__main__ import main; sys.exit(main({words}))")
    assert (done.returncode, done.stdout) == (2, "")
    install = f"pip install 'wisp-gym[{extra}]'"
    assert done.stderr == f"wisp-gym {words[0]}: needs {package}, which is not installed: {install}\n"


def test_the_bar_is_shown_to_people_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3) as bar:
        assert isinstance(bar, Bar)
        bar.update()
    assert capsys.readouterr().err == ""
    with progress(3, "cake", shown=True) as bar:
        bar.update(2)
    assert "cake" in capsys.readouterr().err
    code = "import sys; sys.modules['tqdm'] = None; from wisp_gym.cli import progress\nwith progress(shown=True) as b: b.update()"
    assert python(code).stderr == ""
