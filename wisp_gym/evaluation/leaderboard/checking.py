"""Whether a row says what comes out: it is run again, and compared byte for byte."""

from dataclasses import dataclass, replace

from wisp_gym.cli import Bar
from wisp_gym.errors import InputError
from wisp_gym.evaluation.leaderboard.measured import measured
from wisp_gym.evaluation.leaderboard.provenance import MissingError, codes, digests
from wisp_gym.evaluation.leaderboard.rows import BoardRow, Written
from wisp_gym.evaluation.leaderboard.suite import Suite
from wisp_gym.evaluation.pool import Pool


@dataclass(frozen=True)
class Verdict:
    """What became of a row: whether it holds, and a line that says it."""

    holds: bool
    words: str


def check(written: Written, suite: Suite, own_code: bool, pool: Pool | None = None, bar: Bar | None = None) -> Verdict:
    """Run a row again.

    Args:
        own_code: whether controllers that are Python modules are run, which runs what their author wrote.
        pool: where worlds run. bar: counts worlds.
    """
    row = written.row
    if reason := before_it_runs(row, suite, own_code):
        return Verdict(False, reason)
    try:
        again = measured(row.controller, suite, pool, bar)
    except InputError as error:
        return Verdict(False, f"does not run: {error}")
    changed = ", ".join(changes(row.versions, again.versions))
    if replace(again, versions=row.versions).line() == written.line:
        return Verdict(True, f"the same bytes, with other versions: {changed}" if changed else "the same bytes")
    where = difference(row, again)
    return Verdict(
        False, f"not what comes out: {where}" + (f" (made with other versions: {changed})" if changed else "")
    )


def before_it_runs(row: BoardRow, suite: Suite, own_code: bool) -> str:
    """Why a row cannot be compared, "" where it can."""
    if (row.suite, row.suite_digest) != (suite.name, suite.digest):
        given = f"'{row.suite}', digest {row.suite_digest[:12]}"
        return f"another suite: {given}; this is '{suite.name}', digest {suite.digest[:12]}"
    if (code := codes(row.controller)) and not own_code:
        return f"not run: {', '.join(code)} is code of its author's; --own-code runs it"
    try:
        found = digests(row.controller)
    except MissingError as error:
        return f"cannot be found: {error}"
    except InputError as error:
        return f"does not run: {error}"
    other = [name for name in found if row.digests.get(name) != found[name]]
    if other or found.keys() != row.digests.keys():
        names = ", ".join(other or sorted(found.keys() ^ row.digests.keys()))
        return f"another controller: the bytes of {names} are not those that the row was made of"
    return ""


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What versions differ, as `numba 0.60 → 0.61`."""
    names = dict.fromkeys([*before, *now])
    pairs = [(name, before.get(name, "none"), now.get(name, "none")) for name in names]
    return [f"{name} {old} → {new}" for name, old, new in pairs if old != new]


def difference(row: BoardRow, again: BoardRow) -> str:
    """The first figure that differs, in words."""
    for cell, measures in again.figures.items():
        for metric, values in measures.items():
            told = row.figures.get(cell, {}).get(metric, [])
            for place, value in enumerate(values):
                if place >= len(told) or repr(told[place]) != repr(value):
                    given = repr(told[place]) if place < len(told) else "nothing"
                    return f"{metric} of {cell}, world {place + 1}, is given as {given} and comes out as {value!r}"
    return "the figures are the same, the line is written differently"
