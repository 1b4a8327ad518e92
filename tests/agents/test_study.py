"""The study: suites, one budget for all, paired worlds, the same bytes after a kill, refused inputs, and what rows say."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.study import run as study
from agents.study.capacities import entrants
from agents.study.folder import STUDY, WORLDS, Worlds
from agents.study.play import Entrant, cell_bounds, kind
from agents.study.results import BEST_RULE, LADDER, WISP_TUNED, Results
from agents.study.rows import GOODPUT, METRICS, PER_CELL, TRAINING, TUNED
from agents.study.suite import ALL, WISP, chosen_controllers, described, read_suite, restored, suites
from tests.support.tiny import SUITE
from wisp_gym.cli import run
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation import capacities as capacity
from wisp_gym.evaluation.tuning import Family, families, family_name, tune
from wisp_gym.rules.catalogue import BATCHING, SPECULATION
from wisp_gym.scenario import dumps, load, with_
from wisp_gym.simulation import simulate


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE)
    return path


def call(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        return run(study.main, study.PROGRAM, [str(word) for word in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the tiny suite, run without interruption."""
    folder = tmp_path_factory.mktemp("played")
    (folder / "tiny.toml").write_text(SUITE)
    assert call("--suite", folder / "tiny.toml", "--out", folder / "study", f"--json={folder / 'rows.json'}") == 0
    return folder


@pytest.fixture(scope="module")
def rows(played: Path) -> list[dict[str, Any]]:
    """Those of test worlds."""
    return Results(json.loads((played / "rows.json").read_text())).worlds


# --- suites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suites())
def test_a_shipped_suite_is_what_the_protocol_asks_for(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    assert len(suite.test_seeds) >= 20
    assert not set(suite.train_seeds) & set(suite.test_seeds)
    assert set(WISP) <= set(suite.controllers)
    for cell in suite.cells:
        few = with_(cell.scenario, n_devices=min(cell.scenario.n_devices, 8))  # DiP-SD's plan for all takes a while
        for controller in suite.controllers:
            resolve(controller, few)


def test_the_full_suite_holds_every_group_and_rule() -> None:
    suite = read_suite("full")
    assert {cell.group for cell in suite.training} == {
        *("load", "slo", "jitter", "predictor", "gpu", "bursts", "prompts", "devices"),
    }
    held_out = {cell.scenario.server.name for cell in suite.cells if cell.held_out}
    assert held_out - {cell.scenario.server.name for cell in suite.training}, "a GPU that tuning never saw"
    words = {word.partition(":")[0] for name in suite.controllers for word in name.split("+")}
    assert words >= SPECULATION.keys() | BATCHING.keys() | {"centralized", "sled"}


def test_overrides_and_lists_of_populations(tiny: Path) -> None:
    suite = read_suite(str(tiny))
    assert [(cell.name, cell.group, cell.scenario.n_devices) for cell in suite.cells] == [
        *(("load-2", "load", 2), ("load-5", "load", 5), ("other", "other", 4)),
    ]
    other = suite.cells[2].scenario
    assert {device.link.jitter for device in other.devices} == {0.5}
    assert other.draft.statistics.auc == 0.9
    assert other.horizon.measure_s == 6.0
    assert suite.candidates == 120 // (2 * 12)
    assert restored(json.loads(json.dumps(described(suite)))) == suite


def test_all_stands_for_every_rule_once() -> None:
    names = chosen_controllers([ALL, "wisp", "sled"])
    assert len(set(names)) == len(names)
    assert names[:2] == WISP


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("held_out", "heldout", "cells[1]: unknown key 'heldout'; did you mean 'held_out'?"),
        ("world_seconds", "seconds", "tuning: unknown key 'seconds'; did you mean 'world_seconds'?"),
        ('"h100-qwen3-32b"', '"h100-qwen3"', "did you mean 'h100-qwen3-32b'?"),
        ('"0-2"', '"0-100"', "test_seeds: holds training seeds 100, allowed: other seeds"),
        ("120.0", "50.0", "tuning.world_seconds: given 50, enough for 2 settings"),
        ("statistics.auc", "statistics.acu", "unknown key 'acu'"),
        ("slo = [4, 8]", "slo = [4, -8]", "capacity.slo: given [4, -8], allowed: a list of speeds"),
        ("slo = [4, 8]", "slo = []", "capacity.slo: given [], allowed"),
        ('"0-1"', '"100-109"', "capacity.seeds: holds training seeds 100-101, allowed: other seeds"),
        ("max_devices", "max_device", "capacity: unknown key 'max_device'; did you mean 'max_devices'?"),
        ("fixed+fcfs", "fixt+fcfs", "unknown speculation controller 'fixt'; did you mean 'fixed'?"),
        ("held_out = true", "", ""),
    ],
)
def test_a_wrong_suite_is_one_line(
    tiny: Path, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(SUITE.replace(old, new))
    if not words:
        assert not [cell for cell in read_suite(str(tiny)).cells if cell.held_out]
        return
    assert call("--suite", tiny, "--out", tiny.parent / "study") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert not (tiny.parent / "study").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--suite", "quik"], "did you mean 'quick'?"),
        (["--siute", "quick"], "did you mean '--suite'?"),
        (["--resume", "nowhere"], "holds no study"),
        (["--resume", "nowhere", "--suite", "quick"], "argument --suite: not allowed with --resume"),
        (["--cells", "nowhere.toml"], "neither a preset nor a TOML file"),
        (["--also", "runs/nothing/policy.json"], "policy.json"),
    ],
)
def test_a_wrong_flag_is_one_line(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


# --- tuning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("wisp+wisp+overlap", "rule"),
        ("centralized:0+chunk", "centralized"),
        ("colocated:0", "centralized"),
        ("colocated:2,1+chunk", "colocated"),
        ("aligned+wisp+colocated:2,1+by-price", "mixed"),
        ("speculation-v1+wisp+by-load:8", "learned"),
        ("oracle+fcfs+overlap", "bound"),
    ],
)
def test_rows_say_what_kind_of_controller_they_are_of(name: str, found: str) -> None:
    cell = read_suite("quick").cells[0]
    assert kind(Entrant(name, "default", name, cell)) == found


