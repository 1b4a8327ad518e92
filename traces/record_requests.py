"""Record a synthetic request trace: bursty arrivals and log-normal lengths, fitted to a public trace.

    python -m traces.record_requests --format azure --rows 300 --rate 5.5 --seed 0 --out requests.csv

Arrivals are a Poisson process whose rate wanders slowly (a Cox process): Azure's conversation trace is almost Poisson
from second to second but clearly over-dispersed over minutes. Lengths are independent of each other and of the time,
as the trace allows (correlation of the logarithms 0.09).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wisp_gym.cli import Parser, run, whole
from wisp_gym.process import program
from wisp_gym.traces.requests import MAX_SPAN_S, WRITERS, RequestTrace, write_trace

MAX_ROWS = 1_000_000  # all lines are in memory before they are written
SHORTEST_STEP_S = 1.0  # the rate is constant for this long: far below its correlation time


@dataclass(frozen=True)
class TokenLengths:
    """Log-normal lengths, clipped: exp(N(`log_mean`, `log_std`)) tokens in [`min_tokens`, `max_tokens`]."""

    log_mean: float
    log_std: float
    min_tokens: int
    max_tokens: int

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) int32 lengths in tokens."""
        tokens = np.round(np.exp(rng.normal(self.log_mean, self.log_std, n)))
        return np.clip(tokens, self.min_tokens, self.max_tokens).astype(np.int32)


@dataclass(frozen=True)
class Shape:
    """What a recorded workload looks like, its mean rate aside.

    Attributes:
        rate_std: Standard deviation of the arrival rate over its mean; 0 is a plain Poisson process.
        rate_memory_s: Correlation time of the rate, above 0.
        prompt: Lengths of the prompts.
        output: Lengths of the responses.
    """

    rate_std: float
    rate_memory_s: float
    prompt: TokenLengths
    output: TokenLengths


# Azure LLM inference trace 2023, conversation (Azure/AzurePublicDataset, CC-BY 4.0; 19,366 requests in 3,502 s):
# - the logarithms of the lengths have mean and standard deviation 6.633, .985 (prompt) and 5.019, .859 (output); the
#   limits are the trace's own extremes;
# - its index of dispersion of counts is 1.385, 3.857 and 16.13 over windows of 1, 10 and 60 s. A Cox process of mean
#   rate R, relative rate variance s² and exponential correlation over τ has
#   1 + 2 R s² τ (1 − τ/w (1 − exp(−w/τ))) over a window w (Cox and Isham, "Point Processes", 1980). Least squares on
#   the logarithms of the excess gives R s² = .347/s, τ = 53 s: at R = 5.53/s, s = .25, and 1.35, 4.26 and 15.8.
AZURE_CONV_2023 = Shape(
    rate_std=0.25,
    rate_memory_s=53.0,
    prompt=TokenLengths(6.633, 0.985, 2, 14_050),
    output=TokenLengths(5.019, 0.859, 7, 1_000),
)


def arrivals_s(shape: Shape, n: int, rate_per_s: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) arrival times in seconds, the first at 0, of a Poisson process of a log-normal, autocorrelated rate.

    Time is stretched: a Poisson process of rate 1 in operational time u is mapped through the inverse of
    u(t) = ∫ rate dt. The log-rate is a stationary AR(1) of variance ln(1 + s²), shifted so that the rate's mean is
    `rate_per_s`.
    """
    operational = np.cumsum(rng.exponential(1.0, n))
    log_variance = math.log1p(shape.rate_std**2)
    step_s = max(SHORTEST_STEP_S, 1.0 / rate_per_s)  # longer at low rates: about as many steps as requests suffice
    memory = math.exp(-step_s / shape.rate_memory_s)
    log_rate, rates, covered = rng.normal(0.0, math.sqrt(log_variance)), [], 0.0
    while covered < operational[-1]:
        rates.append(rate_per_s * math.exp(log_rate - log_variance / 2))
        covered += rates[-1] * step_s
        log_rate = memory * log_rate + math.sqrt((1 - memory**2) * log_variance) * rng.normal()
    edges = np.concatenate([[0.0], np.cumsum(rates) * step_s])
    times_s = np.interp(operational, edges, np.arange(len(edges)) * step_s)
    return times_s - times_s[0]


def record(shape: Shape, n: int, rate_per_s: float, seed: int) -> RequestTrace:
    """A trace of `n` requests at a mean of `rate_per_s` requests a second; the same seed gives the same trace."""
    rng = np.random.default_rng(seed)
    times_s = arrivals_s(shape, n, rate_per_s, rng)
    return RequestTrace(times_s, shape.prompt.sample(rng, n), shape.output.sample(rng, n))


def scenario_shape(name: str) -> Shape:
    """Lengths of a scenario's workload under Azure's arrivals.

    Raises:
        ValueError: the scenario is unknown or wrong (`wisp_gym.scenario.ScenarioError`).
    """
    from wisp_gym import scenario

    workload = scenario.load(name).workload
    prompt, output = (
        TokenLengths(math.log(part.median_tokens), part.log_std, int(part.min_tokens), int(part.max_tokens))
        for part in (workload.prompt, workload.output)
    )
    return Shape(AZURE_CONV_2023.rate_std, AZURE_CONV_2023.rate_memory_s, prompt, output)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's flags; exits with code 2 and one line when they are wrong."""
    parser = Parser(prog="python -m traces.record_requests", description=__doc__.splitlines()[0])
    lengths_help = "take the lengths of this scenario (preset or TOML file; default: Azure 2023 conversation)"
    parser.add_argument("--scenario-like", metavar="NAME", help=lengths_help)
    parser.add_argument("--format", default="azure", help=f"one of {', '.join(WRITERS)} (default azure)")
    parser.add_argument("--rows", type=whole(1, MAX_ROWS), default=300, help=f"requests, 1 to {MAX_ROWS} (default 300)")
    parser.add_argument("--rate", type=float, default=5.53, help="mean requests per second (default 5.53, as Azure's)")
    parser.add_argument("--seed", type=whole(0, 2**63), default=0, help="0 or above (default 0)")
    parser.add_argument("--out", required=True, help="the file to write")
    flags = parser.parse_args(arguments)
    # The slowest allowed rate leaves a factor of 2 to the longest trace a file may hold.
    slowest = 2 * flags.rows / MAX_SPAN_S
    if not slowest <= flags.rate <= 1e6:
        parser.error(f"--rate {flags.rate}: allowed {slowest:.3g} to 1e6 requests per second for {flags.rows} rows")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Record a trace as the command line says."""
    flags = parse(arguments)
    shape = scenario_shape(flags.scenario_like) if flags.scenario_like else AZURE_CONV_2023
    trace = record(shape, flags.rows, flags.rate, flags.seed)
    write_trace(trace, flags.out, flags.format)
    print(f"{flags.out}: {len(trace)} requests in {trace.arrival_s[-1]:.1f} s")


if __name__ == "__main__":
    program(lambda: run(main, "python -m traces.record_requests"))
