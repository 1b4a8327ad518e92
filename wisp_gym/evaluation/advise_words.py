"""Advice in words: the sentence that says who should draft, and the table beneath it."""

from collections.abc import Sequence

from wisp_gym.cli import aligned, cell, interval_cell
from wisp_gym.evaluation.comparison_tables import SERVICE, Column, goodput_cells, metric_cells, with_columns
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.scenario import Scenario

TIE_SHARE = 0.01  # a smaller difference is a tie too, however sure it is: our choice, far below the model's own error
WHO = {
    "device": "The devices should draft",
    "server": "The server should draft",
    "either": "Device or server should draft, as a rule decides for each session",
    "nobody": "Nobody should draft",
}
DOING = {
    "device": "drafting on the devices",
    "server": "drafting on the server",
    "either": "a rule that picks device or server",
    "nobody": "no drafting at all",
}
# By a rule, where the server takes sessions over and drafts nothing for them.
WHO_OR_NOBODY = "Device or nobody should draft, as a rule decides for each session"
DOING_OR_NOBODY = "a rule that picks device or nobody"
COLUMNS: tuple[Column, ...] = (
    *(column for column in SERVICE if column[0] in ("slo_attainment", "starved_share")),
    ("dollars_per_1k_tokens", "cost", "$/1k tokens", 5, 1.0),
    ("joules_per_1k_tokens", "energy", "J/1k tokens", 0, 1.0),
    ("server_drafted_share", "by server", "% rounds", 1, 100.0),
)


def is_tie(row: Row) -> bool:
    """Whether a row's goodput may be the winner's: the interval of the difference holds 0, or it is below 1 %.

    Args:
        row: any but the winner's, with the difference to that one.
    """
    difference, high = (row[f"goodput_difference_tokens_per_s{end}"] for end in ("", "_high"))
    return bool(high >= 0.0 or -difference < TIE_SHARE * (row["goodput_tokens_per_s"] - difference))


def who(row: Row) -> str:
    """Who should draft, where a row has won."""
    return WHO_OR_NOBODY if row["kind"] == "either" and not row["server_drafts"] else WHO[row["kind"]]


def doing(row: Row) -> str:
    """What a row does, as a noun."""
    return DOING_OR_NOBODY if row["kind"] == "either" and not row["server_drafts"] else DOING[row["kind"]]


def sentence(rows: Sequence[Row], named: bool = True) -> str:
    """Who should draft, with which controller, and by how much more goodput than the next kind.

    Args:
        rows: one of each kind, the winner first, the others compared with it. named: say the controller.
    """
    first, *others = rows
    if not first["goodput_tokens_per_s"]:
        return "Nothing is delivered on time, whoever drafts: the server or the devices are too slow for this case."
    tied = [row for row in others if is_tie(row)]
    answer = who(first)
    if tied:
        answer = f"A tie between {joined([doing(row) for row in (first, *tied)])}; most has {doing(first)}"
    if first["kind"] == "either" and first["server_drafts"]:
        answer += f" (here the server in {cell(first['server_drafted_share'], 0, 100.0)} % of rounds)"
    controller = f", with {first['controller']}" if named else ""
    told = f"{answer}{controller}: {cell(first['goodput_tokens_per_s'])} tokens/s on time"
    behind = next((row for row in others if row not in tied), None)
    if behind is None:
        return f"{told}."
    key = "goodput_difference_tokens_per_s"
    more, low, high = (-behind[key + end] for end in ("", "_high", "_low"))
    than = f"than {doing(behind)}" + (", the next best" if not tied else ", the best of the others")
    return f"{told}, {cell(more)} {interval_cell(low, high)} more {than}."


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]])


def show(rows: Sequence[Row], scenario: Scenario) -> str:
    """The table, and beneath it each kind's controller as `wisp-gym evaluate` reads it."""
    first = rows[0]
    title = (
        f"{scenario.name}: {scenario.n_devices} devices, {first['seeds']} paired worlds (seeds {first['seed_list']}) of "
        f"{scenario.horizon.measure_s:g} s each"
    )
    capacities = "capacity_devices" in first
    headers = [["who drafts", "goodput", "", "vs the best", ""], ["", "tokens/s", "95 %", "tokens/s", "95 %"]]
    headers = with_columns(headers, COLUMNS)
    if capacities:
        headers = [[*headers[0], "capacity", ""], [*headers[1], "devices", "95 %"]]
    lines = [
        [kind_cell(row, first), *goodput_cells(row), *metric_cells(row, COLUMNS)]
        + (capacity_cells(row) if capacities else [])
        for row in rows
    ]
    names = [f"{row['kind']:<{max(map(len, WHO))}}  {row['controller']}" for row in rows]
    return "\n\n".join([title, aligned(headers, lines), "\n".join(["controllers:", *names])])


def kind_cell(row: Row, first: Row) -> str:
    """Who drafts, marked where it ties with the best."""
    return str(row["kind"]) + (" (tie)" if row is not first and is_tie(row) else "")


def capacity_cells(row: Row) -> list[str]:
    """Devices that the controller carries with 90 % of requests within their SLO."""
    text = ("≥ " if row["at_limit"] else "") + str(row["capacity_devices"])
    return [text, interval_cell(row["capacity_low"], row["capacity_high"], 0)]
