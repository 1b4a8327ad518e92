"""`python -m estimators.rejection`: train WISP's rejection predictor on recorded traces, score it, export it."""

import sys

from estimators.rejection.train import PROGRAM, main
from wisp_gym.cli import run

sys.exit(run(main, PROGRAM))
