"""Behaviour cloning: a scorer learns to batch as the strongest rule does, before it is trained further.

The teacher is `aged` with memory-aware admission and a prefill chunk that grows with the prompts that wait, as fast as
is best in each kind of world: the learner has to tell them apart by what it sees. The teacher is asked in the states
that the learner itself comes to (DAgger, arXiv 1011.0686), from the second round on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.batching.scorer_network import FORBIDDEN, Scorer
from wisp_gym.contract import ladders, request, server
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.envs.shells import DecisionVectorEnv

PLACES = 64  # for requests that lack context: more hardly ever wait
LEARNING_RATE = 3e-3  # in the last round it falls to 0


@dataclass(frozen=True)
class Teacher:
    """What the rule does in a state, for `wisp_gym/Batching-v1` and `Joint-v1`.

    Attributes:
        rule: the batching rule. chunk_tokens, chunk_share: tokens that a batch prefills at least, and share of those
            that wait; of the ladder the nearest. admit_share: of KV memory. price: of the ladder.
        server_tokens: that the server drafts for each of its sessions, those that gain more there than they cost (`by-price:1`).
    """

    rule: str = "aged:30"
    chunk_tokens: int = 96
    chunk_share: float = 0.2
    admit_share: float = 0.95
    price: float = 0.0
    server_tokens: int = 0

    @property
    def name(self) -> str:
        """The rule with its additions, as controllers are named."""
        return f"{self.rule}+chunk:{self.chunk_tokens},{self.chunk_share}+admit:{self.admit_share}"

    def chunk_levels(self, observations: np.ndarray) -> np.ndarray:
        """(n,) places in the ladder that are nearest, by ratio, to the chunk."""
        waiting = observations[:, server.PREFILL_WAITING] * server.SCALE[server.PREFILL_WAITING]
        wanted = np.maximum(self.chunk_tokens, self.chunk_share * waiting)
        ladder = np.log(np.maximum(ladders.CHUNK_TOKENS, 1.0))
        return np.abs(np.log(wanted)[:, None] - ladder).argmin(1)

    def admitted(self, observations: np.ndarray) -> np.ndarray:
        """(n, Q) bool: requests that the limit of admission lets join."""
        g, requests = parts_of(observations)
        own = requests[:, :, request.MEMORY_WITH] - g[:, server.MEMORY, None]
        spoken_for = g[:, server.MEMORY_SPOKEN_FOR, None]
        begun = requests[:, :, request.BEGUN] > 0.5
        return begun | (spoken_for == 0.0) | (spoken_for + own <= self.admit_share)

    def actions(self, observations: np.ndarray, masks: np.ndarray, predictor: BatchingPredictor) -> np.ndarray:
        """(n,) int64: what the rule does."""
        n, visible, launches = len(observations), parts_of(observations)[1].shape[1], predictor.launches
        shown = observations.copy()
        allowed = (masks[:, :visible] == 1) & self.admitted(observations)
        shown[:, server.SIZE :].reshape(n, visible, request.SIZE)[:, :, request.ADMISSIBLE] = allowed
        actions, _ = predictor.predict(shown)
        launch = visible + ladders.PRICES.index(self.price) if launches > 1 else visible
        actions = np.where(actions == visible, launch, actions)
        chunks = visible + launches + 1
        lengths = chunks + len(ladders.CHUNK_TOKENS)
        actions = np.where(masks[:, lengths - 1] == 1, chunks + self.chunk_levels(observations), actions)
        return self.hosting(observations, masks, lengths, actions) if masks.shape[1] > lengths else actions

    def hosting(self, observations: np.ndarray, masks: np.ndarray, lengths: int, otherwise: np.ndarray) -> np.ndarray:
        """(n,) int64: for whom the server drafts, who gains most first, and how long; then what is done `otherwise`.

        `lengths`: the first action that chooses a length.
        """
        chosen = lengths + ladders.SERVER_TOKENS.index(self.server_tokens)
        actions = np.where(masks[:, chosen] == 1, chosen, otherwise)
        moves, (g, requests) = lengths + len(ladders.SERVER_TOKENS), parts_of(observations)
        rate, batch_s = (g[:, entry] * server.SCALE[entry] for entry in (server.TOKEN_RATE, server.MEAN_BATCH_TIME))
        surplus = requests[:, :, request.GAIN] - (rate * batch_s)[:, None] * requests[:, :, request.USE]
        surplus *= np.where(requests[:, :, request.STAYS] > 0.5, -1.0, 1.0)  # of moving
        surplus[masks[:, moves:] == 0] = 0.0
        return np.where(surplus.max(1) > 0.0, moves + surplus.argmax(1), actions)


def parts_of(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, GLOBALS) and (n, Q, REQUEST) of observations."""
    shape = len(observations), (observations.shape[1] - server.SIZE) // request.SIZE, request.SIZE
    return observations[:, : server.SIZE], observations[:, server.SIZE :].reshape(shape)


