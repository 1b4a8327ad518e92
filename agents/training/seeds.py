"""One training with several seeds, and how far they spread: one learned policy says little about a way of learning.

Here one after the other; on a cluster each seed is one task, which returns the run's files. A task that dies with its worker
begins again from its seed and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from agents.distributed import RayPool
from agents.training import run_folder
from wisp_gym.cli import aligned, cell
from wisp_gym.errors import InputError
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import write_bytes
from wisp_gym.scenario import Scenario, load

LAST_SEED = 2**31 - 1  # numpy's and stable-baselines3's
Files = dict[str, bytes]  # path in the run's folder → content


def refuse_seeds(given: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Refuse flags that do not go together, before anything is started.

    Raises:
        InputError: one line.
    """
    if given.seeds is None:
        if given.distributed is not None and settings["algo"] != "fleet":
            raise InputError(
                f"argument --distributed: --algo {settings['algo']} steps its worlds in one process; allowed beside it is --seeds N, or --algo fleet"
            )
        return
    if given.trained_agent is not None:
        raise InputError("argument --seeds: not allowed with --trained-agent, whose run has its seed")
    if settings["seed"] + given.seeds - 1 > LAST_SEED:
        raise InputError(f"argument --seeds: given {given.seeds}, allowed is a last seed of {LAST_SEED} at most")
    if given.distributed is not None and given.tensorboard_log is not None:
        raise InputError(
            "argument --tensorboard-log: not allowed with --seeds and --distributed, whose runs are elsewhere"
        )


# --- training --------------------------------------------------------------------------------------------------------


def train_seeds(given: argparse.Namespace, settings: dict[str, Any], pool: Pool, command: Sequence[str] | None) -> str:
    """Train every seed and return the table of the spread."""
    each = [settings | {"seed": settings["seed"] + k} for k in range(given.seeds)]
    away = isinstance(pool, RayPool)
    folders = list((trained_away if away else trained_here)(given, each, pool, command))
    return spread([one["seed"] for one in each], folders)


def trained_here(
    given: argparse.Namespace, each: list[dict[str, Any]], pool: Pool, command: Sequence[str] | None
) -> Iterator[Path]:
    """The runs' folders, one training after the other."""
    import train  # the command itself, which imports this module

    for settings in each:
        yield train.train(given, settings, pool, command)


def trained_away(
    given: argparse.Namespace, each: list[dict[str, Any]], pool: Pool, command: Sequence[str] | None
) -> Iterator[Path]:
    """The runs' folders: trained in tasks, written and compared with the rivals here."""
    import train

    scenario = load(each[0]["env_kwargs"]["scenario"])
    held_out = train.held_out_scenario(each[0], scenario)
    jobs = [(settings, scenario, given.device) for settings in each]
    with tqdm(total=len(each), unit="seed", disable=None if not given.progress else False, leave=False) as bar:
        for settings, (files, scores) in zip(each, pool.map(train_in_a_task, jobs), strict=True):
            folder, log = train.open_folder(settings, scenario, given, command)
            log.close()
            for name, content in files.items():
                write_bytes(folder / name, content)
            bar.update()
            print(f"trained seed {settings['seed']}; run folder {folder}", flush=True)
            if not given.no_comparison:
                train.finish(folder, settings, held_out, scores, False, pool)
            yield folder


def train_in_a_task(settings: dict[str, Any], scenario: Scenario, device: str) -> tuple[Files, Any]:
    """The job: the files of a training, and its scores. It has one core."""
    import torch

    import train

    torch.set_num_threads(1)
    kwargs = {"threads": 1} | settings["env_kwargs"] | {"scenario": scenario}
    model, _ = train.prepare(settings | {"env_kwargs": kwargs}, argparse.Namespace(trained_agent=None, device=device))
    with TemporaryDirectory() as temporary, train.StopRequest() as stop:
        folder = Path(temporary)
        (folder / run_folder.CHECKPOINTS).mkdir()
        log = run_folder.make_logger(folder, None)
        held_out = train.held_out_scenario(settings, scenario)
        _, scores = train.fit(model, None, settings, held_out, folder, log, stop, False)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, scores


# --- the spread ------------------------------------------------------------------------------------------------------


def sample_std(values: list[float]) -> float:
    """Standard deviation over seeds with n − 1; NaN for one seed, of which no spread can be told."""
    return stdev(values) if len(values) > 1 else math.nan


SUMMARIES: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "std": sample_std, "least": min, "most": max}


def learned_row(folder: Path) -> dict[str, float | None]:
    """What a run's policy reached: in the held-out worlds, or without a comparison in the validation worlds."""
    comparison = folder / "comparison.json"
    if comparison.is_file():
        rows = json.loads(comparison.read_text(encoding="utf-8"))
        own = next(row for row in rows if row["controller"].startswith(str(folder / "policy.json")))
        return {
            "goodput": own["goodput_tokens_per_s"],
            "against": own["goodput_difference_tokens_per_s"],
            "met": own["slo_attainment"],
        }
    lines = (folder / "validation.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {"goodput": max(float(line.split(",")[1]) for line in lines), "against": None, "met": None}


def spread(seeds: Sequence[int], folders: Sequence[Path]) -> str:
    """Table of what each seed's policy reached, with mean, standard deviation, least and most."""
    found = [learned_row(folder) for folder in folders]
    columns = {name: [row[name] for row in found] for name in ("goodput", "against", "met")}
    rows = [
        [str(seed), *cells(row["goodput"], row["against"], row["met"]), str(folder)]
        for seed, row, folder in zip(seeds, found, folders, strict=True)
    ]
    for name, of in SUMMARIES.items():
        rows.append([name, *cells(*(summary(of, values) for values in columns.values())), ""])
    where = "validation worlds" if None in columns["against"] else "held-out worlds"
    header = [["seed", "goodput", "vs WISP", "SLO met", "run folder"], ["", "tokens/s", "tokens/s", "%", ""]]
    return f"{len(seeds)} seeds, {where}\n\n{aligned(header, rows)}"


def summary(of: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    """A number of all seeds; None where one of them has none."""
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def cells(goodput: float | None, against: float | None, met: float | None) -> list[str]:
    """The numbers of a row."""
    return [cell(goodput), cell(against), cell(met, factor=100.0)]
