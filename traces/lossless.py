"""Speculative decoding written plainly: one round after another, without caches, for any stopping rule.

This is what a recorded trace stands for, and what proves it lossless: whatever the rule, the output is the target's own
at temperature 0 and has the target's distribution above. Source of accept and replace: Leviathan, Kalman and Matias,
"Fast inference from transformers via speculative decoding", ICML 2023 (arXiv 2211.17192), algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .model_pair import Pair, distribution, statistics

# Whether to draft one more token, given the (4,) statistics of those drafted in this round.
Rule = Callable[[Sequence[np.ndarray]], bool]


class Decoded(NamedTuple):
    """An output and its rounds, each as (drafted, accepted) tokens."""

    output: list[int]
    rounds: list[tuple[int, int]]


def verify(p: np.ndarray, q: np.ndarray, drafted: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The tokens that a round commits: those accepted, then the target's own.

    Token x of row j is accepted with probability min(1, p_j(x)/q_j(x)); the first that is not is replaced by a draw from
    max(0, p_j − q_j), normalised; after the last one stands a draw from p_k.

    Args:
        p: (k + 1, V) distributions of the target, after each of 0 … k drafted tokens.
        q: (k, V) distributions that the drafted tokens were drawn from.
        drafted: k tokens.
        rng: Source of chance.
    """
    committed: list[int] = []
    for j, token in enumerate(drafted):
        if rng.random() * q[j, token] >= p[j, token]:
            return [*committed, _draw(np.maximum(p[j] - q[j], 0.0), rng)]
        committed.append(token)
    return [*committed, _draw(p[len(drafted)], rng)]


def _draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], "right")), int(np.flatnonzero(weights)[-1]))


def decode(
    pair: Pair, ids: Sequence[int], rule: Rule, max_new_tokens: int, temperature: float, seed: int, most: int = 8
) -> Decoded:
    """The answer to a prompt, drafted by one model and verified by the other.

    Args:
        pair: The two models.
        ids: The prompt, at least one token.
        rule: Asked before each token is drafted; a round drafts at most `most`, and none beyond the answer's length.
        max_new_tokens: Length of the answer, unless an end token comes before.
        temperature: 0 is greedy.
        seed: Of all draws.
        most: Largest draft, tokens.
    """
    rng = np.random.default_rng(seed)
    output: list[int] = []
    rounds: list[tuple[int, int]] = []
    while len(output) < max_new_tokens and not pair.end_tokens & set(output):
        prefix = [*ids, *output]
        tokens: list[int] = []
        told: list[np.ndarray] = []
        q: list[np.ndarray] = []
        while len(tokens) < min(most, max_new_tokens - len(output)) and rule(told):
            law, logits = _law(pair.draft, [*prefix, *tokens], 1, pair.vocabulary, temperature)
            tokens.append(_draw(law[0], rng))
            # Statistics are of the distribution before greedy decoding sharpens it to one token.
            soft = distribution(logits, temperature)
            told.append(statistics(logits, soft, torch.tensor([tokens[-1]]))[0].numpy())
            q.append(law[0])
        p, _ = _law(pair.target, [*prefix, *tokens], len(tokens) + 1, pair.vocabulary, temperature)
        committed = verify(p, np.array(q), tokens, rng)
        rounds.append((len(tokens), len(committed) - 1))
        output += committed
    return Decoded(_cut(output[:max_new_tokens], pair.end_tokens), rounds)


@torch.inference_mode()
def _law(
    model: object, ids: Sequence[int], last: int, size: int, temperature: float
) -> tuple[np.ndarray, torch.Tensor]:
    """(last, V) distributions and logits after the last tokens; at temperature 0 all weight is on the likeliest."""
    logits = model(torch.tensor([list(ids)]), logits_to_keep=last).logits[0, :, :size]  # type: ignore[operator]
    law = distribution(logits, temperature)
    if temperature == 0:
        law = torch.nn.functional.one_hot(law.argmax(-1), size).double()
    return law.numpy(), logits


def _cut(output: list[int], ends: set[int]) -> list[int]:
    """The output up to its first end token."""
    place = next((i for i, token in enumerate(output) if token in ends), len(output))
    return output[: place + 1]
