"""The printed tables of a comparison: goodput and service, costs, and each SLO class."""

from collections.abc import Sequence

from wisp_gym.cli import aligned, cell, interval_cell
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.scenario import Scenario

Column = tuple[str, str, str, int, float]  # key, header, unit, digits, factor from the key's unit to the shown one
SERVICE: tuple[Column, ...] = (
    ("response_goodput_tokens_per_s", "by response", "tokens/s", 1, 1.0),
    ("throughput_tokens_per_s", "throughput", "tokens/s", 1, 1.0),
    ("slo_attainment", "SLO met", "%", 1, 100.0),
    ("token_attainment", "on time", "% tokens", 1, 100.0),
    ("starved_share", "starved", "%", 1, 100.0),
)
COSTS: tuple[Column, ...] = (
    ("round_latency_p50_s", "round p50", "ms", 0, 1e3),
    ("round_latency_p95_s", "p95", "ms", 0, 1e3),
    ("ttft_p95_s", "TTFT p95", "s", 2, 1.0),
    ("wasted_drafting_share", "wasted", "%", 1, 100.0),
    ("interference_s", "interference", "ms", 1, 1e3),
    ("server_use", "server use", "%", 1, 100.0),
    ("joules_per_1k_tokens", "energy", "J/1k tokens", 0, 1.0),
    ("dollars_per_1k_tokens", "cost", "$/1k tokens", 5, 1.0),
)
DRAFTERS: tuple[Column, ...] = (  # shown where somebody drafts besides a device before it sends
    ("server_drafted_share", "by server", "% rounds", 1, 100.0),
    ("overlap_used_share", "ahead, used", "%", 1, 100.0),
)
CLASSES: tuple[Column, ...] = (
    ("requests", "requests", "a world", 1, 1.0),
    ("slo_attainment", "SLO met", "%", 1, 100.0),
    ("goodput_tokens_per_s", "goodput", "tokens/s", 1, 1.0),
)


def show(rows: Sequence[Row], scenario: Scenario) -> str:
    """The tables of rows that `Comparison.rows` gave."""
    first = rows[0]
    title = (
        f"{scenario.name}: {scenario.n_devices} devices, {slo_words(first['slo_tokens_per_s'])}, {first['seeds']} paired "
        f"worlds (seeds {first['seed_list']}) of {scenario.horizon.measure_s:g} s each"
    )
    names = ["controller", "goodput", "", f"vs {first['reference']}", ""]
    units = ["", "tokens/s", "95 %", "tokens/s", "95 %"]
    service = [[row["controller"], *goodput_cells(row), *metric_cells(row, SERVICE)] for row in rows]
    columns = COSTS + tuple(column for column in DRAFTERS if any(row[column[0]] for row in rows))
    costs = [[row["controller"], *metric_cells(row, columns)] for row in rows]
    tables = [title, aligned(with_columns([names, units], SERVICE), service)]
    tables.append(aligned(with_columns([["controller"], [""]], columns), costs))
    return "\n\n".join([*tables, show_classes(rows)] if "classes" in first else tables)


def slo_words(speed_tokens_per_s: float | None) -> str:
    """What devices are promised: a speed, or None for the scenario's own classes."""
    return "the scenario's SLO mix" if speed_tokens_per_s is None else f"SLO {speed_tokens_per_s:g} tokens/s"


def goodput_cells(row: Row) -> list[str]:
    """Goodput and paired difference, each with its interval."""
    keys = ("goodput_tokens_per_s", "goodput_difference_tokens_per_s")
    return [text for key in keys for text in (cell(row[key]), interval_cell(row[f"{key}_low"], row[f"{key}_high"]))]


def metric_cells(row: Row, columns: Sequence[Column]) -> list[str]:
    """Cells of a row's metrics."""
    return [cell(row[key], digits, factor) for key, _, _, digits, factor in columns]


def with_columns(headers: list[list[str]], columns: Sequence[Column]) -> list[list[str]]:
    """The two header lines with those of the metrics behind them."""
    return [headers[0] + [column[1] for column in columns], headers[1] + [column[2] for column in columns]]


def show_classes(rows: Sequence[Row]) -> str:
    """Attainment and goodput of each SLO class, one line per controller and class."""
    each = [(row["controller"], one) for row in rows for one in row["classes"]]
    lines = [[name, f"{one['slo_tokens_per_s']:g}", *metric_cells(one, CLASSES)] for name, one in each]
    return aligned(with_columns([["controller", "SLO"], ["", "tokens/s"]], CLASSES), lines)
