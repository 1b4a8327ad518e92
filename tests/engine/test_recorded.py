"""Recorded speculation traces in the engine: exact replay for every rule, one interface with the parametric process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numba
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.support.small_worlds import horizon, log_of, memory_for, plain, run
from wisp_gym import cli as command_line
from wisp_gym.controllers.resolve import published_threshold, resolve
from wisp_gym.engine import draws
from wisp_gym.engine.draws import stream_key
from wisp_gym.engine.requests import draw_keys
from wisp_gym.engine.session import clear_draft
from wisp_gym.engine.source import begin_walk, draft_token, mark, rewind, step
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation import comparison as evaluate
from wisp_gym.evaluation.metrics import measure
from wisp_gym.rules.rejection_predictor import Predictor, make_predictor, save_predictor
from wisp_gym.scenario import Scenario, ScenarioError, dumps, load, loads, with_
from wisp_gym.simulation import simulate
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import (
    SpeculationTrace,
    read_speculation_trace,
    replay,
    sample_path,
    write_speculation_trace,
)

GREEDY, SAMPLED = "python-10m-1m.npz", "python-10m-1m-sampled.npz"
PRETRAINED = "qwen2.5-coder-0.5b-1.5b.npz"
RULES = ("fixed:0", "fixed:3", "fixed:8", "wisp", "confidence:0.5", "survival:0.6", "random:0.7", "oracle", "perfect")
SEED, DEVICES = 11, 4


def recorded(trace: str = GREEDY, **changes: object) -> Scenario:
    """A calm scenario that replays a trace."""
    fixed = {"draft.trace": trace, "max_draft_tokens": 8, "n_devices": DEVICES, "horizon": horizon(0.0, 40.0)}
    return plain(**(fixed | changes))


@cache
def sample(name: str) -> SpeculationTrace:
    """A shipped trace."""
    return read_speculation_trace(sample_path(name))


def key_of(cause: int, device: int, request: int) -> np.uint64:
    """Stream of a cause for a request."""
    return np.uint64(stream_key(np.uint64(SEED), cause, device, request))


def answer_of(device: int, request: int, n: int) -> int:
    """Which of n answers a request is given."""
    return int(draws.uniform(key_of(draws.ANSWER, device, request), 0) * n)


def rounds(scenario: Scenario, speculation: str) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(device, request) → (drafted, accepted) of its rounds, as the event log tells them."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    request, sent = dict.fromkeys(range(DEVICES), -1), dict.fromkeys(range(DEVICES), 0)
    for _, kind, device, value in log_of(run(scenario, f"{speculation}+fcfs", [SEED], 60_000)):
        if kind == "request":
            request[device] += 1
            found[device, request[device]] = []
        elif kind == "send":
            sent[device] = int(value)
        elif kind == "deliver":
            found[device, request[device]].append((sent[device], int(value) - 1))
    return found


def fates_at(trace: SpeculationTrace, device: int, request: int, answer: int, n: int) -> np.ndarray:
    """(K,) whether each token of row n would be accepted, from the recorded probabilities and the draws of places."""
    key = key_of(draws.ACCEPTANCE, device, request)
    chances = trace.acceptance[trace.offsets[answer] + n].astype(float)
    return np.array([draws.uniform(key, n + j) for j in range(trace.draft_tokens)]) < chances


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((GREEDY, rule) for rule in RULES), *((PRETRAINED, rule) for rule in ("fixed:8", "wisp", "oracle"))],
)
def test_greedy_replay_is_exact_for_every_rule(name: str, rule: str) -> None:
    trace = sample(name)
    found = rounds(recorded(name), rule)
    assert sum(map(len, found.values())) > 400
    for (device, request), seen in found.items():
        answer = answer_of(device, request, len(trace))
        lengths = [drafted for drafted, _ in seen] or [0]  # the prompt's reply is a round of nothing
        assert seen == list(islice(replay(trace, answer, lengths), len(seen)))


@pytest.mark.parametrize("rule", ["fixed:3", "wisp", "oracle"])
def test_sampled_replay_draws_from_the_recorded_probabilities(rule: str) -> None:
    trace = sample(SAMPLED)
    found = rounds(recorded(SAMPLED), rule)
    assert sum(map(len, found.values())) > 500
    for (device, request), seen in found.items():
        answer, n = answer_of(device, request, len(trace)), 0
        for drafted, accepted in seen:
            fates = fates_at(trace, device, request, answer, n)[:drafted]
            assert accepted == (drafted if fates.all() else int(np.argmin(fates)))
            n += accepted + 1


@pytest.mark.parametrize("name", [GREEDY, SAMPLED])
def test_rules_stop_at_what_the_draft_showed(name: str) -> None:
    """WISP's rule without a predictor: after the first token whose confidence is below the threshold, rejected or not."""
    trace, scenario = sample(name), recorded(name)
    threshold, beyond = published_threshold(scenario), 0
    for (device, request), seen in rounds(scenario, "wisp").items():
        answer, n = answer_of(device, request, len(trace)), 0
        first, end = trace.offsets[answer], trace.output_tokens[answer]
        for drafted, accepted in seen:
            cap = min(8, end - n - 1) if n else 0
            low = trace.statistics[first + n, :, 0] < threshold
            assert drafted == min(cap, int(np.argmax(low)) + 1 if low.any() else 8)
            beyond += drafted - accepted > 1
            n += accepted + 1
    assert beyond > 20, "some rounds must go on from a wrong prefix"


