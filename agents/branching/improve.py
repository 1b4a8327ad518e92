"""A policy improved on labels from branches: policy iteration, with the critic replaced by the world itself.

    python -m agents.branching improve --out runs/improved

Each iteration plays worlds under the policy of the last one, some decisions at random so that it is told of more than its own ways.
Of a share of the decisions it asks branches what both actions are worth (`agents.branching.rollout`): the whole fleet's tokens, under
the same fresh draws, with one policy after. A network is then fitted to the differences over all that was observed, by least squares,
or as a classifier of their signs weighted by their sizes (`--loss`). It drafts where it expects a gain. No reward is shaped and no
externality assumed: what a token costs the others is in the label.

A folder that was broken off is gone on with by the same command: worlds that have been labelled are read.
"""

import argparse
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agents.branching.critic import Critic, load_critic
from agents.branching.flags import add_labels, add_loads, add_population
from agents.branching.margin import margins_of
from agents.branching.paired import GOODPUT, paired_row
from agents.branching.pairs import pairs_at
from agents.branching.place import DRAFT, SEND, both_ways, decisions_of
from agents.branching.rollout import show
from agents.training.networks import put_layers
from agents.training.settings import TEST_SEEDS
from wisp_gym import cli
from wisp_gym.contract.device import SIZE
from wisp_gym.controllers.policy import Policy, load_policy, make_policy, save_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import chosen_scenario, run_all
from wisp_gym.evaluation.pool import Threads
from wisp_gym.files import holds_files, read_text, write_bytes, write_json, write_text
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching improve"
REGRESSION, CLASSIFICATION = "regression", "classification"
CLIP_TOKENS = 8.0  # beyond this an effect is chance
INDIFFERENT = 2.0  # margin of a policy below which it is
WIDTHS = (64, 64)
BATCH, EPOCHS, LEARNING_RATE, GOING_ON_RATE = 4096, 12, 2e-3, 5e-4
TEMPERATURE = 10.0  # that a policy's margins, of tens, are divided by before they are fitted to tokens, of tenths
DECISIONS_PER_WORLD = 10**9  # room for their seeds


class Labels(NamedTuple):
    """What was observed at some decisions, and what one more token was worth there.

    Attributes:
        observations: (N, SIZE) float32. effects: (N,) float32 tokens of the whole fleet.
    """

    observations: np.ndarray
    effects: np.ndarray


class Labelling(NamedTuple):
    """How decisions are labelled.

    Attributes:
        seconds: of each world after its warm-up. share: of decisions that are labelled. explore: of decisions that are drawn.
        pairs: of branches at each. horizon_s: looked ahead. critic: of what comes after it; default what rounds under way are worth.
    """

    seconds: float
    share: float
    explore: float
    pairs: int
    horizon_s: float
    critic: Critic | None = None


def label_world(scenario: Scenario, base: Controller, seed: int, how: Labelling) -> Labels:
    """Labels of one world."""
    found, copies = list[tuple[np.ndarray, float]](), None
    for world, number in decisions_of(scenario, base, seed, how.seconds, how.share, how.explore):
        copies = copies or Branches(world.worlds, 2 * how.pairs, threads=1)
        seen = world.worlds.arrays.observation[
            0, min(world.device, world.worlds.arrays.observation.shape[1] - 1)
        ].copy()
        found.append((seen, effect(world, copies, DECISIONS_PER_WORLD * seed + how.pairs * number, how)))
    return Labels(
        np.array([seen for seen, _ in found], np.float32).reshape(-1, SIZE), np.array([e for _, e in found], np.float32)
    )


def effect(world: InTurn, copies: Branches, seed: int, how: Labelling) -> float:
    """Tokens that one more drafted token is worth to the fleet at the decision that a world waits for."""
    seeds = seed + np.arange(how.pairs)
    if how.critic is None:
        sent, drafted = both_ways(world, copies, seeds, [how.horizon_s])
        return float((drafted - sent).mean())
    tokens, features = pairs_at(world, copies, seeds, [how.horizon_s])
    later = how.critic.difference(features[:, :, 0], np.full(how.pairs, float(copies.worlds.arrays.device.shape[1])))
    return float((tokens[:, 1, 0] - tokens[:, 0, 0] + later).mean())


def kept_labels(file: Path, *job: object) -> Labels:
    """The labels of a world: read where they have been written, else made and written."""
    if not file.is_file():
        written = io.BytesIO()
        np.savez_compressed(written, **label_world(*job)._asdict())  # type: ignore[arg-type]
        write_bytes(file, written.getvalue())
    with np.load(file, allow_pickle=False) as arrays:
        return Labels(arrays["observations"], arrays["effects"])


def levelled(labels: Labels, policy: Policy) -> Labels:
    """Labels moved by a constant, so that on average they are 0 where a policy is indifferent."""
    even = np.abs(margins_of(policy, labels.observations)) < INDIFFERENT
    return labels._replace(effects=labels.effects - labels.effects[even].mean() if even.any() else labels.effects)


# --- the network ---------------------------------------------------------------------------------------------------------


def fit(labels: Labels, loss: str, seed: int, start: Policy | None = None, temperature: float = 1.0) -> Policy:
    """A policy whose outputs differ by the effect that it expects, or by the log odds of its being positive.

    It begins with the weights of `start`, whose outputs are divided by `temperature`: that changes nothing that it decides.
    """
    torch.manual_seed(seed)
    mean, std = labels.observations.mean(axis=0), labels.observations.std(axis=0)
    std = np.where(std < 1e-3, 1.0, std)
    x = torch.from_numpy((labels.observations - mean) / std)
    y = torch.from_numpy(labels.effects.clip(-CLIP_TOKENS, CLIP_TOKENS))
    network = make_network()
    if start is not None:
        linear = [m for m in network if isinstance(m, torch.nn.Linear)]
        put_layers(linear, start, mean, std, temperature)
    train(network, x, y, loss, LEARNING_RATE if start is None else GOING_ON_RATE)
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in network if isinstance(m, torch.nn.Linear)]
    w, b = layers[0]
    layers[0] = w / std, b - (w / std) @ mean
    return make_policy(
        [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers], "token", "relu", loss=loss, labels=len(x)
    )


