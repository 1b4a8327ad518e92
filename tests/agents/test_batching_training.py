"""Training of batching policies: discounting by time, cloning, the search's bookkeeping, one seed one policy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

import train
from agents.batching import cloning as batching_cloning
from agents.batching.cloning import Teacher, clone, compact, loss_of, parts_of
from agents.batching.ppo import HORIZON_S, TRACE_S, MixedVecEnv, TimedRolloutBuffer, make_ppo, refine
from agents.batching.scorer_network import Scorer, ScorerActorCritic
from agents.batching.search import Arena, Cell, evolve, flat, shaped
from agents.batching.settings import HOSTED, preset
from agents.batching.training import with_prices
from wisp_gym.cli import run
from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.engine import gather
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.scenario import load, with_

SMALL = with_(load("wisp-study"), **{"horizon.warmup_s": 0.0, "horizon.measure_s": 5.0, "horizon.drain_s": 0.0})


def make(name: str = "Batching", n: int = 2, seed: int = 0, hosts: bool = False) -> DecisionVectorEnv:
    """A few small worlds, begun."""
    envs = gym.make_vec(
        f"wisp_gym/{name}-v1", num_envs=n, vectorization_mode="vector_entry_point", scenario=SMALL, devices=12,
        hosting=hosts, visible=12,
        horizon_s=10.0, controller=f"wisp+fcfs+admit{HOSTED if hosts else ''}", threads=1,
    )  # fmt: skip
    assert isinstance(envs, DecisionVectorEnv)
    envs.reset(seed=seed)
    return envs


def test_advantages_are_discounted_by_time() -> None:
    box, discrete = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(3)
    envs = SimpleNamespace(elapsed_s=np.zeros(1))
    buffer = TimedRolloutBuffer(3, box, discrete, "cpu", envs=envs, n_envs=1)
    rewards, values, seconds = [1.0, 0.0, 2.0], [0.5, 0.25, 1.0], [0.0, 3.0, 1.5]
    for r, v, dt in zip(rewards, values, seconds, strict=True):
        envs.elapsed_s = np.array([dt])
        buffer.add(
            np.zeros((1, 1)), np.zeros((1, 1)), np.array([r]), np.array([0.0]), torch.tensor([v]), torch.tensor([0.0])
        )
    buffer.compute_returns_and_advantage(torch.tensor([4.0]), np.array([0.0]))
    following, expected, later = [*values[1:], 4.0], [], 0.0
    for k in (2, 1, 0):
        discount = np.exp(-seconds[k] / HORIZON_S)
        later = rewards[k] + discount * following[k] - values[k] + discount * np.exp(-seconds[k] / TRACE_S) * later
        expected.insert(0, later)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(buffer.returns, buffer.advantages + np.array(values)[:, None], rtol=1e-6)


def test_nothing_is_carried_over_the_end_of_an_episode() -> None:
    box, discrete = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(3)
    buffer = TimedRolloutBuffer(2, box, discrete, "cpu", envs=SimpleNamespace(elapsed_s=np.ones(1)), n_envs=1)
    for r, start in ((1.0, 0.0), (100.0, 1.0)):
        buffer.add(
            np.zeros((1, 1)),
            np.zeros((1, 1)),
            np.array([r]),
            np.array([start]),
            torch.tensor([0.0]),
            torch.tensor([0.0]),
        )
    buffer.compute_returns_and_advantage(torch.tensor([0.0]), np.array([0.0]))
    assert buffer.advantages[:, 0].tolist() == [1.0, 100.0]


@pytest.mark.parametrize("decision", OF_SERVERS)
def test_ppo_starts_from_the_scorer_and_learns_with_masks(decision: str) -> None:
    torch.manual_seed(0)
    scorer, name, hosts = Scorer(decision), decision.split("-")[0].title(), decision.endswith("hosting")
    envs = MixedVecEnv([make(name, hosts=hosts), make(name, seed=5, hosts=hosts)], 3)
    model = make_ppo(envs, scorer, 0, n_steps=32, learning_rate=1e-3)
    policy = model.policy
    assert isinstance(policy, ScorerActorCritic)
    o, masks = envs.reset(), np.stack(envs.env_method("action_masks"))
    given = np.where(masks, scorer(torch.from_numpy(o)).detach().numpy(), -np.inf).argmax(1)
    assert np.array_equal(model.predict(o, action_masks=masks, deterministic=True)[0], given)
    before = [p.clone() for p in policy.scorer.parameters()]
    assert len(list(refine(model, 64, 128, 1))) == 1
    assert any(not torch.equal(p, q) for p, q in zip(before, policy.scorer.parameters(), strict=True))
    assert all(g.task.outcomes[:, gather.INVALID].sum() == 0 for g in envs.groups)  # no masked action was ever taken


def test_the_teacher_does_valid_things_and_keeps_its_limit_of_admission() -> None:
    envs, teacher = make(n=4), Teacher(admit_share=0.02)
    predictor, refused, levels = BatchingPredictor(teacher.rule, SMALL), 0, set()
    o, masks = envs.task.observations.copy(), envs.task.masks.copy()
    for _ in range(200):
        actions = teacher.actions(o, masks, predictor)
        assert masks[np.arange(4), actions].all()
        fresh = (parts_of(o)[1][:, :, request.BEGUN] < 0.5) & (masks[:, :12] == 1) & ~teacher.admitted(o)
        assert not any(action < 12 and fresh[k, action] for k, action in enumerate(actions))
        refused += int(fresh.sum())
        levels |= {int(action) - 14 for action in actions if action >= 14}
        o, *_, infos = envs.step(actions)
        masks = infos["action_mask"]
    assert refused > 0
    assert levels
    assert (masks.shape[1], max(levels)) <= (14 + len(CHUNK_TOKENS), len(CHUNK_TOKENS) - 1)


def test_the_teacher_moves_who_gains_and_drafts_as_long_as_it_is_told() -> None:
    envs, teacher = make(n=4, hosts=True), Teacher(server_tokens=3)
    predictor, moves, lengths = BatchingPredictor(teacher.rule, SMALL), 0, 0
    o, masks = envs.task.observations.copy(), envs.task.masks.copy()
    first_length = 14 + len(CHUNK_TOKENS)
    first_move = first_length + len(SERVER_TOKENS)
    for _ in range(300):
        actions = teacher.actions(o, masks, predictor)
        assert masks[np.arange(4), actions].all()
        for k, action in enumerate(actions):
            if action >= first_move:
                row = parts_of(o)[1][k, action - first_move]
                worth = o[k, server.TOKEN_RATE] * 1000 * o[k, server.MEAN_BATCH_TIME] * 0.1
                assert (row[request.GAIN] > worth * row[request.USE]) == (row[request.STAYS] < 0.5)
                moves += 1
            elif action >= first_length:
                assert action == first_length + 3
                lengths += 1
        o, *_, infos = envs.step(actions)
        masks = infos["action_mask"]
    assert min(moves, lengths) > 10


def test_the_teachers_chunk_is_the_nearest_of_the_ladder() -> None:
    o = np.zeros((5, server.SIZE), np.float32)
    o[:, server.PREFILL_WAITING] = np.array([1, 500, 2_000, 5_000, 60_000]) / 1024
    assert [CHUNK_TOKENS[level] for level in Teacher().chunk_levels(o)] == [96, 96, 384, 1024, 4096]


def test_compact_decisions_are_the_same_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching_cloning, "PLACES", 6)
    torch.manual_seed(0)
    scorer, envs, rng, met = Scorer("batching"), make(n=4), np.random.default_rng(0), 0
    o, masks = envs.task.observations.copy(), envs.task.masks.copy()
    for _ in range(150):
        actions = np.array([rng.choice(np.flatnonzero(row)) for row in masks])
        few = (parts_of(o)[1][:, :, request.UNCACHED_TOKENS] > 0).sum(1) <= 6
        losses = [
            float(loss_of(scorer, tuple(map(torch.from_numpy, rows))).detach())
            for rows in ((o[few], masks[few], actions[few]), compact(o, masks, actions))
        ]
        assert not few.any() or losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
        met += int((actions[few] < 12).sum())
        o, *_, infos = envs.step(actions)
        masks = infos["action_mask"]
    assert met > 20


def cloned(seed: int) -> np.ndarray:
    """Weights of a short cloning."""
    torch.manual_seed(seed)
    scorer = Scorer("batching")
    said: list[str] = []
    clone(scorer, [make()], [Teacher()], seed, rounds=2, steps=120, keep=0.5, epochs=4, say=said.append)
    losses = [float(text.rsplit(" ", 1)[1]) for text in said]
    assert losses[1] < losses[0]
    return flat(scorer.engine_policy())


def test_the_same_seed_clones_the_same_policy() -> None:
    assert np.array_equal(cloned(1), cloned(1))
    assert not np.array_equal(cloned(1), cloned(2))


def test_the_search_is_reproducible_and_keeps_the_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Scorer("batching").engine_policy(stage="clone")
    assert np.array_equal(shaped(start, flat(start)).weights, start.weights)
    arena = Arena([Cell("small", SMALL, 8, 100.0, 0.01)], "wisp", 1, 1)
    assert arena.score("fcfs", [3]) == arena.score("fcfs", [3])
    one, other = (list(evolve(start, arena, 4, generations=2, pairs=2))[-1] for _ in range(2))
    assert np.array_equal(one.weights, other.weights)
    assert not np.array_equal(one.weights, start.weights)
    assert np.array_equal(one.layers[0][0], start.layers[0][0])  # embeddings stay


def test_prices_are_added_to_a_policy_without_changing_how_it_batches() -> None:
    torch.manual_seed(1)
    start = Scorer("batching")
    joint = Scorer("joint")
    joint.load(with_prices(start.engine_policy(), 0.2))
    o = torch.from_numpy(make().task.observations)
    one, other = start(o).detach().numpy(), joint(o).detach().numpy()
    assert np.array_equal(one[:, :12], other[:, :12])
    np.testing.assert_allclose(one[:, 12], other[:, 12 + PRICES.index(0.2)], rtol=1e-6)
    np.testing.assert_allclose(one[:, 13:], other[:, 12 + len(PRICES) :], rtol=1e-6)
    assert other[:, 12 : 12 + len(PRICES)].argmax(1).tolist() == [PRICES.index(0.2)] * len(o)


def test_presets_of_the_server_take_a_seed_and_a_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(train.main, train.PROGRAM, ["--preset", "batching", "-n", "5"]) == 2
    assert "--n-timesteps: not allowed with --preset batching; allowed are --seed and -f" in capsys.readouterr().err
    assert run(train.main, train.PROGRAM, ["--preset", "joiny"]) == 2
    assert "did you mean 'joint'" in capsys.readouterr().err
    assert (preset("joint").start, preset("batching").start, preset("joint", seed=3).seed) == ("batching-v1", "", 3)
