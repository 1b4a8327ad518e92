"""What a table rests on: how long steps take and how many drafts are accepted, each modelled or measured, and where from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.controllers.who_drafts import LARGEST_BATCH, draft_with_room, mean_context_tokens, survivals
from wisp_gym.errors import InputError, one_of
from wisp_gym.scenario import Scenario, ServerDraft
from wisp_gym.serving.tables import steps
from wisp_gym.serving.tables.lengths import Floats

MODELLED = "nothing was measured: the scenario's own server (docs/model/calibration.md says how well it is known)"
HELD_OUT = "mean relative error of measured configurations that the fit has not seen"


@dataclass(frozen=True)
class Times:
    """Seconds of a step, and how far they are known.

    Attributes:
        time: the formula with its coefficients.
        largest, longest: batch size, and length in tokens, up to which it holds.
        context: tokens, unless somebody asks for another; contexts: least and most of them.
        about: JSON values: the source, and its error.
    """

    time: steps.StepTime
    largest: int
    longest: int
    context: float
    contexts: tuple[float, float]
    about: dict[str, Any]


@dataclass(frozen=True)
class Accepted:
    """P(at least 1 … n drafts of a round are accepted), (n,), up to n = `longest`, and the source as JSON values."""

    survival: Callable[[int], Floats]
    longest: int
    about: dict[str, Any]


def server_draft(scenario: Scenario, name: str) -> ServerDraft:
    """The scenario's server draft of this name.

    Raises:
        InputError: there is none, or the server has no room for it.
    """
    names = [draft.name for draft in scenario.server_drafts]
    if not names:
        raise InputError(f"server draft: scenario '{scenario.name}' names none, allowed is one with [[server_drafts]]")
    index = names.index(one_of(f"server draft of '{scenario.name}'", name, names))
    return draft_with_room(scenario, index, InputError)[0]


def modelled_times(scenario: Scenario, draft: ServerDraft) -> Times:
    """Times of a scenario's server that hosts a draft."""
    about = {
        "scenario": scenario.name, "server": scenario.server.name, "target": scenario.target.name, "profile": None,
        "time_error_percent": None, "time_error_of": MODELLED,
    }  # fmt: skip
    largest = min(scenario.server.max_batch_requests, LARGEST_BATCH)
    most = float(scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token))
    found, context = steps.modelled(scenario, draft), mean_context_tokens(scenario)
    return Times(found, largest, scenario.max_draft_tokens, context, (1.0, most), about)


def measured_times(path: Path) -> Times:
    """Times fitted to steps of the operator's own engine; nothing is said beyond what was measured.

    Raises:
        InputError: the file is no such fit.
    """
    found = steps.read(path)
    about = {
        "scenario": None, "profile": found.source, "profile_sha256": found.source_sha256,
        "profile_configurations": found.configurations,
        "time_error_percent": found.held_out_error_percent, "time_error_of": HELD_OUT,
    }  # fmt: skip
    middle = sum(found.context) / 2.0
    return Times(found.time, int(found.batch[1]), int(found.k[1]), middle, found.context, about)


def modelled_acceptance(scenario: Scenario, draft: ServerDraft) -> Accepted:
    """Acceptance of a scenario's server draft in rounds that follow a rejection."""
    about = {"accepted_of": f"server draft '{draft.name}' of scenario '{scenario.name}'"}
    return Accepted(lambda n: survivals(draft.acceptance, n), scenario.max_draft_tokens, about)


def measured_acceptance(survival: Sequence[float]) -> Accepted:
    """Acceptance that an operator gives, P(at least 1, 2 … drafts of a round are accepted)."""
    return Accepted(lambda n: np.array(survival[:n]), len(survival), {"accepted_of": "given by --accepted"})