def make_network() -> torch.nn.Sequential:
    """As the networks of `agents.training`."""
    widths, parts = (SIZE, *WIDTHS), list[torch.nn.Module]()
    for a, b in itertools.pairwise(widths):
        parts += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts, torch.nn.Linear(widths[-1], 2))


def train(network: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor, loss: str, rate: float) -> None:
    """Fit the difference of the outputs, DRAFT's less SEND's."""
    steps = EPOCHS * max(len(x) // BATCH, 1)
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (min(BATCH, len(x)),))
        out = network(x[chosen])
        optimiser.zero_grad()
        misfit(out[:, DRAFT] - out[:, SEND], y[chosen], loss).backward()
        optimiser.step()
        schedule.step()


def misfit(margin: torch.Tensor, effect: torch.Tensor, loss: str) -> torch.Tensor:
    """Squared error, or the logistic loss of the effect's sign weighted by its size."""
    if loss == REGRESSION:
        return ((margin - effect) ** 2).mean()
    return (effect.abs() * torch.nn.functional.softplus(-margin * effect.sign())).mean()


# --- iterations ----------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="new, or of a run that was broken off")
    add("--base", default="speculation-v1+fcfs", metavar="NAME", help="whom to improve (default %(default)s)")
    add_population(parser)
    add("--iterations", type=cli.whole(1, 1000), default=2, metavar="N", help="(default 2)")
    add("--worlds", type=cli.whole(1, 100_000), default=64, metavar="N", help="labelled in each (default 64)")
    add("--seconds", type=cli.positive(1e5), default=20.0, metavar="S", help="of each world (default 20)")
    add_labels(parser)
    add(
        "--level",
        action="store_true",
        help="trust the last policy where it is indifferent: labels are 0 there on average",
    )
    add("--go-on", action="store_true", help="begin with the weights of the last policy, instead of from nothing")
    add("--loss", choices=(REGRESSION, CLASSIFICATION), default=REGRESSION, help="(default %(default)s)")
    add_loads(parser, [24, 64, 100], "compared at")
    add("--seed", type=cli.whole(0, 10**6), default=0, metavar="N", help="of everything (default 0)")
    return parser.parse_args(arguments)


def open_folder(given: argparse.Namespace) -> None:
    """Make the run's folder, or go on with it.

    Raises:
        InputError: it holds something else, or a run with other settings.
    """
    text, path = json.dumps(vars(given), indent=2, default=str) + "\n", given.out / "settings.json"
    if path.is_file():
        if read_text(path) != text:
            raise InputError(
                f"--out {given.out}: a run with other settings; allowed are the same ones, or a new folder"
            )
    elif given.out.exists() and (not given.out.is_dir() or holds_files(given.out)):
        raise InputError(f"--out {given.out}: not empty; allowed is a new folder, or that of a run broken off")
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def iterate(given: argparse.Namespace, base: str, iteration: int) -> str:
    """One iteration; the name of its policy's controller."""
    file = given.out / f"policy-{iteration}.json"
    name = f"{file}+{base.split('+', 1)[1]}"
    if file.is_file():
        return name
    critic = load_critic(given.critic) if given.critic else None
    how = Labelling(given.seconds, given.share, given.explore, given.pairs, given.horizon, critic)
    rng = np.random.default_rng([given.seed, iteration])
    jobs = []
    for world in range(given.worlds):
        scenario = chosen_scenario(given.scenario, int(rng.integers(given.devices[0], given.devices[-1] + 1)))
        seed = (given.seed * 1_000 + iteration) * given.worlds + world
        jobs.append((given.out / f"labels-{iteration}-{world}.npz", scenario, resolve(base, scenario), seed, how))
    with cli.progress(len(jobs)) as bar:
        found = []
        for labels in Threads().map(kept_labels, jobs):
            found.append(labels)
            bar.update()
    last, labels = base.split("+", 1)[0], Labels(*map(np.concatenate, zip(*found, strict=True)))
    labels = levelled(labels, load_policy(last)) if given.level else labels
    start = load_policy(last) if given.go_on else None
    save_policy(fit(labels, given.loss, given.seed, start, 1.0 if iteration else TEMPERATURE), file)
    return name


def compare(given: argparse.Namespace, names: Sequence[str]) -> None:
    """Write and print who reaches what in worlds that nobody was labelled in."""
    rows = []
    for n in given.loads:
        scenario = chosen_scenario(given.scenario, n)
        found = run_all(scenario, [resolve(name, scenario) for name in names], list(TEST_SEEDS))
        goodput = [[one.metrics[GOODPUT] for one in own] for own in found]
        mine = [
            paired_row(Path(name).name, each, goodput[0]) | {"devices": n}
            for name, each in zip(names, goodput, strict=True)
        ]
        print(f"\n{n} devices, {len(TEST_SEEDS)} paired worlds\n\n{show(mine)}")
        rows += mine
    write_json(given.out / "comparison.json", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Label, fit, repeat, compare."""
    given = parse(arguments)
    torch.set_num_threads(1)
    open_folder(given)
    names = [given.base]
    for iteration in range(given.iterations):
        names.append(iterate(given, names[-1], iteration))
    compare(given, [*names, "aligned+fcfs", "perfect+fcfs"])
