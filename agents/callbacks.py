"""What happens while a policy learns: checkpoints, validation on worlds of its own, a progress bar."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents.checkpoint import save_checkpoint
from agents.networks import engine_policy
from agents.run_folder import CHECKPOINTS
from agents.vec_env import DecisionVecEnv
from wisp_gym.controllers.catalogue import with_policy
from wisp_gym.controllers.policy import Policy, save_policy
from wisp_gym.scenario import Scenario
from wisp_gym.simulation import simulate


class Validate(BaseCallback):
    """Every `every` decisions: score the policy on validation worlds, keep the best, write a checkpoint.

    The score is the mean goodput when every device follows the policy. Files: `validation.csv`, `policy.json` (best so far),
    `checkpoints/*.pt`.

    Args:
        folder: the run's folder. scenario: of the validation worlds. batching: batching rule beside the policy.
        seeds: of the validation worlds. every: decisions between two scores; 0 scores only at the end.
        decision: "token" or "length".
    """

    def __init__(self, folder: Path, scenario: Scenario, batching: str, seeds: list[int], every: int, decision: str):
        super().__init__()
        self.folder, self.scenario, self.batching = folder, scenario, batching
        self.seeds, self.every, self.decision = seeds, every, decision
        self.scored_at, self.best = 0, -np.inf
        self.scores: list[tuple[int, float]] = []  # (decisions, goodput)
        (folder / "validation.csv").write_text("decisions,goodput_tokens_per_s,drafted_per_round\n", encoding="utf-8")

    def current(self) -> Policy:
        """The policy as the engine runs it."""
        return engine_policy(self.model.policy, self.decision, decisions=self.model.num_timesteps)  # type: ignore[arg-type]

    def score(self) -> None:
        """Score, write down, keep the best."""
        policy = self.current()
        worlds = simulate(self.scenario, with_policy("learned", policy, self.batching), self.seeds)
        goodput = float(np.mean([w.goodput_tokens_per_s for w in worlds]))
        drafted = float(np.mean([w.drafted_per_round for w in worlds]))
        self.scores.append((self.model.num_timesteps, goodput))
        with (self.folder / "validation.csv").open("a", encoding="utf-8") as file:
            file.write(f"{self.model.num_timesteps},{goodput:.4f},{drafted:.4f}\n")
        self.logger.record("validation/goodput_tokens_per_s", goodput)
        if goodput > self.best:
            self.best = goodput
            save_policy(policy, self.folder / "policy.json")
        self.scored_at = self.model.num_timesteps

    def checkpoint(self) -> None:
        """Write a checkpoint named by the number of decisions."""
        env = self.training_env
        assert isinstance(env, DecisionVecEnv)
        path = self.folder / CHECKPOINTS / f"checkpoint-{self.model.num_timesteps:010d}.pt"
        save_checkpoint(path, self.model, env)  # type: ignore[arg-type]

    def _on_training_start(self) -> None:
        if self.model.num_timesteps == 0:  # the untrained policy, so that the curve shows what learning brought
            self.score()

    def _on_rollout_start(self) -> None:
        if self.every and self.model.num_timesteps - self.scored_at >= self.every:
            self.score()
            self.checkpoint()

    def _on_training_end(self) -> None:
        self.score()
        self.checkpoint()

    def _on_step(self) -> bool:
        return True


class Progress(BaseCallback):
    """A progress bar with the latest score; quiet when standard error is no terminal."""

    def __init__(self, total: int, validate: Validate):
        super().__init__()
        self.total, self.validate = total, validate

    def _on_training_start(self) -> None:
        done = self.model.num_timesteps
        self.bar = tqdm(
            total=self.total,
            initial=done,
            unit=" decisions",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def _on_step(self) -> bool:
        self.bar.update(self.model.num_timesteps - self.bar.n)
        if self.validate.scores:
            self.bar.set_postfix_str(f"goodput {self.validate.scores[-1][1]:.0f} tokens/s", refresh=False)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()
