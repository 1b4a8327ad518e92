"""The board: rows that come out byte for byte, and what is said of those that do not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wisp_gym.__main__ import main
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation.leaderboard import provenance
from wisp_gym.evaluation.leaderboard.checking import check
from wisp_gym.evaluation.leaderboard.measured import measured
from wisp_gym.evaluation.leaderboard.ranking import ranked
from wisp_gym.evaluation.leaderboard.rows import BoardRow, Written, put, read_rows, shipped_rows
from wisp_gym.evaluation.leaderboard.suite import FOLDER, LATEST, Suite, find_suite, shipped
from wisp_gym.evaluation.leaderboard.tables import markdown
from wisp_gym.evaluation.odd import oddities
from wisp_gym.evaluation.own.named import is_own
from wisp_gym.evaluation.pool import Job
from wisp_gym.files import write_text
from wisp_gym.rules.catalogue import BATCHING, CENTRALIZED, COLOCATED, SPECULATION
from wisp_gym.scenario import load, save, with_

ROOT = Path(__file__).resolve().parents[2]
# A suite is frozen: whoever changes a file of one makes a new one instead.
DIGESTS = {"v1": "ca310234f708ef196744f63a50a410503a5a1f3d222e622e2c616cafaeab7eab"}
RULE = (
    "class Short:\n    def predict(self, observation):\n        return (observation[:, 0] < 0.15).astype(int), None\n"
)


class OneByOne:
    """A pool without threads that runs jobs from the last to the first."""

    def map(self, function, jobs: list[Job]):
        return iter([function(*job) for job in reversed(list(jobs))][::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two small cells."""
    path = tmp_path_factory.mktemp("suite")
    short = {"horizon.warmup_s": 2.0, "horizon.measure_s": 8.0, "horizon.drain_s": 10.0}
    for name, devices in (("few", 3), ("more", 6)):
        save(with_(load("wisp-a100-qwen3-32b"), n_devices=devices, name=name, **short), path / f"{name}.toml")
    (path / "suite.toml").write_text(
        'name = "small"\ndescription = "two"\nseeds = "5,7"\nreference = "wisp"\ncells = ["few", "more"]\nmetrics = '
        '["goodput_tokens_per_s", "slo_attainment", "starved_share", "joules_per_1k_tokens"]\n')  # fmt: skip
    return path


@pytest.fixture(scope="module")
def small(folder: Path) -> Suite:
    return find_suite(str(folder))


@pytest.fixture(scope="module")
def row(small: Suite) -> BoardRow:
    return measured("wisp", small)


def written(row: BoardRow) -> Written:
    return Written(row, row.line(), "rows.jsonl:1")


# --- a row -----------------------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_how_its_worlds_run(small: Suite, row: BoardRow) -> None:
    assert measured("wisp", small, OneByOne()).line() == row.line()
    assert row.seeds == "5,7"
    assert list(row.figures) == ["few", "more"]
    assert all(len(values) == 2 for cell in row.figures.values() for values in cell.values())


def test_every_figure_survives_the_file(tmp_path: Path, row: BoardRow) -> None:
    assert put(tmp_path / "rows.jsonl", row) == "added"
    assert put(tmp_path / "rows.jsonl", row) == "unchanged"
    (found,) = read_rows(tmp_path / "rows.jsonl")
    assert (found.row, found.line) == (row, row.line())
    newer = replace(row, versions={**row.versions, "numba": "9"})
    assert put(tmp_path / "rows.jsonl", newer) == "replaced"
    assert put(tmp_path / "rows.jsonl", replace(row, controller="sled")) == "added"
    assert [one.row.controller for one in read_rows(tmp_path / "rows.jsonl")] == ["wisp", "sled"]


