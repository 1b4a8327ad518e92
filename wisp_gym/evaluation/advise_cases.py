"""The case that advice is asked for: a scenario from a few parts of the catalogue, and who could draft in it, by which controllers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError, one_of
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, loads, with_
from wisp_gym.scenario.known import drafts_of, server_drafts_of, servers_of, targets

DEVICE, SERVER, EITHER, NOBODY = "device", "server", "either", "nobody"
KINDS = (DEVICE, SERVER, EITHER, NOBODY)  # who drafts

CHUNK = (
    "chunk:96,0.2"  # beside the rule's own setting: that of the strongest untuned controllers (docs/guide/batching.md)
)
DEVICE_RULES = ("aligned+aged+chunk+admit", f"aligned+aged+{CHUNK}+admit")


# --- the scenario ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Names of the catalogue in place of those of the default preset; None keeps the preset's."""

    server: str | None = None
    target: str | None = None
    draft: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Those that are given."""
        return {part: name for part, name in vars(self).items() if name is not None}


def with_parts(parts: Parts) -> Scenario:
    """The default preset with other parts, and all server drafts that the catalogue knows for them.

    A target that the preset's draft is not known for goes with the first draft that is.

    Raises:
        InputError: an unknown name, or parts that are not known together; one line with the nearest valid choice.
    """
    if not parts.given:
        return load(DEFAULT_SCENARIO)
    preset = load(DEFAULT_SCENARIO)
    target = one_of("argument --target", parts.target or preset.target.name, targets())
    server = one_of(f"argument --server, with {target}", parts.server or preset.server.name, servers_of(target))
    known = drafts_of(target)
    usual = preset.draft.name if preset.draft.name in known else known[0]
    draft = one_of(f"argument --draft, with {target}", parts.draft or usual, known)
    return loads(toml_of(server, target, draft))


def toml_of(server: str, target: str, draft: str) -> str:
    """The default preset with these parts, as TOML; the devices' own draft is the server's first one."""
    hosted = sorted(server_drafts_of(server, target), key=lambda name: name != draft)
    named = [("[server]", server), ("[target]", target), ("[draft]", draft)]
    named += [("[[server_drafts]]", name) for name in hosted]
    tables = "\n".join(f"{table}\nuse = {json.dumps(name)}" for table, name in named)
    name = json.dumps(f"{server}, {target}, {draft}")
    return f"use = {json.dumps(DEFAULT_SCENARIO)}\nname = {name}\n{'' if hosted else 'server_drafts = []'}\n{tables}\n"


def with_rtt(scenario: Scenario, rtt_s: float | None) -> Scenario:
    """The scenario with this median round-trip time on every device's link, half of it each way; None keeps the links."""
    if rtt_s is None:
        return scenario
    return with_(scenario, **{f"devices.{i}.link.one_way_s": rtt_s / 2.0 for i in range(len(scenario.devices))})


def with_prompt(scenario: Scenario, median_tokens: float | None) -> Scenario:
    """The scenario with prompts of this median; None keeps them.

    Raises:
        InputError: beyond the scenario's shortest and longest prompt, or prompts that come from a trace.
    """
    if median_tokens is None:
        return scenario
    if scenario.workload.arrivals == "trace":
        raise InputError(
            f"argument --prompt: given {median_tokens:g}, but {scenario.name} takes its prompts from a trace"
        )
    return with_(scenario, **{"workload.prompt.median_tokens": median_tokens})


# --- who could draft -------------------------------------------------------------------------------------------------


def loadable(scenario: Scenario) -> tuple[list[int], list[str]]:
    """Places of the server drafts that have room beside the target, and a note on each of the others."""
    fitting, notes = [], []
    for place in range(len(scenario.server_drafts)):
        try:
            resolve(f"colocated:1,{place}", scenario)
            fitting.append(place)
        except InputError as error:
            notes.append(f"left out: {error}")
    if not fitting:
        notes.append(f"no draft is known that {scenario.server.name} could host: that the server drafts is left out")
    return fitting, notes


def trials(draft: int) -> list[str]:
    """Controllers by which a server draft is judged before the better ones are tuned."""
    return [f"centralized:256,128+colocated:{k},{draft}+{CHUNK}+admit" for k in (1, 3)]


def candidates(drafts: Sequence[int]) -> dict[str, list[str]]:
    """Who drafts → controllers; those that differ in searched settings alone are starts of one search.

    Args:
        drafts: places of the server drafts that are tuned, the best first; the further ones with a fixed length alone.
    """
    overlapping = [f"{rule}+overlap" for rule in DEVICE_RULES]
    found = {
        DEVICE: ["wisp+wisp", *DEVICE_RULES, *overlapping, f"speculation-v1+aged+{CHUNK}+admit"],
        SERVER: [start for draft in drafts for start in on_server(f"colocated:2,{draft}")],
        EITHER: [f"{rule}+by-price" for rule in DEVICE_RULES],
        NOBODY: on_server(""),
    }
    for draft in drafts[:1]:
        found[SERVER] += on_server(f"colocated-throughput(draft={draft})")
        found[SERVER] += on_server(f"colocated:6,{draft}+dspark")
        found[EITHER] += [f"{rule}+colocated:2,{draft}+by-price" for rule in DEVICE_RULES]
        found[EITHER] += [f"{rule}+colocated:6,{draft}+dspark+by-price" for rule in DEVICE_RULES]
    return {kind: names for kind, names in found.items() if names}


def on_server(drafting: str) -> list[str]:
    """A server alone, with a rule for its own drafts or none: without a limit, and with one on who is admitted."""
    middle = f"{drafting}+" if drafting else ""
    return [f"centralized:0+{middle}chunk+admit", f"centralized:256,128+{middle}{CHUNK}+admit"]


def is_hosting(controller: str, scenario: Scenario) -> bool:
    """Whether the server drafts under a controller: a searched length may be 0."""
    return resolve(controller, scenario).drafting.hosted is not None
