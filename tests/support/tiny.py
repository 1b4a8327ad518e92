"""The smallest work that has all parts of a large one: a scenario of few, short worlds, and a suite of such worlds for a study."""

SCENARIO = """
use = "wisp-a100-qwen3-32b"
name = "tiny"
n_devices = 6
[workload]
start_window_s = 2.0
[horizon]
warmup_s = 1.0
measure_s = 6.0
drain_s = 2.0
"""
SUITE = """
name = "tiny"
controllers = ["fixed+fcfs", "oracle+fcfs"]
train_seeds = "100-101"
test_seeds = "0-2"

[horizon]
warmup_s = 1.0
measure_s = 6.0
drain_s = 5.0

[tuning]
world_seconds = 120.0

[capacity]
scenario = "wisp-a100-qwen3-32b"
slo = [4, 8]
seeds = "0-1"
max_devices = 6

[[cells]]
name = "load"
scenario = "wisp-a100-qwen3-32b"
devices = [2, 5]

[[cells]]
name = "other"
scenario = "h100-qwen3-32b"
devices = 4
held_out = true
overrides = { "devices.*.link.jitter" = 0.5, "draft.statistics.auc" = 0.9 }
"""