def test_the_bounds_know_the_recorded_fates() -> None:
    for name in (GREEDY, SAMPLED):
        assert all(
            drafted == accepted for seen in rounds(recorded(name), "oracle").values() for drafted, accepted in seen
        )
        perfect = [pair for seen in rounds(recorded(name), "perfect").values() for pair in seen]
        assert all(drafted <= accepted + 1 for drafted, accepted in perfect)
        assert any(drafted == accepted + 1 for drafted, accepted in perfect)


def test_sampled_acceptance_has_the_recorded_share() -> None:
    """Rounds of one token from many requests: as many are accepted as the rows that they meet promise."""
    trace = sample(SAMPLED)
    promised, accepted = [], []
    for (device, request), seen in rounds(recorded(SAMPLED, horizon=horizon(0.0, 200.0)), "fixed:1").items():
        row = trace.offsets[answer_of(device, request, len(trace))]
        for drafted, right in seen:
            if drafted:
                promised.append(float(trace.acceptance[row, 0]))
                accepted.append(right)
            row += right + 1
    p = np.array(promised)
    assert len(p) > 3000
    assert abs(np.mean(accepted) - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum()) / len(p)
    assert p.mean() == pytest.approx(trace.acceptance[:, 0].astype(float).mean(), abs=0.03)


def test_answers_are_drawn_evenly_and_fix_the_output_length() -> None:
    trace = sample(SAMPLED)
    drawn = [answer_of(device, request, len(trace)) for device in range(40) for request in range(100)]
    counts = np.bincount(drawn, minlength=len(trace))
    assert ((counts - 20.0) ** 2 / 20.0).sum() < len(trace) + 4 * np.sqrt(2 * len(trace))
    done, request = 0, dict.fromkeys(range(DEVICES), -1)
    for _, kind, device, value in log_of(run(recorded(SAMPLED), "fixed:4+fcfs", [SEED], 60_000)):
        if kind == "request":
            request[device] += 1
        elif kind == "done":
            assert value == trace.output_tokens[answer_of(device, request[device], len(trace))]
            done += 1
    assert done > 10


# --- the walk --------------------------------------------------------------------------------------------------------