def test_a_row_says_of_what_it_is(row: BoardRow) -> None:
    assert row.digests == {}
    assert row.versions["engine"] == provenance.engine_digest()
    assert {"wisp_gym", "python", "numpy", "numba", "llvmlite", "libc", "machine", "cpu"} <= row.versions.keys()
    assert set(provenance.digests("speculation-v1+joint-v1+admit")) == {"speculation-v1", "joint-v1"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "no JSON"),
        ("[1]", "allowed is an object of suite, suite_digest"),
        ('{"suite": "small"}', "allowed is an object of suite, suite_digest"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=words) as error:
        read_rows(tmp_path / "rows.jsonl")
    assert "rows.jsonl:2: " in str(error.value)


def test_figures_that_are_no_numbers_are_named(tmp_path: Path, row: BoardRow) -> None:
    told = json.loads(row.line()) | {"figures": {"few": {"goodput_tokens_per_s": ["1.0", 2.0]}}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(told) + "\n")
    with pytest.raises(InputError, match="a list of numbers"):
        read_rows(tmp_path / "rows.jsonl")


# --- whether it holds ------------------------------------------------------------------------------------------------


def test_a_row_that_comes_out_again_holds(small: Suite, row: BoardRow) -> None:
    verdict = check(written(row), small, own_code=False)
    assert (verdict.holds, verdict.words) == (True, "the same bytes")


def test_a_tampered_figure_is_found_to_its_last_digit(small: Suite, row: BoardRow) -> None:
    goodput = row.figures["more"]["goodput_tokens_per_s"]
    better = np.nextafter(goodput[1], np.inf).item()
    told = {**row.figures, "more": {**row.figures["more"], "goodput_tokens_per_s": [goodput[0], better]}}
    verdict = check(written(replace(row, figures=told)), small, own_code=False)
    assert not verdict.holds
    assert verdict.words == (
        f"not what comes out: goodput_tokens_per_s of more, world 2, is given as {better!r} and comes out as {goodput[1]!r}"
    )


@pytest.mark.parametrize("change", [{"controller": "sled"}, {"seeds": "5,8"}])
def test_figures_of_another_row_do_not_hold(small: Suite, row: BoardRow, change: dict[str, str]) -> None:
    assert not check(written(replace(row, **change)), small, own_code=False).holds


def test_a_line_that_is_written_differently_does_not_hold(small: Suite, row: BoardRow) -> None:
    verdict = check(Written(row, row.line().replace(", ", ","), "rows.jsonl:1"), small, own_code=False)
    assert (verdict.holds, verdict.words.endswith("the line is written differently")) == (False, True)


def test_a_row_of_another_version_says_so_and_holds_by_its_figures(small: Suite, row: BoardRow) -> None:
    older = replace(row, versions={**row.versions, "engine": "0123456789abcdef"})
    verdict = check(written(older), small, own_code=False)
    assert verdict.holds
    assert verdict.words == f"the same bytes, with other versions: engine 0123456789abcdef → {row.versions['engine']}"
    cell = {**row.figures["few"], "slo_attainment": [0.5, 0.25]}
    verdict = check(written(replace(older, figures={**row.figures, "few": cell})), small, own_code=False)
    assert not verdict.holds
    assert "made with other versions: engine 0123456789abcdef" in verdict.words


def test_a_changed_suite_is_another_suite(folder: Path, tmp_path: Path, row: BoardRow) -> None:
    changed = tmp_path / "suite"
    shutil.copytree(folder, changed)
    text = (changed / "few.toml").read_text()
    (changed / "few.toml").write_text(text.replace("think_s = 2.0", "think_s = 1.0"))
    verdict = check(written(row), find_suite(str(changed)), own_code=False)
    assert not verdict.holds
    assert verdict.words.startswith(f"another suite: 'small', digest {row.suite_digest[:12]}; this is 'small', digest ")


def test_a_controller_that_there_is_not_does_not_run(small: Suite, row: BoardRow) -> None:
    verdict = check(written(replace(row, controller="wsip+fcfs")), small, own_code=False)
    assert not verdict.holds
    assert verdict.words.startswith("does not run: unknown speculation controller 'wsip'; did you mean 'wisp'?")


# --- controllers of one's own ----------------------------------------------------------------------------------------


@pytest.fixture
def own_row(small: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoardRow:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "board_rule", raising=False)  # another test's
    (tmp_path / "board_rule.py").write_text(RULE)
    return measured("board_rule:Short+fcfs", small)


