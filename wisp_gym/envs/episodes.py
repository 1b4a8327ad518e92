"""Episodes: worlds that begin again from templates, with what may differ from one to the next drawn at random."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from wisp_gym.controllers.policy import Policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.build import mean_acceptance
from wisp_gym.engine.state import World
from wisp_gym.engine.trace_load import load_trace, warn_of_changes
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import did_you_mean
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, with_slo

# What an episode may draw: the number of devices; factors on verification times (a faster or slower GPU), on the jitter of
# every link, on the evidence's separation d' (a better or worse predictor), on drafting speeds, on the speeds of the service classes and
# on the prefill chunk; what is added to the log odds of acceptance (an easier or harder pair); the server's price of a draft token; a factor
# on the lengths of prompts.
RANDOMISABLE = {
    "devices": (1.0, 1e6),
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
)  # fmt: skip
OPTIONS = ("device", *RANDOMISABLE)


def checked_ranges(randomise: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
    """Ranges of `randomise`, each (low, high) within what is possible."""
    ranges = {}
    for name, value in (randomise or {}).items():
        if name not in RANDOMISABLE:
            raise ValueError(f"randomise: unknown '{name}'; {did_you_mean(name, list(RANDOMISABLE))}")
        try:
            low, high = (float(x) for x in value)
            possible = RANDOMISABLE[name][0] <= low <= high <= RANDOMISABLE[name][1]
        except (TypeError, ValueError):
            possible = False
        if not possible:
            allowed = f"an increasing pair within {list(RANDOMISABLE[name])}"
            raise ValueError(f"randomise: {name} given {value!r}, allowed is {allowed}")
        ranges[name] = (low, high)
    return ranges


def checked_options(options: Mapping[str, Any], devices: int) -> dict[str, float]:
    """What `reset(options=...)` fixes, each a possible number; `devices` is the room for them."""
    allowed = RANDOMISABLE | {"devices": (1, devices), "device": (0, devices - 1)}
    for name, value in options.items():
        if name not in OPTIONS:
            raise ValueError(f"options: unknown '{name}'; {did_you_mean(str(name), list(OPTIONS))}")
        low, high = allowed[name]
        number = isinstance(value, (int, float, np.integer, np.floating)) and low <= value <= high
        if not number or (name in ("devices", "device") and value != int(value)):
            raise ValueError(f"options: {name} given {value!r}, allowed is {low:g} to {high:g}")
    return {name: float(value) for name, value in options.items()}


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """What fixes the worlds of an environment, and how its episodes differ.

    Attributes:
        scenario: scenario, preset name or TOML file. devices: population (default the scenario's).
        controller: what drives everything that no agent decides, by name.
        horizon_s: length of an episode.
        randomise: name → (low, high) drawn anew for each episode, see RANDOMISABLE.
        slo: speed in tokens/s of a single service class instead of the scenario's mix.
    """

    scenario: Scenario | str = DEFAULT_SCENARIO
    devices: int | None = None
    controller: str = "wisp+wisp"
    horizon_s: float = 60.0
    randomise: Mapping[str, Any] | None = None
    slo: float | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The settings of an environment's arguments.

        Raises:
            TypeError: an unknown argument; one line with the nearest valid one.
        """
        names = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in names:
                raise TypeError(f"argument: unknown '{name}'; {did_you_mean(name, names)}")
        return cls(**arguments)


class Episodes:
    """`n` worlds of one scenario, each restarted by itself.

    Args:
        n: number of worlds. settings: what they are.
        log_rows: room for events, for rendering. threads: threads to run on.
    """

    def __init__(self, n: int, settings: EpisodeSettings, log_rows: int = 0, threads: int | None = None):
        scenario, devices, horizon_s = settings.scenario, settings.devices, settings.horizon_s
        scenario = load(scenario) if isinstance(scenario, str) else scenario
        self.scenario = scenario if settings.slo is None else with_slo(scenario, settings.slo)
        self.ranges = checked_ranges(settings.randomise)
        self.devices = self.scenario.n_devices if devices is None else devices
        if not 0.0 < horizon_s < np.inf or self.devices < 1 or self.devices != int(self.devices):
            allowed = "a whole number of devices, at least one, and a positive, finite horizon"
            raise ValueError(f"given devices={devices}, horizon_s={horizon_s}; allowed are {allowed}")
        self.room = max(self.devices, int(self.ranges.get("devices", (0, 0))[1]))
        trace = load_trace(self.scenario)
        warn_of_changes(self.scenario)
        self.worlds = Worlds(n, self.room, log_rows, trace, threads)
        self.worlds.read_files(self.scenario)
        self.controller = resolve(settings.controller, self.scenario)
        self.template = self.make_template(trace, horizon_s)
        self.set_controller(self.controller)  # learned weights are the worlds' own, which a restart does not copy

    @property
    def arrays(self) -> World:
        """The engine's arrays."""
        return self.worlds.arrays

    def make_template(self, trace: np.ndarray, horizon_s: float) -> Worlds:
        """One world from which all begin: everything is measured from the start to the horizon."""
        template = Worlds(1, self.room, 0, trace, 1)
        template.fill(0, self.scenario, 0, self.controller, self.room)
        c = template.arrays.config[0, 0]
        c["warmup_s"], c["window_end_s"], c["end_s"] = 0.0, horizon_s, horizon_s
        return template

    def set_controller(self, controller: Controller) -> None:
        """Put another controller in charge from now on (running episodes too)."""
        self.controller = controller
        self.template.control(0, controller)
        for index in range(len(self.worlds)):
            self.worlds.control(index, controller)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned policy drive the other devices; the batching rule stays."""
        learned = replace(
            self.controller, speculation=policy.kind, speculation_parameters=(), policy=policy.weights,
            uses_predictor=True, sees_statistics=True, sees_observation=True,
        )  # fmt: skip
        self.set_controller(learned)

    def restart(self, index: int, rng: np.random.Generator, options: Mapping[str, Any] | None) -> dict[str, float]:
        """Begin a new episode in world `index`; returns what was drawn."""
        drawn = self.draw(rng, options or {})
        self.arrays.begin_again(index, self.template.arrays)
        c = self.arrays.config[index, 0]
        c["seed"] = rng.integers(2**63)
        c["n_devices"] = drawn["devices"]
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
        return drawn

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

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, float]:
        """Draw what the ranges say, unless the options fix it."""
        drawn: dict[str, float] = NEUTRAL | {"devices": self.devices}
        for name, (low, high) in self.ranges.items():
            drawn[name] = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low > 0 else rng.uniform(low, high)
        drawn |= checked_options(options, self.room)
        drawn["devices"] = min(int(round(drawn["devices"])), self.room)
        if "device" not in drawn:
            drawn["device"] = int(rng.integers(int(drawn["devices"])))
        if not 0 <= drawn["device"] < drawn["devices"]:
            raise ValueError(f"options: device given {drawn['device']:g}, allowed is 0 to {drawn['devices'] - 1}")
        return drawn
