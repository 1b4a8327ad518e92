"""How much noise a critic takes out of what branches say of one decision, and what bias it brings in.

    python -m agents.branching critic --out critic.npz

Worlds of many loads are branched at and run on to a late moment, critics are fitted to those pairs (`agents.branching.critic`), and
then held against many pairs at few decisions of other worlds: the label of a pair at a moment is the difference of tokens on time so
far and of V. Its noise is the standard deviation within a decision, its bias the distance of its mean from that of the late moment.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from agents.branching.critic import (
    Critic,
    Moments,
    context_of,
    expanded,
    fit_linear,
    fit_network,
    load_critic,
    reckoned_critic,
    save_critic,
)
from agents.branching.features import SIZE
from agents.branching.flags import add_loads, add_population
from agents.branching.pairs import Pairs, joined, pairs_of_world
from wisp_gym import cli
from wisp_gym.cli import aligned
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.evaluation.pool import Threads

PROGRAM = "python -m agents.branching critic"
MOMENTS_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.5)
WORLD_SECONDS, TRUTH_SECONDS, TRUTH_WORLDS = 12.0, 2.0, 16
TRUTH_SEED = 1_000  # of the first world of the truth, after those that critics are fitted in
PAIR_SECONDS = 1.6  # run on for one label of `agents.branching.improve`: four pairs, 0.4 s each
LINEAR, NETWORK = "linear", "network"

# From (N, 2, SIZE) features and (N,) populations to (N,) differences of V.
Difference = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Noise:
    """Labels of one kind at one moment after the decision, in tokens of the fleet.

    Attributes:
        critic: what counts what comes later. sd: of one pair's label. bias, bias_error: mean of label less truth, and its standard error.
        distance: root mean square over decisions of the labels' mean less the truth's. error: of a label of PAIR_SECONDS, noise and
        distance together. effect: spread of the truth over decisions. decisions: how many.
    """

    devices: int
    moment_s: float
    critic: str
    sd: float
    bias: float
    bias_error: float
    distance: float
    error: float
    effect: float
    decisions: int


def linear_in_levels(moments: Moments) -> Difference:
    """What usual critics are fitted to: the levels, by least squares."""
    flat, devices = moments.features.reshape(-1, SIZE), np.repeat(moments.devices, 2)
    x = np.concatenate([expanded(flat, devices), np.ones((len(flat), 1), flat.dtype)], axis=1)
    scale = np.maximum(np.abs(x).max(axis=0), 1e-9)
    weights = np.linalg.lstsq(x / scale, moments.later.ravel(), rcond=None)[0] / scale
    return Critic(weights[:-1]).difference


def boosted_levels(moments: Moments) -> Difference:
    """The levels, by gradient boosting."""
    flat, devices = moments.features.reshape(-1, SIZE), np.repeat(moments.devices, 2)
    trees = HistGradientBoostingRegressor(random_state=0)
    trees.fit(np.column_stack([flat, devices]), moments.later.ravel())

    def difference(features: np.ndarray, devices: np.ndarray) -> np.ndarray:
        sent, drafted = (trees.predict(np.column_stack([features[:, k], devices])) for k in (0, 1))
        return np.asarray(drafted - sent)

    return difference


def boosted_differences(moments: Moments) -> Difference:
    """The differences, by gradient boosting on the features' differences and on those of one copy."""

    def both(features: np.ndarray, devices: np.ndarray) -> np.ndarray:
        return np.column_stack([features[:, 1] - features[:, 0], context_of(features, devices)])

    trees = HistGradientBoostingRegressor(random_state=0, l2_regularization=10.0, learning_rate=0.05)
    trees.fit(both(moments.features, moments.devices), moments.later_apart)
    return lambda features, devices: np.asarray(trees.predict(both(features, devices)))


def candidates(moments: Moments) -> tuple[dict[str, Difference], dict[str, Critic]]:
    """All that is compared, and those critics that can be kept."""
    critics = {LINEAR: fit_linear(moments), NETWORK: fit_network(moments)}
    found: dict[str, Difference] = {
        "none": lambda features, devices: np.zeros(len(features)),
        "under way, reckoned": reckoned_critic().difference,
        "linear, of levels": linear_in_levels(moments),
        "boosting, of levels": boosted_levels(moments),
        "boosting": boosted_differences(moments),
    }
    return found | {name: critic.difference for name, critic in critics.items()}, critics


def kept(critic: Critic) -> dict[str, Difference]:
    """A critic that was fitted before, beside none and what is reckoned."""
    return {
        "none": lambda features, devices: np.zeros(len(features)),
        "under way, reckoned": reckoned_critic().difference,
        NETWORK if critic.layers else LINEAR: critic.difference,
    }


def labels_of(pairs: Pairs, moment: int, difference: Difference) -> np.ndarray:
    """(N, draws) labels of all pairs at a moment."""
    n, draws = pairs.tokens.shape[:2]
    x = pairs.features[:, :, :, moment].reshape(n * draws, 2, SIZE)
    later = difference(x, np.repeat(pairs.devices, draws)).reshape(n, draws)
    return np.asarray(pairs.tokens[:, :, 1, moment] - pairs.tokens[:, :, 0, moment] + later)


