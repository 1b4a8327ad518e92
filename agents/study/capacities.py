"""The capacities of a study: how many devices each of a few controllers serves at each SLO speed, stored as they are run.

The settings are those that tuning found for all training cells; they were tuned for goodput, not for capacity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.study.folder import Key, Worlds
from agents.study.results import AS_THEY_ARE, BEST_RULE, WISP_TUNED, Results
from agents.study.rows import CAPACITY, TRAINING, TUNED, Row
from agents.study.suite import WISP, Suite
from wisp_gym.cli import progress
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation.capacities import Curve, capacity_row
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.statistics import mean
from wisp_gym.scenario import with_slo

CHOICES: dict[str, Callable[[Row], bool]] = {
    WISP_TUNED: lambda row: row["controller"] in WISP and row["tuning"] == TUNED,
    BEST_RULE: lambda row: row["kind"] == "rule" and row["tuning"] == TUNED,
    "learned": lambda row: row["kind"] == "learned",
}
KEPT = ("slo_attainment", "starved_share", "goodput_tokens_per_s")


@dataclass(kw_only=True)
class StoredCurve(Curve):
    """A curve whose worlds are kept in the study's folder and not run again; `key` names it there."""

    worlds: Worlds
    key: Key

    def run(self, n_devices: int) -> list[Row]:
        """The measures of each world with `n_devices` devices."""
        key = (*self.key, str(n_devices))
        if key not in self.worlds.known:
            self.worlds.add(key, [{name: world[name] for name in KEPT} for world in super().run(n_devices)])
        return list(self.worlds.known[key])


def best(results: Results, allowed: Callable[[Row], bool]) -> str | None:
    """Of the settings in rows that are allowed, the one with most goodput in training, mean over the training cells."""
    found: dict[str, dict[str, float]] = {}
    for row in results.worlds:
        if not row["held_out"] and allowed(row):
            found.setdefault(row["setting"], {})[row["cell"]] = row[TRAINING]
    return max(found, key=lambda setting: mean(list(found[setting].values())) or 0.0, default=None)


def entrants(results: Results) -> dict[str, str]:
    """Rung → the controller that plays it."""
    chosen = {title: best(results, allowed) for title, allowed in CHOICES.items()}
    return AS_THEY_ARE | {title: setting for title, setting in chosen.items() if setting is not None}


def capacities(suite: Suite, rows: Sequence[Row], worlds: Worlds, pool: Pool) -> list[Row]:
    """A row for each SLO speed and rung, as of `wisp_gym.evaluation.capacities`; none where the suite asks for none."""
    asked = suite.capacity
    if asked is None:
        return []
    found = []
    with progress(desc=CAPACITY) as bar:
        for slo in asked.slo:
            scenario = with_slo(asked.scenario, slo)
            for title, setting in entrants(Results(rows)).items():
                curve = StoredCurve(scenario, resolve(setting, scenario), asked.seeds, bar=bar, pool=pool, worlds=worlds,
                                    key=(CAPACITY, setting, f"{slo:g}"))  # fmt: skip
                found.append({"table": CAPACITY, "rung": title} | capacity_row(setting, curve, slo, asked.goal))
    return found
