"""The printed tables of a study."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from agents.study.results import (
    BEST_RULE,
    LADDER,
    WISP_TUNED,
    Results,
    aggregates,
    bounds_of,
    comparable,
    ladder,
    leaders,
    rung_scores,
)
from agents.study.rows import GOODPUT, Row
from agents.study.suite import Suite
from agents.study.tuning import Tuned
from wisp_gym.cli import aligned, cell, interval_cell, seed_list
from wisp_gym.evaluation.comparison_tables import COSTS, SERVICE
from wisp_gym.evaluation.statistics import performance_profile

# Columns of the aggregate tables, as `wisp_gym.evaluation.comparison_tables` shows them.
SHOWN = (
    "slo_attainment", "starved_share", "wasted_drafting_share", "interference_s", "joules_per_1k_tokens", "dollars_per_1k_tokens",
)  # fmt: skip
MEASURES = tuple(column for column in (*SERVICE, *COSTS) if column[0] in SHOWN)
PROFILE = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # thresholds of the printed performance profiles


def show(suite: Suite, tuned: dict[str, Tuned], rows: Sequence[Row]) -> str:
    """All tables."""
    results = Results(rows)
    parts = [title(suite), verdict(results), losses(results), show_ladder(results)]
    for held_out, name in ((False, "training cells"), (True, "held-out cells, settings from the training cells")):
        cells = comparable(results, held_out)
        if cells:
            about = f"Over {len(cells)} {name}: goodput over that of tuned WISP in the same cell"
            parts.append(f"{about}\n\n{show_aggregates(aggregates(results, held_out))}")
            parts.append(f"{PROFILE_TITLE}\n\n{aligned(*split(profile_lines(results, held_out)))}")
    if results.capacities:
        parts.append(f"{capacity_title(results)}\n\n{aligned(*split(capacity_lines(results)))}")
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
        found.setdefault(" = ".join(leaders(results, name)), []).append(name)
    counted = sorted(found.items(), key=lambda item: -len(item[1]))
    said = [f"{who} in {len(cells)} ({', '.join(cells)})" for who, cells in counted]
    return f"Most goodput of {len(results.cells)} cells (= where the 95 % interval allows a tie): {'; '.join(said)}."


def losses(results: Results) -> str:
    """Who falls behind tuned WISP where, beyond the interval of the paired difference."""
    found: dict[str, list[str]] = {}
    for name in results.cells:
        for title, row in ladder(results, name).items():
            if row["difference_high"] is not None and row["difference_high"] < 0.0:
                found.setdefault(title, []).append(name)
    said = [f"{who} in {len(cells)} ({', '.join(cells)})" for who, cells in found.items()]
    return f"Behind tuned WISP, beyond the 95 % interval: {'; '.join(said) or 'nobody'}."


def show_ladder(results: Results) -> str:
    """Goodput of each rung, a line a cell; the best rule by name."""
    rungs = {name: ladder(results, name) for name in results.cells}
    titles = [rung.title for rung in LADDER if any(rung.title in one for one in rungs.values())]
    bounds = list(dict.fromkeys(bound for one in rungs.values() for bound in bounds_of(one[WISP_TUNED])))
    headers = ["tokens/s on time", *titles, *(f"bound: {bound}" for bound in bounds), "best rule, setting"]
    lines = []
    for name, one in rungs.items():
        values = [cell(one[rung][GOODPUT]) if rung in one else "-" for rung in titles]
        above = [cell(bounds_of(one[WISP_TUNED]).get(bound)) for bound in bounds]
        lines.append([name, *values, *above, one[BEST_RULE]["setting"]])
    return aligned([headers], lines)


def show_aggregates(rows: Sequence[Row]) -> str:
    """One line a variant."""
    names = ["controller", "", "IQM", "95 %", "vs WISP", "95 %", "P(better)", "95 %", *(m[1] for m in MEASURES)]
    units = ["", "", "", "", "", "", "", "", *(m[2] for m in MEASURES)]
    return aligned([names, units], [aggregate_cells(row) for row in rows])


def aggregate_cells(row: Row) -> list[str]:
    """A line of an aggregate table."""
    keys = (("iqm", 3), ("difference", 3), ("improvement", 2))
    scores = [
        text for key, digits in keys
        for text in (cell(row[key], digits), interval_cell(row[f"{key}_low"], row[f"{key}_high"], digits))
    ]  # fmt: skip
    return [row["controller"], row["tuning"], *scores, *measures(row)]


def measures(row: Row) -> list[str]:
    """The cells of what controllers are judged by besides goodput."""
    return [cell(row[key], digits, factor) for key, _, _, digits, factor in MEASURES]


PROFILE_TITLE = "Performance profiles: worlds (of the mean cell) with more than so many times tuned WISP's goodput, %"


def split(lines: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Header and lines."""
    return lines[:1], lines[1:]


def profile_lines(results: Results, held_out: bool) -> list[list[str]]:
    """Header, and the performance profile of each rung, in percent of worlds."""
    lines = [["rung", *(f"> {threshold:g}" for threshold in PROFILE)]]
    for title, scores in rung_scores(results, held_out).items():
        lines.append([title, *(cell(share, 1, 100.0) for share in performance_profile(scores, np.array(PROFILE)))])
    return lines


def capacity_title(results: Results) -> str:
    """What counts as capacity."""
    first = results.capacities[0]
    return (
        f"Capacity of {first['scenario']}: largest number of devices with at least {100 * first['attainment_target']:g} % of "
        f"requests within their SLO and at most {100 * first['starved_limit']:g} % of devices starved (under 1 token/s), "
        f"{first['seeds']} paired worlds (seeds {first['seed_list']})"
    )


def capacity_lines(results: Results) -> list[list[str]]:
    """Header, and the capacity of each rung at each SLO speed."""
    there = ["SLO met there, %", "starved there, %", "goodput there, tokens/s"]
    lines = [["rung", "SLO, tokens/s", "devices", "95 %", *there, "setting"]]
    for row in results.capacities:
        found = ("≥ " if row["at_limit"] else "") + str(row["capacity_devices"])
        there = [cell(row[key], 1, 100.0) for key in ("slo_attainment", "starved_share")]
        interval = interval_cell(row["capacity_low"], row["capacity_high"], 0)
        speed, goodput = f"{row['slo_tokens_per_s']:g}", cell(row[GOODPUT])
        lines.append([row["rung"], speed, found, interval, *there, goodput, row["controller"]])
    return lines


def show_settings(tuned: dict[str, Tuned]) -> str:
    """What tuning found, and how many different settings the cells asked for."""
    lines = [
        [name, found.everywhere, f"{len(Counter(found.per_cell.values()))} of {len(found.per_cell)}"]
        for name, found in tuned.items()
    ]
    return aligned([["tuned", "for all cells", "different per cell"]], lines)
