"""What decides at each step of vLLM: the rule's length, now and then another one to learn what it costs, and what went on is counted."""

import logging
from collections.abc import Collection, Sequence

from wisp_gym.testbed.metrics import SERVER, SteeringMetrics
from wisp_gym.testbed.vllm_steering.lengths import Drafted, Lengths
from wisp_gym.testbed.vllm_steering.settings import Steering, rule_of
from wisp_gym.testbed.vllm_steering.step_times import Step, StepTimes

log = logging.getLogger(__name__)
FIRST_ROUNDS = 3  # each length is drafted so often before a rule that asks what lengths cost is asked


class Steerer:
    """Sets lengths.

    Args:
        settings: the operator's. longest: tokens that the engine can draft.

    Attributes:
        metrics: counted as it goes. fallbacks: steps that the rule did not decide, since it failed.
        timed: steps and their times since it was last emptied, where somebody wants them.
    """

    def __init__(self, settings: Steering, longest: int) -> None:
        self.settings, self.longest = settings, longest
        self.lengths = Lengths(rule_of(settings.lengths), longest, settings.accepted)
        self.lengths.warm_up()
        self.first_steps = FIRST_ROUNDS * (longest + 1)
        self.times, self.metrics = StepTimes(self.first_steps), SteeringMetrics()
        self.steps = self.fallbacks = 0
        self.timed: list[tuple[Step, float]] | None = None
        self.every = round(1.0 / settings.probe_share) if settings.probe_share and self.lengths.is_timed else 0

    def length(self, names: Sequence[str], context: int, other_tokens: int) -> int:
        """Tokens that a step drafts for each of its requests in decoding.

        Args:
            names: of these requests; where there are none, nothing is drafted. context: their tokens.
            other_tokens: of prompts that go on beside them.
        """
        if not names:
            return 0
        try:
            found = self._probed(self.lengths.of_step(names, self.times.costs(len(names), context, other_tokens)))
        except Exception:
            log.exception("the rule failed")
            found = self._fallen_back()
        self.steps += 1
        self.metrics.length.observe(found)
        return found

    def _probed(self, found: int) -> int:
        """The rule's length, or another one: at first each in turn, later one that is next to it."""
        if not self.every:
            return found
        probe = found
        if self.times.fit is None:
            probe = self.steps % (self.longest + 1)
        elif self.steps % self.every == 0:
            up = self.steps // self.every % 2 == 0
            probe = min(found + 1, self.longest) if up else max(found - 1, 0)
        if probe != found:
            self.metrics.probes.inc()
        return probe

    def verified(self, name: str, drafted: int, room: int) -> int:
        """How many of a request's drafts are verified.

        Args:
            room: tokens that it may still get, the target's own one left out.
        """
        try:
            return max(min(drafted, self.lengths.of_request(name), room), 0)
        except Exception:
            log.exception("the rule failed")
            self._fallen_back()
            return max(min(drafted, room), 0)

    def _fallen_back(self) -> int:
        """What stands for a rule that failed: vLLM's own length."""
        self.fallbacks += 1
        self.metrics.fallbacks.labels("failed").inc()
        return self.longest

    def ended(self, step: Step, seconds: float, rounds: Sequence[Drafted], first: Collection[str]) -> None:
        """A step has run.

        Args:
            rounds: verified in it. first: names of those that gave an answer its first token.
        """
        if self.timed is not None:
            self.timed.append((step, seconds))
        self.metrics.batch(self.times.predict(step), seconds, len(rounds), step.new_tokens)
        try:
            self.times.observe(step, seconds)
            self.lengths.learn(rounds)
        except Exception:
            log.exception("the rule failed to learn")
            self._fallen_back()
        for each in rounds:
            self.metrics.round(SERVER, each.drafted, each.accepted, each.name in first)
            self.metrics.allowed.inc(each.allowed)
