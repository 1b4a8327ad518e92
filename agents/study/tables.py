"""The printed tables of a study."""

from collections.abc import Sequence

import numpy as np

from agents.study.results import BEST_RULE, LADDER, WISP_TUNED, Results, bounds_of
from agents.study.rows import GOODPUT, Row
from agents.study.suite import Suite
from wisp_gym.cli import aligned, cell, interval_cell, seed_list, table
from wisp_gym.evaluation import capacities
from wisp_gym.evaluation.comparison_tables import COSTS, SERVICE, metric_cells, with_columns
from wisp_gym.evaluation.statistics import performance_profile
from wisp_gym.evaluation.tuning import Tuned

Lines = tuple[list[str], list[list[str]]]  # header, lines
# Columns of the aggregate tables, as `wisp_gym.evaluation.comparison_tables` shows them.
SHOWN = (
    "slo_attainment", "starved_share", "wasted_drafting_share", "interference_s", "joules_per_1k_tokens", "dollars_per_1k_tokens",
)  # fmt: skip
MEASURES = tuple(column for column in (*SERVICE, *COSTS) if column[0] in SHOWN)
PROFILE = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # thresholds of the printed performance profiles
PROFILE_TITLE = "Performance profiles: worlds (of the mean cell) with more than so many times tuned WISP's goodput, %"


def show(suite: Suite, tuned: dict[str, Tuned], rows: Sequence[Row]) -> str:
    """All tables."""
    results = Results(rows)
    parts = [title(suite), verdict(results), losses(results), show_ladder(results)]
    for held_out, name in ((False, "training cells"), (True, "held-out cells, settings from the training cells")):
        if cells := results.comparable(held_out):
            about = f"Over {len(cells)} {name}: goodput over that of tuned WISP in the same cell"
            parts.append(f"{about}\n\n{show_aggregates(results.aggregates(held_out))}")
            parts.append(f"{PROFILE_TITLE}\n\n{table(*profile_lines(results, held_out))}")
    if results.capacities:
        parts.append(f"{capacity_title(results)}\n\n{table(*capacity_lines(results))}")
    return "\n\n".join([*parts, show_settings(tuned)])


def title(suite: Suite) -> str:
    """What was played."""
    return (
        f"{suite.name}: {len(suite.training)} training and {len(suite.cells) - len(suite.training)} held-out cells, "
        f"{suite.candidates} settings tried for every controller in training seeds {seed_list(suite.train_seeds)} of each "
        f"cell, {len(suite.test_seeds)} paired test worlds (seeds {seed_list(suite.test_seeds)})"
    )


def verdict(results: Results) -> str:
    """Who delivers most where: cells counted by leader; those within the leader's interval share the cell with it."""
    found: dict[str, list[str]] = {}
    for name in results.cells:
        found.setdefault(" = ".join(results.leaders(name)), []).append(name)
    counted = dict(sorted(found.items(), key=lambda item: -len(item[1])))
    return f"Most goodput of {len(results.cells)} cells (= where the 95 % interval allows a tie): {who_where(counted)}."


def losses(results: Results) -> str:
    """Who falls behind tuned WISP where, beyond the interval of the paired difference."""
    found: dict[str, list[str]] = {}
    for name, rungs in results.ladders.items():
        for title, row in rungs.items():
            if row["difference_high"] is not None and row["difference_high"] < 0.0:
                found.setdefault(title, []).append(name)
    return f"Behind tuned WISP, beyond the 95 % interval: {who_where(found) or 'nobody'}."


def who_where(found: dict[str, list[str]]) -> str:
    """Cells by who is meant, counted and listed."""
    return "; ".join(f"{who} in {len(cells)} ({', '.join(cells)})" for who, cells in found.items())


def show_ladder(results: Results) -> str:
    """Goodput of each rung, a line a cell; the best rule by name."""
    ladders = results.ladders
    titles = [title for title in LADDER if any(title in rungs for rungs in ladders.values())]
    bounds = list(dict.fromkeys(bound for rungs in ladders.values() for bound in bounds_of(rungs[WISP_TUNED])))
    header = ["tokens/s on time", *titles, *(f"bound: {bound}" for bound in bounds), "best rule, setting"]
    lines = []
    for name, rungs in ladders.items():
        values = [cell(rungs[title][GOODPUT]) if title in rungs else "-" for title in titles]
        above = [cell(bounds_of(rungs[WISP_TUNED]).get(bound)) for bound in bounds]
        lines.append([name, *values, *above, rungs[BEST_RULE]["setting"]])
    return table(header, lines)


def show_aggregates(rows: Sequence[Row]) -> str:
    """One line a variant."""
    names = ["controller", "", "IQM", "95 %", "vs WISP", "95 %", "P(better)", "95 %"]
    return aligned(with_columns([names, [""] * len(names)], MEASURES), [aggregate_cells(row) for row in rows])


def aggregate_cells(row: Row) -> list[str]:
    """A line of an aggregate table."""
    scores = []
    for key, digits in (("iqm", 3), ("difference", 3), ("improvement", 2)):
        scores += [cell(row[key], digits), interval_cell(row[f"{key}_low"], row[f"{key}_high"], digits)]
    return [row["controller"], row["tuning"], *scores, *metric_cells(row, MEASURES)]


def profile_lines(results: Results, held_out: bool) -> Lines:
    """The performance profile of each rung, in percent of worlds."""
    lines = [
        [title, *(cell(share, 1, 100.0) for share in performance_profile(scores, np.array(PROFILE)))]
        for title, scores in results.rung_scores(held_out).items()
    ]
    return ["rung", *(f"> {threshold:g}" for threshold in PROFILE)], lines


def capacity_title(results: Results) -> str:
    """What counts as capacity."""
    first = results.capacities[0]
    return (
        f"Capacity of {first['scenario']}: largest number of devices with at least {100 * first['attainment_target']:g} % of "
        f"requests within their SLO and at most {100 * first['starved_limit']:g} % of devices starved (under 1 token/s), "
        f"{first['seeds']} paired worlds (seeds {first['seed_list']})"
    )


def capacity_lines(results: Results) -> Lines:
    """The capacity of each rung at each SLO speed."""
    there = ["SLO met there, %", "starved there, %", "goodput there, tokens/s"]
    lines = [
        [row["rung"], f"{row['slo_tokens_per_s']:g}", *capacities.cells(row)[1:], row["controller"]]
        for row in results.capacities
    ]
    return ["rung", "SLO, tokens/s", "devices", "95 %", *there, "setting"], lines


def show_settings(tuned: dict[str, Tuned]) -> str:
    """What tuning found, and how many different settings the cells asked for."""
    lines = [
        [name, found.everywhere, f"{len(set(found.per_cell.values()))} of {len(found.per_cell)}"]
        for name, found in tuned.items()
    ]
    return table(["tuned", "for all cells", "different per cell"], lines)
