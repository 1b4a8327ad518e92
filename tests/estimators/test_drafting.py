"""What drafting on the server costs: the fit of measured steps, the derivation, the catalogue, the command."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from estimators.batch_time import draft_times, drafting, measured_tables
from tests.estimators.test_measured import SHARED, needs_shared, vllm_row, write_rows
from wisp_gym import cli
from wisp_gym.scenario import DraftTime

# Made up: launch, token, cached token of the target; overhead, step, sequence of each draft, milliseconds.
TARGET_MS = (30.0, 0.03, 1e-4)
DRAFTS_MS = {
    "Qwen3-1.7B": (2.0, 3.0, 0.03),
    "Qwen3-4B": (1.5, 6.0, 0.04),
    "Qwen3-32B-speculator.eagle3": (1.0, 0.8, 0.0),
}
CONTEXT = 200  # of `vllm_row`


def steps(gpu: str = "H100-94GB (LRZ)", target: tuple[float, float, float] = TARGET_MS) -> list[dict]:
    """Rows of a vLLM table that follow the form exactly, up to 128 sequences."""
    found = []
    for draft, (overhead, step, sequence) in [("", (0.0, 0.0, 0.0)), *DRAFTS_MS.items()]:
        for k in [0] if not draft else range(1, 7):
            for b in (1, 2, 4, 8, 16, 32, 64, 128):
                launch, token, cached = target
                ms = launch + token * b * (k + 1) + cached * b * CONTEXT
                ms += (overhead + k * (step + sequence * b)) if k else 0.0
                method = "eagle3" if "eagle" in draft else "draft_model" if draft else "none"
                found.append(vllm_row(gpu=gpu, method=method, draft=draft, k=k, concurrency=b, median_itl_ms=ms))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / measured_tables.TABLES["vllm"].file, steps())
    return tmp_path


# --- the fit ---


def test_steps_of_the_form_are_found_again(folder):
    (series,) = measured_tables.read(folder, "vllm")
    for limit in drafting.LIMITS_TOKENS:
        found = drafting.fit(series, limit)
        wanted = dict(zip(("launch_s", "token_s", "cached_token_s"), np.array(TARGET_MS) * 1e-3, strict=True))
        assert {name: found.values["qwen3-32b", name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
        for label, milliseconds in DRAFTS_MS.items():
            for name, value in zip(("overhead_s", "step_s", "sequence_s"), milliseconds, strict=True):
                if value:
                    assert found.values[drafting.NAMES[label], name] == pytest.approx(1e-3 * value, rel=1e-6)
        assert found.scores["largest_percent"] < 1e-6
        assert found.context_tokens == pytest.approx(CONTEXT)
        assert max(found.errors.values()) < 1e-9


def test_more_tokens_than_the_limit_are_not_fitted(folder):
    (series,) = measured_tables.read(folder, "vllm")
    bent = series.profile.X[:, 0] > 128
    series.profile.seconds[bent] *= 2.0
    assert drafting.fit(series, 128).scores["largest_percent"] < 1e-6
    assert drafting.fit(series, 256).scores["largest_percent"] > 5.0


# --- the derivation ---


def test_layers_and_bytes_are_found_again():
    every = draft_times.DRAFTS | draft_times.TARGETS
    launch_s = {
        name: every[name].layers * 40e-6 + every[name].bytes / 2e12 for name in ("qwen3-32b", *draft_times.MEASURED)
    }
    assert draft_times.parts(launch_s) == pytest.approx((40e-6, 0.5e-12))


def test_shapes_by_hand():
    assert draft_times.DRAFTS["qwen3-0.6b"].kv_bytes == 112 * 1024  # 28 layers × 8 heads × 128 × K and V × 2 bytes
    head = draft_times.DRAFTS["eagle3-qwen3-32b"]
    attention = 10_240 * (8192 + 2 * 1024) + 8192 * 5120
    assert head.parameters == attention + 3 * 5120 * 25_600 + 15_360 * 5120 + 5120 * 32_000
    assert head.kv_bytes == 4096
    wide = draft_times.catalogue("targets")
    for name, shape in draft_times.TARGETS.items():
        assert shape.layers == wide[name]["layers"]
        assert shape.kv_bytes == 4 * wide[name]["layers"] * wide[name]["kv_heads"] * wide[name]["head_dim"]


def test_a_draft_by_hand():
    parts = draft_times.Parts(40e-6, 0.5e-12, 13e-6, {"qwen3-1.7b": 2e-3, "eagle3-qwen3-32b": 1e-3})
    roofline = draft_times.catalogue("verification")["a100-80gb-x4"]["llama-70b"]
    layer_s = 40e-6 + 2 * 28e-6
    parameters = 70_600_000_000 - 128_256 * 8192
    s_per_byte = (roofline["launch_s"] + roofline["weights_s"] - 80 * layer_s) / (2 * parameters)
    found = draft_times.draft_time("llama-3.2-1b", "a100-80gb-x4", parts)
    assert asdict(found) == pytest.approx(
        {
            "overhead_s": 2e-3, "launch_s": 16 * layer_s + 2.48e9 * s_per_byte, "sequence_s": 13e-6,
            "token_s": roofline["token_s"] * 1.24e9 / parameters, "cached_token_s": roofline["cached_token_s"] * 32_768 / 327_680,
        }
    )  # fmt: skip
    assert draft_times.draft_time("ngram", "h100-80gb", parts) == DraftTime(1e-3, 0.0, 0.0, 0.0, 0.0)
    assert draft_times.draft_time("eagle3-llama-70b", "a100-80gb-x4", parts).sequence_s == 0.0


# --- what is shipped ---


def test_the_catalogue_is_the_derivation():
    parts, catalogue = drafting.parts_of(drafting.shipped()), draft_times.catalogue("server-drafts")
    for draft in (*draft_times.DRAFTS, "ngram"):
        assert catalogue[draft]["time"].keys() == draft_times.READS.keys()
        for server, given in catalogue[draft]["time"].items():  # the catalogue gives three digits
            made = asdict(draft_times.draft_time(draft, server, parts))
            assert given == pytest.approx(made, rel=5e-3, abs=1e-15), (draft, server)


def test_the_catalogues_sizes_are_those_of_the_shapes():
    catalogue = draft_times.catalogue("server-drafts")
    assert catalogue.keys() == {*draft_times.DRAFTS, "ngram"}
    for draft, shape in draft_times.DRAFTS.items():
        assert (catalogue[draft]["weights_bytes"], catalogue[draft]["kv_bytes_per_token"]) == (
            shape.bytes,
            shape.kv_bytes,
        )
    of_devices = draft_times.catalogue("drafts")
    for draft in of_devices.keys() & draft_times.DRAFTS.keys():
        assert of_devices[draft]["parameters"] == draft_times.DRAFTS[draft].parameters


def test_layers_and_bytes_explain_the_measured_steps():
    """Three drafts and their target, of 1 to 64 layers and 1.6 to 64 GB, with two numbers."""
    values = drafting.shipped()
    parts = drafting.parts_of(values)
    lines = drafting.checks(values, parts)
    assert len(lines) == 4
    assert max(abs(float(line[-1].removesuffix(" %"))) for line in lines) < 3.5
    assert 40e-6 < parts.layer_s < 50e-6


def test_the_shipped_fit_names_its_source():
    comment = "".join(line for line in drafting.STEPS_FILE.read_text().splitlines() if line.startswith("#"))
    for word in (measured_tables.TABLES["vllm"].source, measured_tables.TABLES["vllm"].licence, "drafting --write"):
        assert word in comment


# --- the command ---


def test_the_command_without_data_prints_the_catalogue(tmp_path, capsys):
    out = tmp_path / "times.json"
    assert cli.run(drafting.main, "program", ["--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert {(row["draft"], row["server"]) for row in rows} == {
        (d, s) for d in (*draft_times.DRAFTS, "ngram") for s in draft_times.READS
    }
    assert "put together" in capsys.readouterr().out


def test_the_command_fits_and_writes(folder, monkeypatch, capsys):
    other = [row for row in steps("unstated (brev)", (20.0, 0.03, 1e-4)) if row["concurrency"] == 1]
    write_rows(folder / measured_tables.TABLES["vllm"].file, steps() + other)
    monkeypatch.setattr(drafting, "STEPS_FILE", folder / "steps.csv")
    assert cli.run(drafting.main, "program", ["--data", str(folder), "--write"]) == 0
    assert drafting.shipped()["qwen3-4b", "step_s"] == pytest.approx(6e-3)
    with (folder / "steps.csv").open() as file:
        assert len(list(csv.DictReader(line for line in file if line[0] != "#"))) == 12
    said = capsys.readouterr().out
    assert said.count("MAPE 0.00 %") == 3
    assert "from its target's 20.05 ms" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--write"], "--write: nothing is fitted without --data"),
        (["--data", "no-such-folder"], "cannot read no-such-folder"),
        (["--dat", "."], "did you mean '--data'"),
        (["--json", "no-such-folder/x.json"], "cannot write 'no-such-folder/x.json'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(flags, message, capsys):
    try:
        code = cli.run(drafting.main, "program", flags)
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (cli.BAD_INPUT, "", 1)
    assert message in said.err


def test_a_table_of_another_gpu_is_refused(tmp_path, capsys):
    write_rows(tmp_path / measured_tables.TABLES["vllm"].file, steps("unstated (brev)"))
    assert cli.run(drafting.main, "program", ["--data", str(tmp_path)]) == cli.BAD_INPUT
    assert "no steps of H100-94GB" in capsys.readouterr().err


# --- the public table, where it is at hand ---


@needs_shared
def test_the_shipped_fit_comes_back():
    series = {one.gpu: one for one in measured_tables.read(SHARED, "vllm")}
    found = drafting.fit(series[drafting.GPU])
    again = {(row["model"], row["coefficient"]): row["value"] for row in drafting.rows(found)}
    assert again == pytest.approx(drafting.shipped(), rel=1e-4)
    assert found.scores["mape_percent"] < 0.6
    values = drafting.shipped()
    said = drafting.other_gpu(series[drafting.OTHER_GPU], drafting.parts_of(values), values)
    measured_ms, made_ms = (
        float(said.split(": ")[1].split(" ms")[0]),
        float(said.split("measured, ")[1].split(" ms")[0]),
    )
    assert made_ms == pytest.approx(measured_ms, rel=0.02)
