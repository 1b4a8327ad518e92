"""`python -m agents.study`: play a study, or make its report."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m agents.study",
    "Every controller tuned with one budget, all tested in the same unseen worlds.",
    {
        "run": ("agents.study.run", "tune, test, print who wins where; go on after a kill"),
        "report": ("agents.study.report", "one page of a finished study, with its tables as CSV and Markdown"),
    },
    default="run",
)

if __name__ == "__main__":
    program(COMMANDS)
