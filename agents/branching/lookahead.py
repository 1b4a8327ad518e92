"""What is reached by trying every candidate ahead, again and again: a level that is known to be reachable.

    python -m agents.branching lookahead --scenario wisp-study --devices 64 --seeds 10

Every `--period` seconds the running world is branched: each candidate controller drives copies of it for `--horizon` seconds under
the same fresh draws, and the one whose fleet is worth the most by then (tokens on time, and rounds under way at their device's rate)
takes over, unless its lead over the one in charge is within a standard error. So it knows the model and what everybody has observed,
not the future (`wisp_gym.engine.afresh`). With `--knows future` copies keep the world's own draws: what knowing them would be worth.

It is no controller for a server, which has no model to copy: it is a rung beside the bounds. Where it is ahead of every candidate,
there is something to be learned about when to do what.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np

from agents.bounds.lookahead import FUTURE, MODEL, Lookahead
from agents.branching.paired import GOODPUT, paired_cells, paired_row
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.evaluation.arguments import add_comparison
from wisp_gym.evaluation.comparison_tables import slo_words
from wisp_gym.evaluation.outcomes import Row, chosen_controllers, chosen_scenario, run_all

PROGRAM = "python -m agents.branching lookahead"
DEFAULT_SEEDS = 10
CANDIDATES = (
    "wisp+wisp", "wisp+fcfs", "aligned+fcfs", "aligned+edf", "survival:0.5+fcfs", "fixed:2+fcfs", "speculation-v1+fcfs", "speculation-v1+batching-v1",
)  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_comparison(parser, DEFAULT_SEEDS, CANDIDATES)
    add = parser.add_argument
    add("--devices", type=cli.whole(1, 100_000), metavar="N", help="number of devices (default: the scenario's)")
    add(
        "--draws",
        type=cli.whole(1, 1000),
        default=16,
        metavar="N",
        help="copies that each candidate drives (default 16)",
    )
    add("--horizon", type=cli.positive(1e4), default=3.0, metavar="S", help="seconds looked ahead (default 3)")
    add("--period", type=cli.positive(1e4), default=1.0, metavar="S", help="seconds between two choices (default 1)")
    add("--knows", choices=(MODEL, FUTURE), default=MODEL, help="what copies meet: fresh draws, or the world's own")
    return parser.parse_args(arguments)


def show(rows: Sequence[Row], times: Counter[str]) -> str:
    """The table, and how often each candidate was chosen."""
    headers = [
        ["controller", "goodput", "", "against the best candidate", "", "chosen"],
        ["", "tokens/s", "95 %", "tokens/s", "95 %", "%"],
    ]
    lines = [
        [
            *paired_cells(row),
            cell(times[row["name"]] / max(times.total(), 1), 0, 100.0) if row["name"] != "lookahead" else "",
        ]
        for row in rows
    ]
    return aligned(headers, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the candidates alone and the one that tries them ahead, write where asked, and print."""
    given = parse(arguments)
    cli.refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv})
    scenario = chosen_scenario(given.scenario, given.devices, given.slo)
    candidates = chosen_controllers(given.controllers, scenario)
    ahead = Lookahead(scenario, list(candidates.values()), given.draws, given.horizon, given.period, given.knows)
    with cli.progress((len(candidates) + 1) * len(given.seeds)) as bar:
        alone = run_all(scenario, list(candidates.values()), given.seeds, bar=bar)
        reached = []
        for seed in given.seeds:
            reached.append(ahead.play(seed))
            bar.update()
    goodput = {name: [one.metrics[GOODPUT] for one in own] for name, own in zip(candidates, alone, strict=True)}
    best = max(goodput.values(), key=np.mean)
    rows = [paired_row(name, each, best) for name, each in {"lookahead": reached, **goodput}.items()]
    cli.write_rows(rows, given.json, given.csv)
    about = f"{scenario.name}: {scenario.n_devices} devices, {slo_words(given.slo)}, {len(given.seeds)} paired worlds"
    print(
        f"{about}; {given.horizon:g} s ahead, every {given.period:g} s, {ahead.copies_of_each} draws, knows the {given.knows}\n"
    )
    print(show(rows, ahead.times))
