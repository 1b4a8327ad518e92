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
from dataclasses import dataclass, field

import numpy as np

from agents.branching.paired import GOODPUT, paired_cells, paired_row
from agents.branching.place import world_of
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.pausing import Pausing
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import add_comparison
from wisp_gym.evaluation.comparison_tables import slo_words
from wisp_gym.evaluation.outcomes import Row, chosen_controllers, chosen_scenario, run_all
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching lookahead"
DEFAULT_SEEDS = 10
CANDIDATES = (
    "wisp+wisp", "wisp+fcfs", "aligned+fcfs", "aligned+edf", "survival:0.5+fcfs", "fixed:2+fcfs", "speculation-v1+fcfs", "speculation-v1+batching-v1",
)  # fmt: skip
MODEL, FUTURE = "model", "future"
LEAD = 1.0  # standard errors by which another candidate must lead to take over


def refuse_misfits(candidates: Sequence[Controller]) -> None:
    """Raise InputError for candidates that cannot take over from one another in a running world."""
    for candidate in candidates:
        if candidate.centralized or candidate.learns or candidate.plan:
            why = "a server alone, a rule that learns and a plan cannot take over in a running world"
            raise InputError(f"controllers: given '{candidate.name}', allowed are others: {why}")
    for part in ("policy", "scorer"):
        if len({getattr(candidate, part).tobytes() for candidate in candidates} - {b""}) > 1:
            raise InputError(f"controllers: given two learned {part} networks, allowed is one in all of them")


@dataclass(frozen=True)
class Lookahead:
    """A controller that branches.

    Attributes:
        candidates: who may drive; the first begins. draws: copies of each. horizon_s, period_s: looked ahead, and between two choices.
        knows: MODEL or FUTURE.

    Raises:
        InputError: candidates that cannot take over from one another.
    """

    scenario: Scenario
    candidates: Sequence[Controller]
    draws: int
    horizon_s: float
    period_s: float
    knows: str = MODEL
    times: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        refuse_misfits(self.candidates)

    def play(self, seed: int) -> float:
        """Goodput of one world, in tokens/s; `times` counts who was chosen."""
        worlds = self.ready(seed)
        copies, pausing = Branches(worlds, len(self.candidates) * self.copies_of_each), Pausing(worlds)
        c, chosen, time_s, periods = worlds.arrays.config[0, 0], 0, 0.0, 0
        end_s = float(c["window_end_s"])
        while time_s < end_s:
            time_s = min(time_s + self.period_s, end_s)
            pausing.run_until(time_s)
            chosen, periods = self.best(copies, chosen, 1_000 * (1_000_000 * seed + periods)), periods + 1
            worlds.control(0, self.candidates[chosen])
            self.times[self.candidates[chosen].name] += 1
        return float(worlds.arrays.totals["tokens_on_time"][0, 0]) / self.scenario.horizon.measure_s

    def ready(self, seed: int) -> Worlds:
        """The world with the rows and weights that any candidate needs, in the hands of the first."""
        worlds = world_of(self.scenario, self.candidates[0], seed)
        for candidate in (*self.candidates, self.candidates[0]):
            worlds.control(0, candidate)
        return worlds

    @property
    def copies_of_each(self) -> int:
        """Copies that each candidate drives: who knows the future needs one."""
        return self.draws if self.knows == MODEL else 1

    def best(self, copies: Branches, chosen: int, seed: int) -> int:
        """Number of the candidate to follow, after the one in charge."""
        n = self.copies_of_each
        copies.take(0)
        copies.follow([candidate for candidate in self.candidates for _ in range(n)])
        if self.knows == MODEL:
            copies.afresh(seed + np.tile(np.arange(n), len(self.candidates)))
        tokens = copies.worth_tokens([self.horizon_s]).reshape(len(self.candidates), n)
        return leader(tokens, chosen)


def leader(tokens: np.ndarray, chosen: int) -> int:
    """Row of (candidates, draws) tokens with the highest mean, if it leads `chosen` by `LEAD` standard errors of the paired differences."""
    best = int(tokens.mean(axis=1).argmax())
    lead = (tokens[best] - tokens[chosen]).astype(float)
    error = lead.std(ddof=1) / len(lead) ** 0.5 if len(lead) > 1 else 0.0
    return best if lead.mean() > LEAD * error else chosen


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
