"""stable-baselines3's PPO with experience of whole fleets (`fleet.py`) in place of steps of environments."""

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.training.fleet import Decisions, Fleet, joined
from agents.training.networks import engine_policy
from wisp_gym.jit import jit


@jit
def advantages_of_rounds(rewards, values, ends, lam, advantages):
    """Write generalised advantage estimates within each round; undiscounted, as a round is over in less than a second.

    Args:
        rewards, values: (N,) float64. ends: (N,) bool, the last decision of each round. lam: λ. advantages: (N,),
            written.
    """
    following, value = 0.0, 0.0
    for k in range(len(rewards) - 1, -1, -1):
        if ends[k]:
            following, value = 0.0, 0.0
        following = rewards[k] + value - values[k] + lam * following
        advantages[k] = following
        value = values[k]


class FleetPPO(PPO):
    """PPO whose rollouts are decisions of whole fleets.

    It stays an algorithm of stable-baselines3: save, load, callbacks, logger. Timesteps are decisions; a callback's
    `on_step` is called once a rollout. A loaded model decides at once and learns once it is given a `fleet`.

    Args:
        policy, env, kwargs: as of PPO; `env` gives the spaces (any number of environments, none of which is stepped).
        fleet: where experience comes from. decisions: of a rollout. decision: "token" or "length", what an action is.
    """

    def __init__(
        self, policy: Any, env: Any, fleet: Fleet | None = None, decisions: int = 65_536, decision: str = "token",
        **kwargs: Any,
    ):  # fmt: skip
        self.fleet, self.decisions, self.decision = fleet, decisions, decision
        self.left: list[Decisions] = []
        super().__init__(policy, env, n_steps=decisions // (env.num_envs if env is not None else 1), **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer = RolloutBuffer(
            self.decisions, self.observation_space, self.action_space, self.device, self.gamma, self.gae_lambda, 1
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "fleet", "left"]

    def gather(self, wanted: int) -> Decisions:
        """At least `wanted` decisions, with what was left over before. Raises ValueError without a fleet."""
        if self.fleet is None:
            raise ValueError("fleet: given none, allowed is an agents.training.fleet.Fleet to learn from")
        policy = engine_policy(self.policy, self.decision)
        while sum(len(part.actions) for part in self.left) < wanted:
            self.left.append(self.fleet.collect(policy))
        return joined(self.left)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with decisions of complete rounds; False when a callback asks to stop."""
        n = rollout_buffer.buffer_size
        callback.on_rollout_start()
        got = self.gather(n)
        self.left = [Decisions(*(array[n:] for array in got))]
        got = Decisions(*(array[:n] for array in got))
        self.fill(rollout_buffer, got)
        self.num_timesteps += n
        rounds = max(int(got.ends.sum()), 1)
        self.logger.record("rollout/reward_per_round", got.rewards.sum() / rounds)
        self.logger.record("rollout/decisions_per_round", n / rounds)
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        callback.on_rollout_end()
        return True

    def fill(self, buffer: RolloutBuffer, got: Decisions) -> None:
        """Write decisions with their values and advantages into SB3's buffer."""
        seen = torch.as_tensor(got.observations, device=self.device)
        with torch.no_grad():
            values = self.policy.predict_values(seen).cpu().numpy()[:, 0].astype(np.float64)
        ends = np.append(got.ends[:-1], True)  # the rest of the last round comes with the next rollout
        advantages = np.empty(len(values))
        advantages_of_rounds(got.rewards, values, ends, self.gae_lambda, advantages)
        buffer.reset()
        buffer.observations[:, 0], buffer.actions[:, 0, 0] = got.observations, got.actions
        buffer.log_probs[:, 0], buffer.values[:, 0] = got.log_probabilities, values
        buffer.advantages[:, 0], buffer.returns[:, 0] = advantages, advantages + values
        buffer.rewards[:, 0], buffer.episode_starts[:, 0] = got.rewards, np.append(True, ends[:-1])
        buffer.pos, buffer.full = buffer.buffer_size, True
