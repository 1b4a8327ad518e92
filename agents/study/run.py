"""The honest comparison: tune every controller with one budget, test all in the same unseen worlds, say who wins where.

    python -m agents.study --suite quick --json rows.json

A suite (agents/study/suites/*.toml) lists cells, controllers, seeds and the budget. The study's folder keeps every finished world;
the same command, or `--resume FOLDER`, goes on after a kill and ends with the same bytes. docs/guide/study.md is the protocol.
With `--distributed` the worlds run on a Ray cluster: docs/guide/cluster.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents.pool import add_distributed, pool_at
from agents.study.capacities import capacities
from agents.study.folder import ROWS, Told, Worlds, default_folder, opened, policies_of, read_study, refuse_other, told
from agents.study.play import play
from agents.study.rows import Row
from agents.study.suite import Suite, chosen_controllers, described, own_cells, read_suite, restored, suites, who_drafts
from agents.study.tables import show
from wisp_gym.cli import Parser, output_file, refuse_same_files, write_rows
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import controller_names
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import write_json, write_text
from wisp_gym.interrupts import leaves

PROGRAM = "python -m agents.study"
DEFAULT_SUITE = "quick"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "Tune and compare controllers over a suite of cases; `wisp-gym evaluate --help` lists controllers."
    parser = Parser(prog=PROGRAM, description=about)
    add = parser.add_argument
    add("--suite", metavar="NAME|FILE", help=f"{', '.join(suites())}, or a TOML file (default {DEFAULT_SUITE})")
    add("--cells", nargs="+", metavar="FILE", help="scenarios (presets or TOML files) instead of the suite's cells")
    add("--controllers", type=controller_names, nargs="+", metavar="a,b,...", help="instead of the suite's, with WISP")
    add("--also", type=controller_names, nargs="+", metavar="a,b,...", help="besides the suite's, such as policy files")
    add("--out", type=Path, metavar="FOLDER", help="the study's folder (default: one of its own below runs/)")
    add("--resume", type=Path, metavar="FOLDER", help="go on with the study in this folder")
    add_distributed(parser)
    rows = "write a row for each controller, cell and world"
    add("--json", type=output_file(), metavar="FILE", help=f"{rows}, and capacities, as JSON")
    add("--csv", type=output_file(), metavar="FILE", help=f"{rows} as CSV, without classes")
    return parser.parse_args(arguments)


def refuse_contradictions(given: argparse.Namespace) -> None:
    """Refuse flags that a study in a folder has settled, and two results in one file."""
    for flag in ("suite", "cells", "controllers", "also", "out"):
        if given.resume is not None and getattr(given, flag) is not None:
            reason = "not allowed with --resume, which takes the study as it is in its folder"
            raise InputError(f"argument --{flag}: {reason}")
    refuse_same_files({}, {"--json": given.json, "--csv": given.csv})


def chosen_suite(given: argparse.Namespace) -> Suite:
    """The suite of the flags."""
    suite = read_suite(given.suite or DEFAULT_SUITE)
    groups = [*(given.controllers or [suite.controllers]), *(given.also or [])]
    suite = replace(suite, controllers=chosen_controllers([name for group in groups for name in group]))
    suite = replace(suite, name="own", cells=own_cells(given.cells), capacity=None) if given.cells else suite
    return without_hosts(suite)


def without_hosts(suite: Suite) -> Suite:
    """The suite without the catalogue's rules of servers that draft, where a cell's server has nothing to draft with."""
    bare = [cell.name for cell in suite.cells if not cell.scenario.server_drafts]
    left_out = {name for name in who_drafts() if "colocated" in name} & set(suite.controllers) if bare else set()
    if left_out:
        print(
            f"note: cell '{bare[0]}' names no [[server_drafts]]: rules with 'colocated' are left out", file=sys.stderr
        )
    return replace(suite, controllers=tuple(name for name in suite.controllers if name not in left_out))


def chosen_study(given: argparse.Namespace) -> tuple[Suite, Path, Told]:
    """The suite, its folder, and what the study is."""
    if given.resume is None:
        suite = chosen_suite(given)
        study = told(described(suite), policies_of(suite.controllers))
        return suite, given.out or default_folder(study), study
    there = read_study(given.resume)
    refuse_other(given.resume, there, told(there["suite"], there["policies"]))
    suite = restored(there["suite"])
    return suite, given.resume, told(described(suite), policies_of(suite.controllers))


def check(suite: Suite) -> None:
    """Refuse controllers and request traces that cannot be used, before anything is written; note what is doubtful."""
    for cell in suite.cells:
        load_trace(cell.scenario)
        for name in suite.controllers:
            resolve(name, cell.scenario)
    for note in dict.fromkeys(note for cell in suite.cells for note in warnings(cell.scenario)):
        print(f"note: {note}", file=sys.stderr)


def finished(suite: Suite, folder: Path, worlds: Worlds, pool: Pool) -> tuple[list[Row], str]:
    """Run what is missing; the rows and the printed tables, which are in the folder too."""
    tuned, rows = play(suite, worlds, pool)
    rows += capacities(suite, rows, worlds, pool)
    text = show(suite, tuned, rows)
    settings = {name: {"tuned": of.everywhere, "tuned_per_cell": of.per_cell} for name, of in tuned.items()}
    write_json(folder / "settings.json", settings)
    write_text(folder / "tables.txt", text + "\n")
    write_text(folder / ROWS, json.dumps(rows, allow_nan=False) + "\n")
    return rows, text


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, test, write where asked, and print."""
    given = parse(arguments)
    refuse_contradictions(given)
    suite, folder, study = chosen_study(given)
    check(suite)
    with pool_at(given.distributed) as pool, opened(folder, study) as worlds, leaves(f"'--resume {folder}' goes on"):
        rows, text = finished(suite, folder, worlds, pool)
    write_rows(rows, given.json, given.csv)
    print(f"{text}\n\nin {folder}")