def test_where_a_server_has_nothing_to_draft_with_such_rules_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite("quick")
    suite = replace(suite, controllers=chosen_controllers([ALL]))
    assert study.without_hosts(suite) == suite
    cell = suite.cells[0]
    bare = replace(suite, cells=(replace(cell, scenario=with_(cell.scenario, server_drafts=[])),))
    found = study.without_hosts(bare)
    assert "names no [[server_drafts]]" in capsys.readouterr().err
    assert not [name for name in found.controllers if "colocated" in name]
    study.check(found)


def test_families_share_what_is_searched() -> None:
    names = [
        "wisp+fcfs",
        "wisp:0.3+fcfs",
        "survival:0.5,8+edf",
        "survival+edf",
        "perfect+fcfs",
        "sled-plain",
        "centralized:0",
    ]
    found = {family.name: family.starts for family in families(names)}
    assert found == {
        "wisp+fcfs": ("wisp+fcfs", "wisp:0.3+fcfs"),
        "survival:*,8+edf": ("survival:0.5,8+edf",),
        "survival+edf": ("survival+edf",),
        "fixed+static": ("sled-plain",),
        "centralized": ("centralized:0",),
    }
    assert family_name("runs/mine+fcfs") == "runs/mine+fcfs"
    assert family_name("survival(h=0.5, k_max=8)+edf") == "survival:*,8+edf"  # settings by name are the same family


def test_positions_respect_scale_and_grid() -> None:
    (sled,) = families(["sled-plain"])  # k 0…12 whole; n 1…32 log, whole; timeout 0.005…0.5 log
    assert sled.spelled(np.array([0.0, 0.0, 0.0])) == "fixed:0+static:1,0.005"
    assert sled.spelled(np.array([0.5, 0.6, 0.5])) == "fixed:6+static:8,0.05"  # 32^0.6 = 8, √(0.005·0.5) = 0.05
    assert sled.spelled(np.array([1.0, 1.0, 1.0])) == "fixed:12+static:32,0.5"
    np.testing.assert_allclose(sled.position("fixed:6+static:8,0.05"), [0.5, 0.6, 0.5])
    assert np.isnan(sled.position("fixed:6+static:64,0.05")[1]), "beyond the range there is no position"
    (held,) = families(["survival:0.5,8+fcfs"])
    assert held.spelled(np.array([0.0])) == "survival:0.3,8+fcfs"
    (many,) = families(["survival:0.5,20000+fcfs"])
    assert many.position(many.spelled(np.array([1.0]))) == 1.0, "a large number's exponent has no plus sign"
    (wisp,) = families(["wisp+fcfs"])
    assert np.isnan(wisp.position("wisp+fcfs")).all(), "its published threshold depends on the scenario"


