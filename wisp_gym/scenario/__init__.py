"""Scenarios: what is simulated, on which machines, under which load. The module to import them from.

A scenario is one frozen dataclass of frozen dataclasses (`parts`) in plain SI units. `load` reads a preset or a TOML file
(`toml`), `with_` changes fields by dotted path; what is allowed but doubtful tells `wisp_gym.engine.feasibility`.
The presets and the catalogue of named parts lie in `wisp_gym/scenarios`, each constant with its source.
"""

from wisp_gym.scenario.changes import with_, with_slo
from wisp_gym.scenario.fields import ScenarioError
from wisp_gym.scenario.parts import (
    Acceptance,
    DeviceClass,
    Draft,
    DraftTime,
    Estimator,
    Horizon,
    Lengths,
    Link,
    Scenario,
    Server,
    ServerDraft,
    SizeTime,
    SLOClass,
    Statistics,
    Target,
    TraceColumns,
    VerificationTime,
    Workload,
)
from wisp_gym.scenario.toml import ANY_SCENARIO, AnyScenario, dumps, load, loads, presets, save

DEFAULT_SCENARIO = "wisp-a100-qwen3-32b"  # the preset that every command and environment begins with

__all__ = [
    "ANY_SCENARIO",
    "DEFAULT_SCENARIO",
    "AnyScenario",
    "ScenarioError",
    "dumps",
    "load",
    "loads",
    "presets",
    "save",
    "with_",
    "with_slo",
]
__all__ += ["DeviceClass", "Draft", "Estimator", "Horizon", "SLOClass", "Scenario", "Server", "Target", "Workload"]
__all__ += [
    "Acceptance",
    "DraftTime",
    "Lengths",
    "Link",
    "ServerDraft",
    "SizeTime",
    "Statistics",
    "TraceColumns",
    "VerificationTime",
]  # the parts of these parts
