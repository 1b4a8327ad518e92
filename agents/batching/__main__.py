"""Train a batching policy: clone the strongest rule, refine it by MaskablePPO and by evolution strategies, keep the best.

    python -m agents.batching                       # wisp_gym/Batching-v0, beside the learned speculation policy
    python -m agents.batching --decision joint      # wisp_gym/Joint-v0: prices too, from batching-v1
    python -m agents.batching --log-folder runs --seed 3

`python train.py --preset batching` and `--preset joint` do the same. Worlds differ in GPU, load, prompts and service classes. The
candidates (clone, during PPO, during the search) are compared in validation worlds; policy.json is the best of them, policy.onnx
the same for servers, and scores.json holds all scores. Use the run folder in place of a batching rule:
`speculation-v1+runs/batching_1+admit`, with the limit of admission that it was trained under. More: docs/guide/training.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from agents.batching.cloning import Teacher, clone
from agents.batching.ppo import MixedVecEnv, make_ppo, refine
from agents.batching.scorer_network import Scorer
from agents.batching.search import PRICE_SHARPNESS, Arena, Cell, calibrated, evolve
from agents.training.run_folder import describe_run, new_folder
from wisp_gym.cli import Parser, add_log_folder, run, whole
from wisp_gym.contract.ladders import PRICES
from wisp_gym.controllers.scorer_policy import DECISIONS, ScorerPolicy, load_scorer, make_scorer, save_scorer
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.files import write_bytes, write_json
from wisp_gym.scenario import load, with_, with_slo
from wisp_gym.serving.export.policies import scorer_bundle

PROGRAM = "python -m agents.batching"
ENVIRONMENTS = {"batching": "wisp_gym/Batching-v0", "joint": "wisp_gym/Joint-v0"}
SPECULATION = "speculation-v1"  # it sees the price, and was trained with prices up to .2
PRESETS: dict[str, dict[str, Any]] = {
    "batching": {},
    "joint": {"start": "batching-v1", "clone_epochs": 20},
}
VALIDATION_SEEDS = range(2_000_000, 2_000_004)
SEARCH_STEP = 5  # generations between two validations


class Place(NamedTuple):
    """Where to learn: a scenario, what each episode draws, and the teacher's settings that are best there.

    Those were found by trying chunk shares of .05, .1, .15 and .2, and every price, in 8 to 12 worlds.
    """

    scenario: str
    ranges: dict[str, tuple[float, float]]
    chunk_share: float
    price: float = 0.0


# Uncached prompts, mixed service classes, from light load to overload.
ELSEWHERE = (
    Place("h100-qwen3-32b", {"devices": (64, 130)}, 0.2),
    Place("h100-qwen3-32b", {"devices": (145, 160)}, 0.05),
    Place("wisp-a100-qwen3-32b", {"devices": (30, 110), "prompt_tokens": (1.0, 2.0)}, 0.2),
    Place("wisp-a100-qwen3-32b", {"devices": (30, 65), "prompt_tokens": (3.0, 6.0)}, 0.05),
)
MIX: dict[str, tuple[Place, ...]] = {
    "batching": (
        Place("wisp-study", {"devices": (20, 160), "slo_speed": (0.8, 1.3)}, 0.2),
        Place("wisp-study", {"devices": (90, 160)}, 0.2),
        *ELSEWHERE,
    ),
    "joint": (
        Place("wisp-study", {"devices": (20, 100), "slo_speed": (0.4, 1.3)}, 0.2),
        Place("wisp-study", {"devices": (112, 160), "slo_speed": (0.4, 1.1)}, 0.2, 0.1),
        *ELSEWHERE,
    ),
}
SCENARIO = "wisp-study"  # that of the run's folder and bundle
SEARCH_HORIZON = {"horizon.warmup_s": 15.0, "horizon.measure_s": 45.0, "horizon.drain_s": 0.0}
LONG_PROMPTS = {"workload.prompt.median_tokens": 800.0}
# (name, scenario, changes, devices, promised tokens/s where all are promised the same)
CELLS: tuple[tuple[str, str, dict[str, Any], int, float | None], ...] = (
    ("study, 24", "wisp-study", {}, 24, None), ("study, 64", "wisp-study", {}, 64, None), ("study, 100", "wisp-study", {}, 100, None),
    ("study, 130", "wisp-study", {}, 130, None), ("study, 160", "wisp-study", {}, 160, None), ("H100, 150", "h100-qwen3-32b", {}, 150, None),
    ("long prompts, 36", "wisp-a100-qwen3-32b", LONG_PROMPTS, 36, None),
)  # fmt: skip
PROMISED: tuple[tuple[str, str, dict[str, Any], int, float | None], ...] = (  # where one speed is promised to all: for prices
    ("2 tokens/s, 140", "wisp-study", {}, 140, 2.0), ("2 tokens/s, 180", "wisp-study", {}, 180, 2.0), ("8 tokens/s, 70", "wisp-study", {}, 70, 8.0),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All that decides a policy's numbers.

    Attributes:
        decision: "batching" or "joint". speculation: what devices follow. start: a saved policy to begin with.
        visible: places of the environments.
        worlds: of each scenario side by side. clone_rounds, clone_steps, clone_epochs: of `clone` (0 rounds: none; epochs of the last).
        ppo_warmup, ppo_decisions: of MaskablePPO, the critic's alone and both's (0 decisions: none). ppo_rounds: policies to validate.
        n_steps, learning_rate: of MaskablePPO. starvation_tokens_per_s: what a starving device costs.
        generations, pairs: of the evolution strategies (0 generations: none). allowed_starved: share of devices.
    """

    decision: str = "batching"
    speculation: str = SPECULATION
    seed: int = 0
    start: str = ""
    visible: int = 160
    worlds: int = 4
    episode_s: float = 90.0
    clone_rounds: int = 5
    clone_steps: int = 800
    clone_epochs: int = 60
    ppo_warmup: int = 24_576
    ppo_decisions: int = 49_152
    ppo_rounds: int = 2
    n_steps: int = 512
    learning_rate: float = 1e-4
    starvation_tokens_per_s: float = 20.0
    generations: int = 0
    pairs: int = 6
    allowed_starved: float = 0.007  # what WISP's own rules leave in overload (wisp-study, 160 devices)
    teacher: Teacher = field(default_factory=Teacher)


