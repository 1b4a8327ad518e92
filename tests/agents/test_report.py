"""A study's report: one file that needs nothing else, the same bytes every time, and tables that hold what the rows hold."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agents.study import report
from agents.study import run as study
from agents.study.folder import ROWS
from agents.study.results import LADDER, Results
from agents.study.rows import GOODPUT
from wisp_gym.cli import run

SUITE = """
name = "tiny"
controllers = ["sled", "fixed+fcfs", "oracle+fcfs"]
train_seeds = "100,"
test_seeds = "0-2"
[horizon]
warmup_s = 1.0
measure_s = 8.0
drain_s = 5.0
[tuning]
world_seconds = 42.0
[capacity]
scenario = "wisp-a100-qwen3-32b"
slo = [2, 8]
seeds = "0-2"
max_devices = 8
[[cells]]
name = "devices"
group = "load"
scenario = "wisp-a100-qwen3-32b"
devices = [4, 8]
[[cells]]
name = "<held & out>"
scenario = "h100-qwen3-32b"
devices = 6
held_out = true
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def call(folder: Path) -> int:
    """Exit code of the command."""
    return run(report.main, report.PROGRAM, [str(folder)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report."""
    place = tmp_path_factory.mktemp("report")
    (place / "tiny.toml").write_text(SUITE)
    arguments = ["--suite", str(place / "tiny.toml"), "--out", str(place / "study")]
    assert run(study.main, study.PROGRAM, arguments) == 0
    assert call(place / "study") == 0
    return place / "study"


class Tags(HTMLParser):
    """Counts elements and checks that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.seen.count("figure") == 6
    assert tags.seen.count("table") == 9
    assert not {"script", "link", "img", "iframe"} & set(tags.seen)
    assert not re.search(r"(src|href)=\"(?!#)", page), "only places within the page"
    assert not re.search(r"url\((?!#)|@import|<style[^>]*src", page), "styles fetch nothing"
    assert "&lt;held &amp; out&gt;" in page
    assert "<held" not in page


def test_the_page_says_who_wins_and_who_loses(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "Most goodput of 3 cells" in page
    assert "Behind tuned WISP" in page


def test_the_same_study_gives_the_same_report(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call(folder) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_tables_hold_what_the_rows_hold(folder: Path) -> None:
    results = Results(json.loads((folder / ROWS).read_text()))
    with (folder / "ladder.csv").open() as file:
        shown = {(row["cell"], row["rung"]): row for row in csv.DictReader(file)}
    for name, rungs in results.ladders.items():
        for rung, row in rungs.items():
            assert shown[name, rung]["goodput, tokens/s"] == f"{row[GOODPUT]:,.1f}"
    for path in folder.glob("*.csv"):
        with path.open() as file:
            lines = list(csv.reader(file))
        markdown = (folder / f"{path.stem}.md").read_text().splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len(markdown) == 2 + len(lines) + 1
    titles = {title for _, title in shown if not title.startswith("bound: ")}
    assert titles <= LADDER.keys()


@pytest.mark.parametrize("content", [None, "{", "[]", '[{"a": 1}]'])
def test_a_folder_without_a_finished_study_is_one_line(
    content: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "study.json", tmp_path)
    if content is not None:
        (tmp_path / ROWS).write_text(content)
    before = sorted(tmp_path.iterdir())
    assert call(tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert ROWS in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_study_of_another_version_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = json.loads((folder / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(there | {"version": "0.0.1"}))
    shutil.copy(folder / ROWS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert call(tmp_path) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"a study of wisp-gym 0.0.1; allowed is one of {there['version']}" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_browser_draws_it(folder: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium")
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"file://{folder / 'report.html'}"
    command = [browser, *flags, "--window-size=1200,900", f"--screenshot={picture}", page]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if not picture.exists():
        pytest.skip(f"Chromium does not run here: {done.stderr[-200:]!r}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000, "a blank page is smaller"
