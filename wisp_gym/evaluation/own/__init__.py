"""Controllers of one's own, measured like every other: Python objects, networks, models of stable-baselines3, ONNX files.

from wisp_gym.evaluation import evaluate, own

print(evaluate([own(MyRule(), server="wisp"), "wisp"], devices=64).table())
"""

from wisp_gym.evaluation.own.controller import Own, own
from wisp_gym.evaluation.own.sb3 import from_sb3

__all__ = ["Own", "from_sb3", "own"]
