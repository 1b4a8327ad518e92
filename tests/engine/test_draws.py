"""Counter-based draws: known vectors, uniformity, independence, exact quantiles."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
from scipy import stats

from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import exponentials
from wisp_gym.engine.draws import (
    bits,
    clipped_lognormal,
    exponential,
    normal,
    normal_quantile,
    stream_key,
    three_normals,
    uniform,
)
from wisp_gym.jit_lanes import EXP_BOUND

CAUSES = (
    draws.ARRIVAL, draws.PROMPT, draws.OUTPUT, draws.NETWORK, draws.LOSS, draws.OUTAGE, draws.REQUEST_EFFECT,
    draws.DRIFT, draws.ACCEPTANCE, draws.EVIDENCE, draws.OFF_PATH, draws.VIEWS, draws.BATCH_NOISE,
)  # fmt: skip
N = 50_000
# A fixed seed makes every test exact; a p-value below this would be a one in 10⁴ accident.
P_VALUE = 1e-4


@numba.njit
def along_index(key, n):
    """(n,) uniforms of one stream."""
    return np.array([uniform(key, k) for k in range(n)])


@numba.njit
def along_request(seed, cause, device, n):
    """(n,) first uniforms of a device's requests."""
    return np.array([uniform(stream_key(seed, cause, device, k), 0) for k in range(n)])


@numba.njit
def along_device(seed, cause, request, n):
    """(n,) first uniforms of many devices."""
    return np.array([uniform(stream_key(seed, cause, k, request), 0) for k in range(n)])


@numba.njit
def along_seed(first, cause, n):
    """(n,) first uniforms of consecutive seeds."""
    return np.array([uniform(stream_key(np.uint64(first + k), cause, 0, 0), 0) for k in range(n)])


def key_of(cause: int, device: int = 0, request: int = 0, seed: int = 1) -> np.uint64:
    """A stream's key as numba takes it."""
    return np.uint64(stream_key(np.uint64(seed), cause, device, request))


def test_bits_are_splitmix64():
    """First outputs of SplitMix64 of seed 0 and of seed 1234567 (the reference implementation's own)."""
    zero = [int(bits(np.uint64(0), k)) for k in range(5)]
    assert zero == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    other = [int(bits(np.uint64(1234567), k)) for k in range(5)]
    assert other == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def lines() -> dict[str, np.ndarray]:
    """(N,) uniforms along each of the four counters."""
    return {
        "index": along_index(key_of(draws.ACCEPTANCE), N),
        "request": along_request(np.uint64(1), draws.ACCEPTANCE, 0, N),
        "device": along_device(np.uint64(1), draws.ACCEPTANCE, 0, N),
        "seed": along_seed(0, draws.ACCEPTANCE, N),
    }


@pytest.mark.parametrize("counter", ["index", "request", "device", "seed"])
def test_uniform_along_every_counter(counter):
    u = lines()[counter]
    assert u.min() > 0.0
    assert u.max() < 1.0
    assert stats.kstest(u, "uniform").pvalue > P_VALUE
    assert stats.chisquare(np.bincount((u * 256).astype(int), minlength=256)).pvalue > P_VALUE


@pytest.mark.parametrize("counter", ["index", "request", "device", "seed"])
def test_neighbours_are_independent(counter):
    """Pairs at distance 1, 2, 3 and 64 fill the unit square evenly, and are not correlated."""
    u = lines()[counter]
    for lag in (1, 2, 3, 64):
        cells = (u[:-lag] * 16).astype(int) * 16 + (u[lag:] * 16).astype(int)
        assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > P_VALUE
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / math.sqrt(N)


def test_causes_devices_and_requests_are_independent_of_each_other():
    """No two of 13 causes, or of 8 devices, or of 8 requests, are correlated or share a draw."""
    n = 20_000
    streams = [along_index(key_of(cause), n) for cause in CAUSES]
    streams += [along_index(key_of(draws.EVIDENCE, device=k), n) for k in range(1, 8)]
    streams += [along_index(key_of(draws.EVIDENCE, request=k), n) for k in range(1, 8)]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    assert len(np.unique(np.concatenate(streams))) == len(streams) * n


def test_device_and_request_are_not_interchangeable():
    keys = {int(key_of(c, d, r)) for c in CAUSES for d in range(20) for r in range(20)}
    assert len(keys) == len(CAUSES) * 400


def test_a_draw_depends_on_nothing_but_its_address():
    key = key_of(draws.NETWORK, 3, 4)
    first = [uniform(key, k) for k in (5, 2, 9)]
    uniform(key_of(draws.LOSS), 0)
    assert first == [along_index(key, 10)[k] for k in (5, 2, 9)]


def test_normal_quantile_is_exact():
    small = 10.0 ** -np.arange(1.0, 300.0)
    p = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 20_001), small, 1 - small[:15]])
    ours, scipys = np.array([normal_quantile(x) for x in p]), stats.norm.ppf(p)
    np.testing.assert_allclose(ours, scipys, rtol=1e-12, atol=1e-12)


def test_three_normals_at_once_are_those_drawn_alone():
    key = key_of(draws.VIEWS)
    assert [three_normals(key, 3 * k) for k in range(2000)] == [
        tuple(normal(key, 3 * k + j) for j in range(3)) for k in range(2000)
    ]


def test_distributions():
    key = key_of(draws.EVIDENCE)
    assert stats.kstest([normal(key, k) for k in range(N)], "norm").pvalue > P_VALUE
    assert stats.kstest([exponential(key, k) for k in range(N)], "expon").pvalue > P_VALUE


def test_lengths_are_log_normal_rounded_and_clipped():
    key = key_of(draws.PROMPT)
    drawn = np.array([clipped_lognormal(key, k, math.log(150.0), 0.8, 16, 2048) for k in range(N)])
    assert (drawn.min(), drawn.max()) == (16, 2048)
    assert np.median(drawn) == pytest.approx(150.0, rel=0.02)
    clipped = stats.norm.cdf(math.log(16.5 / 150) / 0.8) + stats.norm.sf(math.log(2047.5 / 150) / 0.8)
    assert np.isin(drawn, (16, 2048)).mean() == pytest.approx(clipped, rel=0.3)  # 172 of 50,000, four deviations


@numba.njit
def exponentials_of(x):
    return exponentials(x, -x, 0.5 * x, 0.0)


def test_exponentials_are_those_of_the_library_and_end_at_their_bounds():
    for x in np.concatenate([np.random.default_rng(0).uniform(-40.0, 40.0, 2000), [-EXP_BOUND, EXP_BOUND]]).tolist():
        assert exponentials_of(x) == pytest.approx([math.exp(y) for y in (x, -x, 0.5 * x, 0.0)], rel=1e-15)
    for x in (EXP_BOUND + 1.0, 1e5, math.inf):
        assert exponentials_of(x)[:2] == exponentials_of(EXP_BOUND)[:2]
