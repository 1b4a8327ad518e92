"""Lengths compared: each plays the same requests in every cycle, in an order that is reversed in every second one.

Other programs share a machine, and it warms up and throttles: so figures are ratios within a cycle, and medians over cycles.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from wisp_gym.testbed.vllm_steering.bench_engine import FIXED, TABLE, Plan, Played, same

OFF, TUNED = "off", "table"  # no speculation at all, and vLLM's table, tuned here
Player = Callable[[Plan], Played]  # by an engine that has what the plan's lengths ask for


class Requests(NamedTuple):
    """Requests of a comparison.

    Attributes:
        counted: prompts that every one plays, in tokens. others: to tune and to learn on. tokens: of each answer.
    """

    counted: list[list[int]]
    others: list[list[int]]
    tokens: int


@dataclass(frozen=True)
class Row:
    """One play.

    Attributes:
        lengths: what set them. cycle: from 0 on. tokens_per_s: by the clock of the comparison.
        tokens_per_step: of the target, all requests together. accepted_share: of drafted tokens; None where there were none.
        same_answers: token for token those of the first one played, of `answers`.
    """

    lengths: str
    concurrency: int
    cycle: int
    tokens_per_s: float
    tokens_per_step: float
    drafted: int
    accepted_share: float | None
    fallbacks: int
    answers: int
    same_answers: int


def tune(play: Player, requests: Requests, concurrencies: Sequence[int], longest: int) -> str:
    """vLLM's table by batch size: of each concurrency the length that was fastest on the other requests, as `table:JSON`."""
    rows: list[list[int]] = []
    for concurrency in sorted(concurrencies):
        seconds = [0.0] * (longest + 1)
        for length in [*range(longest + 1), *reversed(range(longest + 1))]:
            seconds[length] += play(Plan(f"{FIXED}{length}", requests.others, requests.tokens, concurrency)).seconds
        rows.append([rows[-1][1] + 1 if rows else 1, concurrency, min(range(longest + 1), key=seconds.__getitem__)])
    return TABLE + json.dumps(rows)


def learn(play: Player, requests: Requests, concurrencies: Sequence[int], every: Sequence[str]) -> None:
    """A cycle that does not count: engines warm up, rules learn."""
    for concurrency in concurrencies:
        for lengths in every:
            play(Plan(lengths, requests.others, requests.tokens, concurrency))


def cycle(
    play: Player, requests: Requests, concurrencies: Sequence[int], every: Sequence[str], number: int
) -> list[Row]:
    """One cycle; from the second on, each second one in reversed order."""
    rows: list[Row] = []
    order = list(every) if number % 2 == 0 else list(reversed(every))
    for concurrency in concurrencies:
        found = {name: play(Plan(name, requests.counted, requests.tokens, concurrency)) for name in order}
        rows += [row(name, concurrency, number, found[name], found[every[0]]) for name in every]
    return rows


def row(lengths: str, concurrency: int, number: int, played: Played, first: Played) -> Row:
    """The figures of a play."""
    shares = played.accepted / played.drafted if played.drafted else None
    return Row(
        lengths, concurrency, number, played.tokens / played.seconds, played.tokens / played.steps,
        played.drafted, shares, played.fallbacks, len(played.answers), same(played.answers, first.answers),
    )  # fmt: skip


def summary(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """Medians over cycles by concurrency and lengths, and of ratios to the reference within each cycle, with the least and the most."""
    base = {(each.concurrency, each.cycle): each.tokens_per_s for each in rows if each.lengths == reference}
    found = []
    for concurrency, lengths in dict.fromkeys((each.concurrency, each.lengths) for each in rows):
        own = [each for each in rows if (each.concurrency, each.lengths) == (concurrency, lengths)]
        ratios = [each.tokens_per_s / base[concurrency, each.cycle] for each in own]
        shares = [each.accepted_share for each in own if each.accepted_share is not None]
        found.append({
            "concurrency": concurrency, "lengths": lengths, "tokens_per_s": median(each.tokens_per_s for each in own),
            "ratio": median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios),
            "tokens_per_step": median(each.tokens_per_step for each in own),
            "drafted_per_answer": median(each.drafted for each in own) / own[0].answers,
            "accepted_share": median(shares) if shares else None,
            "same_answers": sum(each.same_answers for each in own), "answers": sum(each.answers for each in own),
            "fallbacks": sum(each.fallbacks for each in own),
        })  # fmt: skip
    return found


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plays as JSON values."""
    return [asdict(each) for each in rows]
