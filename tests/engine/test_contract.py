"""What a controller sees is said once: names, units, scales, ends, owners and ages, and nobody else writes a scale down."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

import wisp_gym
from wisp_gym.contract import __main__ as printed
from wisp_gym.contract import device, entry, request, server
from wisp_gym.contract.entry import Entry, K, T

ROOT = Path(__file__).resolve().parents[2]
MODULES = (device, server, request)
IDS = [module.__name__.rsplit(".", 1)[-1] for module in MODULES]
TABLE = pytest.mark.parametrize("table", MODULES, ids=IDS)
ENTRIES = [e for module in MODULES for e in module.ENTRIES]

# Whoever writes, reads or exports entries.
OBSERVERS = (
    "agents/batching/*.py",
    "tests/support/reference_sight.py",
    "wisp_gym/controllers/*.py",
    "wisp_gym/engine/gather.py",
    "wisp_gym/engine/observe_*.py",
    "wisp_gym/envs/*.py",
    "wisp_gym/rules/observed.py",
    "wisp_gym/rules/speculation.py",
    "wisp_gym/rules/stopping.py",
    "wisp_gym/serving/bundle/*.py",
    "wisp_gym/serving/device/*.py",
    "wisp_gym/serving/export/*.py",
    "wisp_gym/serving/scheduler/*.py",
)
SCALES = {float(e.scale) for e in ENTRIES if not isinstance(e.scale, str) and e.scale != 1}
FACTORS = SCALES | {1 / scale for scale in SCALES}
ENDS = {float(end) for e in ENTRIES for end in (e.low, e.high) if abs(end) > 2}
CLIPS = {"min", "max", "clip", "maximum", "minimum"}


def number(node: ast.AST) -> float | None:
    """The number that a node writes down."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value) if is_number and not isinstance(node.value, bool) else None  # type: ignore[attr-defined]


def literals(source: str) -> list[str]:
    """Expressions that multiply or divide by a scale of the contract, or cut at one of its ends, by a literal."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            if {number(node.left), number(node.right)} & FACTORS:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CLIPS and {number(argument) for argument in node.args} & ENDS:
                found.append(ast.unparse(node))
    return found


@TABLE
def test_the_index_of_an_entry_is_its_name_in_capitals(table: ModuleType) -> None:
    assert len(set(table.NAMES)) == table.SIZE == len(table.ENTRIES)
    for place, name in enumerate(table.NAMES):
        assert getattr(table, name.upper()) == place


@TABLE
def test_columns_are_those_of_the_entries(table: ModuleType) -> None:
    for place, e in enumerate(table.ENTRIES):
        assert (table.LOW[place], table.HIGH[place]) == (e.low, e.high)
        assert e.low < e.high
        assert np.isnan(table.SCALE[place]) if e.scale in (T, K) else table.SCALE[place] == e.scale > 0
        assert e.scale_in(0.07, 12) == {T: 0.07, K: 12}.get(e.scale, e.scale)


def test_units_are_the_scales_in_words() -> None:
    units = {e.name: e.unit for e in device.ENTRIES}
    assert (units["tokens_left"], units["context"], units["batch_time"]) == ("64 tokens", "1,000 tokens", "0.1 s")
    assert (units["draft_time"], units["drafted_tokens"], units["survival"]) == ("T", "K", "probability")
    assert {e.quantity for e in ENTRIES if e.scale == T} == {"s"}
    assert {e.quantity for e in ENTRIES if e.scale == K} == {"tokens"}


def test_shipped_policies_list_documented_entries() -> None:
    """In the order of the tables, which have grown at their ends since."""
    shipped = [json.loads(path.read_text()) for path in (ROOT / "wisp_gym" / "data").rglob("*.json")]
    tables = {"observation": device, "globals": server, "requests": request}
    seen = {key for document in shipped for key in tables if key in document}
    assert seen == set(tables)
    for document in shipped:
        for key in document.keys() & tables.keys():
            assert document[key] == [e.row for e in tables[key].ENTRIES][: len(document[key])]
            assert len(document[key]) >= {"observation": 30, "globals": 16, "requests": 23}[key]


@pytest.mark.parametrize("pattern", OBSERVERS)
def test_no_scale_and_no_end_is_written_down_again(pattern: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths
    found = {str(path.relative_to(ROOT)): literals(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line", ["o[1] = x / 64.0", "1e-3 * x", "y = t * 10.0", "min(x, 20.0)", "np.clip(x, -1000, a)", "waiting / 512"]
)
def test_a_literal_would_be_found(line: str) -> None:
    assert literals(line) == [line.split(" = ")[-1].replace("1e-3", "0.001")]
    assert literals("x / SCALE[TOKENS_LEFT] + min(x, HIGH[PRICE]) * 2.0") == []


def test_the_page_of_environments_holds_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    printed.main([])
    tables = capsys.readouterr().out.rstrip("\n").split("\n\n")
    page = (ROOT / "docs" / "guide" / "environments.md").read_text(encoding="utf-8")
    assert len(tables) == len(MODULES)
    for table in tables:
        assert f"\n\n{table}\n\n" in page
    for name in wisp_gym.ENVIRONMENTS:
        text = gym.make(name).unwrapped.__doc__ or ""
        shown = [table for table in tables if table.replace("\n", "\n    ") in text]
        assert shown == ({"Speculation": tables[:1], "SpeculationLength": []}.get(name[9:-3], tables[1:]))


def ages(entries: tuple[Entry, ...], *allowed: str) -> np.ndarray:
    """Places of the entries of other ages: what must stay as it is while nothing new is heard."""
    return np.array([place for place, e in enumerate(entries) if e.age not in allowed])


def test_within_a_round_only_what_is_known_now_changes() -> None:
    env = gym.make("wisp_gym/Speculation-v1", devices=6, horizon_s=60.0).unwrapped
    steady = ages(device.ENTRIES, entry.NOW, entry.AHEAD)
    before, _ = env.reset(seed=0)
    compared, changed, over = 0, np.zeros(device.SIZE, bool), False
    while not over:
        after, _, _, over, _ = env.step(1 if before[device.DRAFTED_TOKENS] < 0.3 else 0)
        if after[device.DRAFTED_TOKENS] > before[device.DRAFTED_TOKENS]:
            assert np.array_equal(before[steady], after[steady])
            changed |= before != after
            compared += 1
        before = after
    assert compared > 50
    moving = np.setdiff1d(np.arange(device.SIZE), steady)
    assert set(np.array(device.NAMES)[moving]) - set(np.array(device.NAMES)[changed]) <= {"boundaries_missed"}


def test_while_a_batch_is_composed_only_what_is_known_now_changes() -> None:
    env = gym.make("wisp_gym/Batching-v1", devices=24, visible=24, horizon_s=20.0, responses_join=False).unwrapped
    own, rng = ages(server.ENTRIES, entry.NOW, entry.MESSAGE), np.random.default_rng(0)
    each = ages(request.ENTRIES, entry.NOW)
    before, info = env.reset(seed=0)
    compared, over = 0, False
    while not over:
        after, _, _, over, more = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        if more["dt"] == 0.0 and not over:
            assert np.array_equal(before[own], after[own])
            b, a = (o[server.SIZE :].reshape(24, request.SIZE)[:, each] for o in (before, after))
            assert np.array_equal(b, a)
            compared += 1
        before, info = after, more
    assert compared > 50
