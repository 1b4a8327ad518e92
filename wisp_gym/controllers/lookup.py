"""What the pieces of a controller's name mean: the catalogue's rules with their numbers, and saved policies."""

from collections.abc import Mapping
from dataclasses import dataclass

from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.controllers.names import ControllerError, Piece, fault, one_piece, parse, saved_names
from wisp_gym.controllers.policy import saved_decision
from wisp_gym.controllers.shipped import is_choice
from wisp_gym.errors import did_you_mean, of_kind, one_line
from wisp_gym.rules import speculation as speculation_rules
from wisp_gym.rules.catalogue import ADDITIONS, ALIASES, BATCHING, CENTRALIZED, COLOCATED, SPECULATION, Rule, Setting

SAVED = Rule(
    speculation_rules.POLICY, "a saved policy", uses_predictor=True, sees_statistics=True, sees_observation=True
)


@dataclass(frozen=True)
class Part:
    """A rule of a controller with a number for each of its settings, or a saved policy (`rule` is `SAVED`).

    Attributes:
        name: of the rule, or the policy's name or path.
        given: so many settings, counted in the rule's order, hold all that the name gives.
    """

    name: str
    rule: Rule
    values: tuple[float, ...] = ()
    given: int = 0

    @property
    def is_policy(self) -> bool:
        """Whether it is a saved policy."""
        return self.rule is SAVED


def parts_of(name: str) -> list[Part]:
    """The parts of a controller, at least one: speculation, batching and additions, or a server alone and additions.

    Co-located drafting that stands first is an addition to `centralized:0`.

    Whole systems are written out. A saved policy alone is completed: one of devices with WISP's scheduler, one of the server
    as it was trained, beside `speculation-v1` and with `admit`. A choice between controllers is one part: what it takes
    depends on the scenario.

    Raises:
        ControllerError: unknown name, missing rule or impossible setting, with the nearest valid choice.
    """
    of_kind("controller", name, str, ControllerError)
    first, *rest = parse(ALIASES.get(name, name))
    if first.is_policy and not rest and is_choice(first.name):
        return [Part(first.name, SAVED)]
    if first.is_policy and not rest:
        served = saved_decision(first.name) in OF_SERVERS
        whole = ("speculation-v1", first.text, "admit") if served else (first.text, "wisp")
        first, *rest = map(one_piece, whole)
    if first.name in COLOCATED:  # a server alone, without a limit, that drafts for itself
        rest.insert(0, first)
        first = one_piece("centralized:0")
    if first.name in CENTRALIZED:
        parts = [find(first, CENTRALIZED, "centralized")]
    else:
        parts = [find(first, SPECULATION, "speculation")]
        if not rest or rest[0].name in ADDITIONS:
            allowed = f"allowed: {', '.join(BATCHING)}"
            raise fault(name, f"a batching rule is missing, for instance '{first.text}+fcfs'; {allowed}")
        parts.append(find(rest.pop(0), BATCHING, "batching"))
    for piece in rest:
        if piece.name not in ADDITIONS:
            raise fault(name, f"unknown addition '{piece.text}'; {did_you_mean(piece.name, ADDITIONS)}")
    return [*parts, *(find(piece, ADDITIONS, "addition") for piece in rest)]


def find(piece: Piece, rules: Mapping[str, Rule], kind: str) -> Part:
    """The rule or saved policy of a piece.

    Args:
        rules: those that may stand there. kind: what messages call them.

    Raises:
        ControllerError: none of them, or impossible settings.
    """
    if piece.is_policy:
        if is_choice(piece.name):
            raise fault(piece.text, "a choice stands alone: it chooses a whole controller")
        return Part(piece.name, SAVED)
    if piece.name not in rules:
        raise unknown(piece, rules, kind)
    rule = rules[piece.name]
    given = given_settings(piece, rule)
    values = tuple(number(piece, s, given[s.name]) if s.name in given else s.default for s in rule.settings)
    last = max((place + 1 for place, s in enumerate(rule.settings) if s.name in given), default=0)
    return Part(piece.name, rule, values, last)


def unknown(piece: Piece, rules: Mapping[str, Rule], kind: str) -> ControllerError:
    """The error of a rule that may not stand where it stands."""
    if piece.name in saved_names():
        return fault(piece.text, "a saved policy has no settings")
    if piece.name in ALIASES:
        return fault(piece.text, f"'{piece.name}' stands alone, it is short for '{ALIASES[piece.name]}'")
    systems = [*ALIASES, *CENTRALIZED, *COLOCATED] if rules is SPECULATION else []
    allowed = dict.fromkeys([*rules, *systems, *saved_names()])
    return ControllerError(one_line(f"unknown {kind} controller '{piece.name}'; {did_you_mean(piece.name, allowed)}"))


def given_settings(piece: Piece, rule: Rule) -> dict[str, str]:
    """Setting → its value as written, of those that a piece gives by place or by name."""
    names = [setting.name for setting in rule.settings]
    if len(piece.positional) > len(names):
        allowed = f"allowed are at most {len(names)}: {signature(piece.name, rule)}"
        raise fault(piece.text, f"given {len(piece.positional)} settings, {allowed}")
    given = dict(zip(names, piece.positional, strict=False))
    for name, value in piece.keywords:
        if name not in names:
            allowed = did_you_mean(name, names) if names else "allowed: none"
            raise fault(piece.text, f"unknown setting '{name}'; {allowed}")
        if name in given:
            raise fault(piece.text, f"setting '{name}' is given twice")
        given[name] = value
    return given


def number(piece: Piece, setting: Setting, text: str) -> float:
    """The number of a setting, checked."""
    allowed = f"{setting.low:g} to {setting.high:g}"
    try:
        value = float(text)
    except ValueError:
        raise fault(piece.text, f"{setting.name} given '{text}', allowed is a number from {allowed}") from None
    if not setting.low <= value <= setting.high:
        raise fault(piece.text, f"{setting.name} given {text}, allowed is {allowed}")
    return value


def signature(name: str, rule: Rule, values: tuple[float, ...] | None = None) -> str:
    """A rule with all its settings, by default at their defaults: `static(n=4, timeout_s=0.1)`.

    A setting whose default depends on the scenario stands without a value.
    """
    given = zip(rule.settings, values or [setting.default for setting in rule.settings], strict=True)
    words = [s.name if value != value else f"{s.name}={shown(value)}" for s, value in given]
    return f"{name}({', '.join(words)})" if words else name


def shown(value: float) -> str:
    """The shortest text that is read as this number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
