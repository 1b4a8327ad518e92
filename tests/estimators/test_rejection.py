"""Rejection predictors: which tokens count, scores by hand, one network in four runtimes, files that repeat."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.metrics import roc_auc_score

from estimators.rejection import cost as rejection_cost
from estimators.rejection import models as rejection_models
from estimators.rejection import onnx_file as rejection_onnx
from estimators.rejection import operating_point as rejection
from estimators.rejection import plot as rejection_plot
from estimators.rejection import scores as rejection_scores
from estimators.rejection import train as predictor
from estimators.rejection.tokens import Tokens, interval, met, on_path, resampled, split
from wisp_gym import cli
from wisp_gym.rules.rejection_predictor import INPUTS, load_predictor, make_predictor, save_predictor
from wisp_gym.traces.speculation import SpeculationTrace, read_speculation_trace, sample_path, write_speculation_trace

ANSWERS, POSITIONS, DRAFTS = 40, 24, 4


def small_trace(seed: int = 0) -> SpeculationTrace:
    """Random statistics; a token is accepted the likelier, the larger its confidence and the smaller its entropy."""
    rng = np.random.default_rng(seed)
    rows = ANSWERS * POSITIONS
    u = rng.random((rows, DRAFTS, 4))
    statistics = u * [1.0, 8.0, 1.0, 3.0]
    acceptance = 1 / (1 + np.exp(-(4 * u[..., 0] - 3 * u[..., 1] + 0.3)))
    run = np.cumprod(rng.random((rows, DRAFTS)) < acceptance, axis=1).sum(axis=1)
    left = POSITIONS - np.arange(rows) % POSITIONS
    prompts, offsets = np.arange(ANSWERS) // 2, np.arange(ANSWERS + 1) * POSITIONS
    header = {"temperature": 1.0}
    return SpeculationTrace(
        prompts, np.full(ANSWERS, 9), offsets, np.minimum(run, left), statistics, acceptance, header
    )


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trace on disk."""
    path = tmp_path_factory.mktemp("traces") / "small.npz"
    write_speculation_trace(small_trace(), path)
    return path


def hand_trace() -> SpeculationTrace:
    """One greedy answer of five tokens, two drafted at each; the confidence of token j at position n is n/10 + j/100."""
    n, j = np.arange(5)[:, None], np.arange(2)
    statistics = np.stack([n / 10 + j / 100] + 3 * [np.zeros((5, 2))], axis=-1)
    return SpeculationTrace(np.array([3]), np.array([7]), np.array([0, 5]), np.array([2, 1, 0, 2, 1]), statistics)


# --- which tokens count ---


def test_tokens_count_up_to_the_first_rejected_one_and_the_end_of_the_answer() -> None:
    rows = on_path(hand_trace())
    wanted = [(0.0, 1), (0.01, 1), (0.1, 1), (0.11, 0), (0.2, 0), (0.3, 1), (0.31, 1), (0.4, 1)]
    np.testing.assert_allclose(rows.statistics[:, 0], [confidence for confidence, _ in wanted], atol=1e-3)
    assert rows.accepted.tolist() == [bool(fate) for _, fate in wanted]
    assert set(rows.prompt) == {3}


def test_a_device_meets_each_place_of_the_output_once() -> None:
    """Rounds at 0 (two accepted, a third committed) and 3 (two accepted, the end)."""
    np.testing.assert_allclose(met(hand_trace()).statistics[:, 0], [0.0, 0.01, 0.3, 0.31], atol=1e-3)
    trace = small_trace()
    assert len(met(trace)) <= len(trace.accepted_run) < len(on_path(trace))


def test_no_prompt_is_on_two_sides() -> None:
    rows = on_path(small_trace())
    parts = split(rows, 1)
    assert [len(part) for part in parts] == [12, 4, 4]
    assert sorted(np.concatenate(parts)) == list(range(20))
    assert sum(len(rows.of(part)) for part in parts) == len(rows)


