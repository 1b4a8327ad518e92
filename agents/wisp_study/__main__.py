"""`python -m agents.wisp_study`: WISP's published evaluation on the calibrated model."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m agents.wisp_study",
    "WISP's published evaluation (arXiv 2601.11652) on the calibrated model.",
    {
        "reproduce": ("agents.wisp_study.reproduce", "all published figures, beside the model's"),
        "calibrate": ("agents.wisp_study.calibrate", "show the calibration, or fit it again"),
        "external": ("agents.wisp_study.external", "cases that others measured, predicted and not fitted"),
        "sensitivity": ("agents.wisp_study.sensitivity", "how much the ratios depend on each calibrated number"),
    },
)

if __name__ == "__main__":
    program(COMMANDS)
