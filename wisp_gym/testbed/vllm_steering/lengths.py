"""Lengths of a running server's own drafts, by the rules that the simulated server has (`wisp_gym.rules.server_lengths`).

What an engine does not tell is replaced: no probability of a drafted token reaches a scheduler, so `survival` goes by the request's
own running share of accepted tokens, α: after k drafts survival is α^k.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.controllers.lookup import Part
from wisp_gym.rules import server_lengths, suggestions
from wisp_gym.serving.running_fit import Floats
from wisp_gym.testbed.vllm_steering.step_times import Costs

PARAMETERS = 8  # places of a rule's numbers
SESSION = 4  # numbers that are kept of a request
TIMED = (server_lengths.TURBOSPEC, server_lengths.THROUGHPUT)  # rules that ask what lengths cost


class Drafted(NamedTuple):
    """A round that has been verified: the request, its drafts, how many of them were accepted, how many it might have had."""

    name: str
    drafted: int
    accepted: int
    allowed: int


class Lengths:
    """A rule and what it has learned.

    Args:
        rule: with its numbers (`settings.rule_of`). longest: tokens that the engine can draft. accepted: share believed at first.

    Attributes:
        offer: running share of rounds that had drafts, of those that might: a search in the text does not always find some.
    """

    def __init__(self, rule: Part, longest: int, accepted: float) -> None:
        self.rule, self.kind, self.longest, self.accepted = rule, rule.rule.kind, longest, accepted
        self.parameters = np.zeros(PARAMETERS)
        self.parameters[: len(rule.values)] = rule.values
        self.memory: Floats = np.zeros(suggestions.KNOWLEDGE)
        self.sessions: dict[str, Floats] = {}
        self.offer = 1.0
        self.is_timed = self.kind in TIMED

    def warm_up(self) -> None:
        """Compile all that is called while serving, with a memory that is thrown away."""
        other = Lengths(self.rule, self.longest, self.accepted)
        other.learn([Drafted("", 1, 0, 1)])
        other.of_step([""], Costs(1.0, 0.1, 0.1, 0.0))
        other.of_request("")

    def of_step(self, names: Sequence[str], costs: Costs) -> int:
        """Tokens that the step drafts for each of these requests, at least one."""
        if self.kind == server_lengths.SURVIVAL:
            return max(self.of_request(name) for name in names)
        n = len(names)
        drafting = max(round(self.offer * n), 1)
        share = drafting / n
        times = (costs.base_s, costs.step_s, costs.verify_s * share, costs.overhead_s)
        return int(server_lengths.server_length(
            self.kind, self.parameters, self.memory, drafting, n - drafting, self.longest, self.accepted, *times
        ))  # fmt: skip

    def of_request(self, name: str) -> int:
        """Tokens that a request wants by itself: with `survival` until a rejection becomes likely, else as many as there are."""
        if self.kind != server_lengths.SURVIVAL:
            return self.longest
        most, alpha = int(min(self.parameters[1], self.longest)), self.rate(name)
        length, survival = 0, 1.0
        while length < most and server_lengths.goes_on(self.kind, self.parameters, survival):
            length, survival = length + 1, survival * alpha
        return length

    def rate(self, name: str) -> float:
        """Running share of a request's drafts that were accepted; before it has any, that of all."""
        common = float(suggestions.acceptance_rate(self.memory, self.accepted))
        return float(suggestions.session_rate(self.sessions[name], common)) if name in self.sessions else common

    def learn(self, rounds: Sequence[Drafted]) -> None:
        """A step has ended with these rounds."""
        offered = [each.drafted > 0 for each in rounds if each.allowed]
        if offered:
            self.offer = KEEP * self.offer + FRESH * sum(offered) / len(offered)
        drafted = [each for each in rounds if each.drafted]
        mean = sum(each.accepted for each in drafted) / max(len(drafted), 1)
        server_lengths.server_learns(self.kind, self.parameters, self.memory, len(drafted), mean)
        if self.kind == server_lengths.SURVIVAL:
            suggestions.forget(self.memory)
        for each in drafted:
            self._note(each)

    def _note(self, each: Drafted) -> None:
        if self.kind == server_lengths.SURVIVAL:
            own = self.sessions.setdefault(each.name, np.zeros(SESSION))
            suggestions.note_session(own, each.drafted, each.accepted)
            suggestions.note_round(self.memory, each.drafted, each.accepted, 0.0, 0.0, 0.0)
        else:
            server_lengths.note_server_round(self.kind, self.memory, each.drafted, each.accepted)

    def keep(self, names: Collection[str]) -> None:
        """Forget all requests but these."""
        for name in self.sessions.keys() - names:
            del self.sessions[name]
