"""Published acceptance figures of draft and target pairs, with their sources."""

from dataclasses import dataclass, field
from typing import Any

from scipy.special import beta as beta_function

CONFIGSPEC = "ConfigSpec, arXiv 2604.09722, Dolly-15k"
VLLM = "vLLM logs of tomasruizt/vllm-scripts, greedy decoding"
SPECFORGE = "SpecForge's benchmark tables, commit a6b6b023: SGLang, chain of 3, 5, 7 drafts, batch of 8"
SPECDECODE = "SpecDecode-Bench, arXiv 2601.11580, every position of each answer, replayed in rounds of 8 drafts"
SPEC_BENCH = "Spec-Bench answers of yukiki-jc/Spec-Bench, 36,581 rounds of 560 turns"

# Correlation of accepted lengths within a turn (its mean removed), by lag in rounds. Spec-Bench, vicuna-68m to
# vicuna-7b: the only public log with a constant schedule. Other pairs take it as a target of shape (assumption).
AUTOCORRELATION = {1: 0.168, 2: 0.137, 5: 0.112, 10: 0.081}

# The same of EAGLE's 25,525 rounds there, for heads: `python -m estimators.acceptance together` finds both.
HEAD_AUTOCORRELATION = {1: 0.087, 2: 0.042, 5: 0.017, 10: -0.005}


@dataclass(frozen=True)
class Pair:
    """What is published about one draft, target and data set.

    Attributes:
        draft, target, data: names.
        source: where the figures come from.
        max_draft_tokens: drafts per round behind `survival`.
        survival: P(accepted >= i) for i = 1, 2, ... per round, in [0, 1]; empty where not published.
        rates: accepted / drafted tokens by drafts per round, in [0, 1].
        autocorrelation: of accepted lengths within a request, by lag in rounds.
        derived: the drafts per round whose rate was recovered from throughputs, not published itself.
        survival_tolerance: error of `survival` that counts as one; larger where the table is derived, not measured.
        between_cv: standard deviation of responses' own mean accepted length / its mean; None where not published.
        like: name of the pair whose spreads are kept, so that `logit_mean` alone is fitted; empty: fit all.
        note: what a reader must know.
    """

    draft: str
    target: str
    data: str
    source: str
    max_draft_tokens: int = 1
    survival: tuple[float, ...] = ()
    rates: dict[int, float] = field(default_factory=dict)
    autocorrelation: dict[int, float] = field(default_factory=lambda: dict(AUTOCORRELATION))
    derived: tuple[int, ...] = ()
    survival_tolerance: float = 0.01
    between_cv: float | None = None
    like: str = ""
    note: str = ""


def beta_geometric(a: float, b: float, length: int) -> tuple[float, ...]:
    """Return S(i) = B(a + i, b) / B(a, b) for i = 1..length: each round draws its acceptance from Beta(a, b)."""
    return tuple(float(beta_function(a + i, b) / beta_function(a, b)) for i in range(1, length + 1))


def configspec(draft: str, target: str, rates: dict[int, float], derived: tuple[int, ...] = (), **known: Any) -> Pair:
    """Return a pair of ConfigSpec; the rates at `derived` drafts per round were recovered from its throughputs."""
    recovered = f": K = 5; K = {', '.join(map(str, derived))} recovered from its throughputs" if derived else ""
    return Pair(draft, target, "Dolly-15k", CONFIGSPEC + recovered, rates=rates, derived=derived, **known)


