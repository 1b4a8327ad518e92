"""Training of a batching policy: clone the strongest rule, refine it by MaskablePPO and by search, keep the best."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from agents.batching.cloning import clone
from agents.batching.ppo import MixedVecEnv, make_ppo, refine
from agents.batching.scorer_network import Scorer
from agents.batching.search import PRICE_SHARPNESS, Arena, Cell, calibrated, evolve
from agents.batching.settings import LOADS, MIX, PROMISED, SCENARIO, SEARCH_HORIZON, VALIDATION_SEEDS, Settings
from agents.training.run_folder import describe_run, new_folder
from wisp_gym.contract.decisions import sets_prices
from wisp_gym.contract.ladders import PRICES
from wisp_gym.controllers.scorer_policy import ScorerPolicy, load_scorer, make_scorer, save_scorer
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.files import write_bytes, write_json
from wisp_gym.interrupts import leaves
from wisp_gym.scenario import load, with_, with_slo
from wisp_gym.serving.export.policies import scorer_bundle

PROGRAM = "python -m agents.batching"
SEARCH_STEP = 5  # generations between two validations
Say = Callable[[str], None]


def train_anew(settings: Settings, parent: Path, command: Sequence[str] | None = None) -> Path:
    """Train in a new run folder below `parent`; returns its policy.json.

    Args:
        command: the run's command.txt; default this process's own.

    Raises:
        InputError: the parent cannot be written, or `settings.start` is no policy.
    """
    folder = new_folder(parent, settings.decision)
    describe_run(folder, asdict(settings), load(SCENARIO), command)
    train(settings, folder, tqdm.write if sys.stderr.isatty() else print)
    return folder / "policy.json"


def train(settings: Settings, folder: Path, say: Say = print, threads: int | None = None) -> ScorerPolicy:
    """Train into a run's folder; returns the policy that was best in validation worlds.

    Files: a JSON policy of each candidate, the best as policy.json and policy.onnx, and scores.json.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; policy.json is the best so far, if there is one.
    """
    with leaves(
        f"the candidates so far are in {folder}, policy.json is the best of them; the same command begins anew"
    ):
        best = find_best(settings, folder, say, threads)
        write_bytes(folder / "policy.onnx", scorer_bundle(str(folder), load(SCENARIO)))
    return best


def find_best(settings: Settings, folder: Path, say: Say, threads: int | None) -> ScorerPolicy:
    """All stages that the settings ask for, in turn; the best candidate."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    candidates = Candidates(settings, folder, say, threads)
    scorer, worlds = Scorer(settings.decision), make_worlds(settings)
    if settings.start:
        start = load_scorer(settings.start)
        scorer.load(with_prices(start, settings.teacher.price) if sets_prices(settings.decision) else start)
        candidates.consider("start", scorer.engine_policy())
    if settings.clone_rounds:
        imitate(settings, scorer, worlds, candidates)
    if settings.ppo_decisions:
        refine_by_ppo(settings, scorer, worlds, candidates)
    if settings.generations:
        search(settings, candidates)
    return candidates.best


class Candidates:
    """Policies of one training, each scored in validation worlds and saved, the best so far as policy.json too.

    Attributes:
        cells: the validation worlds. policies, scores: by stage; a score is the goodput over the teacher's rule's.
    """

    def __init__(self, settings: Settings, folder: Path, say: Say, threads: int | None):
        self.folder, self.say, self.threads = folder, say, threads
        speculation, limit = settings.speculation, settings.teacher.admit_share
        self.cells = make_cells(settings)
        self.arena = Arena(self.cells, speculation, len(VALIDATION_SEEDS), threads, limit, settings.hosted)
        self.about = {"command": PROGRAM, "seed": settings.seed, "speculation": speculation}
        self.policies: dict[str, ScorerPolicy] = {}
        self.scores: dict[str, float] = {}

    def consider(self, stage: str, policy: ScorerPolicy, came_from: str = "") -> None:
        """Score and save a policy; `came_from` is the stage that it was searched from."""
        policy = replace(policy, about={**self.about, "stage": f"{came_from}, {stage}" if came_from else stage})
        self.policies[stage], self.scores[stage] = policy, self.arena.score(policy, list(VALIDATION_SEEDS))
        save_scorer(policy, self.folder / f"{stage}.json")
        save_scorer(self.best, self.folder / "policy.json")
        write_json(self.folder / "scores.json", self.scores)
        self.say(f"{stage}: {self.scores[stage]:.4f} of the rule's goodput in validation worlds")

    @property
    def best_stage(self) -> str:
        """The stage with the best score."""
        return max(self.scores, key=lambda stage: self.scores[stage])

    @property
    def best(self) -> ScorerPolicy:
        """The policy with the best score."""
        return self.policies[self.best_stage]


