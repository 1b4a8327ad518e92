"""What a second of the server's time costs the others: the price in a token's externality, by itself.

    python -m agents.branching server-time --scenario wisp-study --worlds 100

One more drafted token costs the others a tenth of a token, in a noise of many. But it does so by one way alone: its
batch takes longer, by a time that is known exactly. So worlds are stopped at random times, and in one copy of each pair
the running batch takes `--longer` seconds more, which is some hundred tokens' time; copies meet the same draws, and
their own controller decides for everybody. What the others get less, for each second, is the price that training takes
to be the tokens that the server commits a second, times its utilisation, times the share of their time that devices
wait (`agents.branching.reckoned`). Their ratio is the factor of the externality.

A batch counts by the time that its drafted tokens add to it, over its own time (longer batches are met more often);
*others* are all but the member whose token it is, in the mean over these tokens.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from agents.branching import reckoned
from agents.branching.clusters import Interval, cells, ratio
from agents.branching.flags import add_horizons, add_places
from agents.branching.place import at_times
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.state import World
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching server-time"
CONTROLLERS = ("speculation-v1+fcfs",)
# All that is longer of a longer batch.
OF_BATCH = ("batch_end_s", "batch_time_s", "batch_clean_s", "predicted_end_s")


@dataclass(frozen=True)
class Price:
    """Of a second of the server's time at one place, in tokens/s: means over draws.

    Attributes:
        world: number. horizon_s: looked ahead. weight: time that drafted tokens add to the batch, over its time.
        reckoned: by training. others: committed less by others within the horizon. on_time: the same on time.
        spread: standard deviation of what the others lose in one pair, in tokens.
    """

    world: int
    horizon_s: float
    weight: float
    reckoned: float
    others: float
    on_time: float
    spread: float


def members(arrays: World) -> tuple[np.ndarray, np.ndarray]:
    """Devices whose drafts are in the running batch, and how many tokens each of them has there."""
    s, d = arrays.server[0, 0], arrays.device[0]
    inside = arrays.batch[0, : s["n_batch"]] if s["busy"] else np.zeros(0, np.int64)
    drafted = np.where(d["completes"][inside] == 1, d["verified"][inside], 0)
    return inside[drafted > 0], drafted[drafted > 0].astype(float)


def weight(arrays: World, who: np.ndarray, drafted: np.ndarray) -> float:
    """Share of the running batch's time that its drafted tokens make, each as the last one."""
    d = arrays.device[0][who]
    context = d["prompt_tokens"] + d["committed"] + d["verified"]
    each_s = np.array([reckoned.token_s(arrays, float(one)) for one in context])
    return float((each_s * drafted).sum() / arrays.server["batch_time_s"][0, 0])


def prices_at(
    arrays: World, number: int, copies: Branches, seeds: np.ndarray, longer_s: float, horizons_s: Sequence[float]
) -> list[Price]:
    """The price where a world stands, at each horizon; none where no draft is verified."""
    who, drafted = members(arrays)
    if not len(who):
        return []
    copies.take(0)
    copies.afresh(np.repeat(seeds, 2))
    of_copies, found = copies.worlds.arrays, []
    of_copies.device["window_tokens"] = 0
    for name in OF_BATCH:
        of_copies.server[name][1::2] += longer_s
    known = (weight(arrays, who, drafted), reckoned.tokens_per_s(arrays))
    for horizon_s, _ in zip(horizons_s, copies.run_on(horizons_s), strict=True):
        own = lost(of_copies.device["window_tokens"][:, who] @ (drafted / drafted.sum()))
        others, on_time = (lost(of_copies.totals[name][:, 0]) - own for name in ("tokens", "tokens_on_time"))
        means = (others.mean() / longer_s, on_time.mean() / longer_s, others.std(ddof=1))
        found.append(Price(number, horizon_s, *known, *map(float, means)))
    return found


def lost(tokens: np.ndarray) -> np.ndarray:
    """(draws,) tokens that the copies with a longer batch have less."""
    return np.asarray(tokens[::2] - tokens[1::2], float)


def prices_of(
    scenario: Scenario,
    controller: Controller,
    number: int,
    places: int,
    draws: int,
    longer_s: float,
    horizons_s: Sequence[float],
) -> list[Price]:
    """The prices at places of one world."""
    found, copies = list[Price](), None
    for place, worlds in enumerate(at_times(scenario, controller, number, places)):
        copies = copies or Branches(worlds, 2 * draws, threads=1)
        seeds = draws * (places * number + place) + np.arange(draws)
        found += prices_at(worlds.arrays, number, copies, seeds, longer_s, horizons_s)
    return found


def weighted_sums(found: Sequence[Price], *names: str) -> list[np.ndarray]:
    """(worlds,) sums over each world's places of the weight times what is named."""
    of_world = np.unique([one.world for one in found], return_inverse=True)[1]
    return [np.bincount(of_world, [one.weight * getattr(one, name) for one in found]) for name in names]


def factors(found: Sequence[Price]) -> tuple[Interval, Interval]:
    """What the others lose for each token reckoned, of all tokens and of those on time."""
    others, on_time, reckoned_loss = weighted_sums(found, "others", "on_time", "reckoned")
    return ratio(others, reckoned_loss), ratio(on_time, reckoned_loss)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add_places(parser, [16, 64, 100], worlds=20, places=4, draws=16)
    add_horizons(parser, [0.25, 0.5, 1.0, 2.0])
    words = "that the running batch takes more (default 0.02)"
    parser.add_argument("--longer", type=cli.positive(10.0), default=0.02, metavar="S", help=words)
    return parser.parse_args(arguments)


def line(found: Sequence[Price]) -> list[str]:
    """Cells: the reckoned and the measured price, the spread of a pair, the factors with their intervals."""
    total = sum(one.weight for one in found)
    means = [cell(float(sums.sum()) / total, 0) for sums in weighted_sums(found, "reckoned", "others", "on_time")]
    spread = cell(float(np.mean([one.spread**2 for one in found]) ** 0.5), 2)
    return [*means, spread, *cells(*factors(found))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, write where asked, and print."""
    given, rows, lines = parse(arguments), [], []
    with cli.progress(len(given.controllers) * len(given.devices) * given.worlds) as bar:
        for name, n in product(given.controllers, given.devices):
            scenario, found = chosen_scenario(given.scenario, n), list[Price]()
            how, what = (scenario, resolve(name, scenario)), (given.places, given.draws, given.longer, given.horizons)
            for each in Threads().map(prices_of, [(*how, k, *what) for k in range(given.worlds)]):
                found += each
                bar.update()
            rows += [{"controller": name, "devices": n, "longer_s": given.longer} | asdict(one) for one in found]
            for horizon_s in given.horizons:
                lines.append([name, str(n), f"{horizon_s:g}", *line([p for p in found if p.horizon_s == horizon_s])])
    cli.write_rows(rows, given.json)
    head = [
        "controller",
        "devices",
        "over",
        "reckoned",
        "others lose",
        "on time",
        "sd of a pair",
        "factor",
        "",
        "on time",
        "",
    ]
    print(aligned([head, ["", "", "s", *["tokens/s"] * 3, "tokens", "", "95 %", "", "95 %"]], lines))
