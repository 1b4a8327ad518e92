"""Where a training stands: WISP, the best of each way to draft, what looking ahead reaches, and what nobody can exceed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.bounds.fluid import bounds_of
from agents.bounds.kinds import COLOCATED, INFORMATION
from agents.bounds.lookahead import Lookahead
from wisp_gym.cli import Bar, aligned, cell, interval_cell
from wisp_gym.controllers.choice import chosen
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.engine.branch import refuse_recorded
from wisp_gym.engine.worlds import world_of
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.statistics import bootstrap_interval
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

GOODPUT = "goodput_tokens_per_s"
HEADERS = [["ladder", "goodput", ""], ["", "tokens/s", "95 %"]]
# Few copies, seldom: a fifth of a world's own time for each candidate. `python -m agents.branching lookahead` looks closer.
DRAWS, HORIZON_S, PERIOD_S = 2, 3.0, 4.0


@dataclass(frozen=True)
class Rung:
    """One line. Attributes: goodput in tokens/s; low, high: its 95 % interval, None for a bound."""

    name: str
    goodput: float
    low: float | None = None
    high: float | None = None


def ladder(
    rows: Sequence[Row], groups: Mapping[str, Sequence[str]], scenario: Scenario, ahead: Rung | None
) -> list[Rung]:
    """The rungs, the lowest first, bounds last.

    Args:
        rows: of a comparison. groups: names of controllers by rung, of which the one with the most goodput stands for all. ahead: what
            looking ahead reaches.
    """
    found = [best_of(rung, [row for row in rows if row["controller"] in names]) for rung, names in groups.items()]
    rungs = [rung for rung in [*found, ahead] if rung]
    return sorted(rungs, key=lambda rung: rung.goodput) + bounds(scenario)


def best_of(rung: str, rows: Sequence[Row]) -> Rung | None:
    """The rung of the row with the most goodput, if there is any; it says which that is of several."""
    if not rows:
        return None
    best = max(rows, key=lambda row: row[GOODPUT])
    name = f"{rung} ({best['controller']})" if len(rows) > 1 else rung
    return Rung(name, best[GOODPUT], best[f"{GOODPUT}_low"], best[f"{GOODPUT}_high"])


def bounds(scenario: Scenario) -> list[Rung]:
    """No controller that knows what devices can know has more in the long run (docs/model/bounds.md).

    None without a warm-up, nor of drafts that no bound is known for: recorded ones, loops, or easier after a rejected token.
    """
    who = {INFORMATION: "devices draft"}
    if scenario.server_drafts:  # either, each round, costs ten times the time of both: `python -m agents.bounds`
        who[COLOCATED] = "the server drafts"
    if scenario.draft.trace or scenario.horizon.warmup_s == 0.0:
        return []
    try:
        found = bounds_of(scenario, names=list(who))
    except InputError:
        return []
    return [Rung(f"bound, {who[name]}", one.tokens_per_s) for name, one in found.items()]


# --- looking ahead ---------------------------------------------------------------------------------------------------


def candidates_of(learned: str, choice: str, others: Sequence[str], scenario: Scenario) -> list[Controller]:
    """Who may drive: the learned policy as it is and beside the choice's rules of the server, and others; none of them a server alone.

    Copies share one policy of devices, so the learned one stands where the choice has a shipped one.
    """
    policy, beside = learned.rpartition("+")[0], chosen(choice, scenario)
    for shipped in shipped_names():
        beside = beside.replace(shipped, policy)
    found = [resolve(name, scenario) for name in (beside, learned, *others)]
    return [controller for controller in found if not controller.centralized]


def reach(scenario: Scenario, candidates: Sequence[Controller], seed: int) -> float:
    """Goodput of one world in which the candidate that is ahead in copies of it is followed, tokens/s; a job of a `Pool`."""
    return Lookahead(scenario, candidates, DRAWS, HORIZON_S, PERIOD_S).play(seed)


def can_be_drawn(scenario: Scenario, controller: Controller) -> bool:
    """Whether a world's future can be drawn again: it is neither recorded nor a loop's."""
    try:
        refuse_recorded(world_of(scenario, controller, 0).arrays.config[0, 0])
    except InputError:
        return False
    return True


def looking_ahead(
    scenario: Scenario, candidates: Sequence[Controller], seeds: Sequence[int], pool: Pool, bar: Bar
) -> Rung | None:
    """What trying every candidate ahead reaches in each world; None where worlds cannot be drawn afresh."""
    if not can_be_drawn(scenario, candidates[0]):
        return None
    goodput = []
    for one in pool.map(reach, [(scenario, candidates, seed) for seed in seeds]):
        goodput.append(one)
        bar.update()
    name = f"lookahead ({len(candidates)} controllers, every {PERIOD_S:g} s tried {HORIZON_S:g} s ahead)"
    return Rung(name, sum(goodput) / len(goodput), *bootstrap_interval(goodput))


def show_ladder(rungs: Sequence[Rung]) -> str:
    """The rungs as a table."""
    return aligned(HEADERS, [[r.name, cell(r.goodput), interval_cell(r.low, r.high)] for r in rungs])
