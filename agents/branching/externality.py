"""What one more drafted token costs the others: measured by branches, beside what training takes for it.

    python -m agents.branching externality --devices 64,128

At decisions of running worlds the device sends at once in one copy, and drafts one more token and sends in the other, under the same
draws; from then on the world's own controller decides. What the others get less over the next second is the token's externality.
Training takes for it (`agents.training.fleet`) the time that the token adds to its batch, times the tokens that the server commits a
second, times its utilisation, times the share of their time that devices wait, times a factor of 1.5: here is the factor that was
measured, the ratio of both sums over all decisions.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agents.branching.place import DRAFT, SEND, at_decision
from wisp_gym import cli
from wisp_gym.cli import aligned, cell, interval_cell
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.statistics import interval, resampled
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching externality"
CONTROLLERS = ("speculation-v1+fcfs",)


@dataclass(frozen=True)
class Effect:
    """Of one more token at one decision, in tokens: means over draws.

    Attributes:
        own, others: committed more within the horizon. on_time: of all, on time. reckoned: what training takes for the others' loss, factor 1.
    """

    own: float
    others: float
    on_time: float
    reckoned: float


def reckoned_tokens(world: InTurn) -> float:
    """Tokens that the others lose to one more drafted token, as training reckons them."""
    arrays, i = world.worlds.arrays, world.device
    c, s, d = arrays.config[0, 0], arrays.server[0, 0], arrays.device[0]
    context = float(d["prompt_tokens"][i] + d["committed"][i] + d["drafted"][i])
    work_s = float(s["ended_token_s"]) + float(c["pair_s"]) * context
    return work_s * float(s["token_rate"]) * float(s["utilisation"]) * waiting_share(arrays.totals[0, 0], c, s)


def waiting_share(totals: np.void, c: np.void, s: np.void) -> float:
    """Share of their rounds' time in which devices do not draft, in the window so far."""
    elapsed_s = float(s["now_s"] - c["warmup_s"]) * float(c["n_devices"])
    rounds_s = min(float(totals["round_latency_s"]), elapsed_s)
    return 1.0 - min(float(totals["draft_s"]) / rounds_s, 1.0) if rounds_s > 0.0 else 0.0


def effect_of(world: InTurn, copies: Branches, seeds: np.ndarray, horizon_s: float) -> Effect:
    """The effect of one more token at the decision that a world waits for."""
    i = world.device
    copies.take(0, world.kind)
    arrays = copies.worlds.arrays
    copies.afresh(np.repeat(seeds, 2))
    arrays.device["window_tokens"] = 0
    copies.act(np.tile([SEND, DRAFT], len(seeds)))
    if copies.still_waiting().any():  # not where the cap has been reached
        copies.act(np.full(copies.n, SEND))
    on_time = apart(copies.on_time_tokens([horizon_s])[:, 0])
    own, every = apart(arrays.device["window_tokens"][:, i]), apart(arrays.totals["tokens"][:, 0])
    return Effect(own, every - own, on_time, reckoned_tokens(world))


def apart(tokens: np.ndarray) -> float:
    """Mean difference within pairs."""
    return float((tokens[1::2] - tokens[::2]).mean())


def effects(scenario: Scenario, controller: Controller, given: argparse.Namespace, bar: cli.Bar) -> list[Effect]:
    """The effect at a decision of each of so many worlds."""
    found = []
    for place in range(given.places):
        world = at_decision(scenario, controller, place)
        seeds = given.draws * place + np.arange(given.draws)
        found.append(effect_of(world, Branches(world.worlds, 2 * given.draws), seeds, given.horizon))
        bar.update()
    return found


def factor(found: Sequence[Effect]) -> tuple[float, float, float]:
    """What the others lose for each token reckoned: the ratio of sums, and its 95 % bootstrap interval over decisions."""
    lost, reckoned = (np.array([getattr(one, name) for one in found]) for name in ("others", "reckoned"))
    chosen = resampled(len(found))
    return (float(-lost.sum() / reckoned.sum()), *interval(-lost[chosen].sum(axis=1) / reckoned[chosen].sum(axis=1)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add = parser.add_argument
    add("--devices", type=cli.whole_numbers(1), default=[64, 128], metavar="a,b,...", help="default 64,128")
    add(
        "--places",
        type=cli.whole(2, 100_000),
        default=200,
        metavar="N",
        help="decisions, each of another world (default 200)",
    )
    add("--draws", type=cli.whole(2, 10_000), default=100, metavar="N", help="pairs at each (default 100)")
    add("--horizon", type=cli.positive(1e4), default=1.0, metavar="S", help="seconds after the decision (default 1)")
    add("--json", type=cli.output_file(), metavar="FILE", help="write the effects at all decisions as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, write where asked, and print."""
    given, rows, lines = parse(arguments), [], []
    with cli.progress(len(given.controllers) * len(given.devices) * given.places, unit="decision") as bar:
        for name in given.controllers:
            for n in given.devices:
                scenario = chosen_scenario(given.scenario, n)
                found = effects(scenario, resolve(name, scenario), given, bar)
                rows += [{"controller": name, "devices": n} | asdict(one) for one in found]
                means = [
                    cell(float(np.mean([getattr(one, column) for one in found])), 3)
                    for column in Effect.__annotations__
                ]
                value, low, high = factor(found)
                lines.append([name, str(n), *means, cell(value, 2), interval_cell(low, high, 2)])
    cli.write_rows(rows, given.json)
    headers = [["controller", "devices", "own", "others", "all on time", "reckoned loss", "factor", ""],
               ["", "", "tokens", "tokens", "tokens", "tokens", "", "95 %"]]  # fmt: skip
    print(aligned(headers, lines))
