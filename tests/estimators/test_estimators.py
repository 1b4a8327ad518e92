"""Regressions of batch time, acceptance fits, and their command lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from sklearn.utils.estimator_checks import check_estimator

from estimators.acceptance import fit as acceptance
from estimators.acceptance import pairs as published
from estimators.batch_time import fit as verification_time
from estimators.batch_time.by_size import SizeRegressor
from estimators.batch_time.regression import COLUMNS, ConvexRegressor, WispRegressor, scores, upper_quantile
from wisp_gym import cli, errors
from wisp_gym import scenario as scenarios
from wisp_gym.serving.estimator import VerificationTimeEstimator

PROFILE = Path(verification_time.__file__).parent / "data" / "profile-cpu-llama-21m.csv"


def server(noise: float = 0.0, **times: float) -> scenarios.Scenario:
    """The default scenario with this noise and without attention's arithmetic, or with `times`."""
    changes = {f"verification.{name}": value for name, value in ({"pair_s": 0.0} | times).items()}
    return scenarios.with_(scenarios.load("wisp-a100-qwen3-32b"), **{"server.noise": noise}, **changes)


# --- regressions ---


def test_levels_by_size_follow_jumps_and_go_on_in_proportion():
    """A server whose batches of 400 tokens take longer than those of 480, as one has been measured."""
    X = np.array([[n, n * 250.0, 40.0 * c] for n in (80, 160, 240, 320, 400, 480) for c in (1, 2, 3)])
    add_s = {80: 0.0, 160: 0.001, 240: 0.0, 320: 0.002, 400: 0.02, 480: 0.006}
    seconds = np.array([0.03 + 5e-5 * n + 1e-5 * c + add_s[n] for n, _, c in X])
    model = SizeRegressor(shrink=1e-6).fit(X, seconds)
    assert model.predict(X) == pytest.approx(seconds, rel=1e-6)
    last = model.levels_s_[-1] * 960 / 480
    assert model.predict([[960, 0, 0]])[0] == pytest.approx(model.intercept_ + 960 * model.coef_[0] + last)
    assert len(SizeRegressor(n_sizes=3).fit(X, seconds).sizes_) == 3


def test_levels_by_size_reach_the_scheduler(tmp_path, monkeypatch):
    profile = verification_time.simulate(server(), seed=0)
    found = verification_time.shipped(verification_time.evaluate(profile, seed=0), by_size=True)
    (tmp_path / "a100-80gb--qwen3-32b.json").write_text(json.dumps(found))
    monkeypatch.setattr(scenarios.toml, "_ESTIMATORS", tmp_path)
    estimator = scenarios.load("wisp-a100-qwen3-32b").estimator
    assert [(size.tokens, size.add_s) for size in estimator.sizes] == [
        (s["tokens"], s["add_s"]) for s in found["sizes"]
    ]
    assert VerificationTimeEstimator(found).predict(100, 1e5, 1e4) == pytest.approx(
        verification_time.SizeRegressor().fit(*fitted_rows(profile)).predict([[100, 1e5, 1e4]])[0], rel=1e-9)  # fmt: skip


def fitted_rows(profile):
    """X and seconds of the configurations that `evaluate` fits with seed 0."""
    kept, _ = verification_time.split(profile, 0)
    return profile.X[kept], profile.seconds[kept]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(
    "model", [WispRegressor(), WispRegressor("ols", relative=False), ConvexRegressor(), SizeRegressor()], ids=str
)
def test_regressions_are_proper_estimators(model):
    check_estimator(model)


def test_four_terms_recover_a_linear_server_exactly():
    # sharpness 1 makes the roofline the sum of both, hence linear
    line = server(sharpness=1.0, pair_s=4e-9)
    profile = verification_time.simulate(line, seed=1)
    got = WispRegressor().fit(profile.X, profile.seconds).coefficients()
    assert got["launch_s"] == pytest.approx(0.002 + 14.3e-3 + 30.9e-3, rel=1e-6)
    assert got["new_token_s"] == pytest.approx(0.234e-3, rel=1e-6)
    assert got["pair_s"] == pytest.approx(4e-9, rel=1e-4)
    assert got["cached_token_s"] == pytest.approx(0.179e-6, rel=1e-4)


def test_no_coefficient_is_negative_unless_asked():
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 100, (200, 3))
    y = 1.0 + 0.01 * X[:, 0] - 0.002 * X[:, 1]
    assert WispRegressor().fit(X, y).coef_.min() >= 0
    assert WispRegressor("ols").fit(X, y).coef_[1] == pytest.approx(-0.002)


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"'nls'.*nnls, ols"):
        WispRegressor("nls").fit(np.ones((3, 3)), np.ones(3))