def demonstrate(
    envs: DecisionVectorEnv, teacher: Teacher, learner: Scorer | None, steps: int, rng: np.random.Generator, keep: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations (n, size), masks (n, actions) and the teacher's actions (n,) in states that are met.

    Args:
        learner: who acts; None for the teacher. steps: of all worlds.
        keep: share that is kept of the states with a choice.
    """
    task: Any = envs.task
    predictor = BatchingPredictor(teacher.rule, task.episodes.scenario, prices=task.launches > 1)
    rows, observations, masks = list[Any](), task.observations.copy(), task.masks.copy()
    for _ in range(steps):
        targets = teacher.actions(observations, masks, predictor)
        taken = (rng.random(len(masks)) < keep) & (masks.sum(1) > 1)
        rows.append(compact(observations[taken], masks[taken], targets[taken]))
        actions = targets if learner is None else greedy(learner, observations, masks)
        observations, *_, infos = envs.step(actions)
        masks = infos["action_mask"]
    a, b, c = zip(*rows, strict=True)
    return np.concatenate(a), np.concatenate(b), np.concatenate(c)


def compact(
    observations: np.ndarray, masks: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same decisions (of `demonstrate`) with PLACES places, requests that lack context first.

    The other requests are no matter; decisions with more such requests are left out. Where sessions may be moved, all requests matter.
    """
    g, requests = parts_of(observations)
    n, visible = requests.shape[:2]
    if masks.shape[1] > 2 * visible:
        return observations, masks, actions
    lacking = requests[:, :, request.UNCACHED_TOKENS] > 0.0
    order = np.argsort(~lacking, axis=1, kind="stable")[:, : min(PLACES, visible)]
    width = order.shape[1]
    kept = np.take_along_axis(requests, order[:, :, None], 1).reshape(n, width * request.SIZE)
    picks = np.take_along_axis(masks[:, :visible], order, 1)
    places = (order == actions[:, None]).argmax(1)
    moved = np.where(actions < visible, places, actions - visible + width)
    few = lacking.sum(1) <= width
    return (np.concatenate([g, kept], 1)[few], np.concatenate([picks, masks[:, visible:]], 1)[few], moved[few])


@torch.no_grad()
def greedy(scorer: Scorer, observations: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(n,) valid actions of the highest score."""
    scores = scorer(torch.from_numpy(observations)).numpy()
    return np.where(masks == 1, scores, -np.inf).argmax(1)


def loss_of(scorer: Scorer, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean of −log of the probability of the teacher's action among the valid ones; rows as of `demonstrate`."""
    observations, masks, targets = rows
    return torch.nn.functional.cross_entropy(scorer(observations).masked_fill(masks == 0, FORBIDDEN), targets)


def fit(
    scorer: Scorer, optimizer: torch.optim.Optimizer, columns: list[torch.Tensor], epochs: int, falling: bool,
    rng: np.random.Generator,
) -> float:  # fmt: skip
    """So many passes over all decisions (columns as of `demonstrate`); the mean loss of the last one.

    Args:
        falling: whether the learning rate falls to 0.
    """
    total = 0.0
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - epoch / epochs if falling else 1.0)
        total, order = 0.0, torch.from_numpy(rng.permutation(len(columns[0])))
        for rows in order.split(512):
            loss = loss_of(scorer, tuple(column[rows] for column in columns))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
    return total / len(columns[0])


def clone(
    scorer: Scorer, worlds: Sequence[DecisionVectorEnv], teachers: Sequence[Teacher], seed: int, rounds: int = 4,
    steps: int = 1200, keep: float = 1.0, epochs: int = 8, last_epochs: int = 20,
    say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Train the scorer on each world's teacher: `rounds` times collect and fit on all so far, the last time longer."""
    rng = np.random.default_rng(seed)
    for envs in worlds:
        envs.reset(seed=seed)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=LEARNING_RATE)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index in range(rounds):
        learner, last = scorer if index else None, index == rounds - 1
        kept += [demonstrate(*pair, learner, steps, rng, keep) for pair in zip(worlds, teachers, strict=True)]
        columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*kept, strict=True)]
        loss = fit(scorer, optimizer, columns, last_epochs if last else epochs, last, rng)
        say(f"round {index + 1}: {len(columns[0])} decisions, loss {loss:.4f}")