def test_the_search_finds_a_known_optimum_within_its_budget() -> None:
    cells = read_suite("quick").training[:2]
    best = {cells[0].name: 0.3, cells[1].name: 0.7}
    tried: dict[str, set[str]] = defaultdict(set)

    def evaluate(jobs: Any) -> dict[tuple[str, str], float]:
        scores = {}
        for name, cell in jobs:
            tried[cell.name].add(name)
            x = float(name.partition(":")[2].partition("+")[0] or 0.05)
            scores[name, cell.name] = -((x - best[cell.name]) ** 2)
        return scores

    found = tune(families(["confidence+fcfs"]), cells, 36, evaluate)["confidence+fcfs"]
    value = {name: float(text.partition(":")[2].partition("+")[0]) for name, text in found.per_cell.items()}
    assert abs(float(found.everywhere.partition(":")[2].partition("+")[0]) - 0.5) < 0.03
    assert all(abs(value[name] - best[name]) < 0.03 for name in best)
    assert all(len(names) <= 36 for names in tried.values())
    assert all("confidence+fcfs" in names for names in tried.values())


def test_tuning_never_falls_behind_where_it_looked(rows: list[dict[str, Any]]) -> None:
    of = {(row["controller"], row["tuning"], row["cell"]): row[TRAINING] for row in rows}
    for (controller, tuning, cell), score in of.items():
        if tuning == PER_CELL:
            assert score >= of[controller, TUNED, cell]
        family = next((name for name, t, _ in of if t == TUNED and name == family_name(controller)), None)
        if tuning == "default" and family:
            cells = {c for name, t, c in of if name == family and t == PER_CELL}
            total = {t: sum(of[name, t, c] for c in cells) for name, t in ((family, TUNED), (controller, "default"))}
            assert total[TUNED] >= total["default"]


# --- the study -------------------------------------------------------------------------------------------------------


