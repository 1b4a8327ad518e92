"""What a learned policy owes to what: training without one thing at a time, and a rule tuned with the same budget.

    python -m agents.training ablation --seeds 3 --out runs/ablation

Every variant is trained as `python train.py` trains by default, on the calibrated study, and meets the same held-out
worlds at three loads. The last variant trains no network: the cross-entropy method searches the four settings of the
boundary-aligned price stop with as many decisions of the engine. Files: ablation.json, ablation.txt, and each variant's
policies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training.arguments import flag, parse
from agents.training.learners import make_env, make_model
from agents.training.networks import engine_policy
from agents.training.settings import ALGORITHMS, new_settings
from wisp_gym.cli import Bar, aligned, progress, whole
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import goodput, run_all
from wisp_gym.evaluation.statistics import bootstrap_interval
from wisp_gym.files import write_json, write_text
from wisp_gym.interrupts import leaves
from wisp_gym.rules.catalogue import SPECULATION
from wisp_gym.scenario import Scenario, load, with_

PROGRAM = "python -m agents.training ablation"
SCENARIO = "wisp-study"
LOADS = (24, 64, 100)
HORIZON = {"warmup_s": 20.0, "measure_s": 60.0, "drain_s": 120.0}
REFERENCE = "wisp+fcfs"
TEST_SEEDS = range(1_000_000, 1_000_000 + 20)
TRAINING_SEED = 4_000_000  # of the worlds in which the rule is tuned, the first of them

# Entries of the observation (docs/guide/environments.md) that tell when a message would meet the server, and what the
# draft model says.
BOUNDARY = ["boundary_left", "draftable_tokens", "boundaries_missed", "server_busy", "info_age"]
STATISTICS = [
    "survival", "accept_probability", "confidence", "entropy", "margin", "logit_spread", "expected_tokens",
    "adapted_survival",
]  # fmt: skip
SELFISH = {"on_time": 0.3, "externality": 0.0}


@dataclass(frozen=True)
class Variant:
    """What differs from the default: entries hidden from the network by name, and fields of FleetSettings."""

    hidden: list[str] = field(default_factory=list)
    fleet: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "as trained by default": Variant(),
    "without boundary entries": Variant(hidden=BOUNDARY),
    "without draft statistics": Variant(hidden=STATISTICS),
    "selfish reward": Variant(fleet={"weights": SELFISH}),
    "one load, no randomisation": Variant(fleet={"randomise": {"devices": [64, 64]}}),
}
RULE = "aligned rule, CEM with the same budget"
POPULATION, ELITE = 12, 4


def scenarios_at(loads: Sequence[int]) -> list[Scenario]:
    """The study at the loads of the test."""
    return [with_(load(SCENARIO), n_devices=n, horizon=HORIZON) for n in loads]


def train_variant(variant: Variant, seed: int, decisions: int, path: Path, bar: Bar) -> str:
    """Train one variant and save its policy at `path`; returns the controller's name. `bar` counts decisions."""
    env_kwargs = {"scenario": SCENARIO}
    base = new_settings(n_timesteps=decisions, seed=seed, env_kwargs=env_kwargs, fleet=variant.fleet)
    settings = replace(base, hidden=variant.hidden)
    model = make_model(settings, make_env(settings))
    model.learn(decisions, callback=lambda *_: bar.update(settings.hyperparameters["decisions"]) is None)
    save_policy(engine_policy(model.policy, "token"), path)
    return f"{path}+fcfs"


# --- the rule, tuned -------------------------------------------------------------------------------------------------


def training_goodput(name: str, seed: int) -> tuple[float, int]:
    """Mean over the loads of goodput over that of the reference, in one world each; decisions that it took."""
    total, decisions = 0.0, 0
    for scenario in scenarios_at(LOADS):
        delivered = []
        for controller in (name, REFERENCE):
            worlds = Worlds(1, scenario.n_devices, threads=1)
            worlds.fill(0, scenario, seed, resolve(controller, scenario))
            worlds.run(early=True)
            totals = worlds.arrays.totals[0, 0]
            delivered.append(int(totals["tokens_on_time"]))
            decisions += int(totals["decisions"]) if controller == name else 0
        total += delivered[0] / delivered[1]
    return total / len(LOADS), decisions


def tune_rule(seed: int, decisions: int) -> str:
    """The boundary-aligned rule with the settings that the cross-entropy method finds with so many decisions."""
    ranges = [setting.tune for setting in SPECULATION["aligned"].settings if setting.tune]
    low, high = np.array(ranges).T
    rng = np.random.default_rng(seed)
    mean, std, left, world = (low + high) / 2.0, (high - low) / 3.0, decisions, TRAINING_SEED + 1000 * seed
    while left > 0:
        tried = np.clip(rng.normal(mean, std, (POPULATION, len(low))), low, high)
        scores, used = zip(*(training_goodput(rule_name(values), world) for values in tried), strict=True)
        elite = tried[np.argsort(scores)[-ELITE:]]
        mean, std = elite.mean(axis=0), elite.std(axis=0) + 0.02 * (high - low)
        left, world = left - sum(used), world + 1
    return rule_name(mean)


