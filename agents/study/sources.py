"""Which sources a study's numbers come from: its own modules, what they import, what that imports, and so on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)  # what an import may stand in, or be
ENTRIES = ("agents.study.__main__", "agents.study.run")  # the first names the second as text, so it imports nothing


@cache
def code_digest() -> str:
    """SHA-256 over all sources that a study may run, deferred imports included."""
    return digest_of(sources(ENTRIES))


def digest_of(files: Mapping[str, Path]) -> str:
    """SHA-256 over the name and content of modules."""
    digest = hashlib.sha256()
    for module, path in sorted(files.items()):
        digest.update(module.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def sources(entries: Iterable[str], root: Path = ROOT) -> dict[str, Path]:
    """Module → file of the modules below `root` that are reached from the entries by imports, packages included."""
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        path = None if module in found else file_of(module, root)
        if path is not None:
            found[module] = path
            waiting += [module.rpartition(".")[0], *imports(module, path)]
    return found


def file_of(module: str, root: Path) -> Path | None:
    """The file of a module or package below `root`; None for what lies elsewhere, or is a name within a module."""
    place = root.joinpath(*module.split("."))
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if module and file.is_file()), None)


def imports(module: str, path: Path) -> Iterator[str]:
    """What a file imports, each name of a `from` too, as it may be a module; imports for type checkers alone are left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            waiting += (child for child in ast.iter_child_nodes(node) if isinstance(child, BLOCKS))
