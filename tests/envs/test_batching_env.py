"""`wisp_gym/Batching-v1`: batching rules outside the engine do what they do inside, and no play breaks the server."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from wisp_gym.contract import request
from wisp_gym.contract.server import SIZE as GLOBALS
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.state import QUEUED, VERIFYING
from wisp_gym.engine.worlds import Worlds
from wisp_gym.envs.batching import BatchingEnv
from wisp_gym.rules import batching as rules
from wisp_gym.scenario import Scenario, load, with_

SCENARIO = load("wisp-a100-qwen3-32b")
CHUNKED = with_(SCENARIO, **{"server.prefill_chunk_tokens": 64, "server.max_batch_requests": 4})
SCARCE_BYTES = SCENARIO.target.weights_bytes + 6_000 * SCENARIO.target.kv_bytes_per_token
SCARCE = with_(
    SCENARIO,
    **{"server.memory_bytes": SCARCE_BYTES, "server.memory_utilisation": 1.0, "server.activation_bytes": 0},
    **{"workload.prompt.max_tokens": 2_000, "workload.output.max_tokens": 1_000},
)
SERVERS = {"plain": SCENARIO, "chunked": CHUNKED, "scarce memory": SCARCE}


def make(scenario: Scenario = SCENARIO, devices: int = 12, visible: int = 12, **arguments: object) -> BatchingEnv:
    """The environment itself, without wrappers."""
    settings = {
        "horizon_s": 20.0,
        "controller": "fixed:4+fcfs",
        "reward_weights": {"starvation": 0.0},
        "responses_join": False,
    } | arguments
    env = gym.make("wisp_gym/Batching-v1", scenario=scenario, devices=devices, visible=visible, **settings).unwrapped
    assert isinstance(env, BatchingEnv)
    return env


def follow(env: BatchingEnv, rule: str, scenario: Scenario, seed: int) -> tuple[float, np.void]:
    """(return, totals) of an episode under a batching rule by `predict`."""
    model = BatchingPredictor(rule, scenario)
    seen, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        action, _ = model.predict(seen)
        seen, reward, _, over, info = env.step(int(action))
        total += reward
    assert info["invalid_actions"] == 0
    return total, env.task.episodes.arrays.totals[0, 0]


def inside(env: BatchingEnv, rule: str, scenario: Scenario, speculation: str = "fixed:4") -> np.void:
    """Totals when the engine's own rule drives the world that `env` is in, from its beginning."""
    c, n = env.task.episodes.arrays.config[0, 0], env.task.episodes.devices
    worlds = Worlds(1, n, threads=1)
    worlds.fill(0, scenario, int(c["seed"]), resolve(f"{speculation}+{rule}", scenario), n)
    for name in ("warmup_s", "window_end_s", "end_s"):
        worlds.arrays.config[0, 0][name] = c[name]
    worlds.run()
    return worlds.arrays.totals[0, 0]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("devices", [12, 40])
def test_first_come_first_served_outside_is_the_rule_inside(server: str, devices: int) -> None:
    env = make(SERVERS[server], devices, visible=devices)
    for seed in range(2):
        total, outside = follow(env, "fcfs", SERVERS[server], seed)
        engine = inside(env, "fcfs", SERVERS[server])
        assert total == outside["tokens_on_time"] > 100
        assert all(outside[name] == engine[name] for name in engine.dtype.names if name != "decisions")


@pytest.mark.parametrize("rule", ["edf", "wisp", "edf-demoted", "least-laxity", "marginal"])
@pytest.mark.parametrize("server", SERVERS)
def test_other_rules_outside_are_nearly_those_inside(rule: str, server: str) -> None:
    # float32 observations may flip ties, and then worlds part: goodput over worlds agrees within 1 %, and
    # most worlds are the same to the token, which a rule that only resembled the engine's would not give.
    env = make(SERVERS[server], 32, visible=32)
    pairs = [(follow(env, rule, SERVERS[server], seed)[0], inside(env, rule, SERVERS[server])) for seed in range(6)]
    outside = sum(total for total, _ in pairs)
    assert outside == pytest.approx(sum(engine["tokens_on_time"] for _, engine in pairs), rel=0.01)
    if rule != "marginal":  # a request passed over may be taken later, once less of the chunk is left for it
        assert sum(total == engine["tokens_on_time"] for total, engine in pairs) >= 4