def rule_name(values: np.ndarray) -> str:
    """Name of the boundary-aligned rule with these settings."""
    return f"aligned:{','.join(f'{value:.4f}' for value in values)}+fcfs"


# --- the table -------------------------------------------------------------------------------------------------------


def gains(names: Sequence[str], bar: Bar, loads: Sequence[int] = LOADS) -> np.ndarray:
    """(names, loads, worlds) goodput over that of the reference in the same world."""
    result = []
    for scenario in scenarios_at(loads):
        controllers = [resolve(name, scenario) for name in (*names, REFERENCE)]
        each = np.array([goodput(own) for own in run_all(scenario, controllers, TEST_SEEDS, bar=bar)])
        result.append(each[:-1] / each[-1])
    return np.stack(result, axis=1)


def row(variant: str, each: np.ndarray) -> dict[str, Any]:
    """Mean gain at each load with its interval over worlds, and the least and largest mean over training seeds."""
    found: dict[str, Any] = {"variant": variant, "seeds": len(each)}
    for k, n in enumerate(LOADS):
        worlds = 100.0 * (each[:, k].mean(axis=0) - 1.0)
        low, high = bootstrap_interval(list(worlds))
        found[f"gain_{n}_percent"], found[f"gain_{n}_low"], found[f"gain_{n}_high"] = float(worlds.mean()), low, high
    by_seed = 100.0 * (each.mean(axis=(1, 2)) - 1.0)
    of_seeds = {"gain_percent": by_seed.mean(), "seed_low": by_seed.min(), "seed_high": by_seed.max()}
    return found | {name: float(value) for name, value in of_seeds.items()}


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The printed table."""
    head = ["variant", *(f"{n} devices" for n in LOADS), "mean", "over seeds"]
    units = ["", *["% [95 %]"] * len(LOADS), "%", "%"]
    lines = [
        [
            r["variant"],
            *(f"{r[f'gain_{n}_percent']:+.1f} [{r[f'gain_{n}_low']:+.1f}, {r[f'gain_{n}_high']:+.1f}]" for n in LOADS),
            f"{r['gain_percent']:+.2f}", f"{r['seed_low']:+.2f} to {r['seed_high']:+.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    what = f"goodput over that of {REFERENCE}, {SCENARIO}, {len(TEST_SEEDS)} held-out worlds"
    return f"{what}\n\n{aligned([head, units], lines)}"


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    seeds: int = flag(3, "training seeds of each variant", of=whole(1, 100), metavar="N")
    n_timesteps: int = flag(
        ALGORITHMS["fleet"].n_timesteps, "decisions of each training", "-n", of=whole(1, 10**9), metavar="N"
    )
    out: Path = flag(Path("runs/ablation"), "new folder", metavar="DIR")


def contestants(seeds: int, decisions: int, out: Path) -> dict[str, list[str]]:
    """Train every variant with every seed, and tune the rule; variant → its controllers' names."""
    names: dict[str, list[str]] = {}
    with progress((len(VARIANTS) + 1) * seeds * decisions, " decisions", unit_scale=True) as bar:
        for k, (name, variant) in enumerate(VARIANTS.items()):
            paths = [out / f"variant-{k}-seed-{seed}.json" for seed in range(seeds)]
            names[name] = [train_variant(variant, seed, decisions, path, bar) for seed, path in enumerate(paths)]
        names[RULE] = [tune_rule(seed, decisions) for seed in range(seeds)]
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant, test all, print."""
    args, _ = parse(Arguments, PROGRAM, __doc__, arguments)
    torch.set_num_threads(1)
    make_folder(args.out)
    with leaves(f"the policies so far are in {args.out}; a new folder begins again"):
        rows = measured(args)
    write_text(args.out / "ablation.txt", show(rows) + "\n")
    print(show(rows))


def make_folder(out: Path) -> None:
    """Make a new folder.

    Raises:
        InputError: it is there, or cannot be made.
    """
    try:
        out.mkdir(parents=True)
    except OSError as error:
        words = f"argument --out: cannot make '{out}': {error.strerror}; allowed is a new folder"
        raise InputError(words) from None


def measured(args: Arguments) -> list[dict[str, Any]]:
    """Train every variant and test all; the rows, which are written."""
    names = contestants(args.seeds, args.n_timesteps, args.out)
    flat = [name for each in names.values() for name in each]
    with progress(len(LOADS) * (len(flat) + 1) * len(TEST_SEEDS), " worlds") as bar:
        each = gains(flat, bar).reshape(len(names), args.seeds, len(LOADS), len(TEST_SEEDS))
    rows = [row(variant, found) for variant, found in zip(names, each, strict=True)]
    write_json(args.out / "ablation.json", [r | {"controllers": names[r["variant"]]} for r in rows])
    return rows
