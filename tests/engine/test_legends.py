"""Every argument of a compiled function is explained: in its module's legend, in its docstring, or by the unit in its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import wisp_gym

PACKAGE = Path(wisp_gym.__file__).parent
UNITS = ("_s", "_tokens", "_bytes", "_per_s", "_share")


def compiled_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """The functions of a module that numba compiles."""
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d).startswith("jit") for d in node.decorator_list)
    ]


MODULES = {
    path.relative_to(PACKAGE).as_posix(): tree
    for room in ("contract", "rules", "engine")
    for path in sorted((PACKAGE / room).rglob("*.py"))
    if compiled_functions(tree := ast.parse(path.read_text(encoding="utf-8")))
}


def legend_of(tree: ast.Module) -> set[str]:
    """What a module's legend explains: the names that stand between backticks in the paragraph that begins with `Legend:`."""
    paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
    return {name for text in paragraphs if text.startswith("Legend:") for name in re.findall(r"`(\w+)`", text)}


def unexplained(tree: ast.Module) -> list[str]:
    """Arguments of compiled functions that nothing explains; a single letter must stand in the legend."""
    legend, missing = legend_of(tree), []
    for function in compiled_functions(tree):
        said = set(re.findall(r"\w+", ast.get_docstring(function) or ""))
        for name in (argument.arg for argument in function.args.args):
            if name not in legend and (len(name) == 1 or not (name.endswith(UNITS) or name in said)):
                missing.append(f"{function.name}({name})")
    return missing


def test_engine_and_rules_are_found() -> None:
    assert {"engine/loop.py", "engine/session.py", "rules/scorer.py", "rules/stopping.py"} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_every_argument_is_explained(name: str) -> None:
    assert unexplained(MODULES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_compiled_function_says_what_it_does(name: str) -> None:
    assert [f.name for f in compiled_functions(MODULES[name]) if not ast.get_docstring(f)] == []


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ('"""M.\n\nLegend: `d` DEVICE row."""\n@jit\ndef f(d, now_s):\n    """F."""', []),
        ('"""M, `d` is no legend."""\n@jit\ndef f(d):\n    """Of d."""', ["f(d)"]),
        ('"""M."""\n@jit_inline\ndef f(rows):\n    """F."""', ["f(rows)"]),
        ('"""M."""\n@jit_inline\ndef f(rows):\n    """Sum of (n,) rows."""', []),
        ("def plain(x):\n    pass", []),
    ],
)
def test_what_counts_as_explained(code: str, missing: list[str]) -> None:
    assert unexplained(ast.parse(code)) == missing
