"""How long a step of vLLM takes that verifies and then drafts: seven terms, learned while it runs.

    launch + new·Σn + pair·Σn·L + cached·Σc + passes·(pass + B·pass_sequence + C·pass_cached)

The first four are those of a verification (`wisp_gym.serving.estimator`). A drafting model runs once over the step's tokens
whatever is drafted, also for length 0: vLLM keeps its keys and values in step so. That pass is a part of the first four;
each length k above 1 takes `passes` = k − 1 more, over one token of each of B requests with C tokens of context in all.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from wisp_gym.serving.running_fit import Floats, RunningFit

TERMS = ("launch_s", "new_token_s", "pair_s", "cached_token_s", "pass_s", "pass_sequence_s", "pass_cached_token_s")
UNITS = np.array([1.0, 64.0, 64.0 * 512.0, 16.0 * 512.0, 2.0, 32.0, 32.0 * 512.0])  # the sums of a middling step
FIRST_SURENESS = 0.3  # relative error of coefficients that a dozen of steps gave (assumption)


class Step(NamedTuple):
    """What a step runs.

    Attributes:
        new_tokens: run through the target, drafts among them. pairs: of a new token with one of its context.
        cached_tokens: of context that is in memory. decoding: requests that are drafted for. context: their tokens.
        length: tokens drafted for each.
    """

    new_tokens: int
    pairs: float
    cached_tokens: int
    decoding: int
    context: int
    length: int = 0

    def sizes(self) -> Floats:
        """(7,) size of each term."""
        passes = max(self.length - 1, 0)
        return np.array([
            1.0, self.new_tokens, self.pairs, self.cached_tokens, passes, passes * self.decoding, passes * self.context
        ])  # fmt: skip


class Costs(NamedTuple):
    """Seconds, as rules of the server's drafts take them (`wisp_gym.rules.server_lengths`).

    Attributes:
        base_s: of the next step without drafts. step_s: of one more pass of the drafting model. verify_s: of one more token of each
            request in the verification. overhead_s: of drafting at all, below 0, since the first token takes no further pass.
    """

    base_s: float
    step_s: float
    verify_s: float
    overhead_s: float


class StepTimes:
    """Predicts the times of steps, and learns.

    Args:
        first_steps: that are gathered before anything is predicted; until then it is 0.
    """

    def __init__(self, first_steps: int) -> None:
        self.first_steps = first_steps
        self.gathered: list[tuple[Floats, float]] = []
        self.fit: RunningFit | None = None

    def predict(self, step: Step) -> float:
        """Seconds of a step."""
        return 0.0 if self.fit is None else float(self.fit.coefficients @ step.sizes())

    def observe(self, step: Step, seconds: float) -> None:
        """Learn from a step that has run."""
        if self.fit is not None:
            self.fit.learn(step.sizes(), seconds)
        elif seconds > 0.0:
            self.gathered.append((step.sizes(), seconds))
            if len(self.gathered) == self.first_steps:
                self.fit = RunningFit(first_fit(self.gathered) / UNITS, UNITS, FIRST_SURENESS)

    def costs(self, decoding: int, context: int, other_tokens: int = 0) -> Costs:
        """Of the next step.

        Args:
            decoding: requests that are drafted for. context: their tokens. other_tokens: of prompts that go on beside them.
        """
        if self.fit is None:
            return Costs(0.0, 0.0, 0.0, 0.0)
        _, new_s, pair_s, _, pass_s, sequence_s, pass_cached_s = self.fit.coefficients
        base_s = self.predict(Step(decoding + other_tokens, float(context), context, decoding, context))
        step_s = pass_s + sequence_s * decoding + pass_cached_s * context
        return Costs(base_s, step_s, new_s * decoding + pair_s * context, -step_s)


def first_fit(gathered: list[tuple[Floats, float]]) -> Floats:
    """(7,) seconds of a middling step's terms, none below 0, with the least squared relative errors over (sizes, seconds)."""
    rows = np.array([sizes / UNITS / seconds for sizes, seconds in gathered])
    ridge = np.diag(np.sqrt(1e-6 * (rows**2).sum(axis=0) + 1e-12))  # what no step told of stays near 0
    target = np.concatenate([np.ones(len(rows)), np.zeros(len(UNITS))])
    return np.asarray(nnls(np.vstack([rows, ridge]), target)[0])
