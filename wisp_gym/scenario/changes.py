"""Changing a scenario: fields by dotted path, or its service classes."""

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from wisp_gym.errors import of_kind
from wisp_gym.scenario.fields import ScenarioError, build, nearest
from wisp_gym.scenario.parts import Scenario


def with_(scenario: Scenario, **changes: Any) -> Scenario:
    """A copy with some fields changed, named by dotted paths; the whole is checked once, after all changes.

    Members of `devices`, `slo` and `server_drafts` are named by position or by name, e.g.
    `with_(s, **{"workload.prompt.median_tokens": 300, "devices.0.link.loss": 0.01, "slo.speed-2.share": 3})`.
    A server draft that is the devices' own draft goes with that one's acceptance. Nothing else follows a change: replacing
    `target` leaves `verification` as it was.

    Raises:
        ScenarioError: unknown path or impossible value.
    """
    tables = _plain(of_kind("scenario", scenario, Scenario, ScenarioError))
    for path, value in changes.items():
        _set(tables, path, _plain(value))
    _follow(tables, scenario)
    return build(Scenario, tables)


def _follow(tables: dict[str, Any], before: Scenario) -> None:
    """Give a changed acceptance of the devices' draft to server drafts that were the same source and still are to be."""
    draft, listed, old = tables["draft"], tables["server_drafts"], _plain(before.draft.acceptance)
    if not isinstance(draft, dict) or not isinstance(listed, list):
        return  # what is wrong with them is said when all is built
    same = {"name": draft.get("name"), "correlation": 1.0, "acceptance": old}
    for one in listed:
        if isinstance(one, dict) and same.items() <= one.items() and "acceptance" in draft:
            one["acceptance"] = draft["acceptance"]


def with_slo(scenario: Scenario, speed_tokens_per_s: float) -> Scenario:
    """A copy with one SLO class of this speed; grace, first-token target and clock are those of the first class."""
    of_kind("scenario", scenario, Scenario, ScenarioError)
    slo = {**asdict(scenario.slo[0]), "speed_tokens_per_s": speed_tokens_per_s, "share": 1.0, "name": "only"}
    single = with_(scenario, slo=[slo])
    return with_(single, **{"slo.0.name": f"speed-{single.slo[0].speed_tokens_per_s:g}"})


def _plain(value: Any) -> Any:
    """Dataclasses as tables and tuples as lists, all the way down."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _set(tables: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted path of nested tables and lists of named tables."""
    here: Any = tables
    # A name may itself hold dots (a link called "5.8-ghz"), so a list's member is matched before its key is cut off.
    rest, at = path, ""
    while True:
        options = _members(here)
        key = max((name for name in options if rest == name or rest.startswith(name + ".")), key=len, default=None)
        if key is None:
            word = rest.split(".")[0]
            raise ScenarioError(f"unknown key '{word}' in '{path}'; {nearest(word, options)}", at)
        at, rest = f"{at}.{key}" if at else key, rest[len(key) + 1 :]
        if not rest:
            here[options[key]] = value
            return
        here = here[options[key]]


def _members(here: Any) -> dict[str, Any]:
    """Name → index of what a table or a list of named tables holds."""
    if isinstance(here, dict):
        return {key: key for key in here}
    if isinstance(here, (list, tuple)):
        named = {item["name"]: i for i, item in enumerate(here) if isinstance(item, dict) and "name" in item}
        return {str(i): i for i in range(len(here))} | named
    return {}
