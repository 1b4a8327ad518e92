"""MaskablePPO for batching: worlds of several scenarios side by side, and discounting by time instead of by step.

A batch takes several decisions in no time, and then a tenth of a second passes: per step, a discount would punish large
batches. Here a step that lasts dt seconds is discounted by exp(−dt/horizon) and its advantage traced by exp(−dt/trace).

The policy starts from a good one, the critic from nothing: at first the critic learns alone. In place of the entropy
stands −KL(start ‖ policy), so that `ent_coef` is the price of leaving the policy that it started from.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer

from agents.batching.scorer_network import Scorer, ScorerActorCritic
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.sb3 import DecisionVecEnv

HORIZON_S, TRACE_S = 20.0, 5.0  # how far the agent looks ahead; over how long it trusts rewards more than its critic
REWARD_UNIT = 10_000.0  # tokens: returns, a few hundred tokens/s over 20 s, are then about 1
HYPERPARAMETERS: dict[str, Any] = {
    "n_epochs": 3, "batch_size": 1024, "ent_coef": 0.2, "clip_range": 0.1, "vf_coef": 0.5, "target_kl": 0.01,
}  # fmt: skip


class MixedVecEnv(DecisionVecEnv):
    """Worlds of several vector environments with the same spaces, as stable-baselines3 wants them.

    Attributes:
        elapsed_s: (n,) seconds that the last step took in each world.
    """

    def __init__(self, groups: Sequence[DecisionVectorEnv], seed: int):
        super().__init__(groups[0], seed)  # its spaces and attributes are those of all
        self.groups, self.edges = list(groups), np.cumsum([0, *(g.num_envs for g in groups)])
        self.num_envs = int(self.edges[-1])
        self.elapsed_s = np.zeros(self.num_envs)

    def reset(self) -> np.ndarray:
        """Every world from its beginning, each with a seed of its own."""
        pairs = zip(self.groups, self.edges[:-1], strict=True)
        return np.concatenate([g.reset(seed=self.first_seed + int(edge))[0] for g, edge in pairs])

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Nothing: the worlds keep their own seeds, whatever the algorithm's is."""
        return [None] * self.num_envs

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Carry them out."""
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        parts = []
        for group, first, last in zip(self.groups, self.edges[:-1], self.edges[1:], strict=True):
            observations, rewards, _, over, infos = group.step(self.actions[first:last])
            self.elapsed_s[first:last] = infos["dt"]
            for index in np.flatnonzero(over):
                last_observation = infos["final_obs"][index]
                each[first + index] = {"terminal_observation": last_observation, "TimeLimit.truncated": True}
            parts.append((observations, rewards, over))
        observations, rewards, over = (np.concatenate(column) for column in zip(*parts, strict=True))
        return observations, (rewards / REWARD_UNIT).astype(np.float32), over, each

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Masks of each world; no other method is asked for."""
        if method_name != "action_masks":
            raise AttributeError(f"given {method_name!r}, allowed is 'action_masks'")
        rows = np.concatenate([g.action_masks() for g in self.groups])
        return [rows[index] for index in self._get_indices(indices)]


class TimedRolloutBuffer(MaskableRolloutBuffer):
    """Advantages with discount and trace by time; `envs` tells how long each step took."""

    def __init__(
        self, *args: Any, envs: MixedVecEnv, horizon_s: float = HORIZON_S, trace_s: float = TRACE_S, **kwargs: Any
    ):
        self.envs, self.horizon_s, self.trace_s = envs, horizon_s, trace_s
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """An empty buffer."""
        super().reset()
        self.elapsed_s = np.zeros((self.buffer_size, self.n_envs), np.float32)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """One more step, with the seconds that it took."""
        self.elapsed_s[self.pos] = self.envs.elapsed_s
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """`δ = r + e^(−dt/horizon)·V' − V`, `A = δ + e^(−dt/horizon − dt/trace)·A'`."""
        values, going = last_values.clone().cpu().numpy().flatten(), 1.0 - dones.astype(np.float32)
        advantage = np.zeros(self.n_envs, np.float32)
        for step in reversed(range(self.buffer_size)):
            discount = np.exp(-self.elapsed_s[step] / self.horizon_s) * going
            delta = self.rewards[step] + discount * values - self.values[step]
            advantage = delta + discount * np.exp(-self.elapsed_s[step] / self.trace_s) * advantage
            self.advantages[step] = advantage
            values, going = self.values[step], 1.0 - self.episode_starts[step]
        self.returns = self.advantages + self.values


class BatchingPPO(MaskablePPO):
    """MaskablePPO whose policy and critic each keep the learning rate of `ScorerActorCritic`."""

    policy: ScorerActorCritic

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Nothing: stable-baselines3 would give both the same."""


def make_ppo(envs: MixedVecEnv, scorer: Scorer, seed: int, n_steps: int, learning_rate: float) -> BatchingPPO:
    """MaskablePPO that starts from a scorer (its critic from nothing) and is held to it."""
    model = BatchingPPO(
        ScorerActorCritic, envs, n_steps=n_steps, learning_rate=learning_rate, seed=seed, device="cpu", gamma=1.0,
        rollout_buffer_class=TimedRolloutBuffer, rollout_buffer_kwargs={"envs": envs}, **HYPERPARAMETERS,
    )  # fmt: skip
    model.policy.start_from(scorer)
    return model


def refine(model: BatchingPPO, warmup: int, decisions: int, rounds: int) -> Iterator[Scorer]:
    """The policy after each of `rounds` parts of the decisions, before which the critic learns alone for `warmup`."""
    scorer = model.policy.scorer
    if warmup:
        scorer.requires_grad_(False)
        model.learn(warmup)
        scorer.requires_grad_(True)
    for _ in range(rounds):
        model.learn(decisions // rounds, reset_num_timesteps=False)
        yield scorer
