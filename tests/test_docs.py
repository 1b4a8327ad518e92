"""README, docs and traces/README.md: lines that can be read, links that lead somewhere, commands and code that work.

Every command in them is parsed by its own parser, to the last flag, and either run here or listed in `ELSEWHERE` with the reason
why not.
"""

from __future__ import annotations

import argparse
import importlib.util
import pkgutil
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wisp_gym import process
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation.own.named import is_own
from wisp_gym.scenario import load, presets

ROOT = Path(__file__).resolve().parents[1]
OURS = ("wisp_gym", "agents", "estimators", "traces", "tests")
CHANGELOG = ROOT / "CHANGELOG.md"  # names what is gone, so its commands are not tried
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "traces" / "README.md"]
WRITTEN = [*PAGES, CHANGELOG, *sorted((ROOT / "wisp_gym" / "data").rglob("*.md"))]
SOURCES = [*(path for folder in OURS for path in (ROOT / folder).rglob("*.py")), ROOT / "train.py"]
SOURCES += (ROOT / "wisp_gym").rglob("*.toml")
# Others: tests/serving/test_serving_docs.py, tests/test_tutorials.py, and of other libraries tests/interop.
PYTHON_PAGES = [
    page for page in PAGES if page.parent.name not in ("serving", "tutorials") and page.stem != "works-with"
]
MOST_CHARACTERS = 120
README_LINES = 120

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BARE_FRACTION = re.compile(r"(?<![\w.\])/…])\.\d")
COMMAND = re.compile(r"(?:python -m [\w.]+|python train\.py|wisp-gym|pip install|pytest|ray start|bash|mkdocs build)\b")
OUR_PATH = re.compile(
    rf"(?<![\w/.-])((?!wisp_gym/_traces)(?:{'|'.join(OURS)}|docs)/[\w/-]+\.(?:py|md|toml|json|csv|proto|npz|jsonl))\b"
)
OUR_MODULE = re.compile(r"(?<![\w./-])((?:wisp_gym|agents|estimators|traces)(?:\.[A-Za-z_]\w*)+)(?![\w/]|\.\w)")
# In an installed package alone; in environments of vLLM and of PettingZoo alone, where tests/testbed/vllm and tests/interop run it.
OUTSIDE = (
    *("wisp_gym._traces", "wisp_gym.testbed.vllm_steering.scheduler.WispScheduler"),
    *("wisp_gym.pettingzoo", "wisp_gym.pettingzoo.parallel_env", "wisp_gym.pettingzoo.SpeculationParallelEnv"),
)
FILE_ENDINGS = (".csv", ".json", ".md", ".toml", ".txt")
RUN_BY_NAME = re.compile(r"python -m ((?:wisp_gym|agents|estimators|traces)[\w.]*)")

