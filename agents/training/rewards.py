"""What a fleet learns where its reward reckons otherwise with the others, and with deadlines.

    python -m agents.training rewards --rewards 1.5:0,1.5:2 --seeds 3 --out runs/rewards

Every FACTOR:PRESSURE, or FACTOR:PRESSURE:DEADLINES with a weight of what branches say that time is worth at a slack, is
trained as `ablation` trains, and meets the same held-out worlds at four loads, beside the first. `python -m
agents.branching server-time` and `urgency` measure what they should be. Files: rewards.json, rewards.txt, the policies.
"""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training.ablation import SCENARIO, TEST_SEEDS, Variant, gains, make_folder, train_variant
from agents.training.arguments import flag, parse
from agents.training.settings import ALGORITHMS, FLEET
from wisp_gym.cli import aligned, between, interval_cell, progress, whole
from wisp_gym.evaluation.statistics import bootstrap_interval
from wisp_gym.files import write_json, write_text
from wisp_gym.interrupts import leaves

PROGRAM = "python -m agents.training rewards"
LOADS = (24, 64, 100, 128)
NAMES = ("externality", "pressure", "deadlines")
Reward = tuple[float, float, float]  # weights of these names


def rewards(text: str) -> tuple[Reward, ...]:
    """Type of `--rewards`: FACTOR:PRESSURE or FACTOR:PRESSURE:DEADLINES, from 0 to 100, with commas between them.

    Raises:
        ArgumentTypeError: other words.
    """
    return tuple(map(reward_of, text.split(",")))


def reward_of(text: str) -> Reward:
    """One of them."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3:
        words = "FACTOR:PRESSURE and FACTOR:PRESSURE:DEADLINES with commas between them, such as 1.5:0,1.2:2"
        raise ArgumentTypeError(f"given '{text}', allowed are {words}")
    factor, pressure, deadlines = map(between(0.0, 100.0), [*parts, "0"][:3])
    return factor, pressure, deadlines


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    rewards: tuple[Reward, ...] = flag(
        ((1.5, 0.0, 0.0), (1.2, 0.0, 0.0)), "others are held against the first (default 1.5:0,1.2:0)", of=rewards,
        metavar="FACTOR:PRESSURE[:DEADLINES],...",
    )  # fmt: skip
    seeds: int = flag(3, "training seeds of each", of=whole(1, 100), metavar="N")
    n_timesteps: int = flag(
        ALGORITHMS["fleet"].n_timesteps, "decisions of each training", "-n", of=whole(1, 10**9), metavar="N"
    )
    out: Path = flag(Path("runs/rewards"), "new folder", metavar="DIR")


def variant(reward: Reward) -> Variant:
    """A training with another reward."""
    return Variant(fleet={"weights": {**FLEET.weights, **dict(zip(NAMES, reward, strict=True))}})


def row(reward: Reward, mine: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Mean over seeds of what it has more than the first, in %, by load with its interval over worlds, and by seed.

    Args:
        mine, first: (seeds, loads, worlds) goodput over that of the reference.
    """
    found: dict[str, Any] = {**dict(zip(NAMES, reward, strict=True)), "seeds": len(mine)}
    more = 100.0 * (mine / first.mean(axis=0) - 1.0)
    for k, n in enumerate(LOADS):
        low, high = bootstrap_interval(list(more[:, k].mean(axis=0)))
        found |= {f"more_{n}_percent": float(more[:, k].mean()), f"more_{n}_low": low, f"more_{n}_high": high}
        found |= {f"seeds_{n}_percent": [float(one) for one in more[:, k].mean(axis=1)]}
    by_seed = more.mean(axis=(1, 2))
    of_seeds = {"more_percent": by_seed.mean(), "seed_low": by_seed.min(), "seed_high": by_seed.max()}
    return found | {name: float(value) for name, value in of_seeds.items()}


def at_load(row: dict[str, Any], n: int) -> str:
    """Cell of a load."""
    ends = interval_cell(row[f"more_{n}_low"], row[f"more_{n}_high"], 2)
    return f"{row[f'more_{n}_percent']:+.2f} {ends}"


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The printed table."""
    head = [*NAMES, *(f"{n} devices" for n in LOADS), "mean", "over seeds"]
    lines = [
        [
            *(f"{r[name]:g}" for name in NAMES),
            *(at_load(r, n) for n in LOADS),
            *(f"{r['more_percent']:+.2f}", f"{r['seed_low']:+.2f} to {r['seed_high']:+.2f}"),
        ]
        for r in rows
    ]
    what = f"goodput over that of the first, {SCENARIO}, {len(TEST_SEEDS)} held-out worlds"
    return f"{what}\n\n{aligned([head, ['', '', '', *['% [95 %]'] * len(LOADS), '%', '%']], lines)}"


def measured(args: Arguments) -> list[dict[str, Any]]:
    """Train every reward with every seed and test all; the rows, which are written."""
    names, total = list[str](), len(args.rewards) * args.seeds
    with progress(total * args.n_timesteps, " decisions", unit_scale=True) as bar:
        for reward in args.rewards:
            stem = "-".join(f"{name}-{value:g}" for name, value in zip(NAMES, reward, strict=True))
            paths = [args.out / f"{stem}-seed-{k}.json" for k in range(args.seeds)]
            names += [train_variant(variant(reward), k, args.n_timesteps, path, bar) for k, path in enumerate(paths)]
    with progress(len(LOADS) * (total + 1) * len(TEST_SEEDS), " worlds") as bar:
        each = gains(names, bar, LOADS).reshape(len(args.rewards), args.seeds, len(LOADS), -1)
    rows = [row(reward, mine, each[0]) for reward, mine in zip(args.rewards, each, strict=True)]
    write_json(args.out / "rewards.json", rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test, print."""
    args, _ = parse(Arguments, PROGRAM, __doc__, arguments)
    torch.set_num_threads(1)
    make_folder(args.out)
    with leaves(f"the policies so far are in {args.out}; a new folder begins again"):
        rows = measured(args)
    write_text(args.out / "rewards.txt", show(rows) + "\n")
    print(show(rows))
