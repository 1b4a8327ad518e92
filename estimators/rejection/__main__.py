"""`python -m estimators.rejection`: train WISP's rejection predictor on recorded traces, score it, export it."""

from __future__ import annotations

import sys

from estimators.rejection.train import PROGRAM, main
from wisp_gym.cli import run

sys.exit(run(main, PROGRAM))