@numba.njit
def rewound(config, device, source, request, round_tokens, keep, n_rounds):
    """Fates and statistics of rounds as they come, and the same cut back to `keep` tokens and drafted again."""
    c, d = config[0], device[0]
    fates = np.full((2, n_rounds, round_tokens), -1.0)
    seen = np.zeros((2, n_rounds, round_tokens))
    for turn in range(2):
        d.request, d.committed, d.cap = request, 0, round_tokens
        draw_keys(c, d, 0)
        begin_walk(c, d, 0, source)
        for n in range(n_rounds):
            clear_draft(d)
            mark(d)
            for j in range(round_tokens):
                draft_token(c, d, source)
                fates[turn, n, j], seen[turn, n, j] = d.fate, d.p_token
            if turn == 1 and d.accepted >= keep:
                rewind(c, d, d.committed + keep)
                d.drafted, d.accepted, d.on_path = keep, keep, 1
                for j in range(keep, round_tokens):
                    draft_token(c, d, source)
                    fates[turn, n, j], seen[turn, n, j] = d.fate, d.p_token
            if d.on_path:
                step(c, d)
            d.committed += d.accepted + 1
    return fates, seen


@pytest.mark.parametrize("name", ["", GREEDY, SAMPLED])
@pytest.mark.parametrize("keep", [0, 1, 4, 6])
def test_a_rewound_walk_meets_the_same_fates(name: str, keep: int) -> None:
    scenario = recorded(name, **{"draft.acceptance.logit_mean": 2.0, "draft.acceptance.after_rejection_logit": 1.0})
    worlds = Worlds(1, DEVICES, threads=1)
    worlds.fill(0, scenario, SEED, resolve("fixed:4+fcfs", scenario))
    accepted = 0
    for request in range(20):
        fates, seen = rewound(
            worlds.arrays.config[0], worlds.arrays.device[0], worlds.arrays.source, request, 6, keep, 12
        )
        np.testing.assert_array_equal(fates[0], fates[1])
        np.testing.assert_array_equal(seen[0], seen[1])
        accepted += fates[0].sum()
    assert accepted > 200


# --- thresholds, predictors ------------------------------------------------------------------------------------------


def linear(weights: list[float], bias: float, threshold: float) -> Predictor:
    """Log odds that are linear in the four statistics."""
    return make_predictor([(np.array([weights], np.float32), np.array([bias], np.float32))], threshold)


@pytest.mark.parametrize("name", [GREEDY, SAMPLED])
def test_without_a_predictor_wisps_threshold_passes_the_published_share(name: str) -> None:
    trace, threshold = sample(name), published_threshold(recorded(name))
    confidence = trace.statistics[:, 0, 0].astype(float)
    weight = (
        (trace.accepted_run > 0).astype(float) if trace.acceptance is None else trace.acceptance[:, 0].astype(float)
    )
    passed = weight[confidence >= threshold].sum() / weight.sum()
    higher = weight[confidence > threshold].sum() / weight.sum()
    assert higher < 0.801 <= passed < 0.81


def test_a_predictor_replaces_the_prediction_of_either_source(tmp_path: Path) -> None:
    """WISP's rule at the predictor's own threshold stops where the network, run in numpy, falls below it."""
    predictor = linear([3.0, -0.4, 1.0, -0.05], -0.8, 0.45)
    save_predictor(predictor, tmp_path / "p.json")
    scenario = recorded(**{"draft.predictor": str(tmp_path / "p.json")})
    assert resolve("wisp", scenario).speculation_parameters[0] == 0.45
    trace = sample(GREEDY)
    for (device, request), seen in rounds(scenario, "wisp").items():
        answer, n = answer_of(device, request, len(trace)), 0
        for drafted, accepted in seen:
            statistics = trace.statistics[trace.offsets[answer] + n].astype(np.float32)
            low = predictor.probability(statistics) < 0.45
            cap = min(8, trace.output_tokens[answer] - n - 1) if n else 0
            assert drafted == min(cap, int(np.argmax(low)) + 1 if low.any() else 8)
            n += accepted + 1
    parametric = with_(scenario, **{"draft.trace": ""})
    env = gym.make("wisp_gym/Speculation-v1", scenario=parametric, horizon_s=5.0)
    o, _ = env.reset(seed=3)
    for turn in range(200):
        if o[0] > 0:
            assert o[2] == pytest.approx(float(predictor.probability(o[3:7])), abs=1e-5)
        o, _, _, over, _ = env.step(turn % 4 > 0)
        if over:
            break


