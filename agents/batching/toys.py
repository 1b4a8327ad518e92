"""Does it learn? Cases whose optimum is known by value iteration, in which who drafts is a choice.

    python -m agents.batching.toys --seeds 10

The server learns from nothing for whom it drafts, and how many tokens. Its devices draft the best length that all may have. In some
cases devices had better draft, in others the server (`TOYS`). The optimum (`agents.bounds.toy`) may see more than the policy does.

Of what the server's learner was at each of `PARTS` moments the best is kept, in a world that is neither of training nor of the test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from agents.batching.ppo import REWARD_UNIT, BatchingPPO, MixedVecEnv, TimedRolloutBuffer
from agents.batching.scorer_network import ScorerActorCritic
from agents.bounds.toy import Toy, solve, toy_scenario
from agents.training.arguments import flag, parse
from wisp_gym.cli import run, table, whole
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import ScorerPolicy
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.evaluation.metrics import Metrics
from wisp_gym.process import program
from wisp_gym.rules.batching import LEARNED
from wisp_gym.rules.controller import Controller
from wisp_gym.simulation import simulate

PROGRAM = "python -m agents.batching.toys"
MEASURED_S = 1000.0  # of the worlds that a score is measured in
VALIDATION_SEED, TEST_SEED = 2_000_000, 1_000_000
WORLDS, STEPS = 16, 64  # side by side, and of each between two updates of the server's learner
PARTS = 5  # moments at which the server's learner is looked at
HORIZON_S, TRACE_S = 2.0, 1.0  # a batch takes about a quarter of a second
MEMORY = 0.998  # of the running rate, a step: some updates
ENTROPY = 0.02  # price of a sure choice at first; it falls to a fifth of that
ONE = Toy(devices=1, draft_ticks=1, link_ticks=1, batch_ticks=6, token_ticks=1, acceptance=0.85, max_draft_tokens=4)
TWO = replace(ONE, devices=2, acceptance=0.7)
TOYS = {
    "one, the server drafts in 4 ticks": replace(ONE, step_ticks=4),
    "one that is slower, in 4": replace(ONE, draft_ticks=2, acceptance=0.8, step_ticks=4),
    "one, in 1": replace(ONE, step_ticks=1),
    "two, in 1": replace(TWO, step_ticks=1),
    "three, in 1": replace(ONE, devices=3, step_ticks=1),
    "two, in 4": replace(TWO, step_ticks=4),
    "three, in 4": replace(ONE, devices=3, step_ticks=4),
}


# --- for whom the server drafts --------------------------------------------------------------------------------------


class RatedVecEnv(MixedVecEnv):
    """Worlds whose seconds cost what they have lately brought in: with a critic that need not know the level, small differences show.

    R-learning (Schwartz, 1993): the long-run rate is learned from the very steps that are paid by it.
    """

    def __init__(self, envs: DecisionVectorEnv, seed: int):
        super().__init__([envs], seed)
        self.earned = self.lasted_s = 0.0

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Carry the actions out; rewards are in tokens."""
        observations, rewards, over, each = super().step_wait()
        tokens = rewards * REWARD_UNIT
        self.earned = MEMORY * self.earned + float(tokens.sum())
        self.lasted_s = MEMORY * self.lasted_s + float(self.elapsed_s.sum())
        paid = tokens - self.elapsed_s * (self.earned / max(self.lasted_s, 1e-9))
        return observations, paid.astype(np.float32), over, each


def rules(toy: Toy) -> str:
    """The controller's name: devices draft the best length that all may have where they alone draft, the server as the policy says."""
    length = max(range(toy.max_draft_tokens + 1), key=lambda k: solve(toy, (k,)).tokens_per_s)
    return f"fixed:{length}+fcfs+by-load+colocated:{toy.max_draft_tokens}"


def hosting_worlds(toy: Toy, seed: int) -> RatedVecEnv:
    """The worlds in which the server learns."""
    envs = gym.make_vec(
        "wisp_gym/Batching-v1", num_envs=WORLDS, vectorization_mode="vector_entry_point", scenario=toy_scenario(toy),
        controller=rules(toy), visible=toy.devices,
    )  # fmt: skip
    assert isinstance(envs, DecisionVectorEnv)
    return RatedVecEnv(envs, seed)


