"""Rejection predictors: what they compute, and that a file gives them back or one clear line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from wisp_gym.rules.mlp import logits
from wisp_gym.rules.rejection_predictor import INPUTS, PredictorError, load_predictor, make_predictor, save_predictor

RNG = np.random.default_rng(0)


def layers(*widths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random layers of these widths."""
    return [
        (RNG.normal(size=(n, m)).astype(np.float32), RNG.normal(size=n).astype(np.float32)) for m, n in pairwise(widths)
    ]


def test_probability_by_hand() -> None:
    """One ReLU unit that sees confidence alone: σ(2·max(0, c − ½) − 1)."""
    hidden = (np.array([[1, 0, 0, 0]], np.float32), np.array([-0.5], np.float32))
    output = (np.array([[2.0]], np.float32), np.array([-1.0], np.float32))
    predictor = make_predictor([hidden, output], 0.4, "relu")
    statistics = np.array([[[0.9, 1, 2, 3]], [[0.1, 3, 2, 1]]])
    expected = [[1 / (1 + np.exp(0.2))], [1 / (1 + np.exp(1.0))]]
    np.testing.assert_allclose(predictor.probability(statistics), expected, rtol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_numpy_and_the_engines_network_agree(activation: str) -> None:
    predictor = make_predictor(layers(4, 8, 5, 1), 0.5, activation)
    for statistics in RNG.uniform(0, 3, size=(20, 4)).astype(np.float32):
        out = np.empty(1, np.float32)
        assert logits(predictor.weights, statistics, out) == 1
        assert 1 / (1 + np.exp(-out[0])) == pytest.approx(float(predictor.probability(statistics)), abs=1e-5)


def test_certain_predictors_do_not_overflow() -> None:
    output = (np.array([[1e6, 0, 0, 0]], np.float32), np.array([-5e5], np.float32))
    predictor = make_predictor([output], 0.5)
    assert predictor.probability(np.array([[1.0, 0, 0, 0], [0.0, 0, 0, 0]])).tolist() == [1.0, 0.0]


def test_a_file_gives_the_predictor_back_with_the_same_bytes(tmp_path: Path) -> None:
    predictor = make_predictor(layers(4, 6, 1), 0.37, "relu", trained_on="x", path="p", threshold_from="y")
    for name in ("a.json", "b.json", "a.json"):
        save_predictor(predictor, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]
    back = load_predictor(tmp_path / "a.json")
    np.testing.assert_array_equal(back.weights, predictor.weights)
    assert back.weights.dtype == np.float32
    assert (back.threshold, back.activation, back.about) == (0.37, "relu", predictor.about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "wisp-gym policy"}, "not a rejection predictor file"),
        ({"version": 2}, "version given 2, allowed is 1"),
        ({"inputs": list(INPUTS[::-1])}, "inputs: given ['logit_spread'"),
        ({"threshold": 1.5}, "threshold: given 1.5, allowed is a probability from 0 to 1"),
        ({"threshold": None}, "threshold: given nan"),
        ({"threshold": True}, "threshold: given True"),
        ({"threshold": "0.5"}, "threshold: given '0.5'"),
        ({"activation": "gelu"}, "activation: given 'gelu'"),
        ({"layers": [{"weight": [[1, 2, 3]], "bias": [0]}]}, "inputs and outputs: given 3 and 1"),
        ({"layers": [{"weight": [[1, 2, 3, 4]] * 2, "bias": [0, 0]}]}, "inputs and outputs: given 4 and 2"),
        ({"layers": [{"weight": [[1, 2, 3, 1e300]], "bias": [0]}]}, "layers:"),
        ({"layers": []}, "layers: given 0"),
        ({"layers": "x"}, "layers: not lists of numbers"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "p.json"
    save_predictor(make_predictor(layers(4, 1), 0.5), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PredictorError) as caught:
        load_predictor(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(PredictorError, match=r"p\.json: not a rejection predictor"):
        load_predictor(tmp_path / "p.json")


def test_missing_files_and_places(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=r"nowhere/p\.json: No such file"):
        load_predictor(tmp_path / "nowhere" / "p.json")
    with pytest.raises(PredictorError, match=r"unknown\.json: no such file; allowed: a predictor file, or one that is"):
        load_predictor("unknown.json")
    predictor = make_predictor(layers(4, 1), 0.5, note={1})
    with pytest.raises(PredictorError, match=r"p\.json: about: "):
        save_predictor(predictor, tmp_path / "p.json")
    with pytest.raises(PredictorError, match="cannot be written"):
        save_predictor(make_predictor(layers(4, 1), 0.5), tmp_path / "nowhere" / "p.json")
