"""How fast this machine takes the decisions of `wisp_gym.serving`.

    wisp-gym benchmark serving [--policy NAME ...] [--decisions N] [--members N] [--json FILE]

Each figure is the time from handing over the facts to the action, in microseconds: median and 99th percentile over N decisions
(a tenth of them for batches), one by one, on one thread. `device`: a token's statistics in, continue or send out (`drafted` and
`wants_more`); `batch`: 256 queued requests in, a batch of at most N members out (`compose`); `estimator`: one batch observed. Default
policies: those that come with wisp-gym.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.cli import Parser, output_file, whole
from wisp_gym.cli import table as aligned
from wisp_gym.files import write_json
from wisp_gym.machine import machine, shown
from wisp_gym.serving.bundle.bundle import Bundle, load_bundle
from wisp_gym.serving.bundle.names import shipped
from wisp_gym.serving.bundle.schema import OF_DEVICES
from wisp_gym.serving.device.controller import SpeculationController
from wisp_gym.serving.device.facts import DeviceProfile, Reply, Token
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.features import Request
from wisp_gym.serving.scheduler.scheduler import BatchScheduler

PROGRAM = "wisp-gym benchmark serving"
PACKAGES = ("numpy", "onnxruntime")  # whose versions matter
QUEUE = 256
TARGETS_US = {"device": (30.0, 100.0), "batch": (1000.0, None), "estimator": (None, None)}  # median, 99th percentile
WARM_UP = 200
ESTIMATOR = "a100-80gb--qwen3-32b"


def timed(prepare: Callable[[int], None], decide: Callable[[int], Any], n: int) -> tuple[float, float]:
    """(median, 99th percentile) in microseconds of `decide`, after `prepare`, which does not count."""
    spent = np.empty(n)
    for k in range(-WARM_UP, n):
        prepare(k)
        start = time.perf_counter_ns()
        decide(k)
        if k >= 0:
            spent[k] = time.perf_counter_ns() - start
    return float(np.median(spent)) / 1e3, float(np.quantile(spent, 0.99)) / 1e3


def device_us(bundle: Bundle, n: int) -> tuple[float, float]:
    """A device's decision: first tokens of rounds, each after a reply."""
    profile = DeviceProfile(slo_tokens_per_s=8.0, draft_token_s=0.02, one_way_s=0.01, accept_share=0.8, batch_s=0.05)
    controller, rng = SpeculationController(bundle, profile), np.random.default_rng(0)
    draws = [Token(*row) for row in rng.uniform(0.6, 1.0, (1024, 5)).tolist()]
    reply = Reply(2, 1, 2, True, 0.03, 0.06, 0.01, 0.7, 0.06)
    controller.begin_request(0.0, 500, 1 << 20)

    def prepare(k: int) -> None:
        now_s = (k + WARM_UP) * 0.5
        controller.sent(now_s - 0.1)
        controller.receive(reply, now_s)
        controller.begin_round(now_s)
        controller.wants_more(now_s)

    def decide(k: int) -> bool:
        now_s = (k + WARM_UP) * 0.5 + 0.02
        controller.drafted(draws[k % 1024], now_s)
        controller.target = -1  # a policy that decides lengths is asked each time
        return controller.wants_more(now_s)

    return undisturbed(timed(prepare, decide, n), controller)


def undisturbed(figures: tuple[float, float], by: SpeculationController | BatchScheduler) -> tuple[float, float]:
    """The figures, where the policy took every decision."""
    if by.fallbacks:
        raise RuntimeError(f"the policy was replaced in {dict(by.fallbacks)} of {by.decisions} decisions")
    return figures


def queue_of(rng: np.random.Generator) -> list[Request]:
    """256 waiting rounds, some of them prompts."""
    return [
        Request(k, -float(rng.uniform(0, 0.3)), float(rng.uniform(-0.1, 0.8)), int(context), int(0 if cold else context - 1),
                0 if cold else int(rng.integers(0, 9)), float(rng.uniform(1, 5)), float(rng.choice([2, 4, 8])), -float(rng.uniform(1, 30)),
                int(rng.integers(0, 200)), float(rng.uniform(0, 0.5)))
        for k, (context, cold) in enumerate(zip(rng.integers(100, 2000, QUEUE), rng.random(QUEUE) < 0.05, strict=True))
    ]  # fmt: skip


def batch_us(bundle: Bundle, n: int, members: int = QUEUE) -> tuple[float, float]:
    """A server's decision over 256 queued requests, for all of which there is memory."""
    limits = ServerLimits(10_000_000, members, 100_000)
    scheduler = BatchScheduler(bundle, VerificationTimeEstimator.load(ESTIMATOR), limits)
    rng = np.random.default_rng(0)
    queues = [queue_of(rng) for _ in range(16)]
    figures = timed(lambda k: None, lambda k: scheduler.compose(queues[k % 16], 0.0), max(n // 10, 100))
    return undisturbed(figures, scheduler)


def estimator_us(n: int) -> tuple[float, float]:
    """One observed batch."""
    estimator, rng = VerificationTimeEstimator.load(ESTIMATOR), np.random.default_rng(0)
    rows = [(new, pairs, cached) for new, pairs, cached in (rng.uniform(1, 2, (1024, 3)) * [60.0, 6e4, 2e4]).tolist()]
    times = [estimator.predict(*row) for row in rows]
    return timed(lambda k: None, lambda k: estimator.observe(*rows[k % 1024], times[k % 1024]), n)


def figures_of(bundles: dict[str, Bundle], n: int, members: int = QUEUE) -> dict[str, tuple[str, float, float]]:
    """(kind, median, 99th percentile) of each policy by name, and of the estimator."""
    found = {}
    for name, bundle in bundles.items():
        of_device = bundle.schema.decision in OF_DEVICES
        found[name] = ("device", *device_us(bundle, n)) if of_device else ("batch", *batch_us(bundle, n, members))
    found["verification time"] = ("estimator", *estimator_us(n))
    return found


def table(figures: dict[str, tuple[str, float, float]]) -> str:
    """Aligned rows."""
    rows = []
    for name, (kind, median, tail) in figures.items():
        targets = " and ".join(f"{limit:g}" for limit in TARGETS_US[kind] if limit is not None)
        rows.append((name, kind, f"{median:.1f}", f"{tail:.1f}", targets))
    return aligned(("policy", "decision", "median, µs", "99 %, µs", "targets, µs"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write where asked, and print."""
    parser = Parser(prog=PROGRAM, description="Measure the speed of serving decisions.")
    add = parser.add_argument
    add("--policy", nargs="+", default=list(shipped()), metavar="NAME", help="bundles (default: the shipped ones)")
    add("--decisions", type=whole(100, 10_000_000), default=20_000, metavar="N", help="of each kind (default 20000)")
    add("--members", type=whole(1, QUEUE), default=QUEUE, metavar="N", help=f"of a batch (default {QUEUE}: all)")
    add("--json", type=output_file(), metavar="FILE", help="also write the figures to a file")
    given = parser.parse_args(arguments)
    bundles = {Path(name).name: load_bundle(name) for name in given.policy}
    about = machine(*PACKAGES)
    print(shown(about), flush=True)
    figures = figures_of(bundles, given.decisions, given.members)
    if given.json:
        keys = ("decision", "median_us", "p99_us")
        rows = {name: dict(zip(keys, row, strict=True)) for name, row in figures.items()}
        write_json(given.json, {"figures": rows, "machine": about})
    print(table(figures))
