"""Which sources a study's numbers come from: its own modules, what they import, what that imports, and so on."""

import hashlib
from collections.abc import Mapping
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = ("agents.study.__main__", "agents.study.run")  # the first names the second as text, so it imports nothing


@cache
def code_digest() -> str:
    """SHA-256 over all sources that a study may run."""
    return digest_of(sources())


def digest_of(files: Mapping[str, Path]) -> str:
    """SHA-256 over the name and content of modules."""
    digest = hashlib.sha256()
    for module, path in sorted(files.items()):
        digest.update(module.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Module → file of all modules below `root` that a study imports, packages and deferred imports included."""
    finder = ModuleFinder(path=[str(root)])  # it reads imports and runs nothing; what lies elsewhere is not followed
    for entry in ENTRIES:
        finder.import_hook(entry)
    found = {name: getattr(module, "__file__", None) for name, module in finder.modules.items()}
    return {name: Path(file) for name, file in found.items() if file}
