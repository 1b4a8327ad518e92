"""`python -m estimators.rejection`: train WISP's rejection predictor on recorded traces, score it, export it."""

from wisp_gym.cli import later, run
from wisp_gym.process import program

if __name__ == "__main__":
    program(lambda: run(later("estimators.rejection.train"), "python -m estimators.rejection"))
