"""What is reached where every decision of every device is tried both ways ahead: one step of policy improvement.

    python -m agents.branching rollout --controllers speculation-v1+fcfs --devices 64 --seeds 6

At each decision (send, or draft one more token) the running world is branched in pairs under fresh draws: the device does the one in
one copy and the other in the other, and from then on the base controller decides for everybody. The action whose fleet is worth more
after `--horizon` seconds is taken (tokens on time, and rounds under way at their device's rate). Pairs are added until the difference
stands `--certain` standard errors off zero, or there are `--draws` of them; where it is within one, the base's own action is taken.
So it knows the model and not the future, and what it reaches can be reached: Bertsekas' rollout algorithm (Rollout, Policy Iteration,
and Distributed Reinforcement Learning, 2020), for all devices one after another.

Worlds are of `--seconds` after a warm-up of 10: a decision takes some milliseconds, and a fleet of 64 takes two thousand a second.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agents.branching.paired import GOODPUT, paired_cells, paired_row
from agents.branching.place import DRAFT, SEND, both_ways
from wisp_gym import cli
from wisp_gym.cli import aligned
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.run import AS_RULED
from wisp_gym.engine.worlds import world_of
from wisp_gym.evaluation.arguments import add_comparison
from wisp_gym.evaluation.comparison_tables import slo_words
from wisp_gym.evaluation.outcomes import Row, chosen_controllers, chosen_scenario, run_all
from wisp_gym.evaluation.pool import Threads
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, with_

PROGRAM = "python -m agents.branching rollout"
CONTROLLERS = ("wisp+wisp", "aligned+fcfs", "speculation-v1+fcfs", "perfect+fcfs")
DEFAULT_SEEDS = 6
PAIRS = 8  # that are added at once
WARMUP_S, DRAIN_S = 10.0, 5.0
SEEDS_PER_WORLD = 10**12


class Played(NamedTuple):
    """A world: goodput in tokens/s; decisions, and those that were not left to the base."""

    goodput: float
    decisions: int
    decided: int


@dataclass(frozen=True)
class Rollout:
    """A controller that tries both ways.

    Attributes:
        base: who decides after. draws: pairs at most. horizon_s: looked ahead. certain: standard errors at which no more pairs are added.
    """

    scenario: Scenario
    base: Controller
    draws: int = 32
    horizon_s: float = 0.3
    certain: float = 3.0

    def play(self, seed: int) -> Played:
        """One world."""
        world = InTurn(world_of(self.scenario, self.base, seed))
        copies, decisions, decided = Branches(world.worlds, 2 * PAIRS, threads=1), 0, 0
        arrays = world.worlds.arrays
        end_s = float(arrays.config["window_end_s"][0, 0])
        while world.kind != DONE and arrays.server["now_s"][0, 0] < end_s:
            action = self.better(world, copies, SEEDS_PER_WORLD * seed + self.draws * decisions)
            world.act(action)
            decisions += 1
            decided += action != AS_RULED
        return Played(
            float(arrays.totals["tokens_on_time"][0, 0]) / self.scenario.horizon.measure_s, decisions, decided
        )

    def better(self, world: InTurn, copies: Branches, seed: int) -> int:
        """The better action at the decision that a world waits for, AS_RULED where that is within chance."""
        apart = np.zeros(0)
        while len(apart) < self.draws:
            sent, drafted = both_ways(world, copies, seed + len(apart) + np.arange(PAIRS), [self.horizon_s])
            apart = np.append(apart, drafted - sent)
            error = apart.std(ddof=1) / len(apart) ** 0.5
            if abs(apart.mean()) > self.certain * error:
                break
        if abs(apart.mean()) <= error:
            return AS_RULED
        return DRAFT if apart.mean() > 0.0 else SEND


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_comparison(parser, DEFAULT_SEEDS, CONTROLLERS)
    add = parser.add_argument
    add("--base", default="speculation-v1+fcfs", metavar="NAME", help="who decides after (default %(default)s)")
    add("--devices", type=cli.whole(1, 100_000), metavar="N", help="number of devices (default: the scenario's)")
    add("--seconds", type=cli.positive(1e5), default=30.0, metavar="S", help="measured in each world (default 30)")
    add("--draws", type=cli.whole(2, 10_000), default=32, metavar="N", help="pairs at a decision, at most (default 32)")
    add("--horizon", type=cli.positive(1e4), default=0.3, metavar="S", help="seconds looked ahead (default 0.3)")
    add("--certain", type=cli.positive(100), default=3.0, metavar="Z", help="standard errors that end it (default 3)")
    return parser.parse_args(arguments)


def show(rows: Sequence[Row]) -> str:
    """The table."""
    headers = [["controller", "goodput", "", "against the base", ""], ["", "tokens/s", "95 %", "tokens/s", "95 %"]]
    return aligned(headers, [paired_cells(row) for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the base, the rollout of it and the controllers beside them, write where asked, and print."""
    given = parse(arguments)
    cli.refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv})
    horizon = {"horizon.warmup_s": WARMUP_S, "horizon.measure_s": given.seconds, "horizon.drain_s": DRAIN_S}
    scenario = with_(chosen_scenario(given.scenario, given.devices, given.slo), **horizon)
    base = resolve(given.base, scenario)
    controllers = {base.name: base} | chosen_controllers(given.controllers, scenario)
    rollout = Rollout(scenario, base, given.draws, given.horizon, given.certain)
    with cli.progress((len(controllers) + 1) * len(given.seeds)) as bar:
        alone = run_all(scenario, list(controllers.values()), given.seeds, bar=bar)
        plays = []
        for played in Threads().map(rollout.play, [(seed,) for seed in given.seeds]):
            plays.append(played)
            bar.update()
    goodput = {f"rollout of {base.name}": [played.goodput for played in plays]}
    goodput |= {name: [one.metrics[GOODPUT] for one in own] for name, own in zip(controllers, alone, strict=True)}
    rows = [paired_row(name, each, goodput[base.name]) for name, each in goodput.items()]
    cli.write_rows(rows, given.json, given.csv)
    decisions, decided = (sum(getattr(played, name) for played in plays) for name in ("decisions", "decided"))
    print(f"{scenario.name}: {scenario.n_devices} devices, {slo_words(given.slo)}, {len(plays)} paired worlds of {given.seconds:g} s;\n"
          f"{given.horizon:g} s ahead, at most {given.draws} pairs; {decisions:,} decisions, "
          f"{100.0 * decided / max(decisions, 1):.0f} % of them clear\n")  # fmt: skip
    print(show(rows))
