"""The tables of a study's report."""

from collections.abc import Sequence

from agents.study.page import Table
from agents.study.results import LADDER, Own, Results, aggregates, bounds_of, cell_row, comparable, ladder
from agents.study.rows import GOODPUT, Row
from agents.study.tables import (
    MEASURES,
    PROFILE_TITLE,
    aggregate_cells,
    capacity_lines,
    capacity_title,
    measures,
    profile_lines,
)
from wisp_gym.cli import cell, interval_cell
from wisp_gym.evaluation.statistics import mean

IN_A_CLOSED_LOOP = (
    "A device asks again only after its last answer, so requests of starved devices hardly count in the attainment: a rule "
    "can meet it and leave devices with nothing. Hence the second condition. Settings were tuned for goodput."
)


def tables(results: Results) -> list[Table]:
    """All tables, those without a line left out."""
    found = [
        over_cells(results, False), over_cells(results, True), profiles(results, False), profiles(results, True),
        rungs(results), capacity(results), every_cell(results), per_class(results), starvation(results),
    ]  # fmt: skip
    return [table for table in found if table.lines]


def measure_names() -> list[str]:
    """Header of `agents.study.tables.measures`."""
    return [f"{name}, {unit}" for _, name, unit, _, _ in MEASURES]


def over_cells(results: Results, held_out: bool) -> Table:
    """Aggregates over the training or the held-out cells."""
    where = "held-out" if held_out else "training"
    lines = [aggregate_cells(row) for row in aggregates(results, held_out)]
    header = ["controller", "tuning", "IQM", "95 %", "against WISP", "95 %", "P(better)", "95 %", *measure_names()]
    about = (
        f"{len(comparable(results, held_out))} cells. IQM: interquartile mean over cells and worlds of the goodput over that of "
        "tuned WISP in the same cell; P(better): probability of improvement on it; intervals: stratified bootstrap."
    )
    return Table(f"aggregates-{where}", f"Over the {where} cells", about, header, lines)


def rungs(results: Results) -> Table:
    """The ladder of each cell, from SLED to the bounds."""
    lines = []
    for name in results.cells:
        own = ladder(results, name)
        for title, row in own.items():
            value = [cell(row[GOODPUT]), interval_cell(row["goodput_low"], row["goodput_high"])]
            apart = [cell(row["difference"]), interval_cell(row["difference_low"], row["difference_high"])]
            lines.append([name, title, row["setting"], *value, *apart])
        above = bounds_of(next(iter(own.values())))
        lines += [[name, f"bound: {bound}", "", cell(value), "", "", ""] for bound, value in above.items()]
    header = ["cell", "rung", "setting", "goodput, tokens/s", "95 %", "against WISP", "95 %"]
    about = (
        "Where a rung is a choice, it was made by goodput in training worlds; the difference to tuned WISP is paired."
    )
    return Table("ladder", "Ladder of each cell", about, header, lines)


def profiles(results: Results, held_out: bool) -> Table:
    """Performance profiles over the training or the held-out cells."""
    where = "held-out" if held_out else "training"
    header, *lines = profile_lines(results, held_out)
    return Table(
        f"profiles-{where}", f"Performance profiles over the {where} cells", f"{PROFILE_TITLE}.", header, lines
    )


def capacity(results: Results) -> Table:
    """Capacity at each SLO speed."""
    header, *lines = capacity_lines(results) if results.capacities else [[]]
    about = f"{capacity_title(results)}. {IN_A_CLOSED_LOOP}" if lines else ""
    return Table("capacity", "Capacity at each SLO speed", about, header, lines)


def every_cell(results: Results) -> Table:
    """Every controller in every cell."""
    lines = []
    for name, variants in results.cells.items():
        for own in variants.values():
            row = cell_row(results, name, own)
            value = [cell(row[GOODPUT]), interval_cell(row["goodput_low"], row["goodput_high"])]
            lines.append([name, row["controller"], row["tuning"], row["setting"], *value, *measures(row)])
    header = ["cell", "controller", "tuning", "setting", "goodput, tokens/s", "95 %", *measure_names()]
    return Table("cells", "Every controller in every cell", "Means over the test worlds.", header, lines)


def of_rungs(results: Results) -> list[tuple[str, str, Own]]:
    """Cell, rung and rows of every rung of every ladder."""
    found = [(name, rung.title, results.chosen(name, rung)) for name in results.cells for rung in LADDER]
    return [(name, title, own) for name, title, own in found if own is not None]


def per_class(results: Results) -> Table:
    """What each SLO class got."""
    lines = []
    for name, title, own in of_rungs(results):
        for of_class in zip(*(row["classes"] for row in own), strict=True):
            values = [mean([one[key] for one in of_class]) for key in ("slo_attainment", GOODPUT)]
            speed = f"{of_class[0]['slo_tokens_per_s']:g}"
            lines.append([name, title, speed, cell(values[0], 1, 100.0), cell(values[1])])
    header = ["cell", "rung", "SLO, tokens/s", "SLO met, %", "goodput, tokens/s"]
    return Table("classes", "Service of each SLO class", "Means over the test worlds.", header, lines)


def starvation(results: Results) -> Table:
    """How many devices were left with nearly nothing."""
    lines = []
    for name, title, own in of_rungs(results):
        shares = [row["starved_share"] for row in own]
        lines.append([name, title, cell(mean(shares), 1, 100.0), cell(max(shares), 1, 100.0)])
    header = ["cell", "rung", "starved, %", "worst world, %"]
    return Table("starvation", "Starvation", "Devices that got less than 1 token/s.", header, lines)


def columns(rows: Sequence[Row], key: str) -> list[float]:
    """One measure of several rows, as numbers."""
    return [float("nan") if row[key] is None else float(row[key]) for row in rows]
