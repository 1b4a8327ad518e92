"""Controllers of a device by name: after each token, draft one more or send."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from wisp_gym.controllers import speculation as rules
from wisp_gym.controllers.bandits import MEMORY
from wisp_gym.controllers.catalogue import ControllerError, find_rule, is_file
from wisp_gym.controllers.rules import SPECULATION
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.predictor import Predictor
from wisp_gym.serving.speculation import SpeculationRuntime
from wisp_gym.serving.testbed.device_view import DeviceView


class SpeculationController(Protocol):
    """Decides how long a round's draft gets."""

    def wants_more(self, view: DeviceView, now_s: float) -> bool:
        """Draft one more token (True) or send (False); asked before the first token too."""

    def learn(self, view: DeviceView, accepted: int, committed: int, round_s: float) -> None:
        """A round was answered."""


class FixedLength:
    """Drafts k tokens in every round."""

    def __init__(self, k: int) -> None:
        self.k = k

    def wants_more(self, view: DeviceView, now_s: float) -> bool:
        """Until k are drafted."""
        return view.drafted < self.k

    def learn(self, view: DeviceView, accepted: int, committed: int, round_s: float) -> None:
        """Learns nothing."""


class ConfidenceStop(FixedLength):
    """Drafts while the last token's confidence is at least `least`, at most `most` tokens (SLED's device rule)."""

    def __init__(self, least: float, most: int) -> None:
        super().__init__(most)
        self.least = least

    def wants_more(self, view: DeviceView, now_s: float) -> bool:
        """Until an unsure token is drafted."""
        return super().wants_more(view, now_s) and view.confidence >= self.least


class PolicyController(FixedLength):
    """A learned policy on the documented observation, by token or by length of the round."""

    def __init__(self, runtime: SpeculationRuntime) -> None:
        super().__init__(0)
        self.runtime = runtime

    def wants_more(self, view: DeviceView, now_s: float) -> bool:
        """What the policy says."""
        if self.runtime.decision == "token":
            return self.runtime.wants_more(view.observation(now_s))
        if not view.drafted:
            self.k = self.runtime.round_length(view.observation(now_s))
        return super().wants_more(view, now_s)


class RuleController(FixedLength):
    """A rule of the catalogue, compiled as in the engine.

    Args:
        kind, parameters: as of `wisp_gym.controllers.speculation`.
    """

    def __init__(self, kind: int, parameters: tuple[float, ...]) -> None:
        super().__init__(0)
        self.kind, self.parameters, self.memory = kind, np.zeros(PARAMETERS), np.zeros(MEMORY)
        self.parameters[: len(parameters)] = parameters
        self._policy, self._rng = np.zeros(0, np.float32), np.random.default_rng(0)
        self._seen = np.zeros(0, np.float32)

    def wants_more(self, view: DeviceView, now_s: float) -> bool:
        """What the rule says."""
        cap = view.max_draft_tokens
        self._seen = view.observation(now_s)
        if self.kind >= rules.POLICY_LENGTH:
            if not view.drafted:
                self.k = rules.choose_length(self.kind, self.parameters, self._policy, self.memory, cap, self._seen)
            return super().wants_more(view, now_s)
        chance = self._rng.random()
        return bool(
            rules.continue_drafting(
                self.kind, self.parameters, self._policy, self.memory, cap, self._seen, 1, 0, chance
            )
        )

    def learn(self, view: DeviceView, accepted: int, committed: int, round_s: float) -> None:
        """What the rule learns of the round."""
        if len(self._seen):
            rules.learn(self.kind, self.parameters, self.memory, self._seen, view.drafted, accepted, committed, round_s)


BOUNDS = ("perfect", "oracle")  # see what no device can see


def find_controller(name: str, predictor: Predictor | None) -> Callable[[], SpeculationController]:
    """Makes controllers of a name: `fixed:4`, `confidence:0.6,8`, another rule of the catalogue, or a policy's file or run folder.

    Raises:
        ControllerError, PolicyError: unknown name, impossible parameter, unusable file; one line.
    """
    if is_file(name):
        runtime = SpeculationRuntime.load(Path(name))
        return lambda: PolicyController(runtime)
    rule, parameters = find_rule(name, SPECULATION, "speculation")
    if name.partition(":")[0] in BOUNDS:
        raise ControllerError(f"controller '{name}': a bound that sees the future; allowed are the other rules")
    if rule.kind == rules.WISP and math.isnan(parameters[0]):
        if predictor is None:
            raise ControllerError(f"controller '{name}': its threshold is missing; allowed are wisp:P, or --predictor")
        parameters = (predictor.threshold, *parameters[1:])
    if rule.kind == rules.FIXED:
        return lambda: FixedLength(int(parameters[0]))
    if rule.kind == rules.CONFIDENCE_RULE:
        return lambda: ConfidenceStop(parameters[0], int(min(parameters[1], 1e9)))
    return lambda: RuleController(rule.kind, parameters)
