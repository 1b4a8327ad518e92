"""What is valid in a scenario and yet strange: `wisp-gym scenario check FILE` says it, a line for each finding.

What cannot be is refused where a scenario is built (`wisp_gym.scenario`); here is what can be and is seldom meant.
"""

from wisp_gym.evaluation.odd.finding import Finding
from wisp_gym.evaluation.odd.findings import oddities

__all__ = ["Finding", "oddities"]
