"""Changing a scenario, and what is allowed but doubtful about one."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from wisp_gym.scenario.fields import ScenarioError, build, nearest
from wisp_gym.scenario.parts import DeviceClass, Scenario


def with_(scenario: Scenario, **changes: Any) -> Scenario:
    """A copy with some fields changed, named by dotted paths; the whole is checked once, after all changes.

    Members of `devices` and `slo` are named by position or by name, e.g.
    `with_(s, **{"workload.prompt.median_tokens": 300, "devices.0.link.loss": 0.01, "slo.speed-2.share": 3})`.
    Nothing else follows a change: replacing `target` leaves `verification` as it was.

    Raises:
        ScenarioError: unknown path or impossible value.
    """
    tables = _plain(scenario)
    for path, value in changes.items():
        _set(tables, path, _plain(value))
    return build(Scenario, tables)


def with_slo(scenario: Scenario, speed_tokens_per_s: float) -> Scenario:
    """A copy with one SLO class of this speed; grace, first-token target and clock are those of the first class."""
    slo = {**asdict(scenario.slo[0]), "speed_tokens_per_s": speed_tokens_per_s, "share": 1.0, "name": "only"}
    single = with_(scenario, slo=[slo])
    return with_(single, **{"slo.0.name": f"speed-{single.slo[0].speed_tokens_per_s:g}"})


def best_tokens_per_s(scenario: Scenario, device: DeviceClass) -> float:
    """Tokens/s that a device of this class reaches at most: alone, unthrottled, with every draft token accepted.

    The best over k = 0 … max_draft_tokens of `(k + 1) / (overhead + k·(1/speed + predictor) + 2·one-way + batch time)`,
    with a batch of k + 1 new tokens and the shortest prompt cached (link at its median, no noise).
    """
    token_s = 1.0 / device.draft_tokens_per_s + device.predictor_s
    fixed_s = device.round_overhead_s + 2.0 * device.link.one_way_s
    lengths = range(scenario.max_draft_tokens + 1)
    return max((k + 1) / (fixed_s + k * token_s + _lone_batch_s(scenario, k + 1)) for k in lengths)


def warnings(scenario: Scenario) -> list[str]:
    """Things that are allowed but that a reader should know, one line each: speeds beyond physics, scarce KV memory."""
    found = [
        f"slo '{slo.name}' asks for {slo.speed_tokens_per_s:g} tokens/s, but '{device.name}' reaches at most "
        f"{best_tokens_per_s(scenario, device):.2f} tokens/s with every draft token accepted and no queue"
        for device in scenario.devices
        for slo in scenario.slo
        if slo.speed_tokens_per_s > best_tokens_per_s(scenario, device)
    ]
    session_tokens = scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens
    sessions = int(scenario.kv_tokens / session_tokens)
    if sessions < scenario.n_devices:
        found.append(
            f"KV memory holds {scenario.kv_tokens} tokens, about {sessions} sessions of median length, "
            f"but n_devices is {scenario.n_devices}: prefixes will be evicted and recomputed")  # fmt: skip
    return found


def _lone_batch_s(scenario: Scenario, new_tokens: int) -> float:
    from wisp_gym.engine.verification import batch_time_s  # here, not above: it imports numba

    formula = getattr(batch_time_s, "py_func", batch_time_s)  # plain Python: a few calls are not worth compiling
    cached = scenario.workload.prompt.min_tokens
    pairs = new_tokens * (new_tokens + cached)
    coefficients = asdict(scenario.verification)
    return float(formula(
        scenario.server.host_s, **coefficients, new_tokens=new_tokens, pairs=pairs, cached_tokens=cached))  # fmt: skip


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
        return {str(i): i for i in range(len(here))} | {item["name"]: i for i, item in enumerate(here)}
    return {}