def noise_of(labels: np.ndarray, truth: np.ndarray, moment_s: float) -> dict[str, float]:
    """Noise and bias of (N, draws) labels, as fields of `Noise`."""
    draws, off = truth.shape[1], labels - truth
    sd = float(labels.var(axis=1, ddof=1).mean() ** 0.5)
    distance2 = max(float((off.mean(axis=1) ** 2).mean() - off.var(axis=1, ddof=1).mean() / draws), 0.0)
    effect2 = truth.mean(axis=1).var(ddof=1) - truth.var(axis=1, ddof=1).mean() / draws
    return {
        "sd": sd, "bias": float(off.mean()), "bias_error": float(off.mean(axis=1).std(ddof=1) / len(off) ** 0.5),
        "distance": distance2**0.5, "error": (sd**2 * moment_s / PAIR_SECONDS + distance2) ** 0.5,
        "effect": max(float(effect2), 0.0) ** 0.5,
    }  # fmt: skip


def table_of(pairs: Pairs, differences: dict[str, Difference]) -> list[Noise]:
    """A row for each moment but the last and each candidate, and one for the truth itself."""
    truth = pairs.tokens[..., -1] + pairs.later()[..., -1]
    late, devices = truth[:, :, 1] - truth[:, :, 0], int(pairs.devices[0])
    rows = [
        Noise(devices, moment_s, name, **noise_of(labels_of(pairs, k, each), late, moment_s), decisions=len(late))
        for k, moment_s in enumerate(MOMENTS_S[:-1])
        for name, each in differences.items()
    ]
    return [*rows, Noise(devices, MOMENTS_S[-1], "truth", **noise_of(late, late, MOMENTS_S[-1]), decisions=len(late))]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--base", default="speculation-v1+fcfs", metavar="NAME", help="who decides (default %(default)s)")
    add_population(parser)
    add(
        "--worlds",
        type=cli.whole(1, TRUTH_SEED),
        default=48,
        metavar="N",
        help="that critics are fitted in (default 48)",
    )
    add("--share", type=cli.between(0, 1), default=0.02, metavar="P", help="of their decisions (default 0.02)")
    add("--pairs", type=cli.whole(1, 1000), default=4, metavar="N", help="at each (default 4)")
    add_loads(parser, [16, 64, 100], "of the truth")
    add(
        "--decisions",
        type=cli.whole(2, 10_000),
        default=48,
        metavar="N",
        help="of the truth at each load, about (default 48)",
    )
    add("--draws", type=cli.whole(2, 10_000), default=384, metavar="N", help="pairs at each of these (default 384)")
    add("--fitted", type=Path, metavar="FILE", help="a critic of before: none is fitted, this one is measured")
    add("--keep", choices=(LINEAR, NETWORK), default=LINEAR, help="critic that is written (default %(default)s)")
    add("--out", type=cli.output_file(), metavar="FILE", help="write it there, as .npz")
    add("--json", type=cli.output_file(), metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(arguments)


def pairs_to_fit(given: argparse.Namespace, bar: cli.Bar) -> Pairs:
    """Pairs of worlds of all loads."""
    rng, jobs = np.random.default_rng(0), list[tuple[object, ...]]()
    for seed in range(given.worlds):
        scenario = chosen_scenario(given.scenario, int(rng.integers(given.devices[0], given.devices[-1] + 1)))
        base = resolve(given.base, scenario)
        jobs.append((scenario, base, seed, WORLD_SECONDS, given.share, given.pairs, MOMENTS_S))
    return gathered(jobs, bar)


def pairs_of_truth(given: argparse.Namespace, devices: int, bar: cli.Bar) -> Pairs:
    """Many pairs at few decisions of one load."""
    scenario = chosen_scenario(given.scenario, devices)
    base, rate = resolve(given.base, scenario), 10.0 * min(devices, 40)  # decisions a second, about
    share = min(given.decisions / (TRUTH_WORLDS * TRUTH_SECONDS * rate), 1.0)
    seeds = range(TRUTH_SEED, TRUTH_SEED + TRUTH_WORLDS)
    return gathered([(scenario, base, seed, TRUTH_SECONDS, share, given.draws, MOMENTS_S) for seed in seeds], bar)


def gathered(jobs: Sequence[tuple[object, ...]], bar: cli.Bar) -> Pairs:
    """The pairs of several worlds, side by side."""
    parts = []
    for found in Threads().map(pairs_of_world, jobs):
        parts.append(found)
        bar.update()
    return joined(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, fit, compare, write where asked, and print."""
    given = parse(arguments)
    with cli.progress((0 if given.fitted else given.worlds) + TRUTH_WORLDS * len(given.loads), unit="world") as bar:
        critics: dict[str, Critic] = {}
        if given.fitted:
            differences = kept(load_critic(given.fitted))
        else:
            differences, critics = candidates(pairs_to_fit(given, bar).moments(len(MOMENTS_S) - 1))
        rows = [row for n in given.loads for row in table_of(pairs_of_truth(given, n, bar), differences)]
    if given.out and critics:
        save_critic(critics[given.keep], given.out)
    cli.write_rows([asdict(row) for row in rows], given.json)
    headers = [["devices", "after", "counted with", "sd of a pair", "bias", "", "distance", "error of a label", "effect"],
               ["", "s", "", "tokens", "tokens", "error", "tokens", "tokens", "sd, tokens"]]  # fmt: skip
    print(aligned(headers, [line(row) for row in rows]))


def line(row: Noise) -> list[str]:
    """A row's cells."""
    numbers = (row.sd, row.bias, row.bias_error, row.distance, row.error, row.effect)
    return [str(row.devices), f"{row.moment_s:g}", row.critic, *(f"{number:.2f}" for number in numbers)]
