"""Learned batching: order and number of requests do not matter, and torch, environment and engine decide alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.support.scorers import random_scorer
from wisp_gym.contract import device, request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.policy import PolicyError, load_policy
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import ScorerPolicy, load_scorer, save_scorer
from wisp_gym.engine.worlds import Worlds
from wisp_gym.envs.shells import DecisionEnv
from wisp_gym.rules import batching as rules
from wisp_gym.scenario import load, with_

SCENARIO = with_(load("wisp-study"), n_devices=30)
IDS = {
    "batching": "wisp_gym/Batching-v1", "joint": "wisp_gym/Joint-v1",
    "batching-hosting": "wisp_gym/Batching-v1", "joint-hosting": "wisp_gym/Joint-v1",
}  # fmt: skip
VISIBLE = 30


def hosts(decision: str) -> bool:
    """Whether it says for whom the server drafts."""
    return decision.endswith("hosting")


def drafters(decision: str) -> str:
    """What a controller's name must end with for that."""
    return "+by-load:0+colocated:4" if hosts(decision) else ""


def make(decision: str, **arguments: Any) -> DecisionEnv:
    """The environment itself."""
    controller = f"aligned:0+fcfs{drafters(decision)}"
    settings = {"scenario": SCENARIO, "visible": VISIBLE, "horizon_s": 20.0, "controller": controller} | arguments
    env = gym.make(IDS[decision], hosting=hosts(decision), **settings).unwrapped
    assert isinstance(env, DecisionEnv)
    return env


def states(decision: str, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Observations and masks of random valid play."""
    env, rng = make(decision), np.random.default_rng(0)
    o, info = env.reset(seed=3)
    rows, masks = [], []
    for _ in range(count):
        rows.append(o)
        masks.append(info["action_mask"])
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        o, _, _, over, info = env.step(action)
        if over:
            o, info = env.reset()
    return np.stack(rows), np.stack(masks)


@pytest.mark.parametrize("decision", IDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_policy_outside_decides_as_its_copy_inside(decision: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_scorer(random_scorer(decision, seed, eager=seed > 0), path)
    env, model = make(decision), BatchingPredictor(str(path), SCENARIO, prices=decision.startswith("joint"))
    o, info = env.reset(seed=seed)
    over = False
    while not over:
        action = int(model.predict(o)[0])
        assert info["action_mask"][action]
        o, _, _, over, info = env.step(action)
    c, n = env.task.episodes.arrays.config[0, 0], SCENARIO.n_devices
    worlds = Worlds(1, n, threads=1)
    worlds.fill(0, SCENARIO, int(c["seed"]), resolve(f"aligned:0+{path}{drafters(decision)}", SCENARIO), n)
    for name in ("warmup_s", "window_end_s", "end_s"):
        worlds.arrays.config[0, 0][name] = c[name]
    worlds.run()
    inside, outside = worlds.arrays.totals[0, 0], env.task.episodes.arrays.totals[0, 0]
    assert all(inside[name] == outside[name] for name in inside.dtype.names if name != "decisions")
    assert seed == 0 or outside["tokens"] > 20
    assert not hosts(decision) or seed == 0 or outside["server_draft_s"] > 0.0


def scores(policy: ScorerPolicy, rows: np.ndarray) -> np.ndarray:
    """(n, actions) of the torch network."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sb3_contrib")
    from agents.batching.scorer_network import Scorer

    network = Scorer(policy.decision, tuple(len(b) for _, b in policy.layers[:3]))  # type: ignore[arg-type]
    network.load(policy)
    with torch.no_grad():
        return network(torch.from_numpy(rows)).numpy()


