"""`python -m agents.bounds`: upper bounds for any controller, beside what controllers reach."""

import sys

from agents.bounds.bounds import PROGRAM, main
from wisp_gym.cli import run

if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
