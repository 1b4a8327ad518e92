"""Files that are read as they were handed over, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.study.folder import read_study
from agents.study.suite import read_suite
from agents.training.run_folder import settings_of
from agents.wisp_study import calibration
from estimators.batch_time.fit import read as read_profile
from traces.record import read_prompts
from wisp_gym.cli import run
from wisp_gym.controllers.policy import load_policy
from wisp_gym.errors import InputError
from wisp_gym.files import DRAFT, STALE_S, csv_rows, holds_files, read_text, write_bytes, write_json, write_text
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.serving.estimator import VerificationTimeEstimator

ROOT = Path(__file__).resolve().parents[2]
BOM = b"\xef\xbb\xbf"
POLICY = ROOT / "wisp_gym" / "data" / "policies" / "speculation-v1.json"
READERS: dict[str, tuple[Path, Callable[[Path], Any]]] = {
    "policy.json": (POLICY, load_policy),
    "predictor.json": (next((ROOT / "wisp_gym" / "data" / "predictors").glob("*.json")), load_predictor),
    "coefficients.json": (
        ROOT / "wisp_gym" / "data" / "verification_time" / "a100-80gb--qwen3-32b.json", VerificationTimeEstimator.load,
    ),
    "profile.csv": (ROOT / "estimators" / "batch_time" / "data" / "profile-cpu-llama-21m.csv", read_profile),
    "suite.toml": (ROOT / "agents" / "study" / "suites" / "quick.toml", lambda path: read_suite(str(path))),
    "calibration.toml": (calibration.FILES["joint"], calibration.read),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_and_other_ends_of_lines_are_no_part_of_a_file(name: str, tmp_path: Path) -> None:
    source, read = READERS[name]
    (tmp_path / name).write_bytes(BOM + source.read_bytes().replace(b"\n", b"\r\n"))
    read(tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_text_of_another_encoding_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READERS[name][0].read_bytes().decode().encode("utf-16"))
    with pytest.raises(ValueError) as found:
        READERS[name][1](tmp_path / name)
    assert name in str(found.value)
    assert "\n" not in str(found.value)


def test_what_runs_and_recordings_are_made_of_may_have_a_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BOM + b'{"seed": 3}')
    (tmp_path / "study.json").write_bytes(BOM + b'{"format": 1, "suite": {}}')
    (tmp_path / "prompts.txt").write_bytes(BOM + "café\r\n".encode())
    assert settings_of(tmp_path) == {"seed": 3}
    assert read_study(tmp_path)["suite"] == {}
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts.txt")] == ["café"]


def test_a_reader_names_the_byte_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xff\n")
    for read in (read_text, csv_rows):
        with pytest.raises(InputError, match=r"a\.csv: byte 6 is no UTF-8 text"):
            read(tmp_path / "a.csv")


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_file_stays_when_the_new_one_cannot_be_written(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device") if error is OSError else error

    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr("wisp_gym.files.os.replace", broken)
    with pytest.raises(error):
        write_text(tmp_path / "a.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write_text(tmp_path / "a.json", "old")

    def main(_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            write_json(tmp_path / "a.json", list(range(1000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        assert run(main, "prog") == 2
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert capsys.readouterr().err == f"prog: {tmp_path / 'a.json'}: File too large\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "a.json")
    write_json(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real" / "a.json").read_text()) == 1


def test_a_file_is_as_private_as_its_owner_wants_all_files(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_drafts_of_killed_processes_count_for_nothing_and_go_in_the_end(tmp_path: Path) -> None:
    young, old = (tmp_path / f".a.json.{name}{DRAFT}" for name in ("0001", "0002"))
    for draft in (young, old):
        draft.touch()
    os.utime(old, (time.time() - 2 * STALE_S,) * 2)
    assert not holds_files(tmp_path)
    write_text(tmp_path / "a.json", "")
    assert holds_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, tmp_path / "a.json"]
