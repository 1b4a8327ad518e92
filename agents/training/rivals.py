"""A trained policy beside its rivals, all in the same held-out worlds: rows, tables, a picture and a sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.training.ladder import candidates_of, ladder, looking_ahead, show_ladder
from agents.training.learning_plot import draw
from agents.training.settings import Settings
from wisp_gym.cli import progress
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation import evaluate
from wisp_gym.evaluation.comparison_tables import show
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import write_bytes, write_json, write_text
from wisp_gym.scenario import Scenario, ScenarioError, with_, with_slo
from wisp_gym.simulation import simulate

Scores = list[tuple[int, float, float]]  # of validations: decisions, goodput in tokens/s, tokens drafted in a round

BATCHING = "fcfs"  # beside the learned policy; the batching controller is learned elsewhere
FIXED = [f"fixed:{k}+fcfs" for k in (0, 1, 2, 3, 4, 6, 8)]
EDGE = ["aligned+fcfs", "survival:0.5+fcfs"]
CENTRALIZED = ["centralized", "centralized:0"]
RIVALS = ["random:0.5+fcfs", "wisp", "wisp+fcfs", "sled-plain", *CENTRALIZED, *EDGE, *FIXED, "perfect+fcfs"]
CHOICE = "controller-v2"  # takes a whole controller, by what is known of the deployment
COLOCATED = ["colocated:2", "colocated:3,1"]  # servers that draft for themselves, with each of the first two drafts
TUNING_SEEDS = range(3_000_000, 3_000_000 + 4)  # for WISP's threshold; worlds of no training, validation or test


def held_out_scenario(settings: Settings, scenario: Scenario) -> Scenario:
    """The scenario of validation and comparison: that of training, with its population and service class.

    Raises:
        InputError: a population or a speed that cannot be.
    """
    kwargs = settings.env_kwargs
    try:
        scenario = with_(scenario, n_devices=kwargs.get("devices", scenario.n_devices))
        return with_slo(scenario, kwargs["slo"]) if "slo" in kwargs else scenario
    except ScenarioError as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def colocated_rivals(scenario: Scenario) -> list[str]:
    """Those servers that draft for themselves for whose drafts the scenario's server has room."""
    found = []
    for name in COLOCATED:
        try:
            found.append(resolve(name, scenario).name)
        except ControllerError:
            continue
    return found


def tuned_wisp(scenario: Scenario) -> str:
    """WISP's stop rule with the scheduler and the threshold, of twelve, that deliver most in worlds of their own."""
    names = [f"wisp:{0.05 + 0.075 * k:.3f}+{batching}" for k in range(12) for batching in ("fcfs", "wisp")]
    goodput = [np.mean([m.goodput_tokens_per_s for m in simulate(scenario, name, TUNING_SEEDS)]) for name in names]
    return names[int(np.argmax(goodput))]


def compare_with_rivals(
    folder: Path, settings: Settings, scenario: Scenario, scores: Scores, shown: bool, pool: Pool
) -> str:
    """Run the policy of a run's folder and its rivals in the test worlds; writes comparison.json, .txt and .png there.

    Args:
        scenario: of the held-out worlds. scores: of the validations, for the picture. shown: whether a progress bar is.

    Returns:
        The tables and the verdict.
    """
    learned, tuned = f"{folder / 'policy.json'}+{BATCHING}", tuned_wisp(scenario)
    rivals = [*RIVALS, *colocated_rivals(scenario), CHOICE]
    names, seeds, slo = [learned, tuned, *rivals], settings.test_seeds, settings.env_kwargs.get("slo")
    with progress((len(names) + 1) * len(seeds), " worlds", shown, desc="held-out worlds") as bar:
        rows = evaluate(names, scenario, None, slo, seeds, "wisp", pool=pool, bar=bar).rows()
        ahead = looking_ahead(scenario, candidates_of(learned, CHOICE, [tuned, EDGE[0]], scenario), seeds, pool, bar)
    rows.sort(key=lambda row: -row["goodput_tokens_per_s"])
    write_json(folder / "comparison.json", rows)
    write_bytes(folder / "comparison.png", draw([(n, goodput) for n, goodput, _ in scores], rows, learned))
    named = [{**row, "controller": "learned" if row["controller"] == learned else row["controller"]} for row in rows]
    rungs = show_ladder(ladder(rows, groups(learned, tuned), scenario, ahead))
    text = f"{show(named, scenario)}\n\n{rungs}\n\n{verdict(rows, learned, tuned)}"
    write_text(folder / "comparison.txt", text + "\n")
    return text


def groups(learned: str, tuned: str) -> dict[str, list[str]]:
    """The controllers of each rung of the ladder."""
    return {
        "WISP": ["wisp"], "WISP, tuned": [tuned], "centralized serving": CENTRALIZED, "learned": [learned], CHOICE: [CHOICE],
        "best rule of devices": [*EDGE, *FIXED], "best server that drafts for itself": COLOCATED, "perfect predictor of devices": ["perfect+fcfs"],
    }  # fmt: skip


def verdict(rows: Sequence[Row], learned: str, tuned: str) -> str:
    """One sentence on what the comparison shows.

    Args:
        learned, tuned: names of the policy and of tuned WISP among the rows.
    """
    goodput = {row["controller"]: row["goodput_tokens_per_s"] for row in rows}
    own, fixed = goodput[learned], max(FIXED, key=lambda name: goodput[name])
    ahead = [name for name in goodput if goodput[name] > own and not name.startswith("perfect")]

    def against(name: str) -> str:
        return f"{100 * (own / goodput[name] - 1):+.1f} %" if goodput[name] > 0 else f"{own:+.1f} tokens/s"

    return (
        f"learned: {own:.1f} tokens/s on time, {against('wisp')} against WISP, "
        f"{against(tuned)} against WISP tuned ({tuned}), {against(fixed)} against the best fixed length ({fixed}); "
        f"ahead of it: {', '.join(ahead) if ahead else 'none of the controllers'}"
    )
