"""Step times of an engine that drafts for itself, fitted: coefficients found again, errors that are the noise, wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from estimators.batch_time import steps
from wisp_gym import cli
from wisp_gym.scenario import load
from wisp_gym.serving.tables.steps import modelled, read

SCENARIO = load("wisp-a100-qwen3-32b")
TRUE = modelled(SCENARIO, SCENARIO.server_drafts[0])
GRID = [(b, k, c) for b in (1, 2, 4, 8, 16, 32, 64, 128) for k in (0, 1, 2, 4, 7) for c in (128, 512, 2048)]


def written(path: Path, noise: float = 0.0, grid: list[tuple[int, int, int]] = GRID) -> Path:
    """A CSV of steps of the scenario's server."""
    rng = np.random.default_rng(0)
    lines = ["# measured by nobody", "batch,k,context,seconds,engine"]
    for batch, k, context in grid:
        seconds = float(TRUE.seconds(np.float64(batch), np.float64(k), float(context)))
        lines.append(f"{batch},{k},{context},{seconds * np.exp(noise * rng.standard_normal()):.9f},none")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_steps_without_noise_are_met(tmp_path: Path) -> None:
    found = steps.study(written(tmp_path / "steps.csv"))
    batch, k = np.array([[3.0], [24.0], [100.0]]), np.array([0.0, 3.0, 6.0])
    for context in (200.0, 1000.0):
        np.testing.assert_allclose(found.time.seconds(batch, k, context), TRUE.seconds(batch, k, context), rtol=0.01)
    assert found.held_out_error_percent < 0.5
    assert (found.batch, found.k, found.context) == ((1.0, 128.0), (0.0, 7.0), (128.0, 2048.0))


def test_the_regressions_own_prediction_is_the_tables_formula(tmp_path: Path) -> None:
    measured, profile = steps.profile_of(written(tmp_path / "steps.csv", 0.05))
    model = steps.fitted(profile.X, profile.seconds)
    np.testing.assert_allclose(steps.step_time(model).seconds(*measured.T), model.predict(profile.X), rtol=1e-9)


def test_the_command_says_how_far_off_it_is_on_steps_that_the_fit_has_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SPLITS", 5)
    file = written(tmp_path / "steps.csv", 0.05)
    assert cli.run(steps.main, "program", [str(file), "-o", str(tmp_path / "steps.json")]) == 0
    found = read(tmp_path / "steps.json")
    assert found == steps.study(file)
    assert found.held_out_error_percent == pytest.approx(100 * 0.05 * np.sqrt(2 / np.pi), rel=0.25)  # the noise's own
    assert "120 configurations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("context", "ctx"), "no column 'context', or no rows; needed: batch, k, context, seconds"),
        (lambda text: text.replace("1,0,128,", "1.5,0,128,", 1), "line 3: batch given '1.5', allowed is a whole number from 1 to 4096"),
        (lambda text: text.replace("1,0,128,", "1,-1,128,", 1), "line 3: k given '-1', allowed is a whole number from 0 to 64"),
        (lambda text: text.replace("1,0,128,", "1,0,inf,", 1), "line 3: context given 'inf'"),
        (lambda text: text.replace("1,0,128,0", "1,0,128,-0", 1), "allowed is a number above 0, up to 3600"),
        (lambda text: "\n".join(text.splitlines()[:20]), "18 configurations, allowed are at least 20"),
        (lambda text: "\n".join(line for line in text.splitlines() if ",0," not in line), "k is 1 to 7, allowed is from 0"),
        (lambda text: "", "no column 'batch', or no rows"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(change, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "steps.csv")
    file.write_text(change(file.read_text()))
    assert cli.run(steps.main, "program", [str(file), "-o", str(tmp_path / "steps.json")]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "steps.json").exists()


def test_one_batch_size_tells_nothing_of_others(tmp_path: Path) -> None:
    grid = [(4, k, c) for k in range(5) for c in (100, 200, 300, 400, 500)]
    with pytest.raises(steps.InputError, match="batch is always 4, allowed are at least two sizes"):
        steps.study(written(tmp_path / "steps.csv", grid=grid))
