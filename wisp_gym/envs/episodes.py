"""Episodes: worlds that begin again from templates, with what may differ from one to the next drawn at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Annotated, Any, Self, TypeVar

import numpy as np

from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.policy import Policy
from wisp_gym.controllers.resolve import NAME, resolve
from wisp_gym.engine.build import mean_acceptance
from wisp_gym.engine.state import World
from wisp_gym.engine.trace_load import load_trace, warn_of_changes
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import ANY_SCENARIO, DEFAULT_SCENARIO, AnyScenario, load, with_slo
from wisp_gym.values import DEVICES, MAX_DEVICES, ArgumentError, Checked, Kind, number, optional, positive, shown, table

# What an episode may draw: the number of devices; factors on verification times (a faster or slower GPU), on the jitter of
# every link, on the evidence's separation d' (a better or worse predictor), on drafting speeds, on the speeds of the service classes and
# on the prefill chunk; what is added to the log odds of acceptance (an easier or harder pair); the server's price of a draft token; a factor
# on the lengths of prompts.
RANDOMISABLE = {
    "devices": (1.0, float(MAX_DEVICES)),
    "verification_time": (0.01, 100.0),
    "jitter": (0.0, 10.0),
    "separation": (0.0, 10.0),
    "draft_speed": (0.01, 100.0),
    "slo_speed": (0.01, 100.0),
    "prefill_chunk": (0.01, 100.0),
    "acceptance_logit": (-5.0, 5.0),
    "price": (0.0, 10.0),
    "prompt_tokens": (0.01, 100.0),
}
NEUTRAL = {name: 0.0 if name in ("acceptance_logit", "price") else 1.0 for name in RANDOMISABLE}
VERIFICATION_FIELDS = (
    "host_s", "launch_s", "weights_s", "token_s", "cached_token_s", "pair_s", "est_launch_s", "est_new_token_s", "est_pair_s", "est_cached_token_s",
    "host_request_s", "host_token_s", "eager_s", "est_request_s", "est_size_s",
)  # fmt: skip


Settings = TypeVar("Settings", bound="EpisodeSettings")


def within(low: float, high: float) -> Kind:
    """Numbers from `low` to `high`."""
    return number(lambda value: low <= value <= high, f"{low:g} to {high:g}")


def whole_within(low: float, high: float) -> Kind:
    """Whole numbers from `low` to `high`, as integers or as floats."""
    return number(lambda value: low <= value <= high and value == int(value), f"{low:g} to {high:g}")


def range_within(low: float, high: float) -> Kind:
    """Pairs of numbers that increase, from `low` to `high`."""
    end = within(low, high)

    def take(given: Any) -> tuple[float, float]:
        if not isinstance(given, (Sequence, np.ndarray)):
            raise TypeError
        first, last = (end.take(value) for value in given)
        if first > last:
            raise ValueError
        return first, last

    return Kind(f"an increasing pair within {[low, high]}", take)


RANGES = table(
    {name: range_within(*limits) for name, limits in RANDOMISABLE.items()},
    "ranges by name such as {'jitter': [0.5, 2]}",
)


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(Checked):
    """What fixes the worlds of an environment, and how its episodes differ.

    Attributes:
        scenario: scenario, preset name or TOML file. devices: population (default the scenario's).
        controller: what drives everything that no agent decides, by name; None is "wisp+wisp", or what an environment says.
        horizon_s: length of an episode.
        randomise: name → (low, high) drawn anew for each episode, see RANDOMISABLE.
        slo: speed in tokens/s of a single service class instead of the scenario's mix.
    """

    scenario: Annotated[AnyScenario, ANY_SCENARIO] = DEFAULT_SCENARIO
    devices: Annotated[int | None, optional(DEVICES)] = None
    controller: Annotated[str | PathLike[str] | None, optional(NAME)] = None
    horizon_s: Annotated[float, positive("seconds")] = 60.0
    randomise: Annotated[Mapping[str, Any] | None, RANGES] = None
    slo: Annotated[float | None, optional(positive("tokens/s"))] = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The settings of an environment's arguments.

        Raises:
            ArgumentError: an unknown argument; one line with the nearest valid one.
            InputError: a value of another kind than its field's.
        """
        names = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in names:
                # Python's own words: TorchRL tries arguments, and looks for them in the error
                raise ArgumentError(f"unexpected keyword argument '{name}'; {did_you_mean(name, names)}")
        return cls(**arguments)


PLAIN = "wisp+wisp"


def with_default_controller(settings: Settings, controller: str, colocated: str) -> Settings:
    """The settings with this controller, a rule of who drafts in its name, where they name none.

    Where the scenario's server has a draft, and room for it, it drafts by the rule `colocated`; else one token a step.
    """
    if settings.controller is not None:
        return settings
    try:
        resolve(f"{controller}+{colocated}", load(settings.scenario))
    except ControllerError:
        return replace(settings, controller=controller)
    return replace(settings, controller=f"{controller}+{colocated}")


class Episodes:
    """`n` worlds of one scenario, each restarted by itself.

    Args:
        n: number of worlds. settings: what they are.
        log_rows: room for events, for rendering. threads: threads to run on.
    """

    def __init__(self, n: int, settings: EpisodeSettings, log_rows: int = 0, threads: int | None = None):
        scenario = load(settings.scenario)
        self.scenario = scenario if settings.slo is None else with_slo(scenario, settings.slo)
        self.ranges: dict[str, tuple[float, float]] = dict(settings.randomise or {})
        self.devices = self.scenario.n_devices if settings.devices is None else settings.devices
        self.room = max(self.devices, int(self.ranges.get("devices", (0, 0))[1]))
        trace = load_trace(self.scenario)
        warn_of_changes(self.scenario)
        self.worlds = self.with_observations(Worlds(n, self.room, log_rows, trace, threads))
        self.worlds.read_files(self.scenario)
        self.controller = resolve(PLAIN if settings.controller is None else settings.controller, self.scenario)
        self.template = self.make_template(trace, settings.horizon_s)
        self.copied: tuple[World, World] | None = None  # worlds and template whose bytes `pairs` are
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.set_controller(self.controller)  # learned weights are the worlds' own, which a restart does not copy

    def __getstate__(self) -> dict[str, Any]:
        """Copies have arrays of their own, at other addresses."""
        return {**self.__dict__, "copied": None, "pairs": []}

    @property
    def arrays(self) -> World:
        """The engine's arrays."""
        return self.worlds.arrays

    def with_observations(self, worlds: Worlds) -> Worlds:
        """The worlds with an observation of each device: what an agent saw last outlives its decision."""
        worlds.arrays = worlds.arrays.with_rows(observation=self.room)
        return worlds

    def make_template(self, trace: np.ndarray, horizon_s: float) -> Worlds:
        """One world from which all begin: everything is measured from the start to the horizon."""
        template = self.with_observations(Worlds(1, self.room, 0, trace, 1))
        template.fill(0, self.scenario, 0, self.controller, self.room)
        c = template.arrays.config[0, 0]
        c["warmup_s"], c["window_end_s"], c["end_s"] = 0.0, horizon_s, horizon_s
        return template

    def set_controller(self, controller: Controller) -> None:
        """Put another controller in charge from now on (running episodes too)."""
        self.controller = controller
        self.template.begin(0, controller)
        for index in range(len(self.worlds)):
            self.worlds.control(index, controller)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned policy drive the other devices; the batching rule stays.

        Raises:
            InputError: no `Policy`, such as a batching policy or a name.
        """
        if not isinstance(policy, Policy):
            raise InputError(f"policy: given {shown(policy)}, allowed is a Policy of devices, as load_policy reads it")
        policy.refuse_other_cap(self.scenario.max_draft_tokens)
        learned = replace(
            self.controller, speculation=policy.kind, speculation_parameters=(), policy=policy.weights,
            uses_predictor=True, sees_statistics=True, sees_observation=True, chooses_way=policy.chooses_way,
        )  # fmt: skip
        self.set_controller(learned)

    def fixed(self, options: Mapping[str, Any]) -> dict[str, float]:
        """What options of `reset` fix for an episode, each a possible number.

        Raises:
            InputError: an unknown option, or a value that is not possible in every episode that the ranges may draw.
        """
        if not options:
            return {}
        numbers = {name: within(*limits) for name, limits in RANDOMISABLE.items()}
        whole = {"devices": whole_within(1, self.room), "device": whole_within(0, self.room - 1)}
        fixed = table(numbers | whole, "numbers by name such as {'devices': 8}").checked("options", options)
        fewest = fixed.get("devices", round(self.ranges.get("devices", (self.devices, 0.0))[0]))
        if "device" in fixed:
            whole_within(0, fewest - 1).checked("options: device", options["device"])
        return fixed

    def restart(self, index: int, rng: np.random.Generator, fixed: Mapping[str, float]) -> dict[str, float]:
        """Begin a new episode in world `index`, with what `fixed` gave; returns what was drawn."""
        drawn = self.draw(rng, fixed)
        self.copy_template(index)
        c = self.arrays.config[index, 0]
        c["seed"] = rng.integers(2**63)
        c["n_devices"] = drawn["devices"]
        if any(drawn[name] != neutral for name, neutral in NEUTRAL.items() if name != "devices"):
            self.vary(index, drawn)
        return drawn

    def copy_template(self, index: int) -> None:
        """Copy the template's state to world `index`; what is written down stays."""
        arrays, template = self.arrays, self.template.arrays
        if self.copied is None or self.copied[0] is not arrays or self.copied[1] is not template:
            self.copied = arrays, template
            self.pairs = list(zip(arrays.state_bytes(), template.state_bytes(), strict=True))
        for state, beginning in self.pairs:
            state[index] = beginning[0]

    def vary(self, index: int, drawn: Mapping[str, float]) -> None:
        """What was drawn for world `index`."""
        c = self.arrays.config[index, 0]
        for name in VERIFICATION_FIELDS:
            c[name] *= drawn["verification_time"]
        c["separation"] *= drawn["separation"]
        c["prompt_log_mean"] += np.log(drawn["prompt_tokens"])
        for name in ("prefill_chunk_tokens", "chunk_tokens"):
            c[name] = max(round(c[name] * drawn["prefill_chunk"]), min(c[name], 1))
        self.vary_devices(index, drawn)
        if drawn["acceptance_logit"]:
            self.vary_acceptance(index, drawn["acceptance_logit"])
        self.arrays.server[index, 0]["mean_batch_s"] *= drawn["verification_time"]
        self.arrays.server[index, 0]["price"] = drawn["price"]

    def vary_devices(self, index: int, drawn: Mapping[str, float]) -> None:
        """What was drawn for the devices of world `index`."""
        d = self.arrays.device[index]
        d["jitter"] *= drawn["jitter"]
        d["token_sum"] *= drawn["slo_speed"]
        d["info_batch_s"] *= drawn["verification_time"]
        d["token_s"] /= drawn["draft_speed"]
        d["draft_token_s"] /= drawn["draft_speed"]
        d["slo_tokens_per_s"] *= drawn["slo_speed"]
        d["price"] = drawn["price"]

    def vary_acceptance(self, index: int, logit: float) -> None:
        """An easier (or harder) pair of models in world `index`; predictor and devices know its mean acceptance."""
        a = self.scenario.draft.acceptance
        share = mean_acceptance(replace(a, logit_mean=a.logit_mean + logit))
        c, d = self.arrays.config[index, 0], self.arrays.device[index]
        c["logit_mean"] += logit
        c["accept_prior"], c["base_logit"] = share, np.log(share / (1.0 - share))
        d["accepted_sum"] = share * d["examined_sum"]

    def draw(self, rng: np.random.Generator, fixed: Mapping[str, float]) -> dict[str, float]:
        """Draw what the ranges say, unless it is fixed."""
        drawn: dict[str, float] = NEUTRAL | {"devices": self.devices}
        for name, (low, high) in self.ranges.items():
            drawn[name] = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low > 0 else rng.uniform(low, high)
        drawn |= fixed
        drawn["devices"] = min(int(round(drawn["devices"])), self.room)
        if "device" not in drawn:
            drawn["device"] = int(rng.integers(int(drawn["devices"])))
        return drawn