# --- everything else runs on it --------------------------------------------------------------------------------------


def test_observations_hold_the_recorded_statistics() -> None:
    trace = sample(GREEDY)
    shown = {tuple(row) for row in trace.statistics.astype(np.float32).reshape(-1, 4).tolist()}
    env = gym.make("wisp_gym/Speculation-v1", scenario=recorded(), horizon_s=20.0)
    o, _ = env.reset(seed=1)
    met = 0
    for turn in range(300):
        if o[0] > 0:
            assert tuple(o[3:7].tolist()) in shown
            assert o[2] == o[3], "without a predictor, the draft's own confidence"
            met += 1
        o, _, _, over, _ = env.step(turn % 5 > 0)
        if over:
            o, _ = env.reset()
    assert met > 200


@pytest.mark.parametrize("name", ["Speculation-v1", "SpeculationLength-v1", "Batching-v1", "Joint-v1"])
def test_environments_run_on_it(name: str) -> None:
    scenario = recorded(SAMPLED)
    env = gym.make(f"wisp_gym/{name}", scenario=scenario, horizon_s=10.0, controller="wisp+wisp")
    check_env(env.unwrapped, skip_render_check=True)
    vector = gym.make_vec(f"wisp_gym/{name}", num_envs=3, scenario=scenario, horizon_s=5.0)
    first = play(vector)
    assert first == play(vector)
    assert np.isfinite(first).all()


def play(vector: gym.vector.VectorEnv) -> list[float]:
    """Rewards of 60 steps from the same seed."""
    vector.reset(seed=5)
    actions = np.random.default_rng(0).integers(vector.single_action_space.n, size=(60, vector.num_envs))
    return [float(x) for row in actions for x in vector.step(row)[1]]


def test_same_seed_same_bytes_alone_or_beside_others() -> None:
    scenario = recorded(SAMPLED)
    together = Worlds(3, DEVICES, log_rows=60_000, threads=2)
    for seed in range(3):
        together.fill(seed, scenario, seed, resolve("wisp+wisp", scenario))
    together.run()
    alone = run(scenario, "wisp+wisp", [2], 60_000)
    assert together.arrays.log[2].tobytes() == alone.log[0].tobytes()
    assert together.arrays.log[1].tobytes() != alone.log[0].tobytes()
    (metrics,) = simulate(scenario, "wisp", seeds=[2], threads=1)
    worlds = Worlds(1, DEVICES, threads=1)
    worlds.fill(0, scenario, 2, resolve("wisp", scenario))
    worlds.run(early=True)
    assert measure(worlds.arrays, 0, scenario) == metrics


def test_the_order_of_controllers_holds_on_a_trace() -> None:
    """Knowing the fates beats not knowing them, on the same answers."""
    goodput = {name: simulate(recorded(), f"{name}+fcfs", seeds=[0, 1])[0].row() for name in ("oracle", "fixed:8")}
    assert goodput["oracle"]["throughput_tokens_per_s"] > goodput["fixed:8"]["throughput_tokens_per_s"]


# --- files that do not do --------------------------------------------------------------------------------------------