def test_bootstrap_draws_whole_prompts() -> None:
    prompt = np.array([5, 5, 7, 9])
    weights = resampled(prompt, 2000)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    low, high = interval(lambda weight: np.average([0.0, 0.0, 1.0, 0.0], weights=weight), weights)
    assert (low, high) == pytest.approx((0.0, 0.75), abs=0.26)


# --- scores ---


def test_scores_by_hand() -> None:
    p = np.array([0.92, 0.64, 0.61, 0.15])
    tokens = Tokens(np.zeros((4, 4)), np.array([True, True, False, False]), np.arange(4))
    got = rejection_scores.scores(p, tokens, 0.62, np.ones(4))
    assert got == pytest.approx({
        "auc": 1.0, "false_acceptance": 0.0, "recall": 1.0,
        "ece": (0.08 + 0.25 + 0.15) / 4, "brier": (0.08**2 + 0.36**2 + 0.61**2 + 0.15**2) / 4,
    })  # fmt: skip
    twice = rejection_scores.scores(p, tokens, 0.61, np.array([1.0, 1.0, 2.0, 1.0]))
    assert twice["false_acceptance"] == pytest.approx(2 / 3)
    table = rejection_scores.reliability(p, tokens)
    assert [(row["tokens"], row["accepted"]) for row in table] == [(1, 0.0), (2, 0.5), (1, 1.0)]


def test_weighted_area_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p, weight = rng.integers(0, 20, 300) / 20, rng.integers(0, 4, 300).astype(float)
    accepted = rng.random(300) < p
    wanted = roc_auc_score(accepted, p, sample_weight=weight)
    assert rejection_scores.auc(p, accepted, weight) == pytest.approx(wanted, abs=1e-12)


def test_threshold_passes_the_stated_share() -> None:
    rng = np.random.default_rng(0)
    p, accepted = rng.random(4000), rng.random(4000) < 0.6
    tokens = Tokens(np.zeros((4000, 4)), accepted, np.arange(4000))
    at = rejection_scores.threshold_at(p, tokens, 0.425, None)
    assert np.mean(p[~accepted] >= at) == pytest.approx(0.425, abs=1e-3)
    at = rejection_scores.threshold_at(p, tokens, None, 0.801)
    assert np.mean(p[accepted] >= at) == pytest.approx(0.801, abs=1e-3)


def test_wasted_tokens_closed_form_meets_counting() -> None:
    rng, f, cap = np.random.default_rng(0), 0.425, 5
    passed = rng.random((200_000, cap)) < f
    counted = np.cumprod(passed, axis=1).sum(1).mean()
    assert rejection.wasted_tokens(f, cap) == pytest.approx(counted, abs=0.01)
    assert rejection.wasted_tokens(f) == pytest.approx(f / (1 - f))
    with pytest.raises(ValueError, match="below 1"):
        rejection.wasted_tokens(1.0)


def test_operating_point_and_its_inverse() -> None:
    point = rejection.OperatingPoint(0.801, 0.425)
    assert point.d_prime == pytest.approx(1.034, abs=1e-3)
    assert point.auc == pytest.approx(0.768, abs=1e-3)
    assert rejection.d_prime_of(point.auc) == pytest.approx(point.d_prime)
    back = rejection.point_at(point.d_prime, rejection.threshold(point.d_prime, 0.801))
    assert (back.recall, back.false_acceptance) == pytest.approx((0.801, 0.425))


# --- one network everywhere ---


def test_four_runtimes_agree(tmp_path: Path) -> None:
    """scikit-learn with its calibration, the JSON file in numpy, the engine's compiled network and onnxruntime."""
    fit, check, test = predictor.divide(small_trace(), 0)
    trained = rejection_models.train(rejection_models.classifiers(0)[rejection_models.MLP], fit, check)
    made = make_predictor(rejection_models.layers(trained), 0.4, "relu", note="a test")
    save_predictor(made, tmp_path / "p.json")
    read = load_predictor(tmp_path / "p.json")
    x = test.statistics.astype(np.float32)
    wanted = trained.probability(test.statistics)
    assert np.ptp(wanted) > 0.3
    np.testing.assert_allclose(read.probability(x), wanted, atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-rejection_cost.predict_all(read.weights, x))), wanted, atol=1e-5)
    session = onnxruntime.InferenceSession(rejection_onnx.graph(read), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"statistics": x})[0][:, 0], wanted, atol=1e-5)
    assert rejection_onnx.graph(read) == rejection_onnx.graph(made)


