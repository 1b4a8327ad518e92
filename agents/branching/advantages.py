"""The fleet's own PPO (`agents.training.fleet_ppo`) with advantages that branches tell, in place of a shaped reward.

    python -m agents.branching ppo --scenario wisp-study --critic critic.npz --horizon 0.1 --out runs/ppo

At a share of the decisions of worlds that the policy plays, branches say what one more token is worth to the fleet, D. The policy's
action at it is drawn; its advantage over the policy's mean is (1 − p)·D where it drafts and −p·D where it sends, p being how likely it
was to draft. Each decision is a trajectory of its own, so PPO's critic has nothing left to learn. After the decision the policy decides
greedily for everybody, as it is judged.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agents.branching.critic import load_critic
from agents.branching.flags import add_labels, add_loads, add_population
from agents.branching.improve import TEMPERATURE, Labelling, Labels, compare, label_world, open_folder
from agents.branching.margin import margins_of
from agents.training.fleet import Decisions
from agents.training.fleet_ppo import FleetPPO
from agents.training.learners import make_env, make_model
from agents.training.networks import begin_with, engine_policy
from agents.training.settings import new_settings
from wisp_gym import cli
from wisp_gym.controllers.policy import Policy, load_policy, save_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads

PROGRAM = "python -m agents.branching ppo"
BATCHING = "fcfs"
SEED = 100_000  # of the first world
ROLLOUT, BATCH, EPOCHS = 4096, 1024, 4


@dataclass
class BranchFleet:
    """Worlds of all loads, new ones for each rollout, in the place of `agents.training.fleet.Fleet`.

    Attributes:
        scenario: preset or file. devices: least and most. worlds: of a rollout. how: decisions are labelled.
        folder: where the policy is put that plays them. seed: of the next world.
    """

    scenario: str
    devices: tuple[int, int]
    worlds: int
    how: Labelling
    folder: Path
    seed: int = SEED

    def collect(self, policy: Policy) -> Decisions:
        """Decisions under a policy, each with its advantage as its reward."""
        save_policy(policy, self.folder / "playing.json")
        rng, jobs = np.random.default_rng(self.seed), list[tuple[object, ...]]()
        for seed in range(self.seed, self.seed + self.worlds):
            scenario = chosen_scenario(self.scenario, int(rng.integers(self.devices[0], self.devices[1] + 1)))
            playing = resolve(f"{self.folder / 'playing.json'}+{BATCHING}", scenario)
            jobs.append((scenario, playing, seed, self.how))
        self.seed += self.worlds
        labels = Labels(*map(np.concatenate, zip(*Threads().map(label_world, jobs), strict=True)))
        return decisions(policy, labels, rng)


def decisions(policy: Policy, labels: Labels, rng: np.random.Generator) -> Decisions:
    """Actions drawn from a policy, and their advantages."""
    drafts = 1.0 / (1.0 + np.exp(-margins_of(policy, labels.observations)))
    actions = (rng.random(len(drafts)) < drafts).astype(np.int64)
    chance = np.where(actions == 1, drafts, 1.0 - drafts)
    advantages = (actions - drafts) * labels.effects
    order = rng.permutation(len(drafts))  # decisions of a world are alike, and a rollout may end within one
    return Decisions(
        labels.observations[order], actions[order], np.log(chance[order]).astype(np.float32),
        advantages[order].astype(np.float64), np.ones(len(drafts), bool),
    )  # fmt: skip


def trained(given: argparse.Namespace) -> Policy:
    """The policy after so many rollouts."""
    hyperparameters = {
        "decisions": ROLLOUT,
        "batch_size": BATCH,
        "n_epochs": EPOCHS,
        "gamma": 1.0,
        "ent_coef": given.entropy,
    }
    settings = new_settings(
        "fleet", n_timesteps=given.rollouts * ROLLOUT, seed=given.seed, hyperparameters=hyperparameters,
        env_kwargs={"scenario": given.scenario}, learning_rate=given.learning_rate,
    )  # fmt: skip
    model = make_model(settings, make_env(settings))
    assert isinstance(model, FleetPPO)
    if given.start:
        begin_with(model.policy, load_policy(given.start), TEMPERATURE)
    critic = load_critic(given.critic) if given.critic else None
    how = Labelling(given.seconds, given.share, given.explore, given.pairs, given.horizon, critic)
    model.fleet = BranchFleet(given.scenario, (given.devices[0], given.devices[-1]), given.worlds, how, given.out)  # type: ignore[assignment]
    model.learn(settings.n_timesteps)
    return engine_policy(model.policy, "token", labels=settings.n_timesteps)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new folder, or that of a run with these settings")
    add("--start", metavar="NAME", help="policy that it begins with (default: from nothing)")
    add("--base", default="speculation-v1+fcfs", metavar="NAME", help="compared with (default %(default)s)")
    add_population(parser)
    add("--rollouts", type=cli.whole(1, 10_000), default=8, metavar="N", help=f"of {ROLLOUT} labels (default 8)")
    add("--worlds", type=cli.whole(1, 1000), default=6, metavar="N", help="new at a time (default 6)")
    add("--seconds", type=cli.positive(1e5), default=10.0, metavar="S", help="of each (default 10)")
    add_labels(parser)
    add(
        "--learning-rate",
        type=cli.positive(1.0),
        default=1e-3,
        metavar="R",
        help="falls to a twentieth (default 0.001)",
    )
    add("--entropy", type=cli.between(0, 1), default=0.003, metavar="C", help="weight of the entropy (default 0.003)")
    add_loads(parser, [24, 64, 100], "compared at")
    add("--seed", type=cli.whole(0, 10**6), default=0, metavar="N", help="of everything (default 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and compare in worlds that nobody was labelled in."""
    given, file = parse(arguments), None
    torch.set_num_threads(1)
    open_folder(given)
    file = given.out / "policy.json"
    if not file.is_file():
        save_policy(trained(given), file)
    compare(given, [given.base, f"{file}+{BATCHING}", "aligned+fcfs", "perfect+fcfs"])
