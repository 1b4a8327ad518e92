"""One training with several seeds, and how far they spread: one learned policy says little about a way of learning.

Here one after the other; on a cluster each seed is one task, which returns the run's files. A task that dies with its
worker begins again from its seed and ends with the same bytes.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import torch

from agents.pool import RayPool
from agents.training import run_folder
from agents.training.rivals import Scores, held_out_scenario
from agents.training.run import Output, compare, fit, make, open_folder, train
from agents.training.settings import Settings
from wisp_gym.cli import aligned, cell, progress
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import read_text, write_bytes
from wisp_gym.interrupts import StopRequest, leaves
from wisp_gym.scenario import Scenario, load

Files = dict[str, bytes]  # path in the run's folder → content
# Goodput and difference to WISP's in tokens/s, share of promises kept; None: not known.
Reached = tuple[float | None, ...]


# --- training --------------------------------------------------------------------------------------------------------


def train_seeds(settings: Settings, n: int, output: Output, pool: Pool, device: str = "cpu") -> str:
    """Train `n` seeds, from that of the settings on, each in a folder of its own; returns the table of the spread.

    Raises:
        InputError, KeyboardInterrupt: as `train`.
    """
    each = [replace(settings, seed=settings.seed + k) for k in range(n)]
    if isinstance(pool, RayPool):
        with leaves(f"the runs of seeds that were finished are in {output.log_folder}"):
            folders = list(trained_away(each, output, pool, device))
    else:
        folders = [train(one, output, pool, device) for one in each]
    return spread([one.seed for one in each], folders)


def trained_away(each: Sequence[Settings], output: Output, pool: Pool, device: str) -> Iterator[Path]:
    """The runs' folders: trained in tasks, written and compared with the rivals here."""
    run_folder.check_parent(output.log_folder)
    scenario = load(each[0].env_kwargs["scenario"])
    held_out = held_out_scenario(each[0], scenario)
    jobs = [(settings, scenario, device) for settings in each]
    with progress(len(each), "seed", output.bar) as bar:
        for settings, (files, scores) in zip(each, pool.map(train_in_a_task, jobs), strict=True):
            folder, log = open_folder(settings, scenario, output)
            log.close()
            for name, content in files.items():
                write_bytes(folder / name, content)
            bar.update()
            print(f"trained seed {settings.seed}; run folder {folder}", flush=True)
            if output.comparison:
                compare(folder, settings, held_out, scores, pool)
            yield folder


def train_in_a_task(settings: Settings, scenario: Scenario, device: str) -> tuple[Files, Scores]:
    """The job: the files of a training, and its scores. It has one core."""
    torch.set_num_threads(1)
    kwargs = {"threads": 1} | settings.env_kwargs | {"scenario": scenario}
    model, _ = make(replace(settings, env_kwargs=kwargs), device)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / run_folder.CHECKPOINTS).mkdir()
        model.set_logger(run_folder.make_logger(folder, None))
        never = StopRequest("")  # nobody sends a worker a wish: Ray ends its task at once
        scores = fit(model, settings, held_out_scenario(settings, scenario), folder, never)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, scores


# --- the spread ------------------------------------------------------------------------------------------------------


SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "mean": fmean,
    "std": lambda values: stdev(values) if len(values) > 1 else math.nan,  # of one seed no spread can be told
    "least": min,
    "most": max,
}


def reached(folder: Path) -> Reached:
    """What a run's policy reached in held-out worlds; without a comparison, its goodput in validation worlds."""
    comparison = folder / "comparison.json"
    if comparison.is_file():
        rows = json.loads(read_text(comparison))
        own = next(row for row in rows if row["controller"].startswith(str(folder / "policy.json")))
        return own["goodput_tokens_per_s"], own["goodput_difference_tokens_per_s"], own["slo_attainment"]
    lines = read_text(folder / "validation.csv").splitlines()[1:]
    return max(float(line.split(",")[1]) for line in lines), None, None


def spread(seeds: Sequence[int], folders: Sequence[Path]) -> str:
    """Table of what each seed's policy reached, with mean, standard deviation, least and most."""
    found = [reached(folder) for folder in folders]
    rows = [[str(seed), *cells(one), str(folder)] for seed, one, folder in zip(seeds, found, folders, strict=True)]
    for name, of in SUMMARIES.items():
        columns = [[value for value in column if value is not None] for column in zip(*found, strict=True)]
        rows.append([name, *cells([of(known) if len(known) == len(found) else None for known in columns]), ""])
    where = "validation worlds" if any(against is None for _, against, _ in found) else "held-out worlds"
    header = [["seed", "goodput", "vs WISP", "SLO met", "run folder"], ["", "tokens/s", "tokens/s", "%", ""]]
    return f"{len(seeds)} seeds, {where}\n\n{aligned(header, rows)}"


def cells(numbers: Sequence[float | None]) -> list[str]:
    """The numbers of a row: goodput and difference in tokens/s, and a share in %."""
    return [cell(value, factor=factor) for value, factor in zip(numbers, (1.0, 1.0, 100.0), strict=True)]
