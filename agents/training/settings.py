"""What decides a training's numbers: algorithms with their settings and reasons, presets, the settings of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from agents.training import run_folder
from agents.training.fleet import FleetSettings
from wisp_gym.envs.arguments import check_argument
from wisp_gym.errors import InputError, one_of
from wisp_gym.scenario import DEFAULT_SCENARIO

T = TypeVar("T")

ENVIRONMENTS = {"wisp_gym/Speculation-v1": "token", "wisp_gym/SpeculationLength-v1": "length"}

# Worlds are told apart by their seeds: training draws its own, validation and test use these and no other.
VALIDATION_SEED = 2_000_000  # the first of them
TEST_SEEDS = range(1_000_000, 1_000_000 + 20)


@dataclass(frozen=True)
class Settings:
    """All that decides a run's numbers, as its config.json holds it.

    Attributes:
        algo: one of ALGORITHMS. env: one of ENVIRONMENTS. n_timesteps: decisions in all. seed: of everything.
        eval_freq: decisions between two validations, each with a checkpoint; 0: only at the end. n_envs: side by side.
        env_kwargs: arguments of the environment, `scenario` among them. hyperparameters: of the algorithm.
        learning_rate: falls linearly to a twentieth. widths: of the hidden layers. activation: "relu" or "tanh".
        validation_seeds, test_seeds: of the held-out worlds. fleet: its worlds, for the algorithm of that name.
        hidden: entries of the observation that the network does without. resumed_from: the run that was gone on with.
    """

    algo: str
    env: str = "wisp_gym/Speculation-v1"
    n_timesteps: int = 600_000
    seed: int = 0
    eval_freq: int = 0
    n_envs: int = 64
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    widths: list[int] = field(default_factory=lambda: [64, 64])
    activation: str = "tanh"
    validation_seeds: list[int] = field(default_factory=list)
    test_seeds: list[int] = field(default_factory=lambda: list(TEST_SEEDS))
    fleet: FleetSettings | None = None
    hidden: list[str] = field(default_factory=list)
    resumed_from: str = ""

    @property
    def decision(self) -> str:
        """What an action is: "token" or "length", with "-way" where it says how the round ends too."""
        return ENVIRONMENTS[self.env] + ("-way" if self.env_kwargs.get("ways", True) else "")

    def as_json(self) -> dict[str, Any]:
        """What config.json holds: without `fleet`, `hidden` and `resumed_from` where the run has none."""
        later = ("fleet", "hidden", "resumed_from")
        return {name: value for name, value in asdict(self).items() if value or name not in later}


# What a fleet's episodes draw unless told otherwise: loads from idle to overload, prefill chunks of any size. Without
# scenarios it is that of the environment's arguments.
FLEET = FleetSettings(
    worlds=16,
    weights={"on_time": 0.3, "externality": 1.5},
    randomise={"devices": [8, 130], "prefill_chunk": [0.15, 1.2]},
)
FLEET_ARGUMENTS = ("scenario", "devices", "horizon_s", "randomise", "slo", "threads")

# With ppo and a2c one device of each world learns; the others follow WISP's rule, so that what it learns does not
# depend on its own past.
FOLLOWED = {"scenario": DEFAULT_SCENARIO, "controller": "wisp+fcfs", "ways": False}

# fleet: a trajectory is a round, undiscounted; large batches keep the two cores busy with arithmetic instead of calls,
# and tanh would take most of a decision's time in the engine. The one environment gives the spaces alone. ppo, a2c:
# steps are tokens. Within a round reward comes at its end, and rounds hardly influence each other, so the discount only
# has to reach over a round. A discount nearer to 1 lets the agent lower its own average rate, against which time is
# charged, and learning collapses (seen at 0.995).
ALGORITHMS = {
    "fleet": Settings(
        "fleet", n_timesteps=2_500_000, n_envs=1, env_kwargs={"scenario": DEFAULT_SCENARIO, "ways": False}, learning_rate=2e-3,
        activation="relu", fleet=FLEET, hyperparameters={
            "decisions": 65_536, "batch_size": 8192, "n_epochs": 4, "gamma": 1.0, "gae_lambda": 0.95, "ent_coef": 0.01,
        },
    ),
    "ppo": Settings("ppo", env_kwargs=FOLLOWED, hyperparameters={
        "n_steps": 64, "batch_size": 1024, "n_epochs": 4, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003,
    }),
    "a2c": Settings("a2c", env_kwargs=FOLLOWED, hyperparameters={
        "n_steps": 16, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003,
    }),
}  # fmt: skip

# The shipped policies again.
PRESETS: dict[str, dict[str, Any]] = {
    "speculation": {
        "n_timesteps": 12_000_000,
        "fleet": {
            "scenarios": ["wisp-study", "wisp-a100-qwen3-32b", "h100-qwen3-32b", "wisp-a100-llama-70b"], "worlds": 4,
            "varied": {
                "verification_time": [0.4, 1.6], "jitter": [0.0, 3.0], "separation": [0.3, 2.0],
                "draft_speed": [0.4, 2.5], "acceptance_logit": [-0.8, 0.8], "slo_speed": [0.5, 1.5],
                "price": [0.0, 0.2],
            },
        },
    },
}  # fmt: skip


def new_settings(
    algo: str = "fleet", *, n_timesteps: int | None = None, eval_freq: int | None = None, n_eval_envs: int = 8,
    env_kwargs: Mapping[str, Any] | None = None, fleet: Mapping[str, Any] | None = None, **changes: Any,
) -> Settings:  # fmt: skip
    """Settings of a new run: those of the algorithm, with what is given in their place.

    Args:
        eval_freq: default a twelfth of the decisions. n_eval_envs: validation worlds. env_kwargs: over those of the
            algorithm. fleet: fields of its FleetSettings. changes: other fields of Settings.

    Raises:
        InputError: an unknown algorithm or environment, or an argument that a fleet has no use for.
    """
    base, given = ALGORITHMS[one_of("argument --algo", algo, ALGORITHMS)], dict(env_kwargs or {})
    one_of("argument --env", changes.get("env", base.env), ENVIRONMENTS)
    total = n_timesteps or base.n_timesteps
    return replace(
        base, n_timesteps=total, eval_freq=total // 12 if eval_freq is None else eval_freq,
        env_kwargs={**base.env_kwargs, **given}, validation_seeds=[VALIDATION_SEED + k for k in range(n_eval_envs)],
        fleet=base.fleet and fleet_settings(given, replace(base.fleet, **(fleet or {}))), **changes,
    )  # fmt: skip


def fleet_settings(given: Mapping[str, Any], base: FleetSettings) -> FleetSettings:
    """A fleet as the environment's arguments want it, `base` where they say nothing.

    Raises:
        InputError: an argument that a fleet has no use for.
    """
    for name in given:
        if name not in FLEET_ARGUMENTS:
            words = f"{name} is not for --algo fleet, whose devices all learn; allowed: {', '.join(FLEET_ARGUMENTS)}"
            raise InputError(f"argument --env-kwargs: {words}")
    randomise = dict(given.get("randomise", base.randomise))
    if "devices" in given:
        randomise["devices"] = [given["devices"]] * 2
    scenarios = [] if "scenario" in given else list(base.scenarios)
    return replace(base, scenarios=scenarios, randomise=randomise, horizon_s=given.get("horizon_s", base.horizon_s))


def resumed_settings(run: Path, n_timesteps: int | None = None, eval_freq: int | None = None) -> Settings:
    """Settings with which a run goes on: its own, but for what is given here.

    Args:
        run: a run folder or one of its checkpoints.

    Raises:
        InputError: there is no such run, or its config.json is damaged.
    """
    values, config = run_folder.settings_of(run), run_folder.folder_of(run) / "config.json"
    place = f"{run_folder.RUN}: '{config}'"
    algo = one_of(f"{place}: algo", values.get("algo", ""), ALGORITHMS)
    one_of(f"{place}: env", values.get("env", ""), ENVIRONMENTS)
    run_folder.check_settings(config, values, new_settings(algo).as_json())
    for name, value in values["env_kwargs"].items():
        check_argument(place, name, value)
    scenario = str(config.with_name("scenario.toml"))  # as it was, whatever has become of the file that it came from
    own = read_as(Settings, values)
    return replace(
        own, n_timesteps=n_timesteps or own.n_timesteps, eval_freq=own.eval_freq if eval_freq is None else eval_freq,
        env_kwargs={**own.env_kwargs, "scenario": scenario}, resumed_from=str(run),
        fleet=read_as(FleetSettings, values["fleet"]) if algo == "fleet" else None,
    )  # fmt: skip


def read_as(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from a table of JSON; keys that it does not know are left out."""
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})  # type: ignore[arg-type]
