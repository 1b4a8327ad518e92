"""What happens while a policy learns: checkpoints, validation on worlds of its own, a progress bar, the wish to stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents.training.checkpoint import save_checkpoint
from agents.training.networks import engine_policy
from agents.training.run_folder import CHECKPOINTS
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.resolve import with_policy
from wisp_gym.files import read_text, write_text
from wisp_gym.interrupts import StopRequest
from wisp_gym.sb3 import DecisionVecEnv
from wisp_gym.scenario import Scenario
from wisp_gym.simulation import simulate

STOPPING = "stopping before the next rollout, with a checkpoint"


class Validate(BaseCallback):
    """Every `every` decisions: score the policy on validation worlds, keep the best, write a checkpoint.

    The score is the mean goodput when every device follows the policy. Files: `validation.csv`, `policy.json` (best so
    far), `checkpoints/*.pt`.

    Args:
        folder: the run's folder. scenario, seeds: of the validation worlds. batching: rule beside the policy.
        every: decisions between two scores; 0 scores only before and after the training.
        decision: "token" or "length". stop: whether to stop before the next rollout, by KeyboardInterrupt.
    """

    def __init__(
        self, folder: Path, scenario: Scenario, batching: str, seeds: Sequence[int], every: int, decision: str,
        stop: StopRequest,
    ):  # fmt: skip
        super().__init__()
        self.folder, self.scenario, self.batching = folder, scenario, batching
        self.seeds, self.every, self.decision, self.stop = seeds, every, decision, stop
        self.scores: list[tuple[int, float, float]] = []  # (decisions, goodput in tokens/s, tokens drafted in a round)

    @property
    def scored_at(self) -> int:
        """Decisions at the last score, -1 before the first."""
        return self.scores[-1][0] if self.scores else -1

    def score(self) -> None:
        """Score, write down, keep the best; nothing when these weights have been scored."""
        network, done = self.model.policy, self.model.num_timesteps
        if self.scored_at == done:
            return
        policy = engine_policy(network, self.decision, decisions=done)  # type: ignore[arg-type]
        worlds = simulate(self.scenario, with_policy("learned", policy, self.batching, self.scenario), self.seeds)
        goodput = float(np.mean([w.goodput_tokens_per_s for w in worlds]))
        drafted = float(np.mean([w.drafted_per_round for w in worlds]))
        if goodput > max((score[1] for score in self.scores), default=-np.inf):
            save_policy(policy, self.folder / "policy.json")
        self.scores.append((done, goodput, drafted))
        self.write_scores()
        self.logger.record("validation/goodput_tokens_per_s", goodput)

    def write_scores(self) -> None:
        """Write validation.csv."""
        rows = [f"{decisions},{goodput:.4f},{drafted:.4f}" for decisions, goodput, drafted in self.scores]
        lines = ["decisions,goodput_tokens_per_s,drafted_per_round", *rows]
        write_text(self.folder / "validation.csv", "\n".join(lines) + "\n")

    def checkpoint(self) -> None:
        """Write a checkpoint named by the number of decisions; it remembers the scores and the best policy so far."""
        env = self.training_env
        assert isinstance(env, DecisionVecEnv)
        path = self.folder / CHECKPOINTS / f"checkpoint-{self.model.num_timesteps:010d}.pt"
        best = read_text(self.folder / "policy.json")
        save_checkpoint(path, self.model, env, {"scores": self.scores, "policy": best})  # type: ignore[arg-type]

    def go_on(self, record: dict[str, Any]) -> None:
        """Take over the scores and the best policy that a checkpoint remembers."""
        self.scores = [(int(n), float(goodput), float(drafted)) for n, goodput, drafted in record["scores"]]
        self.write_scores()
        write_text(self.folder / "policy.json", record["policy"])

    def _on_training_start(self) -> None:
        if not self.scores:  # the untrained policy, so that the curve shows what learning brought
            self.score()

    def _on_rollout_start(self) -> None:
        if self.every and self.model.num_timesteps - self.scored_at >= self.every:
            self.score()
            self.checkpoint()
        if self.stop.asked:  # the checkpoint before the score, so that it is that of a run that was never stopped
            self.checkpoint()
        self.stop.obey()

    def _on_training_end(self) -> None:
        self.score()
        self.checkpoint()

    def _on_step(self) -> bool:
        return True


class Progress(BaseCallback):
    """A progress bar with the latest score, on standard error."""

    def __init__(self, total: int, validate: Validate, shown: bool):
        super().__init__()
        self.total, self.validate, self.shown = total, validate, shown

    def _on_training_start(self) -> None:
        done = self.model.num_timesteps
        self.bar = tqdm(total=self.total, initial=done, unit=" decisions", unit_scale=True, disable=not self.shown)

    def _on_step(self) -> bool:
        self.bar.update(min(self.model.num_timesteps, self.total) - self.bar.n)
        if self.validate.scores:
            self.bar.set_postfix_str(f"goodput {self.validate.scores[-1][1]:.0f} tokens/s", refresh=False)
        return True

    def close(self) -> None:
        """Leave the bar as it stands."""
        if hasattr(self, "bar"):
            self.bar.close()