def test_rules_differ_where_it_matters() -> None:
    # Otherwise the agreement above would say nothing: waiting for four requests costs goodput on an idle server.
    env = make(devices=4, visible=4)
    eager, patient = (follow(env, rule, SCENARIO, seed=1)[0] for rule in ("fcfs", "static:4,0.5"))
    assert patient < 0.9 * eager


def test_a_static_batch_waits_outside_too() -> None:
    env = make(devices=16, visible=16)
    _, outside = follow(env, "static:4,0.1", SCENARIO, seed=0)
    engine = inside(env, "static:4,0.1", SCENARIO)
    assert outside["batched_requests"] / outside["batches"] > 2.0
    assert outside["tokens_on_time"] == pytest.approx(engine["tokens_on_time"], rel=0.03)  # it wakes a little later


def check_conservation(env: BatchingEnv) -> None:
    """What came in is done, waiting, running or on a device; every drafted token has one fate; memory holds."""
    w = env.task.episodes.arrays
    c, s, t = w.config[0, 0], w.server[0, 0], w.totals[0, 0]
    devices = w.device[0, : c["n_devices"]]
    queue = w.queue[0, : s["n_queue"]]
    assert t["drafted"] == t["accepted"] + t["rejected"] + t["trimmed"] + t["unverified"]
    assert t["requests_in"] == t["requests_done"] + (devices["committed"] < devices["output_tokens"]).sum()
    assert len(set(queue.tolist())) == len(queue)
    assert (devices["phase"][queue] == QUEUED).all()
    assert (devices["phase"] == QUEUED).sum() == len(queue)
    unanswered = w.replies[0, s["reply_next"] : s["n_replies"]]  # replies leave after the next batch is launched
    assert s["busy"] or set(unanswered.tolist()) == set(np.flatnonzero(devices["phase"] == VERIFYING).tolist())
    assert s["kv_tokens"] == devices["cached_tokens"].sum() <= c["kv_capacity_tokens"] or s["busy"]
    assert t["kv_peak_tokens"] <= c["kv_capacity_tokens"]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("visible", [1, 4, 32])
def test_random_play_conserves_requests_tokens_and_memory(server: str, visible: int) -> None:
    env = make(SERVERS[server], 24, visible, controller="wisp+wisp", horizon_s=10.0)
    rng = np.random.default_rng(visible)
    _, info = env.reset(seed=5)
    over, terms = False, {"on_time_tokens": 0.0, "late_tokens": 0.0}
    while not over:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        _, _, _, over, info = env.step(action)
        terms = {name: value + info[f"reward_{name}"] for name, value in terms.items()}
        check_conservation(env)
    totals = env.task.episodes.arrays.totals[0, 0]
    assert totals["tokens"] > 100
    assert terms["on_time_tokens"] == totals["tokens_on_time"]
    assert -terms["late_tokens"] == totals["tokens"] - totals["tokens_on_time"]


def test_masks_say_what_the_server_takes() -> None:
    env = make(CHUNKED, 24, visible=24)
    seen, info = env.reset(seed=0)
    largest, over = 0, False
    while not over:
        waiting = min(int(env.task.episodes.arrays.server[0, 0]["n_queue"]), 24)
        before = int(env.task.episodes.arrays.server[0, 0]["n_batch"])
        assert not info["action_mask"][waiting:24].any()
        assert info["action_mask"][24:26].tolist() == [before > 0, before == 0]
        picks = np.flatnonzero(info["action_mask"][:24])
        places = seen[GLOBALS:].reshape(24, request.SIZE)
        assert places[:, request.PICKED].sum() == before
        assert not (places[:, request.PICKED] * places[:, request.ADMISSIBLE]).any()
        assert before < 4 or not len(picks)
        seen, _, _, over, info = env.step(int(picks[-1]) if len(picks) else 24 + (before == 0))
        largest = max(largest, before)
    assert largest == 4  # the server's limit is reached and never passed


