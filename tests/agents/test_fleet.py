"""Experience of whole fleets: what the engine records is what the policy did, whole rounds, and nothing is lost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.training.fleet import WEIGHTS, Decisions, Fleet, FleetSettings, worth
from agents.training.fleet_ppo import FleetPPO
from agents.training.learners import make_env, make_model
from agents.training.networks import Standardise, engine_policy
from agents.training.settings import new_settings
from wisp_gym.contract import device
from wisp_gym.controllers.policy import make_policy
from wisp_gym.engine import state
from wisp_gym.rules.ways import allows


def actor(seed: int = 0) -> ActorCriticPolicy:
    """SB3's policy for the spaces of Speculation-v1, with random weights."""
    torch.manual_seed(seed)
    space = spaces.Box(np.float32(device.LOW), np.float32(device.HIGH))
    policy = ActorCriticPolicy(
        space, spaces.Discrete(2), lambda _: 1e-3, [32, 32], features_extractor_class=Standardise
    )
    torch.nn.init.normal_(policy.action_net.weight, std=0.5)
    return policy


def fleet(decisions: int, seed: int = 0, weights: dict[str, float] | None = None) -> Fleet:
    """Two worlds of 12 devices."""
    worlds = FleetSettings(["wisp-study"], worlds=2, randomise={"devices": (12, 12)}, weights=weights or {})
    return Fleet(worlds, engine_policy(actor(), "token"), decisions, seed)


def rounds_of(got: Decisions) -> list[tuple[bytes, ...]]:
    """Every round as its observations, actions and reward."""
    edges = np.flatnonzero(got.ends) + 1
    return [
        (got.observations[a:b].tobytes(), got.actions[a:b].tobytes(), got.rewards[b - 1].tobytes())
        for a, b in zip([0, *edges[:-1]], edges, strict=True)
    ]


def test_recorded_probabilities_are_those_of_the_torch_policy():
    policy = actor()
    got = fleet(4000).collect(engine_policy(policy, "token"))
    with torch.no_grad():
        _, log_probability, _ = policy.evaluate_actions(torch.as_tensor(got.observations), torch.as_tensor(got.actions))
    assert len(got.actions) > 3000
    np.testing.assert_allclose(got.log_probabilities, log_probability.numpy(), atol=2e-4)
    assert 0.1 < got.actions.mean() < 0.9


def test_a_rounds_decisions_lie_side_by_side_and_end_with_its_last():
    got = fleet(3000).collect(engine_policy(actor(), "token"))
    drafted = np.round(got.observations[:, device.DRAFTED_TOKENS] * 12).astype(int)
    starts = np.append(True, got.ends[:-1])
    assert (drafted[starts] == 0).all()
    assert (np.diff(drafted)[~got.ends[:-1]] == 1).all()
    assert (got.actions[~got.ends] == 1).all()  # before its last decision a round goes on
    assert (got.rewards[~got.ends] == 0).all()


@pytest.mark.parametrize("weights", [None, {"externality": 0.0, "on_time": 1.0, "pressure": 1.0}])
def test_small_pieces_hold_the_rounds_of_one_large_piece(weights):
    policy = engine_policy(actor(), "token")
    whole = fleet(6000, weights=weights).collect(policy)
    pieces = fleet(1000, weights=weights)
    parts = []
    while sum(len(part.actions) for part in parts) < 7000:
        parts.append(pieces.collect(policy))
    seen = {key[:2] for part in parts for key in rounds_of(part)}
    assert {key[:2] for key in rounds_of(whole)} <= seen


def test_same_seed_same_experience():
    policy = engine_policy(actor(), "token")
    one, two, other = fleet(2000).collect(policy), fleet(2000).collect(policy), fleet(2000, seed=1).collect(policy)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.observations[:100], other.observations[:100])


