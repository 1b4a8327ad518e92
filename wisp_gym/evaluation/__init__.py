"""Comparing controllers on paired worlds: metrics, intervals, tables, capacity.

from wisp_gym.evaluation import capacity, evaluate

print(evaluate(["wisp", "sled"], devices=64, slo=8).table())
print(capacity("wisp", slo=8).table())
"""

from wisp_gym.evaluation.capacities import Capacities, capacity
from wisp_gym.evaluation.comparison import Comparison, evaluate
from wisp_gym.evaluation.own import from_sb3, own

__all__ = ["Capacities", "Comparison", "capacity", "evaluate", "from_sb3", "own"]