def test_onnx_carries_what_a_runtime_must_know() -> None:
    made = make_predictor([(np.ones((1, 4), np.float32), np.zeros(1, np.float32))], 0.25, "tanh", note="one layer")
    model = onnx.load_from_string(rejection_onnx.graph(made))
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known["inputs"]) == list(INPUTS)
    assert json.loads(known["units"]) == ["probability", "nats", "probability", "logits"]
    assert (float(known["threshold"]), known["version"]) == (0.25, "1")
    assert json.loads(known["about"]) == {"note": "one layer"}


def test_classifiers_tell_what_the_statistics_tell() -> None:
    """All beat the best statistic alone on held-out prompts."""
    fit, check, test = predictor.divide(small_trace(), 0)
    best = max(value for value, _, _ in rejection_scores.alone(test).values())
    for name, model in rejection_models.classifiers(0).items():
        found = rejection_models.train(model, fit, check)
        got = rejection_scores.scores(found.probability(test.statistics), test, 0.5, np.ones(len(test)))
        assert got["auc"] > best, name


# --- the command, and what is shipped ---


def test_command_writes_the_same_bytes_twice(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rejection_scores, rejection_plot):
        monkeypatch.setattr(module, "RESAMPLES", 40)
    for name in ("one", "two"):
        places = [str(tmp_path / f"{name}.{ending}") for ending in ("json", "onnx", "png", "scores")]
        flags = [part for pair in zip(("--out", "--onnx", "--plot", "--json"), places, strict=True) for part in pair]
        assert cli.run(predictor.main, "program", [str(trace_file), *flags]) == 0
    for ending in ("json", "onnx", "png"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    said = capsys.readouterr().out
    assert "WISP's MLP, published" in said
    result = json.loads((tmp_path / "one.scores").read_text())
    assert [row["predictor"] for row in result["predictors"]] == list(rejection_models.classifiers(0))
    assert load_predictor(tmp_path / "one.json").threshold == result["predictors"][0]["threshold"]
    assert len(list(tmp_path.iterdir())) == 8  # no temporary file is left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        (["TRACE", "--recall", "1.5"], "--recall 1.5: above 0 and below 1"),
        (["TRACE", "--recall", "0.8", "--false-acceptance", "0.4"], "not allowed with argument"),
        (["TRACE", "--out", "/no/such/x.json"], "cannot write '/no/such/x.json'"),
        (["TRACE", "--rcall", "0.8"], "did you mean '--recall'"),
        (["TRACE", "--seed", "-1"], "--seed: given '-1', allowed is a whole number from 0"),
        (["HAND"], "1 prompts: at least 10"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], message: str, trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_speculation_trace(hand_trace(), tmp_path / "hand.npz")
    places = {"TRACE": str(trace_file), "HAND": str(tmp_path / "hand.npz")}
    try:
        code = cli.run(predictor.main, "program", [places.get(flag, flag) for flag in flags])
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    assert code == cli.BAD_INPUT
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err


def test_shipped_predictor_scores_as_it_says() -> None:
    """On the prompts that it has not seen, of the trace that is shipped beside it."""
    shipped = load_predictor("python-10m-1m.json")
    _, _, test = predictor.divide(read_speculation_trace(sample_path("python-10m-1m.npz")), 0)
    p = shipped.probability(test.statistics)
    got = rejection_scores.scores(p, test, shipped.threshold, np.ones(len(test)))
    stated = shipped.about["scores_on_held_out_prompts"]
    assert got == pytest.approx({name: value for name, (value, _, _) in stated.items()}, abs=2e-3)
    assert shipped.about["command"].startswith("python -m estimators.rejection python-10m-1m.npz")
