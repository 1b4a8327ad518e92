"""stable-baselines3's PPO with experience of whole fleets (agents/fleet.py) in place of steps of environments."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.fleet import Decisions, Fleet
from agents.networks import engine_policy
from wisp_gym.engine.jit import jit


@jit
def advantages_of_rounds(rewards, values, ends, lam, advantages):
    """Generalised advantage estimates within each round (undiscounted: a round is over in less than a second)."""
    following, value = 0.0, 0.0
    for k in range(len(rewards) - 1, -1, -1):
        if ends[k]:
            following, value = 0.0, 0.0
        following = rewards[k] + value - values[k] + lam * following
        advantages[k] = following
        value = values[k]


class FleetPPO(PPO):
    """PPO whose rollouts are decisions of whole fleets.

    Args:
        fleet: where experience comes from. env: an environment of the same spaces, for those who step one.
        decisions: of a rollout.
    """

    policy_aliases: ClassVar[dict[str, Any]] = PPO.policy_aliases

    def __init__(
        self,
        policy: Any,
        env: VecEnv,
        fleet: Fleet | None = None,
        decisions: int = 65_536,
        decision: str = "token",
        **kwargs: Any,
    ):
        self.fleet, self.decision = fleet, decision
        self.left: list[Decisions] = []
        super().__init__(policy, env, n_steps=decisions // env.num_envs, **kwargs)
        self.rollout_buffer = RolloutBuffer(
            decisions, self.observation_space, self.action_space, self.device, self.gamma, self.gae_lambda, 1
        )
        self.seconds = {"rollout": 0.0, "value": 0.0}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "fleet", "left"]

    def gather(self, wanted: int) -> Decisions:
        """At least `wanted` decisions, with what was left over before."""
        parts = self.left
        assert self.fleet is not None
        policy = engine_policy(self.policy, self.decision)
        while sum(len(p.actions) for p in parts) < wanted:
            parts.append(self.fleet.collect(policy))
        return Decisions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with decisions of complete rounds."""
        n = rollout_buffer.buffer_size
        callback.on_rollout_start()
        t = time.perf_counter()
        got = self.gather(n)
        self.seconds["rollout"] += time.perf_counter() - t
        self.left = [Decisions(*(array[n:] for array in got))]
        got = Decisions(*(array[:n] for array in got))
        t = time.perf_counter()
        self.fill(rollout_buffer, got)
        self.seconds["value"] += time.perf_counter() - t
        self.num_timesteps += n
        self.logger.record("rollout/reward_per_round", got.rewards.sum() / max(got.ends.sum(), 1))
        self.logger.record("rollout/decisions_per_round", n / max(got.ends.sum(), 1))
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        callback.on_rollout_end()
        return True

    def fill(self, buffer: RolloutBuffer, got: Decisions) -> None:
        """Write decisions with their values and advantages into SB3's buffer."""
        buffer.reset()
        with torch.no_grad():
            values = (
                self.policy.predict_values(torch.as_tensor(got.observations, device=self.device)).cpu().numpy()[:, 0]
            )
        advantages = np.empty(len(values))
        ends = got.ends.copy()
        ends[-1] = True  # the rest of this round comes with the next rollout
        advantages_of_rounds(got.rewards, values.astype(np.float64), ends, self.gae_lambda, advantages)
        buffer.observations[:, 0] = got.observations
        buffer.actions[:, 0, 0] = got.actions
        buffer.log_probs[:, 0] = got.log_probabilities
        buffer.values[:, 0] = values
        buffer.advantages[:, 0] = advantages
        buffer.returns[:, 0] = advantages + values
        buffer.rewards[:, 0], buffer.episode_starts[:, 0] = got.rewards, np.append(True, ends[:-1])
        buffer.pos, buffer.full = buffer.buffer_size, True
