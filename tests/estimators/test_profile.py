"""The profile of batch times and what follows from it: grid, resuming, ceilings, power, fits, presets, one command."""

from __future__ import annotations

import csv
import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from estimators.acceptance import trace_report
from estimators.batch_time import profiles as fit_profile
from estimators.profiling import batches as profile
from estimators.profiling import gpu as measure_gpu
from estimators.profiling.grid import Batch, Limits, equal, grid
from estimators.profiling.power import PowerLog
from estimators.profiling.shapes import SHAPES
from estimators.profiling.timing import Ceilings, timed
from wisp_gym import cli, files
from wisp_gym import scenario as scenarios
from wisp_gym.cli import OUT_OF_TIME as TRACES_OUT_OF_TIME

SMALL = ["--shape", "tiny", "--requests", "4", "--new", "4", "--prompt", "64", "--cached", "128", "--room", "600",
         "--count", "24", "--repeats", "2", "--seconds", "0", "--threads", "1"]  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


# --- the grid ---


@pytest.mark.parametrize("room", [36_864, 270_000, 900_000])
def test_grid_has_over_300_batches_that_fit_and_cover_the_range(room):
    limits = Limits(room_tokens=room)
    batches = grid(limits, 360, seed=0)
    assert len({batch.name for batch in batches}) == len(batches) == 360
    assert all(batch.fits(limits) for batch in batches)
    assert {batch.kind for batch in batches} == {"equal", "prompt", "mixed"}
    assert {1, 256} <= {len(batch.new) for batch in batches}
    assert max(max(batch.new) for batch in batches) == 4096
    assert max(max(batch.cached) for batch in batches) == 8192
    assert all(batch.new == (1,) for batch in batches[:7])  # a single request comes first
    assert batches == grid(limits, 360, seed=0) != grid(limits, 360, seed=1)


def test_sums_of_a_batch():
    batch = Batch("mixed", (3, 1), (10, 0))
    assert batch.sums() == {"new_tokens": 4, "pairs": 40, "cached_tokens": 10, "seen_pairs": 3 * 10 + 6 + 1}
    assert Batch("equal", (2, 2), (5, 5)).name == "equal 2x2 on 5"
    assert all(len(set(one.new)) == 1 for one in equal(Limits(room_tokens=10_000)))


def test_bounds_by_hand():
    shape, ceilings = SHAPES["tiny"], Ceilings(1e12, 1e9, 2e9)
    batch = Batch("equal", (2,), (5,))
    given = profile.parse(["--out", "x", "--shape", "tiny"])
    kv = 2 * 2 * 2 * 16 * 4  # keys and values · layers · heads · size · bytes
    read = (shape.parameters - 512 * 64) * 4
    dense = 2 * 2 * (64 * (8 + 4) * 16 + 8 * 16 * 64 + 3 * 64 * 160) * 2
    flop = dense + 2 * 512 * 64 * 2 + 4 * 2 * 8 * 16 * (2 * 5 + 3)
    assert profile.bounds_s(shape, batch, 2, ceilings, given) == pytest.approx(
        {"memory_bound_s": (read + 7 * kv) / 2e9, "matrix_bound_s": flop / 1e12}
    )


# --- timing and power ---


def test_timed_is_the_median_of_what_it_ran():
    lengths = iter([0.0, 0.0, 0.0, 0.001, 0.02, 0.001, 0.001, 0.001])  # three to warm up, then five
    found = timed(lambda: time.sleep(next(lengths)), "cpu", 5)
    assert found.repeats == 5
    assert 0.001 <= found.seconds < 0.02