MT_BENCH, INSTRUCT_CODER = (0.743, 0.559, 0.433, 0.340, 0.277, 0.227), (0.700, 0.482, 0.347, 0.256, 0.191, 0.147)
ALONE = "one published figure; spreads of Qwen3-1.7B on MT-bench (assumption)"
ONE_FIGURE: dict[str, Any] = {"like": "qwen3-1.7b--qwen3-32b", "note": ALONE}
PAIRS: dict[str, Pair] = {
    "qwen3-0.6b--qwen3-32b": configspec(
        "Qwen3-0.6B",
        "Qwen3-32B",
        {2: 0.563, 5: 0.378, 7: 0.346, 10: 0.274},
        (2, 7, 10),
        max_draft_tokens=10,
        survival=beta_geometric(2.27, 1.28, 10),
        survival_tolerance=0.03,
        note="the survival is a beta-geometric law through the rates; it and the derived rates count a third",
    ),
    "qwen3-1.7b--qwen3-32b": Pair(
        "Qwen3-1.7B", "Qwen3-32B", "MT-bench", VLLM, 6, MT_BENCH, {1: 0.771, 3: 0.598}, between_cv=0.24
    ),
    "qwen3-1.7b--qwen3-32b-code": Pair(
        "Qwen3-1.7B", "Qwen3-32B", "InstructCoder", VLLM, 6, INSTRUCT_CODER, {1: 0.719, 3: 0.526}, between_cv=0.16
    ),
    "qwen3-4b--qwen3-32b": configspec("Qwen3-4B", "Qwen3-32B", {5: 0.487}, **ONE_FIGURE),
    "qwen3-8b--qwen3-32b": configspec("Qwen3-8B", "Qwen3-32B", {5: 0.522}, **ONE_FIGURE),
    "llama-3.2-1b--llama-70b-code": Pair(
        "Llama-3.2-1B",
        "Llama-3.3-70B",
        "InstructCoder",
        f"{VLLM}; beta-geometric (2.71, .58) of its table",
        8,
        beta_geometric(2.71, 0.58, 8),
        {3: 0.790, 5: 0.702},
    ),
    "llama-3.2-1b-instruct--llama-70b": configspec(
        "Llama-3.2-1B-Instruct",
        "Llama-3.1-70B",
        {2: 0.701, 5: 0.546, 6: 0.520, 8: 0.436},
        (2, 6, 8),
        note="the derived rates count a third",
    ),
    "vicuna-68m--vicuna-7b": Pair(
        "vicuna-68m",
        "vicuna-7b",
        "Spec-Bench",
        SPEC_BENCH,
        20,
        (0.565, 0.300, 0.180, 0.115, 0.079, 0.056, 0.041, 0.031),
        note="not an edge pair: a check of the process, from the log that the correlations come from",
    ),
    "eagle3-qwen3-32b--qwen3-32b": Pair(
        "Qwen3-32B-speculator.eagle3",
        "Qwen3-32B",
        "MT-bench",
        VLLM,
        6,
        (0.653, 0.389, 0.222, 0.115, 0.063, 0.038),
        {1: 0.675, 3: 0.430},
        HEAD_AUTOCORRELATION,
        between_cv=0.20,
        note="the chance falls with the place in the round, from .65 to .52; this process cannot show that",
    ),
    "eagle3-qwen3-32b--qwen3-32b-code": Pair(
        "Qwen3-32B-speculator.eagle3",
        "Qwen3-32B",
        "InstructCoder",
        VLLM,
        6,
        (0.619, 0.348, 0.183, 0.088, 0.043, 0.023),
        {1: 0.638, 3: 0.390},
        HEAD_AUTOCORRELATION,
        between_cv=0.16,
        note="the chance falls with the place in the round, from .62 to .48; this process cannot show that",
    ),
    "eagle3-llama-70b--llama-70b": Pair(
        "EAGLE3-LLaMA3.3-Instruct-70B",
        "Llama-3.3-70B",
        "MT-bench",
        SPECFORGE,
        rates={3: 0.641, 5: 0.506, 7: 0.411},
        autocorrelation=HEAD_AUTOCORRELATION,
        note="accepted lengths of 2.923, 3.532, 3.879 tokens, less one, over the drafts",
    ),
    "eagle3-llama-70b--llama-70b-code": Pair(
        "EAGLE3-LLaMA3.3-Instruct-70B",
        "Llama-3.3-70B",
        "InstructCoder",
        VLLM,
        8,
        (0.730, 0.566, 0.435, 0.335, 0.264, 0.207, 0.164, 0.124),
        {3: 0.610, 5: 0.484},
        HEAD_AUTOCORRELATION,
    ),
    "ngram--llama-3.1-8b": Pair(
        "n-gram search",
        "Llama-3.1-8B",
        "ShareGPT, first 512 tokens",
        SPECDECODE,
        8,
        (0.072, 0.050, 0.036, 0.029, 0.024, 0.020, 0.018, 0.016),
        autocorrelation={1: 0.380, 2: 0.202, 5: 0.099, 10: 0.043},
        survival_tolerance=0.003,
        between_cv=1.28,
        note="few answers repeat themselves and carry the figures",
    ),
    "ngram--llama-3.1-8b-math": Pair(
        "n-gram search",
        "Llama-3.1-8B",
        "GSM8K",
        SPECDECODE,
        8,
        (0.074, 0.042, 0.025, 0.016, 0.011, 0.008, 0.006, 0.004),
        autocorrelation={1: 0.049, 2: -0.019, 5: 0.008, 10: -0.010},
        survival_tolerance=0.003,
        between_cv=0.29,
    ),
}

# Qwen3-14B as the target: nothing is published. Both sizes are trained on the same data, so the 32B figures serve.
ASSUMED_LIKE = {f"qwen3-{size}--qwen3-14b": f"qwen3-{size}--qwen3-32b" for size in ("0.6b", "1.7b", "4b", "8b")}
# A search finds what the text holds, whoever writes it: one answer of every target is like another's (assumption).
ASSUMED_LIKE |= {
    f"ngram--{target}": "ngram--llama-3.1-8b" for target in ("qwen3-32b", "qwen3-14b", "llama-70b", "llama-70b-nf4")
}
# What a model says in NF4 is taken as what it says in bf16 (assumption).
ASSUMED_LIKE["llama-3.2-1b--llama-70b-nf4"] = "llama-3.2-1b-instruct--llama-70b"