def test_a_trace_must_be_long_enough_for_the_rounds_and_short_enough_for_memory() -> None:
    with pytest.raises(
        ScenarioError, match="max_draft_tokens: given 9, allowed: at most 8, the tokens that python-10m"
    ):
        simulate(recorded(max_draft_tokens=9), "fixed:2+fcfs")
    tight = recorded(**memory_for(100), **{
        "workload.prompt": {"median_tokens": 20, "log_std": 0.1, "min_tokens": 10, "max_tokens": 40},
        "workload.output": {"median_tokens": 20, "log_std": 0.1, "min_tokens": 10, "max_tokens": 40},
    })  # fmt: skip
    with pytest.raises(
        ScenarioError, match=r"draft\.trace: longest prompt \+ recorded answer \+ max_draft_tokens is 148"
    ):
        simulate(tight, "fixed:2+fcfs")


def cut_off(path: Path) -> None:
    path.write_bytes(sample_path(GREEDY).read_bytes()[:5000])


def wrong_value(path: Path) -> None:
    write_speculation_trace(sample(GREEDY), path)
    path.write_bytes(path.read_bytes().replace(b"accepted_run", b"accepted_fun"))


@pytest.mark.parametrize("damage", [cut_off, wrong_value])
def test_a_damaged_trace_is_one_line_of_the_command(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "t.npz")
    text = 'use = "wisp-a100-qwen3-32b"\nname = "x"\nmax_draft_tokens = 8\n[draft]\ntrace = "t.npz"\n'
    (tmp_path / "s.toml").write_text(text)
    command = [
        "--scenario",
        str(tmp_path / "s.toml"),
        "--controllers",
        "fixed:2+fcfs",
        "--seeds",
        "1",
        "--devices",
        "2",
    ]
    assert command_line.run(evaluate.main, "evaluate", command) == 2
    (tmp_path / "t.npz").unlink()
    assert command_line.run(evaluate.main, "evaluate", command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("evaluate: ") for line in lines] == [True, True]
    assert "t.npz" in lines[0]
    assert "draft.trace: given 't.npz', allowed: a file that exists, or a shipped one (python-10m-1m" in lines[1]


def test_the_documented_scenario_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guide" / "scenario.md").read_text(encoding="utf-8")
    (block,) = [block for block in page.split("```toml\n")[1:] if "[draft]" in block.split("```")[0]]
    (tmp_path / "replayed.toml").write_text(block.split("```")[0], encoding="utf-8")
    scenario = load(tmp_path / "replayed.toml")
    assert scenario.draft.trace == PRETRAINED
    assert loads(dumps(scenario)) == scenario
    assert (
        simulate(with_(scenario, horizon=horizon(0.0, 5.0)), "wisp", threads=1)[0].row()["throughput_tokens_per_s"] > 1
    )


def test_a_path_is_taken_from_the_folder_of_the_scenario_file(tmp_path: Path) -> None:
    write_speculation_trace(sample(GREEDY), tmp_path / "mine.npz")
    save_predictor(linear([1, 0, 0, 0], 0, 0.5), tmp_path / "p.json")
    text = 'use = "wisp-a100-qwen3-32b"\n[draft]\ntrace = "mine.npz"\npredictor = "./p.json"\n'
    (tmp_path / "s.toml").write_text(text)
    draft = load(tmp_path / "s.toml").draft
    assert (draft.trace, draft.predictor) == (str(tmp_path / "mine.npz"), str(tmp_path / "p.json"))
    (tmp_path / "s.toml").write_text(text.replace("./p.json", "q.json"))
    with pytest.raises(
        ScenarioError, match=r"draft\.predictor: given 'q\.json', allowed: a file that exists, or a shipped"
    ):
        load(tmp_path / "s.toml")
    with pytest.raises(TraceError, match=r"no speculation trace 'nowhere\.npz'; allowed: python-10m"):
        simulate(recorded("nowhere.npz"), "fixed:2+fcfs")


def test_worlds_that_run_together_share_one_trace() -> None:
    worlds = Worlds(2, DEVICES, threads=1)
    worlds.fill(0, recorded(), SEED, resolve("fixed:2+fcfs", recorded()))
    with pytest.raises(ValueError, match="as another world has"):
        worlds.fill(1, recorded(""), SEED, resolve("fixed:2+fcfs", recorded("")))