def test_convex_beats_four_terms_on_a_roofline_and_rises_beyond_the_data():
    result = verification_time.evaluate(verification_time.simulate(server(0.03), seed=0), seed=0)
    wisp, convex = result["scores"]["wisp"], result["scores"]["convex"]
    assert convex["mape_percent"] < 0.7 * wisp["mape_percent"] < 6
    profile = verification_time.simulate(server(), seed=0)
    model = ConvexRegressor().fit(profile.X, profile.seconds)
    far = profile.X.max(0) * [[1], [2], [3]]
    steps = np.diff(model.predict(far))
    assert steps[1] == pytest.approx(steps[0])
    assert steps[0] > 0.3 * profile.seconds.max()


def test_upper_prediction_holds_as_often_as_it_says():
    held = []
    for seed in range(8):
        profile = verification_time.simulate(server(0.05), seed)
        kept, left = verification_time.split(profile, seed)
        model = ConvexRegressor(quantile=0.9).fit(profile.X[kept], profile.seconds[kept])
        held.append((profile.seconds[left] <= model.predict_upper(profile.X[left])).mean())
    assert 0.86 < np.mean(held) < 0.94


def test_upper_quantile_is_the_conformal_one():
    assert upper_quantile(np.arange(1.0, 20.0), 0.95) == 19.0  # the 19th of 19: (19 + 1) * 0.95
    assert upper_quantile(np.arange(1.0, 5.0), 0.95) == 4.0  # too few values: the largest


def test_scores_by_hand():
    got = scores(np.array([1.0, 2.0, 3.0]), np.array([1.1, 2.0, 2.7]))
    assert got == pytest.approx({"r2": 1 - 0.1 / 2, "mae_ms": 400 / 3, "mape_percent": 20 / 3})


# --- the profile and its split ---


def test_split_is_by_configuration_123_and_50():
    profile = verification_time.simulate(server(0.05), seed=0)
    kept, left = verification_time.split(profile, seed=0)
    fitted, held = set(profile.configuration[kept]), set(profile.configuration[left])
    assert (len(fitted), len(held), fitted & held) == (123, 50, set())
    assert (verification_time.split(profile, seed=0)[1] == left).all()


def test_shipped_profile_fits():
    profile = verification_time.read(PROFILE)
    assert profile.configuration.max() + 1 >= 173
    result = verification_time.evaluate(profile, seed=0)
    assert result["scores"]["wisp"]["r2"] > 0.9
    assert result["scores"]["wisp"]["mape_percent"] < 12


@pytest.mark.parametrize("name", scenarios.presets())
def test_shipped_coefficients_predict_their_server(name):
    s = scenarios.load(name)
    e = s.estimator
    profile = verification_time.simulate(s, seed=99)
    predicted = profile.X @ [e.new_token_s, e.pair_s, e.cached_token_s] + e.launch_s
    assert np.abs(predicted / profile.seconds - 1).mean() < 0.10


# --- acceptance ---


def test_constant_acceptance_gives_the_geometric_law():
    alpha, drafts = 0.7, 6
    process = acceptance.Process(np.log(alpha / (1 - alpha)), 0.0, 0.0, 40.0, 0.0)
    lengths = acceptance.rounds(acceptance.fates(process, acceptance.World.draw(2000, 240, 0)), drafts)
    expected = alpha ** np.arange(1, drafts + 1)
    assert acceptance.survival(lengths, drafts) == pytest.approx(expected, abs=0.006)
    assert acceptance.autocorrelation(lengths, [1])[0] == pytest.approx(0.0, abs=0.03)
    assert acceptance.between_cv(lengths) < 0.05


def test_rounds_by_hand():
    fate = np.array([[1, 1, 0, 1, 1, 1, 1, 0, 1, 1]], dtype=bool).T
    # from 0: 2 accepted; from 3: 3 (the cap), the bonus token is 6; from 7: 0; 8 leaves no room for 3 drafts
    assert acceptance.rounds(fate, 3)[:, 0].tolist() == [2, 3, 0]


def test_drift_is_stationary_and_correlates_as_stated():
    world = acceptance.World.draw(4000, 400, 1)
    blocks = acceptance.drift(acceptance.Process(drift_tokens=40.0), world.innovation)
    assert blocks.std(axis=1) == pytest.approx(np.ones(len(blocks)), abs=0.05)
    assert np.mean(blocks[1:] * blocks[:-1]) == pytest.approx(np.exp(-8 / 40), abs=0.01)


