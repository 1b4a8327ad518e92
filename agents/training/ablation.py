"""What a learned speculation policy owes to what: training without one thing at a time, and a rule tuned with the same budget.

    python -m agents.training ablation --seeds 3 --out runs/ablation

Every variant is trained as `python train.py` trains by default, on the calibrated study, and meets the same held-out worlds at three
loads. The last variant trains no network: the cross-entropy method searches the four settings of the boundary-aligned price stop with as
many decisions of the engine. Files: ablation.json, ablation.txt, and each variant's policies.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tqdm import tqdm

from agents.training.learners import DECISIONS, default_settings, make_env, make_model, standardise
from agents.training.networks import engine_policy
from wisp_gym.cli import Parser, aligned, run, whole
from wisp_gym.controllers.catalogue import SPECULATION
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import goodput, run_all
from wisp_gym.evaluation.statistics import bootstrap_interval
from wisp_gym.files import write_json, write_text
from wisp_gym.scenario import Scenario, load, with_

PROGRAM = "python -m agents.training ablation"
SCENARIO = "wisp-study"
LOADS = (24, 64, 100)
HORIZON = {"warmup_s": 20.0, "measure_s": 60.0, "drain_s": 120.0}
REFERENCE = "wisp+fcfs"
TEST_SEEDS = range(1_000_000, 1_000_000 + 20)
TRAINING_SEED = 4_000_000  # of the worlds in which the rule is tuned, the first of them

# Entries of the observation (docs/guide/environments.md) that tell when a message would meet the server, and what the draft model says.
BOUNDARY = ["boundary_left", "draftable_tokens", "boundaries_missed", "server_busy", "info_age"]
STATISTICS = [
    "survival", "accept_probability", "confidence", "entropy", "margin", "logit_spread", "expected_tokens", "adapted_survival",
]  # fmt: skip
SELFISH = {"on_time": 0.3, "externality": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "as trained by default": {},
    "without boundary entries": {"hidden": BOUNDARY},
    "without draft statistics": {"hidden": STATISTICS},
    "selfish reward": {"fleet": {"weights": SELFISH}},
    "one load, no randomisation": {"fleet": {"randomise": {"devices": [64, 64]}}},
}
RULE = "aligned rule, CEM with the same budget"
POPULATION, ELITE = 12, 4


def test_scenarios() -> list[Scenario]:
    """The study at the loads of the test."""
    return [with_(load(SCENARIO), n_devices=n, horizon=HORIZON) for n in LOADS]


def train_variant(changes: dict[str, Any], seed: int, decisions: int, path: Path, bar: tqdm[Any]) -> str:
    """Train one variant and save its policy; returns the controller's name."""
    settings = default_settings(seed, decisions, **changes.get("fleet", {}))
    settings["env_kwargs"]["scenario"] = SCENARIO
    settings["hidden"] = changes.get("hidden", [])
    env = make_env(settings)
    model = make_model(settings, env, "cpu")
    standardise(model, env, seed)
    model.learn(decisions, callback=lambda *_: bar.update(settings["hyperparameters"]["decisions"]) is None)
    save_policy(engine_policy(model.policy, "token"), path)
    return f"{path}+fcfs"


# --- the rule, tuned -------------------------------------------------------------------------------------------------


def training_goodput(name: str, seed: int) -> tuple[float, int]:
    """Mean over the loads of goodput over that of the reference, in one world each; decisions that it took."""
    total, decisions = 0.0, 0
    for scenario in test_scenarios():
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
    mean, std = (low + high) / 2.0, (high - low) / 3.0
    left, world, best = decisions, TRAINING_SEED + 1000 * seed, mean
    while left > 0:
        tried = np.clip(rng.normal(mean, std, (POPULATION, len(low))), low, high)
        scores = []
        for values in tried:
            score, used = training_goodput(rule_name(values), world)
            scores.append(score)
            left -= used
        elite = tried[np.argsort(scores)[-ELITE:]]
        mean, std, best, world = (
            elite.mean(axis=0),
            elite.std(axis=0) + 0.02 * (high - low),
            elite.mean(axis=0),
            world + 1,
        )
    return rule_name(best)


def rule_name(values: np.ndarray) -> str:
    """Name of the boundary-aligned rule with these settings."""
    return f"aligned:{','.join(f'{value:.4f}' for value in values)}+fcfs"


# --- the table -------------------------------------------------------------------------------------------------------


def gains(names: Sequence[str], bar: tqdm[Any]) -> np.ndarray:
    """(names, loads, worlds) goodput over that of the reference in the same world."""
    result = []
    for scenario in test_scenarios():
        controllers = [resolve(name, scenario) for name in (*names, REFERENCE)]
        outcomes = run_all(scenario, controllers, TEST_SEEDS, bar=bar)
        each = np.array([goodput(own) for own in outcomes])
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
    return found | {
        "gain_percent": float(by_seed.mean()),
        "seed_low": float(by_seed.min()),
        "seed_high": float(by_seed.max()),
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The printed table."""
    header = [
        ["variant", *(f"{n} devices" for n in LOADS), "mean", "over seeds"],
        ["", *["% [95 %]"] * len(LOADS), "%", "%"],
    ]
    lines = [
        [
            r["variant"],
            *(f"{r[f'gain_{n}_percent']:+.1f} [{r[f'gain_{n}_low']:+.1f}, {r[f'gain_{n}_high']:+.1f}]" for n in LOADS),
            f"{r['gain_percent']:+.2f}", f"{r['seed_low']:+.2f} to {r['seed_high']:+.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    return (
        f"goodput over that of {REFERENCE}, {SCENARIO}, {len(TEST_SEEDS)} held-out worlds\n\n{aligned(header, lines)}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--seeds", type=whole(1, 100), default=3, metavar="N", help="training seeds of each variant (default 3)")
    add(
        "-n",
        "--n-timesteps",
        type=whole(1, 10**9),
        default=DECISIONS["fleet"],
        metavar="N",
        help="decisions of each training",
    )
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="new folder (default runs/ablation)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant, test all, print."""
    given = parse(arguments)
    torch.set_num_threads(1)
    try:
        given.out.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"argument --out: cannot make '{given.out}': {error.strerror}; allowed is a new folder"
        ) from None
    names: dict[str, list[str]] = {}
    total = (len(VARIANTS) + 1) * given.seeds * given.n_timesteps
    with tqdm(total=total, unit=" decisions", unit_scale=True, disable=None, leave=False) as bar:
        for k, (variant, changes) in enumerate(VARIANTS.items()):
            paths = [given.out / f"variant-{k}-seed-{seed}.json" for seed in range(given.seeds)]
            names[variant] = [
                train_variant(changes, seed, given.n_timesteps, path, bar) for seed, path in enumerate(paths)
            ]
        names[RULE] = [tune_rule(seed, given.n_timesteps) for seed in range(given.seeds)]
    flat = [name for each in names.values() for name in each]
    with tqdm(total=len(LOADS) * (len(flat) + 1) * len(TEST_SEEDS), unit=" worlds", disable=None, leave=False) as bar:
        each = gains(flat, bar).reshape(len(names), given.seeds, len(LOADS), len(TEST_SEEDS))
    rows = [row(variant, found) for variant, found in zip(names, each, strict=True)]
    write_json(given.out / "ablation.json", [r | {"controllers": names[r["variant"]]} for r in rows])
    write_text(given.out / "ablation.txt", show(rows) + "\n")
    print(show(rows))


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