@pytest.mark.parametrize("decision", IDS)
def test_torch_decides_as_the_engine(decision: str, tmp_path: Path) -> None:
    policy = random_scorer(decision, 5)
    save_scorer(policy, tmp_path / "policy.json")
    rows, masks = states(decision)
    given = np.where(masks == 1, scores(policy, rows), -np.inf)
    model = BatchingPredictor(str(tmp_path / "policy.json"), SCENARIO, prices=decision.startswith("joint"))
    best = np.sort(given, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-4  # float32 sums in another order may flip a tie
    assert clear.mean() > 0.9
    assert np.array_equal(model.predict(rows)[0][clear], given.argmax(1)[clear])


def places(rows: np.ndarray) -> np.ndarray:
    """(n, Q, REQUEST) of observations."""
    return rows[:, server.SIZE :].reshape(len(rows), -1, request.SIZE)


def test_the_order_of_requests_does_not_matter() -> None:
    rows, _ = states("batching", 200)
    rng, policy = np.random.default_rng(1), random_scorer("batching", 2)
    order = np.stack([rng.permutation(VISIBLE) for _ in rows])
    order = np.take_along_axis(
        order, np.argsort(np.take_along_axis(places(rows)[:, :, request.PRESENT], order, 1) < 0.5, 1, kind="stable"), 1
    )
    moved = rows.copy()
    places(moved)[:] = np.take_along_axis(places(rows), order[:, :, None], 1)
    one, other = scores(policy, rows), scores(policy, moved)
    there = np.take_along_axis(places(rows)[:, :, request.UNCACHED_TOKENS], order, 1) > 0.0
    assert there.sum() > 200
    np.testing.assert_allclose(
        np.take_along_axis(one[:, :VISIBLE], order, 1)[there], other[:, :VISIBLE][there], atol=1e-4
    )
    np.testing.assert_allclose(one[:, VISIBLE:], other[:, VISIBLE:], atol=1e-4)


def test_the_number_of_equal_requests_and_of_places_does_not_matter() -> None:
    rows, _ = states("batching", 200)
    policy = random_scorer("batching", 3)
    rows = rows[places(rows)[:, 0, request.UNCACHED_TOKENS] > 0.0]
    alone, many = (
        np.concatenate([rows[:, : server.SIZE], np.zeros((len(rows), 40 * request.SIZE), np.float32)], 1)
        for _ in range(2)
    )
    places(alone)[:, 0] = places(rows)[:, 0]
    places(many)[:, :25] = places(rows)[:, :1]
    one, other = scores(policy, alone), scores(policy, many)
    np.testing.assert_allclose(one[:, :1].repeat(25, 1), other[:, :25], atol=1e-4)
    np.testing.assert_allclose(one[:, 40:], other[:, 40:], atol=1e-4)


def test_names_hold_a_batching_policy_beside_a_rule_or_a_speculation_policy(tmp_path: Path) -> None:
    path = tmp_path / "a+b" / "batching.json"
    path.parent.mkdir()
    save_scorer(random_scorer("batching", 0), path)
    found = resolve(f"wisp+{path}+chunk:64+admit", SCENARIO)
    assert (found.batching, found.chunk_tokens, found.admit_share) == (rules.LEARNED, 64, 0.95)
    assert np.array_equal(found.scorer, load_scorer(path).weights)
    from wisp_gym.controllers.policy import Policy
    from wisp_gym.rules.mlp import pack

    token = Policy("token", pack([(np.zeros((2, device.SIZE), np.float32), np.zeros(2, np.float32))]), [])
    both = resolve(f"{tmp_path}/s.json+{path}", SCENARIO, load=lambda name: token)
    assert (both.batching, both.policy is token.weights) == (rules.LEARNED, True)


def test_a_policy_that_sets_prices_needs_the_joint_environment(tmp_path: Path) -> None:
    save_scorer(random_scorer("joint", 0), tmp_path / "j.json")
    with pytest.raises(ControllerError, match="it sets prices"):
        BatchingPredictor(str(tmp_path / "j.json"), SCENARIO)


def test_saving_and_loading_gives_the_same_policy(tmp_path: Path) -> None:
    policy = random_scorer("joint", 1)
    save_scorer(policy, tmp_path / "p.json")
    again = load_scorer(tmp_path / "p.json")
    assert np.array_equal(policy.weights, again.weights)
    assert (again.decision, again.about) == ("joint", {"seed": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("decision", "token", "decision given 'token', allowed in place of a batching rule are batching, joint, "),
        (
            "globals",
            [["other", "", 0, 1]],
            "globals: 'other'",
        ),
        ("requests", [], "requests: given"),
        ("chunk_tokens", [1, 2], r"chunk_tokens given \[1, 2\], allowed are \[0, 64"),
        ("prices", [0.5], "prices given"),
        ("version", 99, "version given 99, allowed is 1"),
        ("layers", [], "layers: given 0"),
    ],
)
def test_other_schemas_are_refused_in_one_line(key: str, value: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save_scorer(random_scorer("batching", 0), path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {key: value}))
    with pytest.raises(PolicyError, match=words) as caught:
        load_scorer(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_batching_policy_is_no_speculation_policy(tmp_path: Path) -> None:
    save_scorer(random_scorer("batching", 0), tmp_path / "p.json")
    with pytest.raises(PolicyError, match="observation: given"):
        load_policy(tmp_path / "p.json")


def test_the_price_of_a_launch_reaches_the_devices_and_shortens_drafts() -> None:
    drafted = {}
    for level in (0, len(PRICES) - 1):
        env = make("joint", horizon_s=15.0)
        model = BatchingPredictor("fcfs", SCENARIO, prices=True)
        o, _ = env.reset(seed=1)
        over = False
        while not over:
            action = int(model.predict(o)[0])
            o, _, _, over, _ = env.step(VISIBLE + level if action == VISIBLE else action)
        world = env.task.episodes.arrays
        assert set(np.unique(world.device[0]["price"])) <= {0.0, PRICES[level]}
        assert o[server.PRICE] == np.float32(PRICES[level])
        drafted[level] = world.totals[0, 0]["drafted"] / world.totals[0, 0]["rounds"]
    assert drafted[5] < 0.8 * drafted[0]


def test_a_chosen_chunk_limits_the_prefill_of_one_batch() -> None:
    env = make("batching", controller="fixed:4+fcfs", responses_join=False)
    o, info = env.reset(seed=0)
    chunks, over = VISIBLE + 2, False
    model, met = BatchingPredictor("fcfs", SCENARIO), 0
    s = env.task.episodes.arrays.server[0, 0]
    while not over and met < 30:
        if info["action_mask"][chunks]:
            level = met % len(CHUNK_TOKENS)
            o, _, _, over, info = env.step(chunks + level)
            assert s["chunk_left"] == CHUNK_TOKENS[level]
            assert not info["action_mask"][chunks:].any()
            assert (
                not places(o[None])[0, :, request.ADMISSIBLE][places(o[None])[0, :, request.UNCACHED_TOKENS] > 0].any()
                or level > 0
            )
            met += 1
        o, _, _, over, info = env.step(int(model.predict(o)[0]))
    assert met == 30


def test_nothing_is_evicted_where_admission_leaves_room() -> None:
    from wisp_gym.simulation import simulate

    crowd = with_(load("wisp-study"), **{"horizon.warmup_s": 5.0, "horizon.measure_s": 30.0, "horizon.drain_s": 0.0})
    plain, limited = (simulate(crowd, f"wisp+fcfs{admit}", [0, 1], 160, threads=1) for admit in ("", "+admit:0.9"))
    assert sum(m.evictions for m in limited) == 0 < sum(m.evictions for m in plain)
    assert sum(m.throughput_tokens_per_s for m in limited) > 1.2 * sum(m.throughput_tokens_per_s for m in plain)
