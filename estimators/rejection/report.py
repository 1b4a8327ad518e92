"""The figures of trained rejection predictors as text."""

from collections.abc import Sequence
from typing import Any

from estimators.rejection import operating_point as wisp
from estimators.rejection.models import MLP
from wisp_gym.cli import table


def cell(values: Sequence[float]) -> str:
    """Return a value with its interval."""
    value, low, high = values
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def text(result: dict[str, Any]) -> str:
    """Return every table of a study, each under a line that says what it is."""
    tokens, prompts = result["tokens"], result["prompts"]
    return "\n".join([
        f"trained on {tokens['fit']} tokens of {prompts[0]} prompts; calibrated, and threshold chosen, on {tokens['check']} "
        f"of {prompts[1]}; scored on {tokens['test']} of {prompts[2]} (95 % intervals over prompts)",
        predictors(result["predictors"]),
        "\nAUC of each statistic alone",
        table(["statistic", "AUC"], [[name, cell(value)] for name, value in result["statistics_alone"].items()]),
        f"\ncalibration of the {MLP}",
        table(["calibration", "expected calibration error", "Brier"],
              [[row["calibration"], cell(row["ece"]), cell(row["brier"])] for row in result["calibrations"]]),
        f"\nreliability of the {MLP} as exported",
        table(["predicted", "accepted", "tokens"],
              [[f"{row['predicted']:.3f}", cell([row[k] for k in ("accepted", "low", "high")]), str(row["tokens"])]
               for row in result["reliability"]]),
        f"\none prediction of the exported {MLP}, median: engine {result['exported_us']['engine']:.2f} µs, "
        f"onnxruntime {result['exported_us']['onnxruntime']:.1f} µs, on one thread of {result['machine']}",
    ])  # fmt: skip


def predictors(rows: Sequence[dict[str, Any]]) -> str:
    """Return the published predictors and the trained ones, aligned."""
    (low, low_recall), (high, high_recall) = wisp.PUBLISHED_TREES
    header = ["predictor", "AUC", "false acceptance", "recall", "wasted tokens", "false, recall at p ≥ .5",
              "calibration error", "Brier", "µs a token (scikit-learn)"]  # fmt: skip
    mlp = [f"{wisp.published()['auc']:.3f} (derived)", f"{wisp.PUBLISHED_FALSE}", f"{wisp.PUBLISHED_RECALL}"]
    trees = ["–", f"{low:.2f}–{high:.2f}", f"{low_recall}–{high_recall}"]
    lines = [["WISP's MLP, published", *mlp, f"{wisp.wasted_tokens(wisp.PUBLISHED_FALSE):.2f}", *"––––"],
             ["WISP's trees, published", *trees, f"{wisp.wasted_tokens(low):.1f}–{wisp.wasted_tokens(high):.1f}", *"––––"]]  # fmt: skip
    for row in rows:
        half = ", ".join(f"{value:.3f}" for value in row["at_half"])
        scores = [cell(row[name]) for name in ("auc", "false_acceptance", "recall")]
        passed = row["false_acceptance"][0]
        waste = f"{wisp.wasted_tokens(passed):.2f}" if passed < 1 else "∞"
        lines.append(
            [row["predictor"], *scores, waste, half, cell(row["ece"]), cell(row["brier"]), f"{row['sklearn_us']:.0f}"]
        )
    return table(header, lines)