def test_rows_are_one_for_each_controller_cell_and_world(rows: list[dict[str, Any]], played: Path) -> None:
    suite = read_suite(str(played / "tiny.toml"))
    keys = [(row["controller"], row["tuning"], row["cell"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys)
    tunable = len(families(suite.controllers))
    assert len(rows) == 3 * (len(suite.controllers) * 3 + tunable * (3 + 2))
    assert not [row for row in rows if row["held_out"] and row["tuning"] == PER_CELL]
    assert {row["kind"] for row in rows} == {"rule", "bound"}


def test_capacities_are_those_of_the_command(played: Path, tmp_path: Path) -> None:
    suite, found = read_suite(str(played / "tiny.toml")), Results(json.loads((played / "rows.json").read_text()))
    assert suite.capacity is not None
    assert [(row["slo_tokens_per_s"], row["rung"]) for row in found.capacities] == [
        (speed, rung)
        for speed in (4.0, 8.0)
        for rung in ("SLED", "centralized", "centralized:0", WISP_TUNED, BEST_RULE)
    ]
    assert {row["starved_limit"] for row in found.capacities} == {0.1}
    row = next(row for row in found.capacities if row["rung"] == WISP_TUNED)
    (tmp_path / "same.toml").write_text(dumps(suite.capacity.scenario))
    flags = [
        "--scenario",
        str(tmp_path / "same.toml"),
        "--slo",
        "4",
        "--seeds",
        "2",
        "--max-devices",
        "6",
        "--starved",
        "0.1",
    ]
    words = [*flags, "--controllers", row["controller"], "--json", str(tmp_path / "a.json")]
    assert run(capacity.main, capacity.PROGRAM, words) == 0
    (again,) = json.loads((tmp_path / "a.json").read_text())
    assert {key: row[key] for key in again} == again
    assert "Capacity of wisp-a100-qwen3-32b" in (played / "study" / "tables.txt").read_text()


def test_csv_holds_worlds_alone(played: Path, tmp_path: Path) -> None:
    assert call("--resume", played / "study", f"--csv={tmp_path / 'rows.csv'}") == 0
    with (tmp_path / "rows.csv").open() as file:
        tables = {row["table"] for row in csv.DictReader(file)}
    assert tables == {"worlds"}


def test_the_setting_for_capacity_is_the_best_in_training() -> None:
    rows = made_rows({"wisp+wisp": [10.0], "wisp+fcfs": [30.0]}, training=2.0)
    tuned = [row | {"tuning": TUNED, "setting": f"{row['controller']}:{i}"} for i, row in enumerate(rows)]
    tuned[1][TRAINING] = 1.0
    assert entrants(Results(tuned))[WISP_TUNED] == "wisp+wisp:0"
    assert entrants(Results([row | {"held_out": True} for row in tuned])).keys() == {
        *("SLED", "centralized", "centralized:0"),
    }


def test_worlds_are_paired(rows: list[dict[str, Any]], played: Path) -> None:
    suite = read_suite(str(played / "tiny.toml"))
    cell = next(cell for cell in suite.cells if cell.name == "load-5")
    for controller, tuning in (("wisp+fcfs", "default"), ("fixed+fcfs", TUNED)):
        own = [r for r in rows if (r["controller"], r["tuning"], r["cell"]) == (controller, tuning, cell.name)]
        again = simulate(cell.scenario, own[0]["setting"], suite.test_seeds)
        assert [row["seed"] for row in own] == list(suite.test_seeds)
        assert [row[GOODPUT] for row in own] == [world.goodput_tokens_per_s for world in again]
    # closed loop: how many ask at first depends on the world alone, so every controller meets the same first requests
    first = [simulate(cell.scenario, name, (0, 1)) for name in ("oracle+fcfs", "fixed:0+fcfs")]
    assert [world.requests > 0 for world in first[0]] == [world.requests > 0 for world in first[1]]


def test_the_same_command_gives_the_same_bytes(
    played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--suite", played / "tiny.toml", "--out", tmp_path / "again") == 0
    assert files(tmp_path / "again") == files(played / "study")
    assert capsys.readouterr().out.replace(str(tmp_path / "again"), "") in (
        (played / "study" / "tables.txt").read_text() + "\nin \n"
    )


@pytest.mark.parametrize("chunks", [0, 7, 40, 75])
def test_a_killed_study_goes_on_to_the_same_bytes(
    played: Path, tmp_path: Path, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, add = tmp_path / "killed", Worlds.add

    def dies(self: Worlds, key: tuple[str, ...], values: list[Any]) -> None:
        if len(self.known) >= chunks:
            self.file.write(b'[["train", "half a li')
            raise KeyboardInterrupt
        add(self, key, values)

    monkeypatch.setattr(Worlds, "add", dies)
    assert call("--suite", played / "tiny.toml", "--out", folder) == 130
    monkeypatch.undo()
    assert len((folder / WORLDS).read_bytes().splitlines()) == chunks + 1
    assert call("--resume", folder) == 0
    assert files(folder) == files(played / "study")


def test_a_folder_of_another_study_is_left_alone(
    played: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for name, content in files(played / "study").items():
        (folder / name).write_bytes(content)
    tiny.write_text(SUITE.replace('"0-2"', '"0-3"'))
    before = files(folder)
    assert call("--suite", tiny, "--out", folder) == 2
    assert "holds another study: its suite.test_seeds differs (0-2 there, 0-3 here)" in capsys.readouterr().err
    older = json.loads((folder / STUDY).read_text()) | {"version": "0.0.1"}
    (folder / STUDY).write_text(json.dumps(older))
    assert call("--resume", folder) == 2
    assert "its version differs (0.0.1 there" in capsys.readouterr().err
    (folder / STUDY).unlink()
    assert call("--suite", played / "tiny.toml", "--out", folder) == 2
    assert "holds no study" in capsys.readouterr().err
    assert {name: before[name] for name in before if name != STUDY} == files(folder)


def test_a_case_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    horizon = "[horizon]\nwarmup_s = 1.0\nmeasure_s = 4.0\ndrain_s = 2.0\n"
    Path("mine.toml").write_text(f'use = "wisp-a100-qwen3-32b"\nname = "mine"\nn_devices = 2\n{horizon}')
    Path("tiny.toml").write_text(SUITE)
    assert call("--suite", "tiny.toml", "--cells", "mine.toml", "--controllers", "fixed+fcfs", "--csv=rows.csv") == 0
    assert "own: 1 training and 0 held-out cells" in capsys.readouterr().out
    with Path("rows.csv").open() as file:
        assert {row["cell"] for row in csv.DictReader(file)} == {"mine-2"}
    assert len(list(Path("runs").iterdir())) == 1


# --- what rows say ---------------------------------------------------------------------------------------------------


def made_rows(levels: dict[str, list[float]], kind: str = "rule", training: float = 1.0) -> list[dict[str, Any]]:
    """Rows of one cell: controller → goodput of each world, all tuned per cell."""
    plain = {"cell": "a", "group": "g", "held_out": False, "devices": 1, "classes": [], TRAINING: training}
    return [
        {**dict.fromkeys(METRICS, 0.5), **plain, "controller": name, "setting": name, "kind": kind}
        | {"tuning": PER_CELL, "seed": seed, GOODPUT: value}
        for name, values in levels.items()
        for seed, value in enumerate(values)
    ]


def test_choices_are_made_in_training_and_shown_in_test() -> None:
    rows = made_rows({"wisp+wisp": [10.0, 10.0]}, training=2.0) + made_rows({"wisp+fcfs": [20.0, 30.0]}, training=1.0)
    results = Results(rows)
    assert results.ladders["a"][WISP_TUNED]["setting"] == "wisp+wisp"
    of = {row["controller"]: row for row in results.aggregates(held_out=False)}
    assert of[WISP_TUNED]["iqm"] == 1.0
    assert of["wisp+fcfs"]["iqm"] == 2.5  # 25 of 10 tokens/s
    assert of["wisp+fcfs"]["difference"] == 1.5
    assert of["wisp+fcfs"]["improvement"] == 1.0


def test_the_ladder_climbs_in_the_tiny_study(rows: list[dict[str, Any]]) -> None:
    for rungs in Results(rows).ladders.values():
        assert set(rungs) <= set(LADDER)
        assert rungs["oracle"][GOODPUT] >= rungs[WISP_TUNED][GOODPUT]


def test_bounds_stand_in_the_rows_but_where_the_window_has_no_warm_up() -> None:
    found = cell_bounds(load("wisp-a100-qwen3-32b"))
    assert len(found) == 4
    assert all(key.startswith("bound_") and value > 0.0 for key, value in found.items())
    burst = cell_bounds(with_(load("wisp-a100-qwen3-32b"), **{"horizon.warmup_s": 0.0}))
    assert burst == dict.fromkeys(found)


def test_a_family_is_named_by_its_rules() -> None:
    (family,) = families(["wisp"])
    assert isinstance(family, Family)
    assert family.name == "wisp+wisp"


@pytest.mark.parametrize("line", [b'{"bro\n', b"3\n", b"\0\0\0\0\n", b"[]\n"])
def test_a_damaged_line_of_worlds_is_one_line(
    line: bytes, played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(played / "study", tmp_path / "study"))
    before = (folder / "worlds.jsonl").read_bytes()
    (folder / "worlds.jsonl").write_bytes(before + line + before)
    assert call("--resume", folder) == 2
    err = capsys.readouterr().err
    number = before.count(b"\n") + 1
    assert f"line {number} is damaged; allowed is to remove it" in err
    assert err.count("\n") == 1
    assert (folder / "worlds.jsonl").read_bytes() == before + line + before


def test_a_draft_of_a_killed_start_does_not_stop_a_study(played: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / ".study.json.0123abcd.draft").write_text("{")
    assert call("--suite", played / "tiny.toml", "--out", tmp_path / "study") == 0
    assert (tmp_path / "study" / "rows.json").read_bytes() == (played / "study" / "rows.json").read_bytes()
