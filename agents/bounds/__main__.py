"""`python -m agents.bounds`: upper bounds for any controller, beside what controllers reach."""

from wisp_gym.cli import later, run
from wisp_gym.process import program

if __name__ == "__main__":
    program(lambda: run(later("agents.bounds.bounds"), "python -m agents.bounds"))