def test_token_after_a_rejection_is_harder():
    process = acceptance.Process(1.0, 0.0, 0.0, 40.0, 1.5)
    fate = acceptance.fates(process, acceptance.World.draw(2000, 200, 2))
    after_rejected = fate[1:][~fate[:-1]].mean()
    assert after_rejected == pytest.approx(1 / (1 + np.exp(0.5)), abs=0.01)
    assert fate[1:][fate[:-1]].mean() == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.01)


def test_engine_draws_the_same_process():
    from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS

    assert acceptance.BLOCK_TOKENS == DRIFT_BLOCK_TOKENS


def test_fit_lowers_the_misfit_and_keeps_borrowed_spreads():
    pair = published.PAIRS["qwen3-4b--qwen3-32b"]
    world, like = acceptance.World.draw(200, 200, 3), acceptance.Process(0.2, 0.4, 0.6, 50.0, 0.1)
    fitted = acceptance.fit(pair, world, like, iterations=15)
    assert acceptance.misfit(fitted, pair, world) < 0.2 * acceptance.misfit(like, pair, world)
    assert (fitted.request_std, fitted.drift_std) == pytest.approx((0.4, 0.6))
    assert acceptance.simulate(fitted, pair, world)["accepted/drafted, K = 5"] == pytest.approx(0.487, abs=0.01)


def test_beta_geometric_mean_and_published_tables():
    assert published.beta_geometric(2.71, 0.58, 2) == pytest.approx((2.71 / 3.29, 2.71 / 3.29 * 3.71 / 4.29))
    for pair in published.PAIRS.values():
        assert pair.source
        assert pair.like == "" or pair.like in published.PAIRS
        assert all(0 < b <= a < 1 for a, b in zip(pair.survival, pair.survival[1:], strict=False))
    assert set(published.ASSUMED_LIKE.values()) <= set(published.PAIRS)


# --- command lines ---

WRONG = [
    (verification_time, ["--scenario", "wisp-a100-qwen3-32"], "did you mean 'wisp-a100-qwen3-32b'"),
    (verification_time, ["--profile", "nowhere.csv"], "cannot read the profile nowhere.csv"),
    (verification_time, ["--profile", str(PROFILE), "--json", "/no/such/x.json"], "cannot write '/no/such/x.json'"),
    (acceptance, ["--pair", "qwen3-0.6b--qwen3-32"], "did you mean 'qwen3-0.6b--qwen3-32b'"),
    (acceptance, ["--responses", "1"], "--responses: given '1', allowed is a whole number from 50"),
]


@pytest.mark.parametrize(("module", "arguments", "message"), WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(module, arguments, message, capsys):
    try:
        code = cli.run(module.main, "program", arguments)
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    assert code == cli.BAD_INPUT
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,fast", "line 3: seconds is 'fast'"),
        ("1,2,3,0", "line 3: seconds is 0.0"),
        ("1,nan,3,1", "line 3: pairs is nan"),
    ],
)
def test_wrong_profile_line_is_named(tmp_path, line, message):
    file = tmp_path / "profile.csv"
    file.write_text(f"# comment\n{','.join(COLUMNS)},seconds\n{line}\n")
    with pytest.raises(errors.InputError, match=message):
        verification_time.read(file)


def test_profile_command_to_fit_and_json(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert cli.run(verification_time.main, "program", ["--profile", str(PROFILE), "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert {"launch_s", "new_token_s", "pair_s", "cached_token_s", "scores", "seed", "source"} <= set(row)
    assert "WISP published" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]  # no temporary file is left


def test_measuring_a_tiny_model(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from estimators.profiling import llama as profile_llama

    out = tmp_path / "profile.csv"
    sizes = {"layers": 1, "hidden": 32, "heads": 2, "kv-heads": 1, "intermediate": 64, "vocab": 64, "repeats": 2}
    sizes |= {"batch": "1,2", "new": "1,3", "cached": "0,8", "cold": 16}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert cli.run(profile_llama.main, "program", ["--out", str(out), *flags]) == 0
    lines = [line for line in out.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1 + 8 + 2
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert (row["batch"], row["new_tokens"], row["pairs"], row["cached_tokens"]) == ("2", "32", "512", "0")
    assert float(row["seconds"]) > 0
