"""`python -m estimators.acceptance`: Fit the engine's acceptance process to published figures or to recorded traces."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m estimators.acceptance",
    "Fit the engine's acceptance process to published figures or to recorded traces.",
    {
        "fit": ("estimators.acceptance.fit", "fit and print, or write"),
        "together": ("estimators.acceptance.together", "two sources of drafts at the same places"),
        "report": ("estimators.acceptance.trace_report", "recorded traces beside published figures"),
    },
    default="fit",
)

if __name__ == "__main__":
    program(COMMANDS)
