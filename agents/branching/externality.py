"""What one more drafted token costs the others: measured by branches, beside what training takes for it.

    python -m agents.branching externality --devices 64,128

At decisions of running worlds the device sends at once in one copy, and drafts one more token and sends in the other,
under the same draws; from then on the world's own controller decides. What the others get less until the horizon is the
token's externality. Training takes for it (`agents.training.fleet`) the time that the token adds to its batch, times
the tokens that the server commits a second, times its utilisation, times the share of their time that devices wait,
times a factor of 1.5: here is the factor that was measured, the ratio of both sums over all decisions. `server-time`
measures it with far fewer branches.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from agents.branching import reckoned
from agents.branching.clusters import cells, ratio
from agents.branching.flags import add_horizons, add_places
from agents.branching.place import DRAFT, SEND, at_decisions
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching externality"
CONTROLLERS = ("speculation-v1+fcfs",)


@dataclass(frozen=True)
class Effect:
    """Of one more token at one decision, in tokens: means over draws.

    Attributes:
        world: number. horizon_s: looked ahead. own, others: committed more within it. on_time: of all, on time.
        spread: standard deviation of `others` of one pair.
        reckoned: what training takes for the others' loss, factor 1.
    """

    world: int
    horizon_s: float
    own: float
    others: float
    on_time: float
    spread: float
    reckoned: float


def reckoned_tokens(world: InTurn) -> float:
    """Tokens that the others lose to one more drafted token, as training reckons them."""
    arrays, d = world.worlds.arrays, world.worlds.arrays.device[0, world.device]
    context = float(d["prompt_tokens"] + d["committed"] + d["drafted"])
    return reckoned.token_s(arrays, context) * reckoned.tokens_per_s(arrays)


def effects_at(
    world: InTurn, number: int, copies: Branches, seeds: np.ndarray, horizons_s: Sequence[float]
) -> list[Effect]:
    """The effects of one more token at the decision that a world waits for, of each horizon."""
    i, found = world.device, []
    copies.take(0, world.kind)
    arrays = copies.worlds.arrays
    copies.afresh(np.repeat(seeds, 2))
    arrays.device["window_tokens"] = 0
    copies.act(np.tile([SEND, DRAFT], len(seeds)))
    if copies.still_waiting().any():  # not where the cap has been reached
        copies.act(np.full(copies.n, SEND))
    for horizon_s, _ in zip(horizons_s, copies.run_on(horizons_s), strict=True):
        own, every = apart(arrays.device["window_tokens"][:, i]), apart(arrays.totals["tokens"][:, 0])
        on_time, others = apart(arrays.totals["tokens_on_time"][:, 0]).mean(), every - own
        found.append(Effect(
            number, horizon_s, own=float(own.mean()), others=float(others.mean()), on_time=float(on_time),
            spread=float(others.std(ddof=1)), reckoned=reckoned_tokens(world),
        ))  # fmt: skip
    return found


def apart(tokens: np.ndarray) -> np.ndarray:
    """(draws,) differences within pairs."""
    return np.asarray(tokens[1::2] - tokens[::2], float)


def effects_of(
    scenario: Scenario, controller: Controller, number: int, places: int, draws: int, horizons_s: Sequence[float]
) -> list[Effect]:
    """The effects at decisions of one world."""
    found, copies = list[Effect](), None
    for place, world in enumerate(at_decisions(scenario, controller, number, places)):
        copies = copies or Branches(world.worlds, 2 * draws, threads=1)
        seeds = draws * (places * number + place) + np.arange(draws)
        found += effects_at(world, number, copies, seeds, horizons_s)
    return found


def factor(found: Sequence[Effect]) -> tuple[float, float, float]:
    """What the others lose for each token reckoned: the ratio of sums, and its 95 % bootstrap interval over worlds."""
    of_world = np.unique([one.world for one in found], return_inverse=True)[1]
    got, loss = (np.bincount(of_world, [getattr(one, name) for one in found]) for name in ("others", "reckoned"))
    return ratio(-got, loss)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add_places(parser, [64, 128], worlds=40, places=4, draws=50)
    add_horizons(parser, [0.25, 0.5, 1.0])
    return parser.parse_args(arguments)


def line(found: Sequence[Effect]) -> list[str]:
    """Cells: means over decisions, the factor and its interval."""
    names = ("own", "others", "on_time", "spread", "reckoned")
    means = [cell(float(np.mean([getattr(one, name) for one in found])), 3) for name in names]
    return [*means, *cells(factor(found))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, write where asked, and print."""
    given, rows, lines = parse(arguments), [], []
    with cli.progress(len(given.controllers) * len(given.devices) * given.worlds) as bar:
        for name, n in product(given.controllers, given.devices):
            scenario, found = chosen_scenario(given.scenario, n), list[Effect]()
            how = (scenario, resolve(name, scenario))
            jobs = [(*how, k, given.places, given.draws, given.horizons) for k in range(given.worlds)]
            for each in Threads().map(effects_of, jobs):
                found += each
                bar.update()
            rows += [{"controller": name, "devices": n} | asdict(one) for one in found]
            for horizon_s in given.horizons:
                lines.append([name, str(n), f"{horizon_s:g}", *line([e for e in found if e.horizon_s == horizon_s])])
    cli.write_rows(rows, given.json)
    head = [
        "controller",
        "devices",
        "over",
        "own",
        "others",
        "all on time",
        "sd of a pair",
        "reckoned loss",
        "factor",
        "",
    ]
    print(aligned([head, ["", "", "s", *["tokens"] * 5, "", "95 %"]], lines))
