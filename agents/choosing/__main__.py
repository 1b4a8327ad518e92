"""Learn a choice of the whole controller from random deployments: every candidate runs in each, a network learns which is best.

    python -m agents.choosing                                # a run folder below runs/, with outcomes.jsonl and choice.json
    python -m agents.choosing --goal attainment              # for the most requests within their SLO instead of the most tokens on time
    python -m agents.choosing --outcomes runs/choosing_1/outcomes.jsonl   # fitted again, only cases that the file lacks are run

Use the run folder, or its choice.json, as a controller: `wisp-gym evaluate --controllers runs/choosing_1/choice.json,wisp`.
More: docs/guide/train.md.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wisp_gym.process import begin, program

if __name__ == "__main__":
    begin()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # worlds run in parallel

import numpy as np

from agents.choosing.candidates import CANDIDATES, GOODPUT
from agents.choosing.cases import CROWDED, ELSEWHERE, case
from agents.choosing.fit import DEFAULT, fit, held_out, shares
from agents.choosing.outcomes import Outcomes, gather, read, table
from agents.training.arguments import flag, parse
from agents.training.run_folder import describe_run, new_folder
from wisp_gym.cli import run, whole
from wisp_gym.cli import table as aligned
from wisp_gym.controllers.choice import save_choice
from wisp_gym.controllers.deployment import numbers_of
from wisp_gym.controllers.shipped import CHOICE_FILE
from wisp_gym.scenario import DEFAULT_SCENARIO, load

PROGRAM = "python -m agents.choosing"
OUTCOMES = "outcomes.jsonl"
MOST = ELSEWHERE - 1


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    cases: int = flag(260, "deployments of the frontier's axes", of=whole(8, MOST), metavar="N")
    elsewhere: int = flag(100, "deployments of other targets and drafts", of=whole(0, MOST), metavar="N")
    crowded: int = flag(60, "deployments with more devices than they bear", of=whole(0, MOST), metavar="N")
    seed: int = flag(0, "of the networks", of=whole(0, 2**31 - 1), metavar="N")
    goal: str = flag(
        GOODPUT, "what is to be most: tokens on time, or requests within their SLO", choices=tuple(CANDIDATES)
    )
    outcomes: str = flag("", "outcomes of an earlier run to begin with", metavar="FILE")
    log_folder: Path = flag(Path("runs"), "where the run's folder is made, never over another", "-f", metavar="DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather, fit, and say how near the best the choice comes in cases that it did not see."""
    args, _ = parse(Arguments, PROGRAM, __doc__, arguments)
    folder = new_folder(args.log_folder, "choosing")
    describe_run(folder, {k: str(v) for k, v in vars(args).items()} | asdict(DEFAULT), load(DEFAULT_SCENARIO))
    if args.outcomes:
        shutil.copyfile(args.outcomes, folder / OUTCOMES)
    numbers = [*range(args.cases), *range(ELSEWHERE, ELSEWHERE + args.elsewhere)]
    numbers += range(CROWDED, CROWDED + args.crowded)
    wanted, candidates = set(numbers), CANDIDATES[args.goal]
    gather(numbers, args.goal, folder / OUTCOMES)
    outcomes = table((line for line in read(folder / OUTCOMES, candidates) if line["case"] in wanted), candidates)
    learn(outcomes, args.goal, folder, args.seed)


def learn(outcomes: Outcomes, goal: str, folder: Path, seed: int) -> None:
    """Fit, save and report."""
    seen, value = np.array([numbers_of(case(int(n))) for n in outcomes.cases]), shares(outcomes, goal)
    choice = fit(seen, value, outcomes.candidates, seed, command=f"{PROGRAM} --goal {goal}", cases=len(seen))
    save_choice(choice, folder / CHOICE_FILE)
    print(report(value, held_out(seen, value, outcomes.candidates, seed=seed), goal, outcomes.candidates[0]))
    print(f"{folder / CHOICE_FILE}: {len(choice.controllers)} controllers to choose from")


def report(value: np.ndarray, found: np.ndarray, goal: str, first: str) -> str:
    """Share of the best candidate's goodput or attainment, by who chooses, over cases that the choice did not see."""
    devices = value[:, 0]
    rows = [
        ("the choice", found[0]),
        ("the one candidate that is best in the other cases", found[1]),
        (first, devices),
    ]
    header = [
        f"share of the best candidate's {goal}, {len(value)} cases",
        "mean",
        "worst twentieth below",
        "within 2 %",
    ]
    lines = [
        [name, f"{x.mean():.3f}", f"{np.quantile(x, 0.05):.3f}", f"{100 * (x >= 0.98).mean():.0f} %"]
        for name, x in rows
    ]
    return aligned(header, lines)


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