def test_power_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    """A program in the place of `nvidia-smi` that knows `power.draw` alone, as older drivers do."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *instant*) echo "[N/A]";; *-lms*) for w in 300 310 900; do echo "$w, 1980, 40"; done;'
        " exec sleep 30;; *) echo 305.5;; esac\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with PowerLog("GPU-1") as power:
        ends = time.monotonic() + 20
        while len(power._readings) < 3 and time.monotonic() < ends:
            time.sleep(0.01)
        assert power.since(0.0) == {"power_w": 310.0, "clock_mhz": 1980.0, "temperature_c": 40.0}
        assert power.since(time.perf_counter())["power_w"] == ""
        assert power._process
    assert power._process.poll() is not None  # the reader's process ended with it


def test_without_a_gpu_nothing_is_read():
    with PowerLog("") as power:
        assert set(power.since(0.0).values()) == {""}


# --- the command ---


def test_a_profile_goes_on_where_it_was_stopped(tmp_path, capsys):
    out = tmp_path / "profile.csv"
    command = ["--out", str(out), *SMALL]
    limited = [*command, "--minutes", "0.00001"]
    assert cli.run(profile.main, "profile", limited) == cli.OUT_OF_TIME == TRACES_OUT_OF_TIME
    assert "24 batches are left" in capsys.readouterr().err
    assert cli.run(profile.main, "profile", command) == 0
    rows = rows_of(out)
    limits = Limits(4, 4, 64, 128, room_tokens=600)
    assert [row["name"] for row in rows] == [batch.name for batch in grid(limits, 24, 0)]
    for row in rows:
        assert float(row["seconds"]) > 0
        assert 0 < float(row["share_of_bound"]) < 2
        assert row["device"]
        assert row["torch"] == torch.__version__
    kept = out.read_text().splitlines()
    out.write_text("\n".join(kept[:-3]) + "\n")
    assert cli.run(profile.main, "profile", command) == 0
    assert out.read_text().splitlines()[: len(kept) - 3] == kept[:-3]  # rows that were there stay as they are
    assert len(rows_of(out)) == 24
    assert cli.run(profile.main, "profile", [*command, "--dtype", "bfloat16"]) == cli.BAD_INPUT
    assert "its dtype is 'float32'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "qwen3-32"], "did you mean 'qwen3-32b'"),
        (["--count", "5"], "--count: given '5', allowed is a whole number from 20"),
        (["--device", "cuda", "--dtype", "float32"], "FlashAttention takes bfloat16 or float16"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, tmp_path, capsys):
    try:
        code = cli.run(profile.main, "profile", ["--out", str(tmp_path / "x.csv"), *flags])
    except SystemExit as leaving:
        code = leaving.code
    assert code == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# --- fits and presets ---


def synthetic(path: Path, device: str, shape: str) -> dict[str, float]:
    """Write a profile whose times are a known roofline of a real grid, without noise; return its coefficients."""
    true = {
        "launch_s": 2e-3,
        "weights_s": 18e-3,
        "token_s": 9e-5,
        "sharpness": 2.5,
        "cached_token_s": 7e-8,
        "pair_s": 2e-9,
    }
    rows = []
    for batch in grid(Limits(room_tokens=270_000), 200, 0):
        sums = {name: batch.sums()[name] for name in ("new_tokens", "pairs", "cached_tokens")}
        seconds = fit_profile.batch_time_s.py_func(0.0, *true.values(), *sums.values())
        rows.append({"name": batch.name, "kind": batch.kind, "longest_new": max(batch.new), **sums, "seconds": repr(seconds),
                     "share_of_bound": "0.7", "power_w": "600", "shape": shape, "dtype": "bfloat16", "device": device,
                     "commit": "0"})  # fmt: skip
    files.write_csv(path, rows)
    return true


def test_fit_finds_a_known_roofline_and_writes_its_preset(tmp_path, capsys):
    path = tmp_path / "profile.csv"
    true = synthetic(path, "NVIDIA H200", "qwen3-8b")
    flags = [str(path), "--splits", "2", "--presets", str(tmp_path), "--json", str(tmp_path / "fits.json")]
    assert cli.run(fit_profile.main, "fit_profile", [*flags, "--against", "h200-qwen3-32b"]) == 0
    assert "reached" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "fits.json").read_text())
    assert found["scores"]["all"][fit_profile.PAIRS]["r2"][0] > 0.9999
    assert set(found["batches"]) == {"all", "without prompts"}
    assert sum(row["batches"] for row in found["against"]["factors"]) == 200
    made = scenarios.load(tmp_path / "h200-measured-qwen3-8b.toml")
    assert made.name == "h200-measured-qwen3-8b"
    assert {name: getattr(made.verification, name) for name in true} == pytest.approx(true, rel=0.02)
    assert made.target.parameters == SHAPES["qwen3-8b"].parameters
    base = scenarios.load("h200-qwen3-32b")
    assert made.server.memory_bytes == base.server.memory_bytes
    assert made.server.busy_w == 600
    assert made.draft.acceptance == base.draft.acceptance
    assert made.estimator.launch_s == pytest.approx(found["four_terms"]["launch_s"] + base.server.host_s)


@pytest.mark.parametrize(
    ("device", "shape", "name", "rival"),
    [
        ("NVIDIA H200", "qwen3-32b", "h200-measured-qwen3-32b", "h200-qwen3-32b"),
        ("NVIDIA A100-SXM4-80GB", "qwen3-14b", "a100-measured-qwen3-14b", "wisp-a100-qwen3-14b"),
        ("NVIDIA H100 80GB HBM3", "qwen3-8b", "h100-measured-qwen3-8b", ""),
        ("Some CPU", "tiny", "some-cpu-measured-tiny", ""),
    ],
)
def test_names_of_presets_and_what_they_are_compared_with(device, shape, name, rival, tmp_path):
    synthetic(tmp_path / "profile.csv", device, shape)
    measured = fit_profile.load(tmp_path / "profile.csv")
    assert (measured.name, fit_profile.rival(measured)) == (name, rival)


def test_a_profile_of_another_kind_is_refused(capsys):
    old = Path(__file__).parents[2] / "estimators" / "batch_time" / "data" / "profile-cpu-llama-21m.csv"
    assert cli.run(fit_profile.main, "fit_profile", [str(old)]) == cli.BAD_INPUT
    assert "no column 'shape'" in capsys.readouterr().err


# --- everything by one command ---


def test_plan_of_the_full_measurement():
    given = measure_gpu.parse(["--out", "never-made", "--dry"])
    steps = measure_gpu.plan(given)
    names = [step.name for step in steps]
    assert names[:3] == [f"profile {shape}" for shape in ("qwen3-32b", "qwen3-14b", "qwen3-8b")]
    assert all(set(step.after) <= set(names[:i]) for i, step in enumerate(steps))
    assert not Path("never-made").exists()


def test_the_pair_has_the_sizes_that_its_name_says():
    from traces import train_pair

    given = train_pair.parse(_pair_flags())
    millions = {name: train_pair.build(getattr(given, name), given.vocabulary, given.block, 0).num_parameters() / 1e6
                for name in ("target", "draft")}  # fmt: skip
    assert millions == pytest.approx({"target": 150, "draft": 15}, rel=0.06)


def _pair_flags() -> list[str]:
    step = next(s for s in measure_gpu.plan(measure_gpu.parse(["--out", "x"])) if s.name == "train pair")
    return ["cpu" if flag == "cuda" else flag for flag in step.flags]


def test_all_steps_run_with_tiny_sizes_and_are_not_run_again(tmp_path, capfd):
    command = ["--device", "cpu", "--sizes", "tiny", "--out", str(tmp_path / "gpu"), "--minutes", "10"]
    assert cli.run(measure_gpu.main, "measure_gpu", command) == 0, capfd.readouterr()
    out = tmp_path / "gpu"
    assert json.loads((out / "steps.json").read_text())["done"] == [
        s.name for s in measure_gpu.plan(measure_gpu.parse(command))
    ]
    assert len(rows_of(out / "profile-tiny.csv")) == 24
    (preset,) = (out / "presets").iterdir()
    assert scenarios.load(preset).target.name == "tiny"
    assert (out / "pictures" / f"{preset.stem}.png").read_bytes().startswith(b"\x89PNG")
    said = (out / "traces.txt").read_text()
    assert "AUC, MLP" in said
    assert "vicuna" in said
    figures = json.loads((out / "traces.json").read_text())
    assert np.isfinite(figures["python-tiny-sampled"]["AUC, MLP"])
    capfd.readouterr()
    assert cli.run(measure_gpu.main, "measure_gpu", command) == 0
    assert "===" not in capfd.readouterr().out
    assert cli.run(measure_gpu.main, "measure_gpu", [*command[:2], "--out", str(out)]) == cli.BAD_INPUT
    assert cli.run(trace_report.main, "trace_report", [str(out / "missing.npz")]) == cli.BAD_INPUT


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"sizes": "tiny"}', '{"sizes": "tiny", "done": 3}'])
def test_a_damaged_list_of_steps_is_one_line(content, tmp_path, capsys):
    (tmp_path / "steps.json").write_text(content)
    assert cli.run(measure_gpu.main, "gpu", ["--out", str(tmp_path), "--sizes", "tiny", "--dry"]) == 2
    err = capsys.readouterr().err
    assert err == f"gpu: {tmp_path / 'steps.json'}: not what this command writes; choose another --out or remove it\n"