def preset(decision: str, **changes: Any) -> Settings:
    """Settings of a decision."""
    if decision not in DECISIONS:
        raise InputError(f"argument --decision: given '{decision}'; {did_you_mean(decision, list(DECISIONS))}")
    return Settings(decision, **(PRESETS[decision] | changes))


def make_worlds(settings: Settings) -> list[DecisionVectorEnv]:
    """The worlds to learn in, one vector environment for each scenario of MIX."""
    groups = []
    for place in MIX[settings.decision]:
        envs = gym.make_vec(
            ENVIRONMENTS[settings.decision], num_envs=settings.worlds, vectorization_mode="vector_entry_point",
            scenario=place.scenario, controller=f"{settings.speculation}+fcfs+admit:{settings.teacher.admit_share}",
            visible=settings.visible, devices=settings.visible, horizon_s=settings.episode_s, randomise=place.ranges,
            reward_weights={"starvation": settings.starvation_tokens_per_s},
        )  # fmt: skip
        assert isinstance(envs, DecisionVectorEnv)
        groups.append(envs)
    return groups


def make_cells(settings: Settings, names: Sequence[str] | None = None) -> list[Cell]:
    """Cells of the search, measured by what the teacher's rule reaches in validation worlds."""
    cells = []
    for name, base, changes, devices, slo in (*CELLS, *(PROMISED if settings.decision == "joint" else ())):
        scenario = with_(load(base), **SEARCH_HORIZON, **changes)
        if names is None or name in names:
            cells.append(Cell(name, with_slo(scenario, slo) if slo else scenario, devices))
    return calibrated(
        cells, settings.speculation, settings.teacher.name, list(VALIDATION_SEEDS), settings.allowed_starved
    )


def refine_by_ppo(
    settings: Settings, worlds: list[DecisionVectorEnv], scorer: Scorer, consider: Callable[[int, Scorer], None]
) -> None:
    """MaskablePPO from a scorer on; rewards are tokens on time and starvation."""
    envs = MixedVecEnv(worlds, settings.seed + 1)
    model = make_ppo(envs, scorer, settings.seed, settings.n_steps, settings.learning_rate)
    refine(model, settings.ppo_warmup, settings.ppo_decisions, settings.ppo_rounds, consider)


