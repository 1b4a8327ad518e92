"""Is a learned policy where it should be? What its outputs say of a further token, beside what branches say.

    python -m agents.branching margins --base speculation-v1+fcfs

Worlds are played under the policy, and of a share of its decisions branches say what one more token is worth to the whole fleet
(`agents.branching.improve`). The decisions are put in order of the policy's margin, its output for drafting less that for sending,
and parted into groups of one size. A policy that is locally optimal drafts (positive margin) exactly where the effect is positive.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agents.branching.improve import Labelling, Labels, label_world
from agents.branching.margin import margins_of
from wisp_gym import cli
from wisp_gym.cli import aligned
from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads
from wisp_gym.scenario import DEFAULT_SCENARIO

PROGRAM = "python -m agents.branching margins"


@dataclass(frozen=True)
class Group:
    """Decisions of like margins.

    Attributes:
        low, high: margins. decisions: how many. effect, error: mean tokens that one more was worth, and its standard error.
    """

    low: float
    high: float
    decisions: int
    effect: float
    error: float


def grouped(margin: np.ndarray, effects: np.ndarray, groups: int) -> list[Group]:
    """Groups of one size, by margin."""
    parts = np.array_split(np.argsort(margin, kind="stable"), groups)
    return [
        Group(float(margin[part[0]]), float(margin[part[-1]]), len(part), float(effects[part].mean()),
              float(effects[part].std(ddof=1) / len(part) ** 0.5))
        for part in parts
    ]  # fmt: skip


def decided(policy: Policy, labels: Labels) -> str:
    """One line: what the policy's choices are worth."""
    drafts = margins_of(policy, labels.observations) > 0.0
    gain, most = np.where(drafts, labels.effects, 0.0).mean(), labels.effects.mean()
    return (f"{len(drafts):,} decisions, {100 * drafts.mean():.0f} % of them to draft; "
            f"a decision is worth {gain:.3f} tokens more than always sending, {gain - most:.3f} more than always drafting")  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--base",
        default="speculation-v1+fcfs",
        metavar="NAME",
        help="a policy that decides token by token, and a batching rule",
    )
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    add("--devices", type=cli.whole(1, 100_000), default=64, metavar="N", help="population (default 64)")
    add("--worlds", type=cli.whole(1, 100_000), default=32, metavar="N", help="(default 32)")
    add("--seconds", type=cli.positive(1e5), default=20.0, metavar="S", help="of each (default 20)")
    add(
        "--share",
        type=cli.between(0, 1),
        default=0.05,
        metavar="P",
        help="of decisions that are branched at (default 0.05)",
    )
    add("--pairs", type=cli.whole(1, 1000), default=4, metavar="N", help="of branches at each (default 4)")
    add("--horizon", type=cli.positive(1e4), default=0.5, metavar="S", help="seconds looked ahead (default 0.5)")
    add("--groups", type=cli.whole(2, 1000), default=10, metavar="N", help="(default 10)")
    add("--json", type=cli.output_file(), metavar="FILE", help="write the groups as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, branch, group, and print."""
    given = parse(arguments)
    scenario = chosen_scenario(given.scenario, given.devices)
    base, policy = resolve(given.base, scenario), load_policy(given.base.split("+", 1)[0])
    if policy.decision != "token":
        raise InputError(
            f"--base {given.base}: decides by '{policy.decision}', allowed is a policy that decides by 'token'"
        )
    how, found = Labelling(given.seconds, given.share, 0.0, given.pairs, given.horizon), list[Labels]()
    with cli.progress(given.worlds) as bar:
        for labels in Threads().map(label_world, [(scenario, base, seed, how) for seed in range(given.worlds)]):
            found.append(labels)
            bar.update()
    every = Labels(*map(np.concatenate, zip(*found, strict=True)))
    groups = grouped(margins_of(policy, every.observations), every.effects, given.groups)
    cli.write_rows([asdict(group) for group in groups], given.json)
    lines = [[f"{g.low:.2f} to {g.high:.2f}", f"{g.decisions:,}", f"{g.effect:+.3f}", f"{g.error:.3f}"] for g in groups]
    print(f"{given.base}, {scenario.name}, {given.devices} devices: {decided(policy, every)}\n")
    print(
        aligned(
            [["margin", "decisions", "one more token is worth", "standard error"], ["", "", "tokens of the fleet", ""]],
            lines,
        )
    )
