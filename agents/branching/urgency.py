"""How much more a device's time is worth where it is behind its deadlines: the fleet's pressure, measured.

    python -m agents.branching urgency --scenario wisp-study --worlds 100

Training pays a device (`agents.training.fleet`) (1 + pressure·urgency) times what it gets over its own rate ρ, with an
urgency `1/(1 + e^(slack/4))` of its slack in tokens. So to be Δ seconds later costs it (1 + pressure·urgency)·ρ·Δ. At
decisions of running worlds a device is made `--later` seconds later in one copy of each pair, under the same draws;
then their own controller decides for everybody. Its own tokens on time that are lost until the horizon, later requests
included, are fitted by least squares over all decisions:

    lost = Δ·ρ·(a + b·urgency),    pressure = b/a

The table shows lost/(Δ·ρ) for slacks, beside it that of all tokens, late or not.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product

import numpy as np

from agents.branching.clusters import Interval, cells, pressure, ratio
from agents.branching.flags import add_horizons, add_places
from agents.branching.place import at_decisions
from agents.training.fleet import SLACK_TOKENS
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.contract.device import SLACK
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.engine.run import AS_RULED
from wisp_gym.engine.state import SLO_CLASSES
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching urgency"
CONTROLLERS = ("speculation-v1+fcfs",)
OWN = SLO_CLASSES - 1  # row of measures that the device has for itself: a service class that no other device is in
# Bounds of the table's groups, in tokens; what is observed ends at 20.
SLACKS = (-np.inf, -12.0, 4.0, 12.0, 20.0, np.inf)


@dataclass(frozen=True)
class Delay:
    """Of one decision: what a second's delay costs, in tokens/s, means over draws.

    Attributes:
        devices: population. world: number. horizon_s: looked ahead. slack: of the device, in tokens. rate: its own, tokens/s.
        on_time, tokens: its own that are lost. fleet: lost on time by all.
    """

    devices: int
    world: int
    horizon_s: float
    slack: float
    rate: float
    on_time: float
    tokens: float
    fleet: float

    @property
    def urgency(self) -> float:
        """As training takes it."""
        return float(1.0 / (1.0 + np.exp(self.slack / SLACK_TOKENS)))


def delays_at(
    world: InTurn, number: int, copies: Branches, seeds: np.ndarray, later_s: float, horizons_s: Sequence[float]
) -> list[Delay]:
    """What a delay costs at the decision that a world waits for, until each horizon."""
    i, source, found = world.device, world.worlds.arrays, []
    d, seen = source.device[0, i], source.observation[0, min(i, source.observation.shape[1] - 1)]
    copies.take(0, world.kind)
    copies.afresh(np.repeat(seeds, 2))
    arrays = copies.worlds.arrays
    arrays.device["slo_id"][:, i] = OWN
    arrays.device["clock_s"][1::2, i] += later_s
    copies.act(np.full(copies.n, AS_RULED))
    for horizon_s, _ in zip(horizons_s, copies.run_on(horizons_s), strict=True):
        own, all_on_time = arrays.slo_totals[:, OWN], arrays.totals["tokens_on_time"][:, 0]
        losses = (own["tokens_on_time"], own["tokens"], all_on_time)
        means = [float((tokens[::2] - tokens[1::2]).mean() / later_s) for tokens in losses]
        known = (float(seen[SLACK]), float(d["token_sum"] / d["time_sum_s"]))
        found.append(Delay(source.device.shape[1], number, horizon_s, *known, *means))
    return found


def delays_of(
    scenario: Scenario,
    controller: Controller,
    number: int,
    places: int,
    draws: int,
    later_s: float,
    horizons_s: Sequence[float],
) -> list[Delay]:
    """What a delay costs at decisions of one world."""
    found, copies = list[Delay](), None
    for place, world in enumerate(at_decisions(scenario, controller, number, places)):
        copies = copies or Branches(world.worlds, 2 * draws, threads=1)
        seeds = draws * (places * number + place) + np.arange(draws)
        found += delays_at(world, number, copies, seeds, later_s, horizons_s)
    return found


def worlds_of(found: Sequence[Delay]) -> np.ndarray:
    """(N,) number of each delay's world among those of all loads."""
    return np.unique([(one.devices, one.world) for one in found], axis=0, return_inverse=True)[1].ravel()


def fitted(found: Sequence[Delay]) -> tuple[Interval, Interval]:
    """Least squares over decisions, with intervals over worlds: a, and the pressure."""
    of_world = worlds_of(found)
    x = np.array([(one.rate, one.rate * one.urgency) for one in found])
    y, n = np.array([one.on_time for one in found]), of_world.max() + 1
    gram, moments = np.zeros((n, 2, 2)), np.zeros((n, 2))
    np.add.at(gram, of_world, x[:, :, None] * x[:, None, :])
    np.add.at(moments, of_world, x * y[:, None])
    return pressure(gram, moments)


def worth(found: Sequence[Delay], name: str) -> Interval:
    """What is lost over what the device's own rate says, with its interval over worlds."""
    return ratio(*(np.bincount(worlds_of(found), [getattr(one, of) for one in found]) for of in (name, "rate")))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add_places(parser, [16, 64, 100], worlds=20, places=10, draws=8)
    add_horizons(parser, [5.0, 20.0])
    words = "that the device is later (default 0.1)"
    parser.add_argument("--later", type=cli.positive(10.0), default=0.1, metavar="S", help=words)
    return parser.parse_args(arguments)


def groups(found: Sequence[Delay]) -> list[list[str]]:
    """A line for each group of slacks that has decisions in two worlds or more."""
    lines = []
    for low, high in pairwise(SLACKS):
        inside = [one for one in found if low <= one.slack < high]
        if inside and worlds_of(inside).max() > 0:
            three = [worth(inside, name) for name in ("on_time", "tokens", "fleet")]
            lines.append([f"{low:g} to {high:g}", cell(100.0 * len(inside) / len(found), 1), *cells(*three)])
    return lines


def branched(given: argparse.Namespace, name: str, n: int, bar: cli.Bar) -> list[Delay]:
    """What delays cost under one controller at one load."""
    scenario, found = chosen_scenario(given.scenario, n), list[Delay]()
    how, what = (scenario, resolve(name, scenario)), (given.places, given.draws, given.later, given.horizons)
    for each in Threads().map(delays_of, [(*how, k, *what) for k in range(given.worlds)]):
        found += each
        bar.update()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, write where asked, and print: each load, and all together."""
    given, rows, lines, fits = parse(arguments), [], [], []
    with cli.progress(len(given.controllers) * len(given.devices) * given.worlds) as bar:
        for name in given.controllers:
            by_load = {str(n): branched(given, name, n, bar) for n in given.devices}
            every = [one for found in by_load.values() for one in found]
            rows += [{"controller": name, "later_s": given.later} | asdict(one) for one in every]
            for (load, found), horizon_s in product((by_load | {"all": every}).items(), given.horizons):
                place, at = [name, load, f"{horizon_s:g}"], [one for one in found if one.horizon_s == horizon_s]
                lines += [[*place, *line] for line in groups(at)]
                fits.append([*place, *cells(*fitted(at))])
    cli.write_rows(rows, given.json)
    head = ["controller", "devices", "over", "slack", "decisions", "own on time", "", "own", "", "fleet on time", ""]
    print(aligned([head, ["", "", "s", "tokens", "%", *["of ρ", "95 %"] * 3]], lines) + "\n")
    print(aligned([["controller", "devices", "over, s", "a", "95 %", "pressure", "95 %"]], fits))
