"""What a learned policy of a server decides, by its decision's name. Numbers alone, nothing compiled."""

from typing import NamedTuple

from wisp_gym.contract.ladders import PRICES, SERVER_TOKENS


class Decision(NamedTuple):
    """What is chosen for a batch besides who joins and its prefill chunk.

    Attributes:
        launches: launch actions: one, or one for each price that replies carry.
        lengths: lengths of the server's own drafts to choose from, 0 where it chooses none: whoever does also says for whom it drafts.
    """

    launches: int
    lengths: int


OF_SERVERS = {
    "batching": Decision(1, 0),
    "joint": Decision(len(PRICES), 0),
    "batching-hosting": Decision(1, len(SERVER_TOKENS)),
    "joint-hosting": Decision(len(PRICES), len(SERVER_TOKENS)),
}


def sets_prices(decision: str) -> bool:
    """Whether a decision of this name is a server's that chooses the price of a draft token."""
    return decision in OF_SERVERS and OF_SERVERS[decision].launches > 1
