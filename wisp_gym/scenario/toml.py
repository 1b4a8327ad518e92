"""Scenarios as TOML files: named parts from the catalogue, presets that build on each other, and a writer.

A table may say `use = "name"`: the rest of that part then comes from `wisp_gym/scenarios/catalogue`, and the fields
given beside it replace the catalogue's. At the top of a file `use = "preset"` starts from a preset. What depends on two
names is looked up by both: a device's drafting speed and power by the draft, a draft's acceptance by the target, a server
draft's time by the server, the verification time by server and target, the estimator in `wisp_gym/data/verification_time/<server>--<target>.json`.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from wisp_gym.errors import of_kind, path_of, shown
from wisp_gym.files import write_text
from wisp_gym.scenario.fields import (
    Part,
    ScenarioError,
    build,
    defaults,
    dotted,
    field_types,
    nearest,
    refuse_unknown,
)
from wisp_gym.scenario.parts import (
    Acceptance,
    DeviceClass,
    Draft,
    DraftTime,
    Estimator,
    Link,
    Scenario,
    Server,
    ServerDraft,
    Target,
)
from wisp_gym.scenario.replayed import replayed
from wisp_gym.values import Kind, texts

_HERE = Path(__file__).parents[1]
_PRESETS = _HERE / "scenarios"
_ESTIMATORS = _HERE / "data" / "verification_time"
Table = dict[str, Any]
AnyScenario = Scenario | str | os.PathLike[str]  # itself, a preset's name, or a TOML file
NAME = texts("a scenario, a preset's name or a TOML file")
ANY_SCENARIO = Kind(NAME.words, lambda given: given if isinstance(given, Scenario) else NAME.take(given))

# Where no fitted estimator is shipped: a straight line through the soft roofline. The shares are the median ratios of
# linear to soft coefficients over the 24 bf16 pairs of fits to operator tables (NVIDIA aiconfigurator, Apache-2.0).
_LINE_WEIGHTS, _LINE_TOKEN, _LINE_CACHED = 0.89, 0.76, 0.90
_ZERO_ESTIMATOR = dict.fromkeys(("launch_s", "new_token_s", "pair_s", "cached_token_s"), 0.0)


def presets() -> list[str]:
    """Names of the scenarios that come with wisp-gym, sorted."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load(given: AnyScenario) -> Scenario:
    """The preset of this name, or the scenario in this TOML file; a scenario is returned as it is.

    Raises:
        ScenarioError: no such preset or file, or something wrong inside; the message is one line.
        InputError: neither a name, nor a path, nor a scenario.
    """
    name = ANY_SCENARIO.checked("scenario", given)
    if isinstance(name, Scenario):
        return name
    path = _PRESETS / f"{name}.toml" if name in presets() else Path(name)
    if not os.path.isfile(path):
        raise ScenarioError(f"'{name}' is neither a preset nor a TOML file; {nearest(name, presets())}")
    try:
        return _draft_files_beside(_resolve(_read(path), path.parent), path)
    except ScenarioError as error:
        raise error.inside(file=error.file or (f"{name}.toml" if name in presets() else name)) from None


def loads(text: str) -> Scenario:
    """The scenario that a TOML text describes; files are taken from the working directory. Raises ScenarioError."""
    if not isinstance(text, str):
        raise ScenarioError(f"given {shown(text)}, allowed: TOML text", file="<text>")
    return _resolve(_parse(text, "<text>"))


def dumps(scenario: Scenario) -> str:
    """Complete TOML that refers to nothing: `loads(dumps(scenario)) == scenario`, bit for bit."""
    of_kind("scenario", scenario, Scenario, ScenarioError)
    return "\n".join(_lines(_written(scenario), "")).strip() + "\n"


def save(scenario: Scenario, path: str | os.PathLike[str]) -> None:
    """Write `dumps(scenario)` to a file; the file is there whole or not at all."""
    write_text(path_of("path", path, ScenarioError), dumps(scenario))


def _read(path: Path) -> Table:
    try:
        return _parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot be read as UTF-8 text: {error}", file=str(path)) from None


def _parse(text: str, file: str) -> Table:
    try:
        # Some editors of Windows put a byte-order mark before the text.
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
        raise ScenarioError(f"not valid TOML: {' '.join(str(error).split())}", file=file) from None


