"""Which tokens of an answer come in time, as the server sees them leave.

Token n of an answer is due at `first token + n/v` (docs/model/model.md, §8), with the first token's leaving in place of its
arrival and no grace: a constant delay cancels. The first one is due so long after the request as was wanted.
"""


def in_time(due_s: float, tokens_per_s: float, tokens: int, now_s: float, first: bool) -> list[bool]:
    """Whether each of an answer's next tokens is in time, when all leave now.

    Args:
        due_s: when the next one must leave, infinite or far where nobody waits. tokens_per_s: that was promised, 0: nothing.
        first: the next one is the answer's first, from which the others count.
    """
    begun_s = now_s if first else due_s
    beyond = [not tokens_per_s or now_s <= begun_s + place / tokens_per_s for place in range(1, tokens)]
    return [now_s <= due_s, *beyond][:tokens]
