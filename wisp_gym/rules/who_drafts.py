"""Who drafts besides a device before it sends: the server, and the device while its round is away. Numbers, ready for the engine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.rules import drafters, server_lengths
from wisp_gym.rules.catalogue import COLOCATED, DRAFTERS, OVERLAP, SOURCE, Setting
from wisp_gym.values import between, whole

MOST_TOKENS = 32  # of a round
AMOUNT, SHARE, LOGIT = between(0.0, 1e9), between(0.0, 1.0), between(-20.0, 20.0)

OF_THE_TABLE = tuple(
    Setting(f"b_{k}", 0.0, 0.0, math.inf) for k in range(1, server_lengths.TABLE_LENGTHS + 1)
)  # largest batches in which k tokens are drafted


def without_source(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """The settings that the engine reads; which draft is loaded is no number of a rule."""
    return tuple(setting for setting in settings if setting is not SOURCE)


# Kind of a rule → its numbers, in the order in which the engine reads them.
LENGTH_SETTINGS: Mapping[int, tuple[Setting, ...]] = {
    server_lengths.NONE: (),
    **{rule.kind: without_source(rule.settings) for rule in COLOCATED.values()},
    server_lengths.TABLE: (*without_source(COLOCATED["colocated-table"].settings), *OF_THE_TABLE),
}
DRAFTER_SETTINGS: Mapping[int, tuple[Setting, ...]] = {
    drafters.DEVICE: (),
    **{rule.kind: rule.settings for rule in DRAFTERS.values()},
}


@dataclass(frozen=True)
class Hosted:
    """A draft that the server has loaded.

    Attributes:
        name: of the draft.
        kv_tokens: tokens whose keys and values fit into memory beside its weights, its own keys and values counted.
        shares_fates: whether its fates are those of the devices' draft.
        offer, correlation: as in `scenario.ServerDraft`.
        overhead_s, launch_s, sequence_s, token_s, cached_token_s: as in `scenario.DraftTime`.
        logit_mean, request_std, drift_std, drift_keep, after_rejection_logit, loop_…: its acceptance process; drift_keep is what is left
            of the drift after eight places. loop_longer: chance that a period is a token longer. share: of places at which it is right.
    """

    name: str
    kv_tokens: int
    shares_fates: bool
    offer: float
    correlation: float
    overhead_s: float
    launch_s: float
    sequence_s: float
    token_s: float
    cached_token_s: float
    logit_mean: float
    request_std: float
    drift_std: float
    drift_keep: float
    after_rejection_logit: float
    loop_enter: float
    loop_leave: float
    loop_whole: float
    loop_period_tokens: int
    loop_longer: float
    share: float

    def __post_init__(self) -> None:
        whole(1, 2**53).checked("hosted: kv_tokens", self.kv_tokens)
        of_kind("hosted: shares_fates", self.shares_fates, bool)
        shares = {
            "offer",
            "correlation",
            "drift_keep",
            "share",
            "loop_enter",
            "loop_leave",
            "loop_whole",
            "loop_longer",
        }
        logits = {"logit_mean", "after_rejection_logit"}
        for field in fields(self)[3:]:
            kind = SHARE if field.name in shares else LOGIT if field.name in logits else AMOUNT
            kind.checked(f"hosted: {field.name}", getattr(self, field.name))


@dataclass(frozen=True)
class Drafting:
    """Who drafts besides a device before it sends.

    Attributes:
        overlap_tokens: tokens that a device drafts at most while its round is away. overlap_chance: least predicted probability that
            they can be used.
        drafter, drafter_parameters: id of `rules.drafters`, how a session's drafter is chosen, and its numbers.
        length, length_parameters: id of `rules.server_lengths` and its numbers.
        hosted: the draft that the server has loaded; None where it drafts nothing.
        lookahead_tokens: places that the server keeps in memory for the drafts of each session that it drafts for.

    Raises:
        InputError: an id or a number that no rule can work with.
    """

    overlap_tokens: int = 0
    overlap_chance: float = 0.0
    drafter: int = drafters.DEVICE
    drafter_parameters: tuple[float, ...] = ()
    length: int = server_lengths.NONE
    length_parameters: tuple[float, ...] = ()
    hosted: Hosted | None = None
    lookahead_tokens: int = 0

    def __post_init__(self) -> None:
        tokens, chance = OVERLAP["overlap"].settings
        whole(0, int(tokens.high)).checked("drafting: overlap_tokens", self.overlap_tokens)
        between(chance.low, chance.high).checked("drafting: overlap_chance", self.overlap_chance)
        whole(0, MOST_TOKENS).checked("drafting: lookahead_tokens", self.lookahead_tokens)
        check_rule("drafting: drafter", self.drafter, self.drafter_parameters, DRAFTER_SETTINGS)
        check_rule("drafting: length", self.length, self.length_parameters, LENGTH_SETTINGS)
        of_kind("drafting: hosted", self.hosted, (Hosted, type(None)))
        if (self.length != server_lengths.NONE) != (self.hosted is not None):
            raise InputError(
                f"drafting: hosted given {shown(self.hosted)}, allowed is a Hosted where the server drafts, else None"
            )

    @property
    def mixes(self) -> bool:
        """Whether sessions move between their devices and the server."""
        return self.drafter != drafters.DEVICE


def check_rule(place: str, kind: Any, parameters: Any, rules: Mapping[int, tuple[Setting, ...]]) -> None:
    """Refuse a rule that there is none, or numbers that are not its own."""
    whole(min(rules), max(rules)).checked(place, kind)
    settings = rules.get(kind)
    if settings is None:
        raise InputError(f"{place}: given {kind}, allowed are {', '.join(map(str, sorted(rules)))}")
    if not isinstance(parameters, tuple) or len(parameters) != len(settings):
        names = ", ".join(setting.name for setting in settings) or "none"
        raise InputError(
            f"{place}: given parameters {shown(parameters)}, allowed is a tuple of {len(settings)}: {names}"
        )
    for setting, value in zip(settings, parameters, strict=True):
        between(setting.low, setting.high).checked(f"{place}: {setting.name}", value)


NO_DRAFTING = Drafting()