@cache
def catalogue(kind: str) -> Table:
    """Tables of one catalogue file, by name. Read once; callers copy what they change."""
    return _read(_PRESETS / "catalogue" / f"{kind}.toml")


# --- from references to complete tables ------------------------------------------------------------------------------


def _resolve(tables: Table, folder: Path | None = None) -> Scenario:
    """The scenario of a parsed file in a folder: presets merged, named parts filled in, everything checked."""
    own, tables = tables, _based(tables)
    refuse_unknown(tables, ["use", *field_types(Scenario)], "")
    server_key, target_key, draft_key = (_key(tables, part) for part in ("server", "target", "draft"))
    full = dict(tables)
    full["server"] = _named(tables.get("server"), "servers", Server, "server")
    full["target"] = _named(tables.get("target"), "targets", Target, "target")
    full["draft"] = _draft(tables.get("draft"), target_key)
    devices = tables.get("devices")
    if not isinstance(devices, list):
        raise ScenarioError(f"given {shown(devices)}, allowed: a list of tables ([[devices]])", "devices")
    full["devices"] = [_device(device, draft_key, f"devices[{i}]") for i, device in enumerate(devices)]
    if "server_drafts" in tables:
        full["server_drafts"] = _server_drafts(
            tables["server_drafts"], "server_drafts" in own, full["draft"], server_key, target_key
        )
    full["verification"] = _verification(tables.get("verification", {}), server_key, target_key)
    full.setdefault("description", "")
    if "workload" in tables:
        full["workload"] = replayed(tables["workload"], own.get("workload"), folder)
    # The estimator's default is a line through the roofline, so all the rest is checked before it is made.
    checked = build(Scenario, {**full, "estimator": _ZERO_ESTIMATOR})
    full["estimator"] = _estimator(tables.get("estimator", {}), server_key, target_key, checked)
    return build(Scenario, full)


def _based(tables: Table) -> Table:
    """The file's tables over those of the preset that it starts from, if it names one."""
    if "use" not in tables:
        return tables
    base, own = tables["use"], {key: value for key, value in tables.items() if key != "use"}
    if not isinstance(base, str) or base not in presets():
        raise ScenarioError(f"given {shown(base)}; {nearest(str(base), presets())}", "use")
    return _merged(_based(_read(_PRESETS / f"{base}.toml")), own)


def _merged(base: Table, own: Table) -> Table:
    """`own` over `base`, table by table; a list replaces a list, and naming another part drops the base's overrides."""
    if "use" in own:
        return own
    both = {key: _merged(base[key], own[key]) for key in base.keys() & own.keys()
            if isinstance(base[key], dict) and isinstance(own[key], dict)}  # fmt: skip
    return {**base, **own, **both}


def _key(tables: Table, part: str) -> str:
    """The catalogue name of a part: what it uses, or else its own name."""
    table = tables.get(part)
    return str(table.get("use", table.get("name", ""))) if isinstance(table, Mapping) else ""


def _named(given: Any, kind: str, part: type[Any], path: str) -> Table:
    """A part's table with the fields of the catalogue entry that it uses."""
    table = _table(given, part, path)
    if "use" not in table:
        return table
    own = {key: value for key, value in table.items() if key != "use"}
    refuse_unknown(own, [*field_types(part), "use"], path)
    return _merged({"name": table["use"], **_entry(kind, table["use"], dotted(path, "use"))}, own)


def _table(given: Any, part: type[Any], path: str) -> Table:
    """`given`, if it is a table at all."""
    if isinstance(given, dict):
        return given
    found = "missing" if given is None else f"given {shown(given)}"
    raise ScenarioError(f'{found}, allowed: use = "name", or a table with {", ".join(field_types(part))}', path)


def _entry(kind: str, name: Any, path: str) -> Table:
    known = catalogue(kind)
    if not isinstance(name, str) or name not in known:
        raise ScenarioError(f"given {shown(name)}; {nearest(str(name), known)}", path)
    return dict(known[name])


