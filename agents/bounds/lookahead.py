"""Following whoever is ahead in copies of the running world: what is known to be reachable, a rung beside the bounds.

Every so often each candidate controller drives copies of the world under the same fresh draws, and the one whose fleet is worth the
most by then (tokens on time, and rounds under way at their device's rate) takes over, unless its lead over the one in charge is within a
standard error. So it knows the model and what everybody has observed, not the future (`wisp_gym.engine.afresh`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wisp_gym.engine.branch import Branches
from wisp_gym.engine.pausing import Pausing
from wisp_gym.engine.worlds import Worlds, world_of
from wisp_gym.errors import InputError
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

MODEL, FUTURE = "model", "future"
LEAD = 1.0  # standard errors by which another candidate must lead to take over


def refuse_misfits(candidates: Sequence[Controller]) -> None:
    """Raise InputError for candidates that cannot take over from one another in a running world."""
    for candidate in candidates:
        if candidate.centralized or candidate.learns or candidate.plan:
            why = "a server alone, a rule that learns and a plan cannot take over in a running world"
            raise InputError(f"controllers: given '{candidate.name}', allowed are others: {why}")
    for part in ("policy", "scorer"):
        if len({getattr(candidate, part).tobytes() for candidate in candidates} - {b""}) > 1:
            raise InputError(f"controllers: given two learned {part} networks, allowed is one in all of them")


@dataclass(frozen=True)
class Lookahead:
    """A controller that branches.

    Attributes:
        candidates: who may drive; the first begins. draws: copies of each. horizon_s, period_s: looked ahead, and between two choices.
        knows: MODEL or FUTURE.

    Raises:
        InputError: candidates that cannot take over from one another.
    """

    scenario: Scenario
    candidates: Sequence[Controller]
    draws: int
    horizon_s: float
    period_s: float
    knows: str = MODEL
    times: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        refuse_misfits(self.candidates)

    def play(self, seed: int) -> float:
        """Goodput of one world, in tokens/s; `times` counts who was chosen."""
        worlds = self.ready(seed)
        copies, pausing = Branches(worlds, len(self.candidates) * self.copies_of_each), Pausing(worlds)
        c, chosen, time_s, periods = worlds.arrays.config[0, 0], 0, 0.0, 0
        end_s = float(c["window_end_s"])
        while time_s < end_s:
            time_s = min(time_s + self.period_s, end_s)
            pausing.run_until(time_s)
            chosen, periods = self.best(copies, chosen, 1_000 * (1_000_000 * seed + periods)), periods + 1
            worlds.control(0, self.candidates[chosen])
            self.times[self.candidates[chosen].name] += 1
        return float(worlds.arrays.totals["tokens_on_time"][0, 0]) / self.scenario.horizon.measure_s

    def ready(self, seed: int) -> Worlds:
        """The world with the rows and weights that any candidate needs, in the hands of the first."""
        worlds = world_of(self.scenario, self.candidates[0], seed)
        for candidate in (*self.candidates, self.candidates[0]):
            worlds.control(0, candidate)
        return worlds

    @property
    def copies_of_each(self) -> int:
        """Copies that each candidate drives: who knows the future needs one."""
        return self.draws if self.knows == MODEL else 1

    def best(self, copies: Branches, chosen: int, seed: int) -> int:
        """Number of the candidate to follow, after the one in charge."""
        n = self.copies_of_each
        copies.take(0)
        copies.follow([candidate for candidate in self.candidates for _ in range(n)])
        if self.knows == MODEL:
            copies.afresh(seed + np.tile(np.arange(n), len(self.candidates)))
        tokens = copies.worth_tokens([self.horizon_s]).reshape(len(self.candidates), n)
        return leader(tokens, chosen)


def leader(tokens: np.ndarray, chosen: int) -> int:
    """Row of (candidates, draws) tokens with the highest mean, if it leads `chosen` by `LEAD` standard errors of the paired differences."""
    best = int(tokens.mean(axis=1).argmax())
    lead = (tokens[best] - tokens[chosen]).astype(float)
    error = lead.std(ddof=1) / len(lead) ** 0.5 if len(lead) > 1 else 0.0
    return best if lead.mean() > LEAD * error else chosen
