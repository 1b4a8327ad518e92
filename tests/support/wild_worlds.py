"""Random worlds over the whole of what is allowed: every number of a scenario to its ends, every controller and setting."""

from __future__ import annotations

import contextlib
import math
from typing import Annotated, Any, get_args, get_origin

from hypothesis import strategies as st

from tests.support.small_worlds import SmallWorld, scenarios, traces
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.rules.catalogue import (
    ADDITIONS,
    ALIASES,
    BATCHING,
    CENTRALIZED,
    COLOCATED,
    DRAFTERS,
    SPECULATION,
    Rule,
    Setting,
)
from wisp_gym.scenario import Scenario, ScenarioError, with_
from wisp_gym.scenario.fields import Range, field_types, part_of

MOST_BATCHES = 20_000.0  # that a world has time for
SAVED = ("speculation-v1", "batching-v1", "joint-v1")


def numbers_of(part: Any, path: str = "") -> dict[str, tuple[type, Range]]:
    """Dotted path → type and range of every number of a scenario; of lists the first member."""
    found: dict[str, tuple[type, Range]] = {}
    for name, hint in field_types(part).items():
        inner = part_of(hint)
        if inner:
            found |= numbers_of(inner, f"{path}{name}.0." if get_origin(hint) is tuple else f"{path}{name}.")
        elif get_origin(hint) is Annotated and get_args(hint)[0] is not str:
            found[path + name] = get_args(hint)
    return found


NUMBERS = {
    path: number for path, number in numbers_of(Scenario).items() if not path.startswith(("horizon.", "n_devices"))
}


def within(low: float, high: float) -> st.SearchStrategy[float]:
    """A number of an interval: an end, or any size between."""
    low, high = max(low, -1e300), min(high, 1e300)
    if low < 0.0:
        return st.sampled_from([low, high]) | st.floats(low, high)
    smallest = max(low, min(1e-12, high))
    sizes = st.floats(math.log(smallest), math.log(max(high, smallest))).map(lambda x: min(max(math.exp(x), low), high))
    return st.sampled_from([low, high]) | sizes


def a_number(kind: type, rule: Range) -> st.SearchStrategy[float]:
    """A number that a field allows, often at an end."""
    if kind is int:
        low, high = int(rule.low), int(min(rule.high, 2**53))
        return st.sampled_from([low, high]) | within(low, high).map(int)
    low = math.nextafter(rule.low, math.inf) if rule.open_low else rule.low
    return within(low, math.nextafter(rule.high, -math.inf) if rule.open_high else rule.high)


@st.composite
def wild_scenarios(draw: st.DrawFn) -> Scenario:
    """A small scenario with some of its numbers anywhere in their ranges, and time for so many batches at most."""
    scenario = with_(draw(scenarios()), n_devices=draw(st.sampled_from([1, 2, 6, 50, 300])))
    for path in draw(st.lists(st.sampled_from(sorted(NUMBERS)), max_size=8, unique=True)):
        with contextlib.suppress(ScenarioError):  # impossible beside the others
            scenario = with_(scenario, **{path: draw(a_number(*NUMBERS[path]))})
    shortest_s = scenario.server.host_s + scenario.verification.launch_s + scenario.verification.weights_s
    whole_s = min(draw(st.sampled_from([5.0, 200.0, 1e9])), MOST_BATCHES * shortest_s, 1e9)
    warmup, drain = draw(st.sampled_from([0.0, 0.2])), draw(st.sampled_from([0.0, 0.3]))
    parts = {"warmup_s": warmup * whole_s, "measure_s": (1.0 - warmup - drain) * whole_s, "drain_s": drain * whole_s}
    rate = min(scenario.workload.requests_per_s, 1e5 / whole_s)
    return with_(scenario, horizon=parts, **{"workload.requests_per_s": max(rate, 1e-9)})


@st.composite
def settings_of(draw: st.DrawFn, name: str, rule: Rule) -> str:
    """A rule with none, some or all of its settings anywhere in their ranges."""
    given = draw(st.lists(st.sampled_from(rule.settings), unique=True)) if rule.settings else []
    words = [f"{s.name}={draw(a_setting(s))!r}" for s in given]
    return f"{name}({', '.join(words)})" if words else name


def a_setting(setting: Setting) -> st.SearchStrategy[float]:
    """A number that a setting allows."""
    anything = within(setting.low, min(setting.high, 1e9))
    return st.sampled_from([setting.low, setting.high]) | (anything.map(round) if setting.whole else anything)


@st.composite
def one_of_rules(draw: st.DrawFn, rules: dict[str, Rule]) -> str:
    """One of the rules, with settings."""
    name = draw(st.sampled_from(sorted(rules)))
    return draw(settings_of(name, rules[name]))


@st.composite
def controllers(draw: st.DrawFn, scenario: Scenario) -> str:
    """The name of any controller that a scenario has room for."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from([*ALIASES, *SAVED]))
    if kind == 1:
        name = draw(one_of_rules(CENTRALIZED | COLOCATED))
    else:
        first = SAVED[0] if kind == 2 else draw(one_of_rules(SPECULATION))
        second = draw(st.sampled_from(SAVED[1:])) if kind == 3 else draw(one_of_rules(BATCHING))
        name = f"{first}+{second}"
    if not works(name, scenario):  # no such draft at the server, or no room for it
        name = "centralized"
    chosen = draw(st.lists(st.sampled_from(tuple(ADDITIONS)), unique=True))
    for key in sorted(
        chosen, key=lambda key: key not in DRAFTERS
    ):  # a server that drafts besides devices needs them first
        longer = f"{name}+{draw(settings_of(key, ADDITIONS[key]))}"
        name = longer if works(longer, scenario) else name
    return name


def works(name: str, scenario: Scenario) -> bool:
    """Whether there is such a controller: additions exclude each other, or need each other."""
    try:
        resolve(name, scenario)
    except InputError:
        return False
    return True


@st.composite
def wild_worlds(draw: st.DrawFn) -> SmallWorld:
    """Any scenario under any controller."""
    scenario = draw(wild_scenarios())
    seed = draw(st.integers(-(2**63), 2**64 - 1))
    return SmallWorld(scenario, draw(controllers(scenario)), seed, draw(traces()))