def train(
    settings: Settings, folder: Path, say: Callable[[str], None] = print, threads: int | None = None
) -> ScorerPolicy:
    """Train into a run's folder; returns the policy that was best in validation worlds."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    cells = make_cells(settings)
    limit = settings.teacher.admit_share
    arena = Arena(cells, settings.speculation, len(VALIDATION_SEEDS), threads, limit)
    candidates: dict[str, ScorerPolicy] = {}
    scores: dict[str, float] = {}

    def consider(name: str, policy: ScorerPolicy) -> None:
        candidates[name], scores[name] = policy, arena.score(policy, list(VALIDATION_SEEDS))
        save_scorer(policy, folder / f"{name}.json")
        say(f"{name}: {scores[name]:.4f} of the rule's goodput in validation worlds")

    about = {"command": PROGRAM, "seed": settings.seed, "speculation": settings.speculation}
    scorer, worlds = Scorer(settings.decision), make_worlds(settings)
    if settings.start:
        start = load_scorer(settings.start)
        scorer.load(with_prices(start, settings.teacher.price) if settings.decision == "joint" else start)
        consider("start", scorer.engine_policy(**about, stage="start"))
    if settings.clone_rounds:
        places = MIX[settings.decision]
        teachers = [replace(settings.teacher, chunk_share=p.chunk_share, price=p.price) for p in places]
        clone(
            scorer,
            worlds,
            teachers,
            settings.seed,
            settings.clone_rounds,
            settings.clone_steps,
            last_epochs=settings.clone_epochs,
            say=say,
        )
        consider("clone", scorer.engine_policy(**about, stage="clone"))
    if settings.ppo_decisions:
        refine_by_ppo(
            settings,
            worlds,
            scorer,
            lambda k, found: consider(f"ppo-{k}", found.engine_policy(**about, stage=f"ppo-{k}")),
        )
    if settings.generations:
        best = max(scores, key=lambda name: scores[name])
        search = Arena(cells, settings.speculation, 1, threads, limit)
        steps = evolve(candidates[best], search, settings.seed, settings.generations, settings.pairs, say=say)
        for k, found in enumerate(steps, 1):
            if k % SEARCH_STEP == 0:
                consider(f"search-{k}", replace(found, about={**about, "stage": f"{best}, search-{k}"}))
    best = max(scores, key=lambda name: scores[name])
    save_scorer(candidates[best], folder / "policy.json")
    write_json(folder / "scores.json", scores)
    write_bytes(folder / "policy.onnx", scorer_bundle(str(folder), load(SCENARIO)))
    return candidates[best]


def with_prices(policy: ScorerPolicy, price: float) -> ScorerPolicy:
    """A policy that batches as `policy` does and launches at one price of the ladder; others come behind by `−sharpness·(steps)²`."""
    if policy.decision == "joint":
        return policy
    *trunk, (w, b) = policy.layers
    steps = np.arange(len(PRICES)) - PRICES.index(price)
    behind = (-PRICE_SHARPNESS * steps**2).astype(np.float32)
    heads = np.concatenate([np.repeat(w[:1], len(PRICES), 0), w[1:]]), np.concatenate([b[0] + behind, b[1:]])
    return make_scorer([*trunk, heads], "joint", **policy.about)


def command(arguments: Sequence[str] | None) -> None:
    """Parse, train, say where the policy is."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--decision", default="batching", help="batching (default) or joint")
    add("--start", metavar="FILE", help="a saved policy to start from (joint: batching-v1)")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of everything (default 0)")
    add_log_folder(parser)
    add(
        "--clone-steps",
        type=whole(1, 10**6),
        default=Settings.clone_steps,
        help="environment steps of each round of cloning",
    )
    add(
        "--ppo-decisions",
        type=whole(0, 10**9),
        help="decisions of MaskablePPO (0: none; default 49152)",
    )
    add(
        "--generations",
        type=whole(0, 10**6),
        help="of the evolution strategies (default 0: none)",
    )
    given: argparse.Namespace = parser.parse_args(arguments)
    flags = ("seed", "start", "clone_steps", "ppo_decisions", "generations")
    changes = {name: getattr(given, name) for name in flags if getattr(given, name) is not None}
    print(train_anew(preset(given.decision, **changes), given.log_folder))


def train_anew(settings: Settings, parent: Path, command: Sequence[str] | None = None) -> Path:
    """Train in a new run folder; returns its policy.json."""
    folder = new_folder(parent, settings.decision)
    describe_run(folder, asdict(settings), load(SCENARIO), command)
    train(settings, folder, tqdm.write if sys.stderr.isatty() else print)
    return folder / "policy.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; one line and exit code 2 for a wrong input."""
    return run(command, PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
