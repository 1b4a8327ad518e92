"""Above temperature 0 answers have the target's own law, whatever is drafted; and without the fix a processor's are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from tests.support.testbed_world import World
from tests.support.vllm_world import ROOMY, VOCABULARY, Guess, chi_square, laws_after, prompts, start
from wisp_gym.testbed.client import GaveUp, Request
from wisp_gym.testbed.controlling import FixedLength
from wisp_gym.testbed.engine import Job

TOKENS, SESSIONS, ROUNDS, BINS = 24_000, 48, 12, 32
Answered = list[tuple[list[int], list[int], dict[int, int]]]


def answer(engine: Any, temperature: float, tokens: int) -> Answered:
    """So many tokens in sessions of a few rounds, with random drafts: prompt, answer, and by position the token that was drafted there."""
    drawn, found, total, number = random.Random(1), [], 0, 0
    while total < tokens:
        live: Answered = [(ids, [], {}) for ids in prompts(SESSIONS, 1000 + number, 4, 24)]
        for _ in range(ROUNDS):
            jobs = []
            for place, (ids, text, drafted) in enumerate(live):
                draft = [drawn.randrange(VOCABULARY // 8) for _ in range(drawn.randint(0, 3))] if text else []
                if draft and place % 12 == 0:  # a good one, too
                    draft[0] = int(laws_after([*ids, *text], [0], 1.0)[0].argmax())
                drafted.update({len(text) + j: token for j, token in enumerate(draft)})
                jobs.append(Job(place, [*ids, *text], draft, (), temperature, number + place, len(text)))
            for (_, text, _), fresh in zip(live, engine.verify(jobs), strict=True):
                text += fresh
        for place in range(SESSIONS):
            engine.forget(place)
        found += live
        total += sum(len(text) for _, text, _ in live)
        number += SESSIONS
    return found


def shares(found: Answered, temperature: float) -> np.ndarray:
    """(tokens,) numbers that are uniform if, and only if, each token has its exact law: F(x−) + V p(x).

    The drafted token comes first in the order of F, so a law that favours or shuns it shows.
    """
    generator, out = np.random.default_rng(2), []
    for ids, text, drafted in found:
        for position, (token, law) in enumerate(zip(text, laws_after(ids, text, temperature), strict=True)):
            first = drafted.get(position, 0)
            order = np.concatenate([[first], np.delete(np.arange(VOCABULARY), first)])
            place = int(np.flatnonzero(order == token)[0])
            out.append(law[order[:place]].sum() + generator.random() * law[token])
    return np.array(out)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_law_is_exact(roomy: Any, temperature: float) -> None:
    assert roomy.samples
    tokens = TOKENS if temperature == 1.0 else TOKENS // 4
    found = answer(roomy, temperature, tokens)
    u = shares(found, temperature)
    assert len(u) >= tokens
    counts = np.bincount((u * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
    statistic, degrees, p = chi_square(counts, np.full(BINS, len(u) / BINS))
    accepted = [text[i] == token for _, text, drafted in found for i, token in drafted.items() if i < len(text)]
    share = f"{np.mean(accepted):.3f} of {len(accepted)} drafted tokens accepted"
    print(
        f"temperature {temperature:g}: {len(u)} tokens, chi-square {statistic:.1f}, {degrees} degrees, p {p:.3f}, {share}"
    )
    assert p > 1e-3
    assert 0.001 < np.mean(accepted) < 0.5


def test_one_context_gives_each_token_its_share(roomy: Any) -> None:
    """The token after a fixed context, drafted by its second likeliest one: 20,000 of them, token by token."""
    ids = prompts(1, 9, 20, 20)[0]
    law = laws_after(ids[:-1], [ids[-1], 0], 1.0)[1]
    draft, counts = int(np.argsort(-law)[1]), np.zeros(VOCABULARY)
    for begin in range(0, 20_000, 50):
        jobs = [Job(place, ids, [draft], (), 1.0, begin + place, 1) for place in range(50)]
        for fresh in roomy.verify(jobs):
            counts[fresh[0]] += 1
        for place in range(50):
            roomy.forget(place)
    rare = law * counts.sum() < 5
    expected = np.append(law[~rare], law[rare].sum()) * counts.sum()
    observed = np.append(counts[~rare], counts[rare].sum())
    statistic, degrees, p = chi_square(observed[expected > 0], expected[expected > 0])
    print(f"one context: {counts.sum():.0f} tokens, chi-square {statistic:.1f}, {degrees} degrees, p {p:.3f}")
    assert p > 1e-3


def test_without_the_fix_sampling_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of vLLM that does not load our plugin is found out, and its server answers greedily alone."""
    monkeypatch.setenv("VLLM_PLUGINS", "")
    engine = start(folder, ROOMY)
    try:
        assert not engine.samples
        with World(engine=engine, limits=ROOMY) as world:
            ids = prompts(1, 4)[0]
            greedy = Guess({tuple(ids): [0] * 8}, 0.5, 0)
            with pytest.raises(GaveUp, match="temperature: 1, allowed is 0: this server does not sample"):
                world.device(FixedLength(2), draft=greedy).answer(Request(ids, 8, temperature=1.0))
            assert len(world.device(FixedLength(2), draft=greedy).answer(Request(ids, 8)).tokens) == 8
    finally:
        engine.close()