def _draft(given: Any, target: str) -> Table:
    """The draft's table; its acceptance is the catalogue's for this target."""
    table = {"trace": "", "predictor": "", **_table(given, Draft, "draft")}
    if "use" not in table:
        return table
    entry = _entry("drafts", table["use"], "draft.use")
    acceptance = _accepted(entry.pop("acceptance"), table, target, "draft")
    rest = {key: value for key, value in table.items() if key != "use"}
    refuse_unknown(rest, [*field_types(Draft), "use"], "draft")
    return _merged({"name": table["use"], **entry, "acceptance": acceptance}, rest)


def _accepted(by_target: Mapping[str, Table], table: Table, target: str, path: str) -> Table:
    """The acceptance that a table's draft has by this target."""
    what = f"no acceptance of '{table['use']}' by target '{target}' is known"
    return _looked_up(by_target, target, table.get("acceptance"), Acceptance, what, f"{path}.acceptance")


def _looked_up(known: Mapping[str, Table], name: str, own: Any, part: type[Any], what: str, path: str) -> Table:
    """What the catalogue has under a name; nothing where it has nothing, but the file gives every field itself."""
    if name not in known and not (
        isinstance(own, dict) and own.keys() >= field_types(part).keys() - defaults(part).keys()
    ):
        raise ScenarioError(f"{what}; {nearest(name, known)}, or give all its fields", path)
    return known.get(name, {})


def acceptances(name: str) -> Table:
    """Acceptance by target of a draft that a server can host: a model's that devices draft with, or its own."""
    of_devices = catalogue("drafts").get(name, {}).get("acceptance", {})
    return {**of_devices, **catalogue("server-drafts").get(name, {}).get("acceptance", {})}


def _server_drafts(given: Any, own: bool, draft: Table, server: str, target: str) -> list[Any]:
    """Tables of the server's drafts, the file's own or those of the preset that it starts from.

    Of a preset's drafts those are left out of which nothing is known for this server or target, and one that is the devices' own
    draft goes with what the file says of that.
    """
    if not isinstance(given, list):
        raise ScenarioError(f"given {shown(given)}, allowed: a list of tables ([[server_drafts]])", "server_drafts")
    if not own:
        same, of_devices = {"name": draft.get("name"), "correlation": 1.0}, {"acceptance": draft.get("acceptance")}
        given = [one for one in given if is_known(one, server, target)]
        given = [{**one, **of_devices} if same.items() <= one.items() else one for one in given]
    return [_server_draft(one, draft, server, target, f"server_drafts[{i}]") for i, one in enumerate(given)]


def is_known(server_draft: Table, server: str, target: str) -> bool:
    """Whether the catalogue knows a preset's server draft on this server by this target, or need not."""
    name = server_draft.get("use")
    return not name or (target in acceptances(name) and server in catalogue("server-drafts")[name]["time"])


def _server_draft(given: Any, draft: Table, server: str, target: str, path: str) -> Table:
    """A server draft's table: acceptance by target, time by server; one of the devices' own draft has that one's fates."""
    table = _table(given, ServerDraft, path)
    if "use" not in table:
        return table
    entry = _entry("server-drafts", table["use"], dotted(path, "use"))
    rest = {key: value for key, value in table.items() if key != "use"}
    refuse_unknown(rest, [*field_types(ServerDraft), "use"], path)
    if rest.get("name", table["use"]) == draft.get("name"):
        entry |= {"correlation": 1.0, "acceptance": draft.get("acceptance", {})}
    else:
        entry["acceptance"] = _accepted(acceptances(table["use"]), table, target, path)
    what = f"no time of '{table['use']}' on server '{server}' is known"
    entry["time"] = _looked_up(entry["time"], server, table.get("time"), DraftTime, what, f"{path}.time")
    return _merged({"name": table["use"], **entry}, rest)


def _device(given: Any, draft: str, path: str) -> Table:
    """A device's table: link by name, drafting speed and power by draft model."""
    table = dict(_named(given, "devices", DeviceClass, path))
    for key in ("draft_tokens_per_s", "draft_w"):
        if isinstance(table.get(key), Mapping):
            table[key] = _by_draft(table[key], draft, f"{path}.{key}")
    if isinstance(table.get("link"), str):
        table["link"] = {"use": table["link"]}
    if "link" in table:
        table["link"] = _named(table["link"], "links", Link, f"{path}.link")
    return table


