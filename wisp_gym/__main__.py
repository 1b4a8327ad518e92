"""`wisp-gym` (and `python -m wisp_gym`): the commands of the package."""

from collections.abc import Sequence
from typing import NoReturn

from wisp_gym.cli import Commands
from wisp_gym.process import program

BENCHMARKS = Commands(
    "wisp-gym benchmark",
    "How fast this machine is.",
    {
        "engine": ("wisp_gym.evaluation.speed", "worlds and environments"),
        "limit": ("wisp_gym.evaluation.limit", "the engine beside bare loops of events"),
        "serving": ("wisp_gym.serving.speed", "decisions of exported policies, one by one"),
        "steering": (
            "wisp_gym.testbed.vllm_steering.compare",
            "vLLM's own speculation: its lengths, its table, and rules that steer it",
        ),
    },
    default="engine",
    extras={"serving": "serve", "steering": "vllm"},
)
BOARD = Commands(
    "wisp-gym leaderboard",
    "Controllers in a frozen suite, a row of figures each, which anyone can run again.",
    {
        "show": ("wisp_gym.evaluation.leaderboard.show", "who is how good"),
        "run": ("wisp_gym.evaluation.leaderboard.run", "measure a controller and write its row"),
        "verify": ("wisp_gym.evaluation.leaderboard.verify", "run rows again and compare them byte for byte"),
    },
    default="show",
)
SCENARIOS = Commands(
    "wisp-gym scenario",
    "Scenarios: what a file may say, and what is odd about one.",
    {
        "check": ("wisp_gym.evaluation.odd.command", "what is valid in a file and yet strange"),
        "fields": ("wisp_gym.scenario.table", "every field: unit, range, default, what is usual"),
    },
)
COMMANDS = Commands(
    "wisp-gym",
    "Controllers for edge-cloud speculative decoding: compared, exported, and run on real servers.",
    {
        "evaluate": ("wisp_gym.evaluation.comparison", "compare controllers in the same worlds"),
        "advise": (
            "wisp_gym.evaluation.advise",
            "who should draft in your case, device or server, by which controller",
        ),
        "choose": ("wisp_gym.evaluation.choose", "who should draft in your case, as a learned choice has it, at once"),
        "capacity": ("wisp_gym.evaluation.capacities", "how many devices a server carries under each controller"),
        "leaderboard": (BOARD, "controllers in a frozen suite; every row can be run again"),
        "timeline": ("wisp_gym.evaluation.timeline", "draw what devices and server do"),
        "scenario": (SCENARIOS, "what a scenario's file may say, and what is odd about one"),
        "export": ("wisp_gym.serving.export.command", "a policy or a rule as one file for a server"),
        "table": ("wisp_gym.serving.tables.command", "draft lengths by batch size, for vLLM, SGLang or TensorRT-LLM"),
        "benchmark": (BENCHMARKS, "how fast this machine runs engine, environments, decisions"),
        "warm-up": ("wisp_gym.warm_up", "compile everything ahead"),
        "server": ("wisp_gym.testbed.server", "verify the drafts of many devices with a real model"),
        "device": ("wisp_gym.testbed.device", "draft with a small model, verified by a server"),
        "dashboard": ("wisp_gym.testbed.dashboard", "a Grafana dashboard of a server's metrics"),
        "soak": ("wisp_gym.testbed.soak", "many devices at a server's limits, every answer checked"),
    },
    extras={"export": "export", "server": "testbed", "device": "testbed", "soak": "testbed"},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; its exit code."""
    return COMMANDS(arguments)


def console() -> NoReturn:
    """The console command."""
    program(main)


if __name__ == "__main__":
    console()
