"""`python -m estimators.batch_time`: Fit the batch time and score it on configurations that the fit has not seen."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m estimators.batch_time",
    "Fit the batch time and score it on configurations that the fit has not seen.",
    {
        "fit": ("estimators.batch_time.fit", "the estimators that a scheduler asks, from a profile or a scenario"),
        "profiles": (
            "estimators.batch_time.profiles",
            "measured profiles: fit, score by configuration, compare, write presets",
        ),
        "drafting": ("estimators.batch_time.drafting", "drafts on the server: fitted steps, the catalogue's times"),
        "steps": ("estimators.batch_time.steps", "steps of an engine that drafts for itself, for wisp-gym table"),
        "measured": ("estimators.batch_time.measured", "three forms on measured and reconstructed servers"),
    },
)

if __name__ == "__main__":
    program(COMMANDS)
