"""Slips of units: a figure that is a hundred times beyond all that presets hold is often one of ms, GB or billions."""

import math
from collections.abc import Iterator

from wisp_gym.evaluation.odd.finding import Finding, presets_hold
from wisp_gym.scenario import Scenario
from wisp_gym.scenario.table import all_fields, usual

FAR = 100.0  # times the highest, or as much below the lowest, that any preset holds
UNITS = ("s", "bytes", "bytes/s", "bytes/token", "tokens/s", "W", "J", "$/hour")
SMALLER = {1: "m", 2: "µ", 3: "n"}  # prefixes by powers of 1,000
LARGER = {1: "k", 2: "M", 3: "G"}
FEWEST_PARAMETERS = 1e6  # fewer are a count of millions or billions


def slips(scenario: Scenario) -> Iterator[Finding]:
    """Figures with a unit that are far beyond what is usual, and parameters in billions. Zero is a way to say "none"."""
    for field in all_fields():
        if field.unit in UNITS and (held := usual(field.path)):
            for place, value in field.held(scenario):
                if value and (ratio := beyond(value, *held)):
                    yield Finding(place, f"{value:g} {field.unit}", far(ratio, field.unit), presets_hold(field.path))
    for place, model in (("target", scenario.target), ("draft", scenario.draft)):
        if model.parameters < FEWEST_PARAMETERS:
            why = "parameters are fewer than any language model has: meant in millions or billions?"
            yield Finding(f"{place}.parameters", f"{model.parameters:,}", why, "6e8 … 7e10, written out")


def beyond(value: float, low: float, high: float) -> float:
    """How many times a value is above what is usual (> 1), or below it (< 1); 0 within FAR of it."""
    if high > 0 and value > FAR * high:
        return value / high
    return value / low if low > 0 and value < low / FAR else 0.0


def far(ratio: float, unit: str) -> str:
    """What is strange about a figure so many times the usual one."""
    times = f"{ratio:,.0f} times the highest" if ratio > 1 else f"1/{1 / ratio:,.0f} of the lowest"
    prefixes = SMALLER if ratio > 1 and unit in ("s", "W", "J") else LARGER if ratio < 1 and "bytes" in unit else {}
    prefix = prefixes.get(round(abs(math.log10(ratio)) / 3))
    return f"is {times} that any preset has" + (f": meant in {prefix}{unit.replace('bytes', 'B')}?" if prefix else "")
