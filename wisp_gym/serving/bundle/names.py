"""Where a bundle lies that is meant by a name: the one resolver of every place that asks for a bundle.

A name is one of

- a shipped bundle: `speculation-v1`, `batching-v1`, `joint-v1`, `speculation-aligned`, `batching-wisp`, with or without `.onnx`;
- a rule whose bundle is shipped, by its own name: `wisp`, `aligned`, `fcfs`. Where a device and a server have a rule of the name
  (`wisp`), whoever asks says which of both is meant;
- an `.onnx` file, or a run's folder or `policy.json` with the `policy.onnx` that was exported into the folder.
"""

from functools import cache
from pathlib import Path

from wisp_gym.errors import did_you_mean, of_kind, path_of
from wisp_gym.serving.bundle.schema import BundleError

DATA = Path(__file__).resolve().parents[2] / "data"
RULES = {"token": "speculation-", "batching": "batching-"}  # how the names of rules' bundles begin, by who decides
EXPORTED = "policy.onnx"


@cache
def shipped() -> dict[str, Path]:
    """Bundles that come with wisp-gym by file name, sorted: those of rules, and those of trained policies."""
    paths = [*(DATA / "bundles").glob("*.onnx"), *(DATA / "policies").glob("*.onnx")]
    return {path.name: path for path in sorted(paths, key=lambda path: path.name)}


def find(name: str | Path, decision: str = "") -> Path:
    """The file of a bundle by any of its names; `./NAME` is always a file.

    Args:
        decision: "token" (a device's) or "batching" (a server's), which a rule's own name leaves open; empty where either will do.

    Raises:
        BundleError: a name that is none, or a rule of both where the decision is left open; one line with the nearest names.
    """
    path = path_of("bundle", name, BundleError)
    of_kind("decision", decision, str, BundleError)
    given = str(name)
    found = [shipped()[key] for key in candidates(given, decision) if key in shipped()]
    if len(found) > 1:
        names = " and ".join(path.stem for path in found)
        raise BundleError(f"{given}: a rule of devices and of servers; allowed are {names}")
    if found:
        return found[0]
    if path.suffix == ".json" or (given and path.is_dir()):
        beside = path.with_suffix(".onnx") if path.suffix == ".json" else path / EXPORTED
        if not beside.is_file():
            raise BundleError(f"{given}: no such file: {beside}; make it with: wisp-gym export {given} -o {beside}")
        return beside
    if not given or (path.name == given and not path.is_file()):
        raise BundleError(f"{given}: no such file; {did_you_mean(given, allowed(decision))}, a file, a run's folder")
    return path


def candidates(given: str, decision: str) -> list[str]:
    """File names that a name may mean: as it stands, else those of the rules of this name."""
    whole = given if given.endswith(".onnx") else f"{given}.onnx"
    return [whole] if whole in shipped() else [f"{beginning}{whole}" for beginning in beginnings(decision)]


def beginnings(decision: str) -> list[str]:
    """How the names of rules' bundles of a decision begin."""
    return [RULES[decision]] if decision in RULES else list(RULES.values())


def allowed(decision: str) -> list[str]:
    """Names that mean a shipped bundle of a decision: rules by their own names, then all by their whole ones."""
    rules = [path.stem for path in shipped().values() if path.parent.name == "bundles"]
    own = [stem.removeprefix(start) for start in beginnings(decision) for stem in rules if stem.startswith(start)]
    learned = ["joint-"] if decision != "token" else []
    whole = [Path(name).stem for name in shipped() if name.startswith((*beginnings(decision), *learned))]
    return list(dict.fromkeys([*own, *whole]))