def test_a_row_of_own_code_carries_its_digest_and_runs_when_allowed(small: Suite, own_row: BoardRow) -> None:
    assert own_row.digests.keys() == {"board_rule:Short"}
    refused = check(written(own_row), small, own_code=False)
    assert (refused.holds, "--own-code runs it" in refused.words) == (False, True)
    assert check(written(own_row), small, own_code=True).words == "the same bytes"


def test_own_code_that_changed_or_is_gone_is_named(small: Suite, own_row: BoardRow) -> None:
    Path("board_rule.py").write_text(RULE + "# changed\n")
    verdict = check(written(own_row), small, own_code=True)
    assert not verdict.holds
    assert verdict.words.startswith("another controller: the bytes of board_rule:Short are not those")
    gone = replace(own_row, controller="board_nowhere:Short+fcfs")
    verdict = check(written(gone), small, own_code=True)
    assert verdict.words == "cannot be found: module 'board_nowhere' is not found from here"


def test_an_onnx_file_carries_its_digest_and_needs_no_permission(small: Suite, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "wisp_gym" / "data" / "bundles" / "speculation-wisp.onnx", "mine.onnx")
    row = measured("mine.onnx+fcfs", small)
    assert row.digests.keys() == {"mine.onnx"}
    assert check(written(row), small, own_code=False).words == "the same bytes"
    Path("mine.onnx").unlink()
    assert check(written(row), small, own_code=False).words == "cannot be found: mine.onnx: no such file"


# --- suites and what is shipped --------------------------------------------------------------------------------------


def test_shipped_suites_are_frozen_and_none_of_their_worlds_is_odd() -> None:
    assert {name: find_suite(name).digest for name in shipped()} == DIGESTS
    assert max(shipped()) == LATEST
    for scenario in find_suite(LATEST).scenarios.values():
        assert not oddities(scenario)


def test_a_wrong_suite_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: v1, or a folder"):
        find_suite("v0")
    for old, new, words in (
        ('"slo_attainment"', '"slo_attainement"', "did you mean 'slo_attainment'"),
        ('seeds = "5,7"', "seeds = 5", "seeds given 5, allowed is text"),
        ("description", "descripton", "did you mean 'description'"),
    ):
        wrong = tmp_path / new.strip('"')
        shutil.copytree(folder, wrong)
        (wrong / "suite.toml").write_text((folder / "suite.toml").read_text().replace(old, new))
        with pytest.raises(InputError, match=words):
            find_suite(str(wrong))


def test_the_first_rows_are_ours_and_all_rules() -> None:
    names = [one.row.controller for one in read_rows(shipped_rows(LATEST))]
    assert len(set(names)) == len(names)
    for rule in SPECULATION:
        assert any(name.startswith((f"{rule}+", f"{rule}:")) or name == rule for name in names), rule
    for rule in (BATCHING.keys() - {"pipelined"}) | CENTRALIZED.keys() | COLOCATED.keys():
        assert any(rule == half.partition(":")[0] for name in names for half in name.split("+")) or rule == "wisp", rule
    for policy in ("speculation-v1", "batching-v1", "joint-v1"):
        assert any(policy in name for name in names)
    scenario = find_suite(LATEST).scenarios["a100-16"]
    for name in names:
        assert not any(map(is_own, name.split("+")))
        resolve(name, scenario)


def test_shipped_rows_are_of_the_shipped_suite_and_their_digests_hold() -> None:
    suite = find_suite(LATEST)
    for one in read_rows(shipped_rows(LATEST)):
        assert one.row.suite_digest == suite.digest
        assert one.line == one.row.line()
        assert one.row.digests == provenance.digests(one.row.controller)
        assert {cell: list(each) for cell, each in one.row.figures.items()} == {
            cell: list(suite.metrics) for cell in suite.scenarios
        }