# Commands that run here, in a folder of their own.
CHEAP = [
    "wisp-gym timeline --controllers wisp --devices 8 --start 40 --seconds 2 --png timeline.png",
    "wisp-gym evaluate --controllers wisp,wisp+fcfs --devices 64 --seeds 4",
    "wisp-gym timeline --controllers wisp,sled --devices 10 --png timeline.png --trace timeline.json",
    "python -m agents.wisp_study calibrate",
    "python -m wisp_gym.contract",
    "wisp-gym choose --devices 64",
    "wisp-gym scenario fields",
    "wisp-gym leaderboard show",
    "wisp-gym dashboard -o dashboard.json",
]
# What the others begin with, and why they do not run here.
ELSEWHERE = {
    "python train.py": "trains for minutes; tests/agents/test_train.py runs short trainings",
    "python -m agents.training": "trains for minutes; tests/agents/test_fleet_learning.py",
    "python -m agents.batching": "trains for minutes; tests/agents/test_batching_training.py",
    "python -m agents.study": "minutes; tests/agents/test_study.py and test_report.py run a small suite",
    "python -m agents.bounds": "a minute; tests/agents/test_bounds.py",
    "python -m agents.branching": "a minute or more; tests/agents/test_branching.py",
    "python -m agents.choosing": "an hour; tests/agents/test_choosing.py",
    "python -m agents.wisp_study": "a minute or more; tests/agents/test_calibration.py",
    "python -m agents.sim2real": "26 minutes of a quiet machine; tests/agents/test_sim2real.py",
    "python -m estimators.batch_time": "needs a profile or tables; tests/estimators/test_estimators.py, test_measured.py",
    "python -m estimators.profiling": "needs a GPU, or a minute of a quiet machine; tests/estimators/test_profile.py",
    "python -m estimators.acceptance": "minutes; tests/estimators/test_acceptance.py",
    "python -m estimators.rejection": "half a minute; tests/estimators/test_predictor.py",
    "python -m traces": "trains or reads a pair of models, or is repeated in tests/engine/test_request_trace.py",
    "wisp-gym evaluate": "20 worlds, or a policy that is not shipped; tests/evaluation/test_commands.py",
    "wisp-gym capacity": "a search; tests/evaluation/test_commands.py",
    "wisp-gym advise": "half a minute; tests/evaluation/test_advise.py",
    "wisp-gym timeline": "one runs here; tests/evaluation",
    "wisp-gym scenario check": "needs a file of one's own; tests/evaluation/test_odd.py",
    "wisp-gym leaderboard": "minutes, or needs files of one's own; tests/evaluation/test_leaderboard.py",
    "wisp-gym warm-up": "a minute of compiling; tests/engine/test_demand.py",
    "wisp-gym benchmark": "minutes of a quiet machine; tests/evaluation/test_speed.py",
    "wisp-gym table": "run with the files that they need in tests/serving/test_tables.py",
    "wisp-gym export": "needs a run; tests/serving/test_export.py",
    "wisp-gym server": "serves until it is stopped; tests/testbed",
    "wisp-gym device": "needs a server; tests/testbed",
    "wisp-gym soak": "needs a server; tests/testbed",
    "wisp-gym dashboard": "one runs here; tests/testbed/test_metrics.py",
    "python -m rl_zoo3.train": "another library's command; tests/interop/test_rl_zoo.py",
    "python -m tests.fuzz": "minutes; tests/fuzz/test_fuzz.py",
    "python -m tests.soak": "half an hour; tests/engine/test_engine.py",
    "python -m tests.twins": "minutes; tests/engine/test_reference.py",
    "pip install": "needs the network; .ci/run installs",
    "pytest": "this is it",
    "bash .ci/run": "this is it",
    "mkdocs build": "tests/test_site.py",
    "ray start": "other machines; tests/agents/test_distributed.py",
}


class Parsed(BaseException):
    """Every flag of a command was understood; the argument is what was parsed."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """A page without its blocks of code."""
    return INDENTED.sub("", FENCE.sub("", text))


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every command of a page, of blocks and of inline code, without comments and placeholders."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash")]
    blocks += INDENTED.findall(FENCE.sub("", text))
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in INLINE.findall(without_code(text))]
    for line in lines:
        for part in line.split(" && "):
            if COMMAND.match(part):
                words = shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", part).replace(",…", ""), comments=True)
                kept = [word for word in words if "…" not in word]
                yield kept[:-1] if kept != words and kept[-1].startswith("--") else kept


COMMANDS = sorted({" ".join(map(shlex.quote, words)) for page in PAGES for words in commands_in(text_of(page))})
PYTHON = [
    pytest.param(body, id=f"{name_of(page)}-{index}")
    for page in PYTHON_PAGES
    for index, (language, body) in enumerate(FENCE.findall(text_of(page)))
    if language == "python"
]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def module_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and what it is given."""
    if words[0] == "wisp-gym":
        return "wisp_gym", words[1:]
    return (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])


