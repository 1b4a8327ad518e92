"""What decides a batching policy's numbers: where it learns, where it is measured, and how long each stage takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agents.batching.cloning import Teacher
from agents.training.arguments import flag
from wisp_gym.cli import whole
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.errors import one_of

SPECULATION = "speculation-v1"  # it sees the price, and was trained with prices up to 0.2
HOSTS = {"visible": 128, "clone_steps": 400}  # all waiting requests are looked at: fewer of them
PRESETS: dict[str, dict[str, Any]] = {
    "batching": {},
    "joint": {"start": "batching-v1", "clone_epochs": 20},
    "batching-hosting": HOSTS,
    "joint-hosting": HOSTS,
}
VALIDATION_SEEDS = range(2_000_000, 2_000_004)


class Place(NamedTuple):
    """Where to learn: a scenario, what each episode draws, and the teacher's settings that are best there.

    Those were found by trying chunk shares of 0.05, 0.1, 0.15 and 0.2, and every price, in 8 to 12 worlds; lengths of the server's
    drafts of 2, 3 and 4 in 3 worlds.
    """

    scenario: str
    ranges: dict[str, tuple[float, float]]
    chunk_share: float
    price: float = 0.0
    server_tokens: int = 0


# Uncached prompts, mixed service classes, from light load to overload.
ELSEWHERE = (
    Place("h100-qwen3-32b", {"devices": (64, 130)}, 0.2),
    Place("h100-qwen3-32b", {"devices": (145, 160)}, 0.05),
    Place("wisp-a100-qwen3-32b", {"devices": (30, 110), "prompt_tokens": (1.0, 2.0)}, 0.2),
    Place("wisp-a100-qwen3-32b", {"devices": (30, 65), "prompt_tokens": (3.0, 6.0)}, 0.05),
)
BATCHING = (
    Place("wisp-study", {"devices": (20, 160), "slo_speed": (0.8, 1.3)}, 0.2),
    Place("wisp-study", {"devices": (90, 160)}, 0.2),
)
JOINT = (
    Place("wisp-study", {"devices": (20, 100), "slo_speed": (0.4, 1.3)}, 0.2),
    Place("wisp-study", {"devices": (112, 160), "slo_speed": (0.4, 1.1)}, 0.2, 0.1),
)
HOSTING = (  # few sessions: long drafts at the server
    Place("wisp-study", {"devices": (16, 48), "slo_speed": (0.8, 1.3)}, 0.2, server_tokens=4),
    Place("wisp-study", {"devices": (56, 128), "slo_speed": (0.8, 1.3)}, 0.2, server_tokens=2),
    Place("h100-qwen3-32b", {"devices": (48, 128)}, 0.2, server_tokens=2),
    Place("wisp-a100-qwen3-32b", {"devices": (16, 40)}, 0.2, server_tokens=4),
    Place("wisp-a100-qwen3-32b", {"devices": (60, 110)}, 0.2, server_tokens=2),
)
HOSTED = "+by-price:1,1000+colocated:4"  # the rules whose place a policy takes that hosts, and its longest drafts
MIX = {
    "batching": BATCHING + ELSEWHERE, "joint": JOINT + ELSEWHERE, "batching-hosting": HOSTING, "joint-hosting": HOSTING,
}  # fmt: skip
SCENARIO = "wisp-study"  # that of the run's folder and bundle
SEARCH_HORIZON = {"horizon.warmup_s": 15.0, "horizon.measure_s": 45.0, "horizon.drain_s": 0.0}


class Load(NamedTuple):
    """Where to measure: a scenario with changes, its population, and tokens/s where all are promised the same."""

    name: str
    scenario: str
    devices: int
    slo_tokens_per_s: float | None = None
    changes: Mapping[str, Any] = {}


LOADS = (
    *(Load(f"study, {n}", "wisp-study", n) for n in (24, 64, 100, 130, 160)),
    Load("H100, 150", "h100-qwen3-32b", 150),
    Load("long prompts, 36", "wisp-a100-qwen3-32b", 36, changes={"workload.prompt.median_tokens": 800.0}),
)
PROMISED = (  # where one speed is promised to all: for prices
    Load("2 tokens/s, 140", "wisp-study", 140, 2.0),
    Load("2 tokens/s, 180", "wisp-study", 180, 2.0),
    Load("8 tokens/s, 70", "wisp-study", 70, 8.0),
)


@dataclass(frozen=True)
class Settings:
    """All that decides a policy's numbers; some fields are flags of `python -m agents.batching`.

    Attributes:
        decision: of `contract.decisions`. speculation: what devices follow. start: a saved policy to begin with.
        visible: places of the environments. worlds: of each scenario side by side.
        clone_rounds, clone_steps, clone_epochs: of `clone` (0 rounds: none; epochs of the last).
        ppo_warmup, ppo_decisions: of MaskablePPO, the critic's alone and both's (0 decisions: none).
        ppo_rounds: policies of it to validate.
        n_steps, learning_rate: of MaskablePPO. starvation_tokens_per_s: what a starving device costs.
        generations, pairs: of the evolution strategies (0 generations: none). allowed_starved: share of devices.
    """

    decision: str = flag("batching", " or ".join(OF_SERVERS))
    speculation: str = SPECULATION
    seed: int = flag(0, "seed of everything", of=whole(0, 2**31 - 1), metavar="N")
    start: str = flag("", "a saved policy to start from (joint: batching-v1)", metavar="FILE")
    visible: int = 160
    worlds: int = 4
    episode_s: float = 90.0
    clone_rounds: int = 5
    clone_steps: int = flag(800, "steps of each round of cloning", of=whole(1, 10**6), metavar="N")
    clone_epochs: int = 60
    ppo_warmup: int = 24_576
    ppo_decisions: int = flag(49_152, "of MaskablePPO, 0: none", of=whole(0, 10**9), metavar="N")
    ppo_rounds: int = 2
    n_steps: int = 512
    learning_rate: float = 1e-4
    starvation_tokens_per_s: float = 20.0
    generations: int = flag(0, "of the evolution strategies, 0: none", of=whole(0, 10**6), metavar="N")
    pairs: int = 6
    allowed_starved: float = 0.007  # what WISP's own rules leave in overload (wisp-study, 160 devices)
    teacher: Teacher = field(default_factory=Teacher)

    @property
    def hosted(self) -> str:
        """Rules of who drafts and how long, as the end of a controller's name; empty where the policy leaves that alone."""
        return HOSTED if OF_SERVERS[self.decision].lengths else ""


def preset(decision: str, **changes: Any) -> Settings:
    """Settings of a decision, with fields of them changed.

    Raises:
        InputError: no such decision.
    """
    return Settings(one_of("argument --decision", decision, PRESETS), **(PRESETS[decision] | changes))