def test_the_reward_of_a_round_by_hand():
    squad = fleet(1000, weights={"externality": 2.0, "on_time": 0.5}).squads[0]
    squad.tokens[0], squad.seconds[0] = 10.0, 2.0
    outcome = np.zeros(1, state.OUTCOME)
    outcome["device"], outcome["drafted"], outcome["committed"], outcome["on_time"] = 3, 4, 3, 1
    outcome["start_s"], outcome["end_s"], outcome["price"] = 1.0, 1.5, 0.05
    outcome["work_s"], outcome["token_rate"], outcome["utilisation"] = 0.001, 500.0, 0.8
    # rate (10 + 3)/(2 + 0.5) = 5.2; 0.5*3 + 0.5*1 - 5.2*0.5 - 4*0.05 - 2*0.001*500*0.8
    slack = np.array([4.0])
    assert squad.reward(0, outcome, slack, squad_weights(pressure=0.0)) == pytest.approx([2.0 - 2.6 - 0.2 - 0.8])
    squad.tokens[0], squad.seconds[0] = 10.0, 2.0
    urgent = 1.0 + 1.5 / (1.0 + math.e)  # 4 tokens ahead
    assert squad.reward(0, outcome, slack, squad_weights(pressure=1.5)) == pytest.approx([urgent * -0.6 - 0.2 - 0.8])


def squad_weights(pressure: float) -> dict[str, float]:
    """Those of the case above."""
    return WEIGHTS | {"externality": 2.0, "on_time": 0.5, "pressure": pressure}


def test_time_is_worth_what_was_measured_at_a_slack():
    slack = np.array([-20.0, 0.0, 12.0, 20.0])
    assert worth(slack, WEIGHTS).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert worth(slack, WEIGHTS | {"deadlines": 1.0}) == pytest.approx([0.6, 3.0, 1.65, 1.0])
    assert worth(slack, WEIGHTS | {"deadlines": 0.5}) == pytest.approx([0.8, 2.0, 1.325, 1.0])


def test_the_learner_is_saved_and_loaded_as_any_of_sb3(tmp_path):
    settings = new_settings(n_timesteps=1, fleet={"worlds": 2, "randomise": {"devices": [8, 8]}})
    settings = replace(settings, hyperparameters=settings.hyperparameters | {"decisions": 2048, "batch_size": 512})
    env = make_env(settings)
    model = make_model(settings, env)
    model.learn(2048)
    model.save(tmp_path / "model.zip")
    loaded = FleetPPO.load(tmp_path / "model.zip", env=env)
    seen = np.random.default_rng(0).uniform(device.LOW, device.HIGH, (200, device.SIZE)).astype(np.float32)
    assert np.array_equal(model.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0])
    with pytest.raises(ValueError, match="fleet: given none"):
        loaded.learn(2048)
    loaded.fleet = model.fleet
    assert loaded.learn(2048, reset_num_timesteps=False).num_timesteps == 2048


def test_decisions_that_say_how_rounds_end_are_drawn_among_the_allowed_ones():
    rng = np.random.default_rng(2)
    layers = [(rng.normal(0.0, 0.5, (4, device.SIZE)).astype(np.float32), np.array([0.0, 1.5, 0.0, -1.0], np.float32))]
    policy = make_policy(layers, "token-way")
    worlds = FleetSettings(
        scenarios=["wisp-a100-qwen3-32b"], worlds=2, batching="fcfs+by-device:4+colocated:2+overlap", horizon_s=30.0,
        randomise={"devices": [12, 12]},
    )  # fmt: skip
    got = Fleet(worlds, policy, decisions=3_000, seed=1, threads=1).collect(policy)
    allowed = np.array([[allows(k, 0, 12, o) for k in range(4)] for o in got.observations])
    scores = np.where(allowed, got.observations @ layers[0][0].T + layers[0][1], -np.inf)
    chance = np.exp(scores - scores.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    rows = np.arange(len(scores))
    assert allowed[rows, got.actions].all()
    np.testing.assert_allclose(np.log(chance[rows, got.actions]), got.log_probabilities, rtol=1e-4, atol=1e-4)
    assert set(got.actions.tolist()) == {0, 1, 2, 3}
    assert allowed[:, 2:].mean(0).min() > 0.05
    for action in range(4):  # drawn as often as they are likely
        assert (got.actions == action).mean() == pytest.approx(chance[:, action].mean(), abs=0.03)
