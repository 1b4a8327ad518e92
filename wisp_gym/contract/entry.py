"""One entry of an observation: what it is, in which unit, within which ends, who owns the number and how old it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wisp_gym.contract.averages import FRESH

# Scales that are numbers only once a server runs: its mean batch time, and the cap on drafted tokens.
T, K = "T", "K"

# Owners: who knows the number.
DEVICE, LINK, CLASS, SERVER, ESTIMATOR = "device", "link", "service class", "server", "estimator"

# Ages: how old the number is when the decision is taken.
NOW = "now"
ROUND = "start of the round"
REPLY = "last reply"
AHEAD = "last reply, carried on to now"
MESSAGE = "the request's message"
LAUNCH = "last launch"
ROUNDS = f"average of about {1 / FRESH:.0f} rounds"
DELAYS = f"average of about {1 / FRESH:.0f} messages"
BATCHES = f"average of about {1 / FRESH:.0f} batches"
REPLIED_BATCHES = f"last reply, {BATCHES}"
FIXED = "fixed"


@dataclass(frozen=True)
class Entry:
    """One entry: `quantity / scale`, cut to [low, high], as float32.

    Attributes:
        name: in capitals, the name of its index in the module of its table.
        scale: how much of the quantity is one unit of the entry: a number, T or K.
        quantity: what is measured: "s", "tokens", "tokens/s", "requests", or a pure number's kind such as "probability".
        low, high: ends, in units of the entry.
        meaning: in a few words.
        owner: who knows the number.
        age: how old it is when the decision is taken.
    """

    name: str
    scale: float | str
    quantity: str
    low: float
    high: float
    meaning: str
    owner: str
    age: str

    @property
    def unit(self) -> str:
        """One unit as tables and schemas name it: `T`, `K`, `64 tokens`, `probability`."""
        if isinstance(self.scale, str):
            return self.scale
        return self.quantity if self.scale == 1 else f"{self.scale:,g} {self.quantity}"

    @property
    def row(self) -> list[str | float]:
        """The entry as schemas and policy files list it: [name, unit, low, high]."""
        return [self.name, self.unit, self.low, self.high]

    def scale_in(self, batch_s: float, max_draft_tokens: float) -> float:
        """The scale as a number, for a mean batch time T in seconds and a cap K in tokens."""
        if isinstance(self.scale, str):
            return {T: batch_s, K: max_draft_tokens}[self.scale]
        return self.scale


class Columns(NamedTuple):
    """A table's columns, a value for each entry; compiled code takes these tuples for constants.

    Attributes:
        scale: NaN where it is T or K.
    """

    names: tuple[str, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def columns(entries: Sequence[Entry]) -> Columns:
    """The columns of a table."""
    return Columns(
        tuple(e.name for e in entries),
        tuple(math.nan if isinstance(e.scale, str) else float(e.scale) for e in entries),
        tuple(float(e.low) for e in entries),
        tuple(float(e.high) for e in entries),
    )


def markdown(entries: Sequence[Entry], indent: str = "") -> str:
    """A table in Markdown, without a line break at its end; `indent` goes before every line but the first."""
    lines = ["| entry | name | unit | low | high | meaning | owner | age |", "|" + "---|" * 8]
    for k, e in enumerate(entries):
        lines.append(f"| {k} | {e.name} | {e.unit} | {e.low:g} | {e.high:g} | {e.meaning} | {e.owner} | {e.age} |")
    return f"\n{indent}".join(lines)