def start(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> int | str | None:
    """Run a module in a folder as a command does, in this process; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.setattr(process, "begin", lambda: None)  # this process is pytest's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # another test has imported the module already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code
    return 0


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> argparse.Namespace | None:
    """What a command's own parser makes of its flags; None where it is `--help`."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(parse_args(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    try:
        code = start(*module_and_arguments(words), monkeypatch, folder)
    except Parsed as found:
        return found.args[0]
    assert code in (0, None), f"exit code {code}"
    return None


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_lines_are_short_and_fractions_have_a_zero(page: Path) -> None:
    lines = [line for line in without_code(text_of(page)).splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > MOST_CHARACTERS]
    assert not [line for line in without_code(text_of(page)).splitlines() if BARE_FRACTION.search(line)]


def test_the_readme_shows_use_within_a_screen() -> None:
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) < README_LINES
    assert "gym.make(" in "\n".join(lines[:25])


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_reading_order() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(text_of(index))}
    assert {page for page in PAGES if page.parent != ROOT} - {index} <= linked


def test_every_command_is_run_or_has_a_reason_why_not() -> None:
    assert set(CHEAP) <= set(COMMANDS)
    assert not [command for command in COMMANDS if not command.startswith(tuple(ELSEWHERE)) and command not in CHEAP]
    unused = [start for start in ELSEWHERE if not any(command.startswith(start) for command in COMMANDS)]
    assert not unused


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in COMMANDS
        if command.startswith(("python ", "wisp-gym")) and "pip" not in command and "rl_zoo3" not in command
    ],
)
def test_every_command_parses(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traces").mkdir()
    try:
        given = parsed(shlex.split(command), monkeypatch, tmp_path)
    except AssertionError:
        if " -" not in command.replace("python -m", "") and " required" in capsys.readouterr().err:
            return  # a mere mention of a command
        raise
    scenario = load(name if (name := getattr(given, "scenario", None)) in presets() else "wisp-a100-qwen3-32b")
    named = [getattr(given, flag, None) or [] for flag in ("controllers", "also")]
    for name in (name for group in named for names in group for name in ([names] if isinstance(names, str) else names)):
        if "runs/" not in name and not any(map(is_own, name.split("+"))):
            resolve(name, scenario)


def test_names_of_controllers_that_the_guide_gives_are_names() -> None:
    scenario = load("wisp-a100-qwen3-32b")
    page = FENCE.sub("", text_of(ROOT / "docs" / "guide" / "names.md"))
    rows = re.findall(
        r"^\| (?!form|part)[^|]* \| (.*) \|$", page[page.index("## How a name is written") :], re.MULTILINE
    )
    names = [name for row in rows for name in INLINE.findall(row) if "runs/" not in name and not name.endswith("+")]
    assert len(names) > 8
    for name in names:
        if not name.startswith("+"):
            resolve(name, scenario)


@pytest.mark.parametrize("command", CHEAP)
def test_cheap_commands_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, arguments = module_and_arguments(shlex.split(command))
    assert start(module, arguments, monkeypatch, tmp_path) in (0, None)
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pip")])
def test_every_extra_exists(command: str) -> None:
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    words = shlex.split(command)
    for names in re.findall(r"\[([\w,]+)\]", shlex.join(words)) or []:
        assert set(names.split(",")) <= extras.keys()
    assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    explained = re.findall(r"^\| `([\w-]+)` \|", text_of(ROOT / "docs" / "guide" / "getting-started.md"), re.MULTILINE)
    assert sorted(explained) == sorted(extras)


@pytest.mark.parametrize("body", PYTHON)
def test_python_runs(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(body, "a block of the docs", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_pages_name_exist(page: Path) -> None:
    missing = []
    for name in sorted(set(OUR_MODULE.findall(text_of(page)))):
        if name.endswith(FILE_ENDINGS) or name in OUTSIDE:
            continue
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_files_and_commands_that_are_named_exist() -> None:
    missing = {}
    for path in {*PAGES, *SOURCES} - {Path(__file__)}:
        text = text_of(path)
        gone = {name for name in OUR_PATH.findall(text) if not (ROOT / name).exists()}
        for name in RUN_BY_NAME.findall(text):
            spec = importlib.util.find_spec(name.rstrip("."))
            if spec is None or (spec.submodule_search_locations and not importlib.util.find_spec(f"{name}.__main__")):
                gone.add(f"python -m {name}")
        if gone:
            missing[name_of(path)] = sorted(gone)
    assert not missing