def test_a_masked_pick_launches_and_is_counted() -> None:
    env, twin = make(visible=3), make(visible=3)
    (_, info), _ = env.reset(seed=0), twin.reset(seed=0)
    for count in range(1, 30):
        first = int(np.flatnonzero(info["action_mask"])[0])
        env.step(first)
        twin.step(first)
        blocked = np.flatnonzero(~env.action_masks()[:3])
        assert len(blocked) > 0  # the one just picked
        _, reward, _, _, info = env.step(int(blocked[0]))
        _, launched, _, _, other = twin.step(3)
        assert (reward, info["time_s"]) == (launched, other["time_s"])
        assert (info["invalid_actions"], other["invalid_actions"]) == (count, 0)


def test_launching_an_empty_batch_waits_at_most_a_quarter_of_a_batch() -> None:
    env = make()
    env.reset(seed=0)
    s = env.task.episodes.arrays.server[0, 0]
    waited = 0
    for _ in range(200):
        batches, longest_s = int(s["batches"]), 0.25 * float(s["mean_batch_s"])
        seen, _, _, _, info = env.step(13)
        assert s["batches"] == batches
        assert 0.0 < info["dt"] <= longest_s + 1e-9
        assert seen[GLOBALS + request.PRESENT] == 1.0  # nobody leaves a queue that no batch takes
        waited += info["dt"] == pytest.approx(longest_s)
    assert waited > 100


@pytest.mark.parametrize("devices", [1, 30])
def test_a_policy_that_always_waits_ends_with_nothing(devices: int) -> None:
    env = make(devices=devices, visible=8, horizon_s=10.0)
    env.reset(seed=0)
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, _, over, info = env.step(9)
        total, steps = total + reward, steps + 1
    assert total == 0.0
    assert info["time_s"] == 10.0
    assert steps < 2_000
    assert env.task.episodes.arrays.server[0, 0]["batches"] == 0
    check_conservation(env)


def test_devices_follow_a_learned_policy_as_inside_the_engine() -> None:
    env = make(controller="speculation-v1+fcfs")
    _, outside = follow(env, "fcfs", SCENARIO, 0)
    engine = inside(env, "fcfs", SCENARIO, "speculation-v1")
    assert all(outside[name] == engine[name] for name in engine.dtype.names if name != "decisions")
    assert outside["drafted"] > 100


def check_features(env: BatchingEnv, seen: np.ndarray) -> int:
    """Every place of the observation describes the request that waits there; returns how many do."""
    w = env.task.episodes.arrays
    s, queue = w.server[0, 0], w.queue[0, : w.server[0, 0]["n_queue"]]
    table = seen[GLOBALS:].reshape(env.task.visible, request.SIZE)
    for place, i in enumerate(queue):
        d = w.device[0, i]
        assert table[place, request.DRAFT_TOKENS] == pytest.approx(d["drafted"] / CHUNKED.max_draft_tokens)
        assert table[place, request.CACHED_TOKENS] == pytest.approx(d["cached_tokens"] / 1024, rel=1e-6)
        assert table[place, request.SLO] == pytest.approx(d["slo_tokens_per_s"] / 10, rel=1e-6)
        waited_s = float(s["now_s"]) - d["arrived_s"]
        assert table[place, request.WAITING] == pytest.approx(waited_s / s["mean_batch_s"], rel=1e-5, abs=1e-6)
    assert not table[len(queue) :].any()
    return len(queue)