# --- the stages ------------------------------------------------------------------------------------------------------


def imitate(settings: Settings, scorer: Scorer, worlds: list[DecisionVectorEnv], candidates: Candidates) -> None:
    """Clone the teacher, who does what is best in each kind of world."""
    teachers = [
        replace(settings.teacher, chunk_share=place.chunk_share, price=place.price, server_tokens=place.server_tokens)
        for place in MIX[settings.decision]
    ]
    clone(
        scorer, worlds, teachers, settings.seed, settings.clone_rounds, settings.clone_steps,
        last_epochs=settings.clone_epochs, say=candidates.say,
    )  # fmt: skip
    candidates.consider("clone", scorer.engine_policy())


def refine_by_ppo(settings: Settings, scorer: Scorer, worlds: list[DecisionVectorEnv], candidates: Candidates) -> None:
    """MaskablePPO from a scorer on; rewards are tokens on time and starvation."""
    envs = MixedVecEnv(worlds, settings.seed + 1)
    model = make_ppo(envs, scorer, settings.seed, settings.n_steps, settings.learning_rate)
    found = refine(model, settings.ppo_warmup, settings.ppo_decisions, settings.ppo_rounds)
    for k, policy in enumerate(found, 1):
        candidates.consider(f"ppo-{k}", policy.engine_policy())


def search(settings: Settings, candidates: Candidates) -> None:
    """Evolution strategies from the best policy so far."""
    stage = candidates.best_stage
    limit = settings.teacher.admit_share
    arena = Arena(candidates.cells, settings.speculation, 1, candidates.threads, limit, settings.hosted)
    steps = evolve(candidates.best, arena, settings.seed, settings.generations, settings.pairs, say=candidates.say)
    for k, found in enumerate(steps, 1):
        if k % SEARCH_STEP == 0:
            candidates.consider(f"search-{k}", found, came_from=stage)


def with_prices(policy: ScorerPolicy, price: float) -> ScorerPolicy:
    """A policy that batches as `policy` does and launches at one price of the ladder.

    The other prices come behind by `-sharpness * steps**2`. A policy that sets prices already is returned as it is.
    """
    if sets_prices(policy.decision):
        return policy
    *trunk, (w, b) = policy.layers
    steps = np.arange(len(PRICES)) - PRICES.index(price)
    behind = (-PRICE_SHARPNESS * steps**2).astype(np.float32)
    heads = np.concatenate([np.repeat(w[:1], len(PRICES), 0), w[1:]]), np.concatenate([b[0] + behind, b[1:]])
    return make_scorer([*trunk, heads], policy.decision.replace("batching", "joint"), **policy.about)


# --- the worlds ------------------------------------------------------------------------------------------------------


def make_worlds(settings: Settings) -> list[DecisionVectorEnv]:
    """The worlds to learn in, one vector environment for each place of MIX."""
    groups, environment = [], "Joint" if sets_prices(settings.decision) else "Batching"
    for place in MIX[settings.decision]:
        envs = gym.make_vec(
            f"wisp_gym/{environment}-v1", num_envs=settings.worlds, vectorization_mode="vector_entry_point",
            scenario=place.scenario, controller=f"{settings.speculation}+fcfs+admit:{settings.teacher.admit_share}{settings.hosted}",
            hosting=bool(settings.hosted), visible=settings.visible, devices=settings.visible, horizon_s=settings.episode_s, randomise=place.ranges,
            reward_weights={"starvation": settings.starvation_tokens_per_s},
        )  # fmt: skip
        assert isinstance(envs, DecisionVectorEnv)
        groups.append(envs)
    return groups


def make_cells(settings: Settings) -> list[Cell]:
    """Cells to measure in, their unit what the teacher's rule reaches in validation worlds."""
    cells = []
    for load_ in (*LOADS, *(PROMISED if sets_prices(settings.decision) else ())):
        scenario = with_(load(load_.scenario), **SEARCH_HORIZON, **load_.changes)
        slo = load_.slo_tokens_per_s
        cells.append(Cell(load_.name, with_slo(scenario, slo) if slo else scenario, load_.devices))
    rule, allowed = settings.teacher.name + settings.hosted, settings.allowed_starved
    return calibrated(cells, settings.speculation, rule, list(VALIDATION_SEEDS), allowed)