def _by_draft(table: Mapping[str, Any], draft: str, path: str) -> Any:
    if draft not in table:
        raise ScenarioError(f"not known for draft '{draft}'; {nearest(draft, table)}, or give the number", path)
    return table[draft]


def _verification(own: Any, server: str, target: str) -> Any:
    """The roofline's table: the catalogue's for this server and target, with the fields given here replaced."""
    known = catalogue("verification").get(server, {}).get(target)
    if not isinstance(own, Mapping) or (known is None and own):
        return own
    if known is None:
        pairs = [f"{s} with {t}" for s, targets in catalogue("verification").items() for t in targets]
        wanted = f"{server} with {target}"
        raise ScenarioError(f"not known for {wanted}; {nearest(wanted, pairs)}, or give its fields", "verification")
    return {**known, **own}


def _estimator(own: Any, server: str, target: str, scenario: Scenario) -> Any:
    """The estimator's table: the fitted file's, or a line through the roofline; fields given here replaced."""
    if not isinstance(own, Mapping) or own.keys() >= _ZERO_ESTIMATOR.keys():
        return own
    path = _ESTIMATORS / f"{server}--{target}.json"
    if not path.is_file():
        return {**_line(scenario), **own}
    fitted = json.loads(path.read_text(encoding="utf-8"))
    known = {key: fitted[key] for key in field_types(Estimator) if key in fitted}
    return {**known, **own}


def _line(scenario: Scenario) -> dict[str, float]:
    """A straight line through the soft roofline, for servers that nobody has profiled."""
    time = scenario.verification
    return {
        "launch_s": scenario.server.host_s + time.launch_s + _LINE_WEIGHTS * time.weights_s,
        "new_token_s": _LINE_TOKEN * time.token_s,
        "pair_s": time.pair_s,
        "cached_token_s": _LINE_CACHED * time.cached_token_s,
    }


def _draft_files_beside(scenario: Scenario, path: Path) -> Scenario:
    """The draft's speculation trace and predictor, taken from the file's folder or shipped; they must be there."""
    draft = scenario.draft
    if not (draft.trace or draft.predictor):
        return scenario
    # Here, not above: a scenario without such files needs neither numba nor readers of traces.
    from wisp_gym.rules import rejection_predictor as predictor
    from wisp_gym.traces import speculation as speculation_trace

    trace = _beside(path, draft.trace, speculation_trace.samples(), "draft.trace")
    judge = _beside(path, draft.predictor, predictor.shipped(), "draft.predictor")
    return replace(scenario, draft=replace(draft, trace=trace, predictor=judge))


def _beside(path: Path, given: str, shipped: Mapping[str, Path], key: str) -> str:
    """A file's path taken from the folder of the scenario file, or the name of a shipped file as it is."""
    file = (path.parent / given).resolve()
    if not given or given in shipped:
        return given
    if not file.is_file():
        allowed = f"a file that exists, or a shipped one ({', '.join(shipped) or 'none yet'})"
        raise ScenarioError(f"given {shown(given)}, allowed: {allowed}", key)
    return str(file)


# --- writing ---------------------------------------------------------------------------------------------------------


def _written(value: Any) -> Any:
    """Parts as tables, all the way down, without the fields that are at their defaults."""
    if isinstance(value, tuple):
        return tuple(map(_written, value))
    if not isinstance(value, Part):
        return value
    found, default = {name: getattr(value, name) for name in field_types(type(value))}, defaults(type(value))
    return {name: _written(one) for name, one in found.items() if name not in default or one != default[name]}


def _lines(table: Mapping[str, Any], path: str) -> list[str]:
    """Lines of a table: plain values first, as TOML demands, then tables, then lists of tables."""
    lines = [f"{key} = {_literal(value)}" for key, value in table.items() if not isinstance(value, (dict, tuple))]
    for key, value in table.items():
        inner = dotted(path, key)
        if isinstance(value, dict):
            lines += ["", f"[{inner}]", *_lines(value, inner)]
        elif isinstance(value, tuple):
            for item in value:
                lines += ["", f"[[{inner}]]", *_lines(item, inner)]
    return lines


def _literal(value: Any) -> str:
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped; repr keeps every bit of a float.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
