"""Fates of drafted tokens and evidence about them: stated information, calibration, no word from the controller."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
from scipy import stats
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tests.support.small_worlds import CONSTANT_ACCEPTANCE, plain
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import (
    VIEW_DIRECTION,
    VIEW_NOISE,
    VIEW_SHARES,
    begin_walk,
    statistics_of_token,
    walk,
)
from wisp_gym.engine.build import mean_acceptance, separation
from wisp_gym.engine.draws import stream_key
from wisp_gym.engine.source import draft_token
from wisp_gym.engine.state import NO_SOURCE
from wisp_gym.engine.worlds import Worlds
from wisp_gym.scenario import Scenario, with_

REQUESTS, POSITIONS = 1500, 60


@numba.njit
def prepare(c, d, request):
    """Set the streams of a request and stand at its first position."""
    seed = c.seed
    d.acceptance_key = stream_key(seed, draws.ACCEPTANCE, 0, request)
    d.evidence_key = stream_key(seed, draws.EVIDENCE, 0, request)
    d.off_path_key = stream_key(seed, draws.OFF_PATH, 0, request)
    d.views_key = stream_key(seed, draws.VIEWS, 0, request)
    d.drift_key = stream_key(seed, draws.DRIFT, 0, request)
    begin_walk(c, d, stream_key(seed, draws.REQUEST_EFFECT, 0, request))


@numba.njit
def walked(config, device, n_requests, n_positions):
    """(requests, positions) fates along the target's output."""
    c, d = config[0], device[0]
    fates = np.zeros((n_requests, n_positions), np.int64)
    for request in range(n_requests):
        prepare(c, d, request)
        for n in range(n_positions):
            fates[request, n] = walk(c, d)
    return fates


@numba.njit
def drafted(config, device, n_requests, n_positions, round_tokens, source):
    """Rounds of `round_tokens` tokens.

    Returns (n, 8) rows of fate, on path, evidence, p_token and four statistics, and (requests, positions) fates seen.
    """
    c, d = config[0], device[0]
    rows = np.zeros((n_requests * n_positions * round_tokens, 8))
    fates = np.full((n_requests, n_positions), -1, np.int64)
    n = 0
    for request in range(n_requests):
        prepare(c, d, request)
        while d.position < n_positions - round_tokens:
            d.drafted, d.accepted, d.on_path, d.survival, d.expected_tokens = 0, 0, 1, 1.0, 1.0
            for _ in range(round_tokens):
                on_path, position = d.on_path, d.position
                draft_token(c, d, source)
                if on_path:
                    fates[request, position] = d.fate
                statistics = statistics_of_token(c, d)
                rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3] = d.fate, on_path, d.evidence, d.p_token
                rows[n, 4], rows[n, 5], rows[n, 6], rows[n, 7] = statistics
                n += 1
            if d.on_path:
                walk(c, d)
    return rows[:n], fates


def world(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """(1,) configuration and device records of a scenario's world."""
    worlds = Worlds(1, 1, threads=1)
    worlds.fill(0, with_(scenario, n_devices=1), 5, resolve("fixed:4+fcfs", scenario))
    return worlds.arrays.config[0], worlds.arrays.device[0]


@pytest.fixture(scope="module", params=[0.65, 0.81, 0.95])
def rows(request: pytest.FixtureRequest) -> tuple[Scenario, np.ndarray]:
    """On-path tokens of rounds of one token, with the same acceptance everywhere, and the scenario they came from."""
    scenario = plain(
        **CONSTANT_ACCEPTANCE, **{"draft.statistics.auc": request.param, "draft.acceptance.logit_mean": 0.4}
    )
    found, _ = drafted(*world(scenario), REQUESTS, POSITIONS, 1, NO_SOURCE)
    return scenario, found


def test_evidence_and_prediction_have_the_stated_area(rows: tuple[Scenario, np.ndarray]) -> None:
    scenario, r = rows
    stated = scenario.draft.statistics.auc
    assert len(r) > 40_000
    assert roc_auc_score(r[:, 0], r[:, 2]) == pytest.approx(stated, abs=0.006)
    assert roc_auc_score(r[:, 0], r[:, 3]) == pytest.approx(stated, abs=0.006)


def test_evidence_is_normal_about_the_fate(rows: tuple[Scenario, np.ndarray]) -> None:
    scenario, r = rows
    half = separation(scenario.draft.statistics.auc) / 2
    for fate, mean in ((1, half), (0, -half)):
        assert stats.kstest(r[r[:, 0] == fate, 2] - mean, "norm").pvalue > 1e-4


def test_prediction_is_calibrated(rows: tuple[Scenario, np.ndarray]) -> None:
    """Among tokens predicted p, a share p is accepted."""
    _, r = rows
    order = np.argsort(r[:, 3])
    for part in np.array_split(order, 10):
        error = math.sqrt(0.25 / len(part))
        assert r[part, 0].mean() == pytest.approx(r[part, 3].mean(), abs=4 * error)


def test_statistics_together_hold_the_stated_information_and_no_more(rows: tuple[Scenario, np.ndarray]) -> None:
    """The best logistic combination of the four, unbent, reaches the stated area; each alone stays below."""
    scenario, r = rows
    confidence, entropy, margin, spread = r[:, 4:8].T
    views = np.stack([logit(confidence), -np.log(entropy), logit(margin), np.log(spread)], axis=1)
    train = np.arange(len(r)) % 2 == 0
    fitted = LogisticRegression().fit(views[train], r[train, 0])
    stated = scenario.draft.statistics.auc
    assert roc_auc_score(r[~train, 0], fitted.predict_proba(views[~train])[:, 1]) == pytest.approx(stated, abs=0.01)
    alone = [roc_auc_score(r[:, 0], view) for view in views.T]
    assert alone == sorted(alone, reverse=True), "confidence tells most, spread least"
    d = separation(stated)
    np.testing.assert_allclose(alone, [stats.norm.cdf(d * math.sqrt(share / 2)) for share in VIEW_SHARES], atol=0.012)


def test_views_are_a_rotation() -> None:
    """Evidence along one direction, noise along the other three."""
    rotation = np.column_stack([VIEW_DIRECTION, VIEW_NOISE])
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(4), atol=1e-12)
    assert VIEW_SHARES.sum() == pytest.approx(1.0)