def test_the_features_seen_are_those_of_the_requests_that_wait() -> None:
    env = make(CHUNKED, 24, visible=24, controller="wisp+wisp", horizon_s=5.0)
    model = BatchingPredictor("fcfs", CHUNKED)
    checked, at_the_end = 0, 0
    for seed in range(5):
        seen, _ = env.reset(seed=seed)
        over = False
        while not over:
            checked += check_features(env, seen)
            seen, _, _, over, _ = env.step(int(model.predict(seen)[0]))
        at_the_end += check_features(env, seen)  # the last observation is what learners bootstrap from
        assert seen[0] == 0.0  # no batch is being composed
    assert checked > 1_000
    assert at_the_end > 5


def test_predict_takes_one_or_many_and_refuses_other_shapes() -> None:
    env = make(visible=6)
    model = BatchingPredictor("fixed:4+edf", SCENARIO)
    seen, _ = env.reset(seed=0)
    one, state = model.predict(seen)
    many, _ = model.predict(np.stack([seen, seen]), deterministic=True)
    assert (one.shape, many.tolist(), state, model.kind) == ((), [int(one)] * 2, None, rules.EDF)
    for wrong in (seen[:-1], seen[:GLOBALS], np.zeros((2, 2, len(seen)))):
        with pytest.raises(ValueError, match="observation: given shape"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="did you mean 'static'"):
        BatchingPredictor("fixed:4+statc", SCENARIO)


def members(env: BatchingEnv) -> list[int]:
    """Devices in the batch so far."""
    w = env.task.episodes.arrays
    return w.batch[0, : w.server[0, 0]["n_batch"]].tolist()


@pytest.mark.parametrize("server", SERVERS)
def test_responses_in_memory_join_by_themselves(server: str) -> None:
    env = make(SERVERS[server], 24, visible=24, responses_join=True)
    rng, joined, left_out = np.random.default_rng(0), 0, 0
    seen, info = env.reset(seed=2)
    w, over = env.task.episodes.arrays, False
    limit = int(w.config[0, 0]["max_batch_requests"])
    while not over:
        places = seen[GLOBALS:].reshape(24, request.SIZE)
        queue = w.queue[0, : w.server[0, 0]["n_queue"]]
        ready = [int(i) for place, i in zip(places, queue, strict=False) if place[request.UNCACHED_TOKENS] == 0.0]
        expected = ready[:limit]  # in order of arrival
        assert [i for i in members(env) if i in ready] == expected
        assert not info["action_mask"][[place for place, i in enumerate(queue) if i in ready]].any()
        assert info["action_mask"][24:26].tolist() == [len(members(env)) > 0, not members(env)]
        joined, left_out = joined + len(expected), left_out + len(ready) - len(expected)
        seen, _, _, over, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
    check_conservation(env)
    assert joined > 100
    assert (left_out > 0) == (server == "chunked")


@pytest.mark.parametrize("server", SERVERS)
def test_a_rule_that_puts_responses_first_is_the_same_when_they_join(server: str) -> None:
    env = make(SERVERS[server], 32, visible=32, responses_join=True)
    pairs = [(follow(env, "aged", SERVERS[server], seed)[0], inside(env, "aged", SERVERS[server])) for seed in range(3)]
    outside = sum(total for total, _ in pairs)
    assert outside == pytest.approx(sum(engine["tokens_on_time"] for _, engine in pairs), rel=0.02)


def test_a_chunk_may_be_chosen_beside_responses_and_before_a_prompt() -> None:
    env = make(devices=24, visible=24, responses_join=True)
    _, info = env.reset(seed=1)
    beside, over = 0, False
    while not over:
        mask = info["action_mask"]
        picks = np.flatnonzero(mask[:24])
        if mask[26] and members(env) and len(picks):
            beside += 1
            _, _, _, over, info = env.step(int(picks[0]))
            assert over or not info["action_mask"][26:].any()  # a prompt has used the chunk that was
        else:
            _, _, _, over, info = env.step(int(np.flatnonzero(mask)[0]))
    assert beside > 10
