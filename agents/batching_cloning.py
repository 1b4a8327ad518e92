"""Behaviour cloning: a scorer learns to batch as the strongest rule does, before it is trained further.

The teacher is `aged` with memory-aware admission and a fixed prefill chunk (and, where prices are set, a fixed price). It is
asked in the states that the learner itself comes to (DAgger, arXiv 1011.0686), from the second round on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.scorer_network import Scorer
from wisp_gym.controllers import batching as rules
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.engine import gather_batching as seen
from wisp_gym.envs.shells import DecisionVectorEnv

FORBIDDEN = -1e9
MARGIN = 1.0  # of scores


@dataclass(frozen=True)
class Teacher:
    """What the rule does in a state, for `wisp_gym/Batching-v0` and `Joint-v0`.

    Attributes:
        rule: the batching rule. chunk_tokens, chunk_share: prefill chunk, at least so many tokens, or this share of the prompt
            tokens that wait; the nearest of the ladder. admit_share: of KV memory. price: of the ladder.
    """

    rule: str = "aged:30"
    chunk_tokens: int = 96
    chunk_share: float = 0.2
    admit_share: float = 0.95
    price: float = 0.0

    def name(self) -> str:
        """The whole rule, as a controller's second half."""
        return f"{self.rule}+chunk:{self.chunk_tokens},{self.chunk_share}+admit:{self.admit_share}"

    def chunks(self, observations: np.ndarray) -> np.ndarray:
        """(n,) level of the ladder that is nearest, in ratio, to the chunk that the rule would take."""
        waiting = observations[:, seen.G_PREFILL_WAITING] * seen.PREFILL_UNIT
        wanted = np.maximum(self.chunk_tokens, self.chunk_share * waiting)
        ladder = np.log(np.array(rules.CHUNK_TOKENS[1:]))
        return 1 + np.abs(np.log(wanted)[:, None] - ladder).argmin(1)

    def admitted(self, observations: np.ndarray) -> np.ndarray:
        """(n, Q) bool: requests that the limit of admission lets join."""
        g, requests = parts_of(observations)
        own = requests[:, :, seen.R_MEMORY] - g[:, seen.G_MEMORY, None]
        spoken_for = g[:, seen.G_SPOKEN_FOR, None]
        begun = requests[:, :, seen.R_BEGUN] > 0.5
        return begun | (spoken_for == 0.0) | (spoken_for + own <= self.admit_share)

    def targets(self, observations: np.ndarray, masks: np.ndarray, predictor: BatchingPredictor) -> np.ndarray:
        """(n, actions) bool: what the rule would do; of requests whose context is in memory, and so join anyway, any one."""
        _, requests = parts_of(observations)
        n, visible = requests.shape[:2]
        launches = predictor.launches
        allowed = (masks[:, :visible] == 1) & self.admitted(observations)
        ready = allowed & (requests[:, :, seen.R_UNCACHED] == 0.0)
        shown = observations.copy()
        shown[:, seen.GLOBALS :].reshape(n, visible, seen.REQUEST)[:, :, seen.R_ADMISSIBLE] = allowed
        chosen = np.zeros(masks.shape, bool)
        actions, _ = predictor.predict(shown)
        launch = visible + rules.PRICES.index(self.price) if launches > 1 else visible
        chosen[np.arange(n), np.where(actions == visible, launch, actions)] = True
        any_ready = ready.any(1)
        chosen[any_ready] = False
        chosen[:, :visible] |= ready
        chunk_open = masks[:, -1] == 1
        chosen[chunk_open] = False
        chosen[chunk_open, visible + launches + 1 + self.chunks(observations)[chunk_open]] = True
        return chosen


def parts_of(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, GLOBALS) and (n, Q, REQUEST) of observations."""
    return observations[:, : seen.GLOBALS], observations[:, seen.GLOBALS :].reshape(len(observations), -1, seen.REQUEST)


def demonstrate(
    envs: DecisionVectorEnv, teacher: Teacher, learner: Scorer | None, steps: int, rng: np.random.Generator, keep: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, masks and targets of a share `keep` of the states met, by the teacher or, where given, the learner."""
    predictor = BatchingPredictor(teacher.rule, envs.task.episodes.scenario, prices=envs.task.launches > 1)  # type: ignore[attr-defined]
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    observations, masks = envs.task.observations.copy(), envs.task.masks()
    for _ in range(steps):
        targets = teacher.targets(observations, masks, predictor)
        taken = rng.random(len(masks)) < keep
        rows.append((observations[taken], masks[taken], targets[taken]))
        actions = targets.argmax(1) if learner is None else greedy(learner, observations, masks)
        observations, *_, infos = envs.step(actions)
        masks = infos["action_mask"]
    a, b, c = zip(*rows, strict=True)
    return np.concatenate(a), np.concatenate(b), np.concatenate(c)


@torch.no_grad()
def greedy(scorer: Scorer, observations: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(n,) valid actions of the highest score."""
    scores = scorer(torch.from_numpy(observations)).numpy()
    return np.where(masks == 1, scores, -np.inf).argmax(1)


def loss_of(scorer: Scorer, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """−log of the probability that one of the teacher's actions is taken, of the valid ones; and of each that it stands above

    the best of the others. Without the latter one good pick would do, and requests of low scores would be left for ever.
    """
    observations, masks, targets = rows
    scores = scorer(observations)
    valid = torch.logsumexp(scores.masked_fill(masks == 0, FORBIDDEN), 1)
    one = valid - torch.logsumexp(scores.masked_fill(~targets, FORBIDDEN), 1)
    others = scores.masked_fill((masks == 0) | targets, FORBIDDEN).max(1, keepdim=True).values
    each = torch.nn.functional.softplus(MARGIN + others - scores).masked_fill(~targets, 0.0).sum(1) / targets.sum(1)
    return (one + each).mean()


def clone(
    scorer: Scorer, worlds: Sequence[DecisionVectorEnv], teacher: Teacher, seed: int, rounds: int = 4, steps: int = 1200, keep: float = 0.15,
    epochs: int = 6, say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Train the scorer on the teacher's decisions: `rounds` times collect and fit on all that was collected."""
    rng = np.random.default_rng(seed)
    for envs in worlds:
        envs.reset(seed=seed)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=2e-3)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index in range(rounds):
        kept += [demonstrate(envs, teacher, scorer if index else None, steps, rng, keep) for envs in worlds]
        columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*kept, strict=True)]
        for _ in range(epochs):
            total, order = 0.0, torch.from_numpy(rng.permutation(len(columns[0])))
            for rows in order.split(512):
                loss = loss_of(scorer, tuple(column[rows] for column in columns))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
        say(f"round {index + 1}: {len(order)} decisions, loss {total / len(order):.4f}")