def test_statistics_stay_in_their_ranges(rows: tuple[Scenario, np.ndarray]) -> None:
    confidence, entropy, margin, spread = rows[1][:, 4:8].T
    for probability in (confidence, margin):
        assert probability.min() > 0
        assert probability.max() < 1
    assert entropy.min() > 0
    assert spread.min() > 0


def test_tokens_beyond_the_first_rejected_one_look_rejected() -> None:
    """Off the path, evidence is that of rejected tokens, independent from token to token."""
    scenario = plain(**CONSTANT_ACCEPTANCE, **{"draft.acceptance.logit_mean": 0.0})
    r, _ = drafted(*world(scenario), REQUESTS, POSITIONS, 6, NO_SOURCE)
    off = r[r[:, 1] == 0]
    assert len(off) > 20_000
    assert (off[:, 0] == 0).all()
    noise = off[:, 2] + separation(scenario.draft.statistics.auc) / 2
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / math.sqrt(len(noise))


@pytest.mark.parametrize("round_tokens", [1, 3, 8])
def test_fates_do_not_depend_on_the_controller(round_tokens: int) -> None:
    scenario = plain()
    config, device = world(scenario)
    along = walked(config, device, 200, POSITIONS)
    _, seen = drafted(config, device, 200, POSITIONS, round_tokens, NO_SOURCE)
    known = seen >= 0
    assert known.sum() > 3000
    assert (seen[known] == along[known]).all()


def test_mean_acceptance_is_the_share_of_right_positions() -> None:
    scenario = plain(**{"draft.acceptance.after_rejection_logit": 0.8})
    share = walked(*world(scenario), 4000, 200)[:, 20:].mean()
    assert share == pytest.approx(mean_acceptance(scenario.draft.acceptance), abs=0.01)


def test_fates_cluster_as_stated() -> None:
    """A token after a rejected one is harder; requests differ; drift fades over its correlation length."""
    hard = plain(
        **CONSTANT_ACCEPTANCE | {"draft.acceptance.after_rejection_logit": 1.0, "draft.acceptance.logit_mean": 1.0}
    )
    fates = walked(*world(hard), REQUESTS, POSITIONS)
    before, after = fates[:, :-1].ravel(), fates[:, 1:].ravel()
    assert after[before == 1].mean() == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.01)
    assert after[before == 0].mean() == pytest.approx(0.5, abs=0.01)
    mixed = plain(**CONSTANT_ACCEPTANCE | {"draft.acceptance.request_std": 1.0})
    spread = walked(*world(mixed), REQUESTS, POSITIONS).mean(axis=1).std()
    assert spread > 2 * fates.mean(axis=1).std()
    drift = plain(**CONSTANT_ACCEPTANCE | {"draft.acceptance.drift_std": 1.5, "draft.acceptance.drift_tokens": 20.0})
    centred = (f := walked(*world(drift), 6000, 96)) - f.mean()
    near, far = ((centred[:, :-lag] * centred[:, lag:]).mean() for lag in (8, 80))
    assert near > 0.03
    assert abs(far) < 0.2 * near
