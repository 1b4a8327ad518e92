"""The tables of a study's report."""

from agents.study.frontier import PRICES, WAYS, asks_who_drafts, cheapest, margins, winners
from agents.study.page import Table
from agents.study.results import Results, bounds_of
from agents.study.rows import GOODPUT, Row
from agents.study.tables import MEASURES, PROFILE_TITLE, aggregate_cells, capacity_lines, capacity_title, profile_lines
from wisp_gym.cli import cell, interval_cell
from wisp_gym.evaluation.comparison_tables import metric_cells
from wisp_gym.evaluation.statistics import mean

IN_A_CLOSED_LOOP = (
    "A device asks again only after its last answer, so requests of starved devices hardly count in the attainment: a rule "
    "can meet it and leave devices with nothing. Hence the second condition. Settings were tuned for goodput."
)


MEASURE_NAMES = [f"{name}, {unit}" for _, name, unit, _, _ in MEASURES]


def tables(results: Results) -> list[Table]:
    """All tables, those without a line left out."""
    found = [
        over_cells(results, False), over_cells(results, True), profiles(results, False), profiles(results, True),
        rungs(results), capacity(results), every_cell(results), per_class(results), starvation(results),
    ]  # fmt: skip
    found = [who_wins(results), who_is_cheapest(results), *found] if asks_who_drafts(results) else found
    return [table for table in found if table.lines]


def over_cells(results: Results, held_out: bool) -> Table:
    """Aggregates over the training or the held-out cells."""
    where = "held-out" if held_out else "training"
    lines = [aggregate_cells(row) for row in results.aggregates(held_out)]
    header = ["controller", "tuning", "IQM", "95 %", "against WISP", "95 %", "P(better)", "95 %", *MEASURE_NAMES]
    about = (
        f"{len(results.comparable(held_out))} cells. IQM: interquartile mean over cells and worlds of the goodput over that of "
        "tuned WISP in the same cell; P(better): probability of improvement on it; intervals: stratified bootstrap."
    )
    return Table(f"aggregates-{where}", f"Over the {where} cells", about, header, lines)


def rungs(results: Results) -> Table:
    """The ladder of each cell, from SLED to the bounds."""
    lines = []
    for name, own in results.ladders.items():
        for title, row in own.items():
            apart = [cell(row["difference"]), interval_cell(row["difference_low"], row["difference_high"])]
            lines.append([name, title, row["setting"], *goodput_cells(row), *apart])
        above = bounds_of(next(iter(own.values())))
        lines += [[name, f"bound: {bound}", "", cell(value), "", "", ""] for bound, value in above.items()]
    header = ["cell", "rung", "setting", "goodput, tokens/s", "95 %", "against WISP", "95 %"]
    about = (
        "Where a rung is a choice, it was made by goodput in training worlds; the difference to tuned WISP is paired."
    )
    return Table("ladder", "Ladder of each cell", about, header, lines)


def goodput_cells(row: Row) -> list[str]:
    """Goodput with its interval."""
    return [cell(row[GOODPUT]), interval_cell(row["goodput_low"], row["goodput_high"])]


def who_wins(results: Results) -> Table:
    """The best of each way to draft in each cell."""
    lines = []
    for name in results.rungs:
        found = {one.way: f"{cell(one.tokens_per_s, 0)}, {100.0 * one.share:+.0f} %" for one in margins(results, name)}
        first = winners(results, name)
        ways = [found.get(way, "") for way, _ in WAYS.values()]
        lines.append([name, *ways, ", ".join(one.way for one in first), first[0].setting])
    header = ["cell", *(way for way, _ in WAYS.values()), "who wins, and ties", "with"]
    about = (
        "Goodput, tokens/s on time, of the best of each way to draft, and the difference to the best whose devices draft; "
        "ties within 95 %."
    )
    return Table("frontier", "Who drafts best", about, header, lines)


def who_is_cheapest(results: Results) -> Table:
    """In how many cells each way to draft costs least, by the price of the server's time."""
    lines = []
    for price in PRICES:
        won = [cheapest(results, name, price) for name in results.rungs]
        lines.append([f"{price:g}", *(str(won.count(way)) for way, _ in WAYS.values())])
    header = ["server's price, times the scenario's", *(way for way, _ in WAYS.values())]
    about = "Cells in which 1,000 tokens on time cost least: the server's time, and electricity for it and the devices at 0.30 $/kWh."
    return Table("prices", "Who drafts cheapest", about, header, lines)


def profiles(results: Results, held_out: bool) -> Table:
    """Performance profiles over the training or the held-out cells."""
    where = "held-out" if held_out else "training"
    title = f"Performance profiles over the {where} cells"
    return Table(f"profiles-{where}", title, f"{PROFILE_TITLE}.", *profile_lines(results, held_out))


def capacity(results: Results) -> Table:
    """Capacity at each SLO speed."""
    about = f"{capacity_title(results)}. {IN_A_CLOSED_LOOP}" if results.capacities else ""
    return Table("capacity", "Capacity at each SLO speed", about, *capacity_lines(results))


def every_cell(results: Results) -> Table:
    """Every controller in every cell."""
    rows = [results.cell_row(name, own) for name, variants in results.cells.items() for own in variants.values()]
    lines = [
        [*(row[key] for key in ("cell", "controller", "tuning", "setting")), *goodput_cells(row), *metric_cells(row, MEASURES)]
        for row in rows
    ]  # fmt: skip
    header = ["cell", "controller", "tuning", "setting", "goodput, tokens/s", "95 %", *MEASURE_NAMES]
    return Table("cells", "Every controller in every cell", "Means over the test worlds.", header, lines)


def per_class(results: Results) -> Table:
    """What each SLO class got."""
    lines = []
    for name, taken in results.rungs.items():
        for title, own in taken.items():
            for of_class in zip(*(row["classes"] for row in own), strict=True):
                met, goodput = (mean([one[key] for one in of_class]) for key in ("slo_attainment", GOODPUT))
                speed = f"{of_class[0]['slo_tokens_per_s']:g}"
                lines.append([name, title, speed, cell(met, 1, 100.0), cell(goodput)])
    header = ["cell", "rung", "SLO, tokens/s", "SLO met, %", "goodput, tokens/s"]
    return Table("classes", "Service of each SLO class", "Means over the test worlds.", header, lines)


def starvation(results: Results) -> Table:
    """How many devices were left with nearly nothing."""
    lines = []
    for name, taken in results.rungs.items():
        for title, own in taken.items():
            shares = [row["starved_share"] for row in own]
            lines.append([name, title, cell(mean(shares), 1, 100.0), cell(max(shares), 1, 100.0)])
    header = ["cell", "rung", "starved, %", "worst world, %"]
    return Table("starvation", "Starvation", "Devices that got less than 1 token/s.", header, lines)