def learned_hosting(toy: Toy, total: int, seed: int = 0) -> list[ScorerPolicy]:
    """Policies of a server: untrained, and at PARTS moments of a training of `total` decisions."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    envs = hosting_worlds(toy, seed)
    model = BatchingPPO(
        ScorerActorCritic, envs, n_steps=STEPS, batch_size=512, n_epochs=4, learning_rate=3e-3, clip_range=0.2, seed=seed,
        device="cpu", gamma=1.0, rollout_buffer_class=TimedRolloutBuffer,
        rollout_buffer_kwargs={"envs": envs, "horizon_s": HORIZON_S, "trace_s": TRACE_S},
    )  # fmt: skip
    found = [model.policy.scorer.engine_policy()]
    for part in range(PARTS):
        model.ent_coef = ENTROPY * (1.0 - part / PARTS)
        model.learn(total // PARTS, reset_num_timesteps=False)
        found.append(model.policy.scorer.engine_policy())
    return found


# --- what came of it -------------------------------------------------------------------------------------------------


def hosting(toy: Toy, policy: ScorerPolicy) -> Controller:
    """The controller whose server follows a policy."""
    base = resolve(rules(toy), toy_scenario(toy))
    return replace(base, name="learned", batching=LEARNED, batching_parameters=(), scorer=policy.weights)


def measured(toy: Toy, controller: Controller, seed: int) -> Metrics:
    """A long world under a controller."""
    (metrics,) = simulate(toy_scenario(toy, MEASURED_S), controller, seeds=[seed])
    return metrics


def best_of(toy: Toy, controllers: Sequence[Controller]) -> Controller:
    """The best in the validation world."""
    return max(controllers, key=lambda one: measured(toy, one, VALIDATION_SEED).throughput_tokens_per_s)


class Learned(NamedTuple):
    """What came of a seed, in the test world.

    Attributes:
        untrained, trained: shares of the optimum, before the server has learned and after. server_share: of rounds, drafted by the server.
    """

    untrained: float
    trained: float
    server_share: float


def learned(toy: Toy, seed: int, decisions: int) -> Learned:
    """The training of a seed."""
    first, *later = (hosting(toy, policy) for policy in learned_hosting(toy, decisions, seed))
    before, after = (measured(toy, one, TEST_SEED) for one in (first, best_of(toy, later)))
    best = solve(toy).tokens_per_s
    untrained, trained = (metrics.throughput_tokens_per_s / best for metrics in (before, after))
    return Learned(untrained, trained, after.server_drafted_share)


def alone(toy: Toy) -> tuple[float, float]:
    """The most that one length of all devices, and one of the server, reach where they alone draft, as shares of the optimum."""
    best, n = solve(toy).tokens_per_s, toy.max_draft_tokens + 1
    rates = [solve(toy, (choice,)).tokens_per_s / best for choice in toy.choices]
    return max(rates[:n]), max(rates[n:])


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    seeds: int = flag(10, "of training", of=whole(1, 1000), metavar="N")
    decisions: int = flag(20_480, "of each training", of=whole(PARTS * WORLDS * STEPS, 10**9), metavar="N")


def cells(name: str, toy: Toy, found: Sequence[Learned]) -> list[str]:
    """A row of the table."""
    trained, untrained = [one.trained for one in found], [one.untrained for one in found]
    shares = (
        *alone(toy),
        np.mean(untrained),
        np.mean(trained),
        min(trained),
        np.mean([one.server_share for one in found]),
    )
    solved = sum(share > 0.99 for share in trained)
    return [name, f"{solve(toy).tokens_per_s:.2f}", *(f"{share:.3f}" for share in shares), f"{solved} of {len(found)}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in every case with every seed, and print the table."""
    args, _ = parse(Arguments, PROGRAM, __doc__, arguments)
    rows = []
    for name, toy in TOYS.items():
        found = [learned(toy, seed, args.decisions) for seed in range(args.seeds)]
        rows.append(cells(name, toy, found))
    print(
        table(
            ["case", "optimum", "devices", "server", "untrained", "learned", "least", "server drafts", "within 1 %"],
            rows,
        )
    )


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