def test_shipped_rows_hold_in_one_cell() -> None:
    """All cells of all rows: `wisp-gym leaderboard verify`, a quarter of an hour."""
    suite = find_suite(LATEST)
    one_cell = replace(suite, scenarios={"a100-16": suite.scenarios["a100-16"]})
    for one in read_rows(shipped_rows(LATEST)):
        if one.row.controller in ("wisp", "speculation-v1+aged+chunk:96,0.2+admit", "colocated:2"):
            assert measured(one.row.controller, one_cell).figures == {"a100-16": one.row.figures["a100-16"]}


def test_the_page_is_made_from_the_rows() -> None:
    suite = find_suite(LATEST)
    board = markdown(ranked([one.row for one in read_rows(shipped_rows(LATEST))], suite), suite)
    assert board in (ROOT / "docs" / "results" / "leaderboard.md").read_text(encoding="utf-8")


# --- order -----------------------------------------------------------------------------------------------------------


def test_scores_are_goodput_over_the_references_and_bounds_have_no_place(small: Suite, row: BoardRow) -> None:
    def scaled(name: str, factor: float) -> BoardRow:
        figures = {cell: {**each, "goodput_tokens_per_s": [value * factor for value in each["goodput_tokens_per_s"]]}
                   for cell, each in row.figures.items()}  # fmt: skip
        return replace(row, controller=name, figures=figures)

    board = ranked([row, scaled("sled", 0.5), scaled("oracle+fcfs", 2.0), scaled("aligned+fcfs", 1.25)], small)
    assert [(one.row.controller, one.place) for one in board] == [
        ("oracle+fcfs", None), ("aligned+fcfs", 1), ("wisp", 2), ("sled", 3)
    ]  # fmt: skip
    reference = next(one for one in board if one.row.controller == "wisp")
    for one, factor in zip(board, (2.0, 1.25, 1.0, 0.5), strict=True):
        assert one.score == pytest.approx(factor * reference.score)
        assert one.low <= one.score <= one.high
    goodput = np.array([row.figures[cell]["goodput_tokens_per_s"] for cell in small.scenarios]).T
    middle = np.sort((goodput / goodput.mean(axis=0)).ravel())[1:3]
    assert reference.score == pytest.approx(middle.mean())


def test_without_the_reference_there_is_no_score(small: Suite, row: BoardRow) -> None:
    with pytest.raises(InputError, match="wisp-gym leaderboard run wisp"):
        ranked([replace(row, controller="sled")], small)


# --- commands --------------------------------------------------------------------------------------------------------


def test_run_verify_show(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = ["--suite", str(folder)]
    assert main(["leaderboard", "run", "wisp,fixed:2+fcfs", *suite]) == 0
    assert capsys.readouterr().out == "wisp: added\nfixed:2+fcfs: added\n"
    rows = ["--file", "leaderboard.jsonl", *suite]
    assert main(["leaderboard", "verify", *rows]) == 0
    assert capsys.readouterr().out == "wisp: the same bytes\nfixed:2+fcfs: the same bytes\n2 of 2 rows hold\n"
    assert main(["leaderboard", "show", *rows]) == 0
    assert capsys.readouterr().out.count("fixed:2+fcfs") == 2
    text = Path("leaderboard.jsonl").read_text()
    write_text("leaderboard.jsonl", text.replace('"fixed:2+fcfs"', '"fixed:3+fcfs"'))
    assert main(["leaderboard", "verify", *rows, "--controllers", "fixed:3+fcfs"]) == 1
    assert "1 rows hold" in capsys.readouterr().out
    assert main(["leaderboard", "run", "wsip", *suite]) == 2
    assert "did you mean 'wisp'" in capsys.readouterr().err


def test_rows_of_ones_own_are_shown_among_the_shipped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = read_rows(shipped_rows(LATEST))[0].row
    put(tmp_path / "mine.jsonl", replace(first, controller="mine:Rule+fcfs", digests={"mine:Rule": "ab" * 32}))
    assert main(["leaderboard", "show", "--file", str(tmp_path / "mine.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "mine:Rule+fcfs (abababab)" in out
    assert "speculation-v1" in out
    assert (FOLDER / "v1.jsonl").is_file()
