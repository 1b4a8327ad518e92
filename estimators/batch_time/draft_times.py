"""What drafting on the server costs, put together from what a step of a draft consists of.

    launch_s        layers·layer_s + weights·s_per_byte: kernels of each layer, then every weight read once
    sequence_s      what measured steps cost a sequence beyond arithmetic and memory: one number for all models
    token_s         that of the server's target, by parameters
    cached_token_s  that of the server's target, by bytes of keys and values
    overhead_s      measured, once for a batch

`layer_s` is fitted to measured steps of three drafts and of their target on one H100. `s_per_byte` is what the server takes to
read its own target, so that a draft's time keeps its proportion to the target's whatever the level of the server's times is.
On several GPUs each layer has two all-reduces more, and the draft is split as the target is (vLLM asks for it).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import wisp_gym
from wisp_gym.files import read_text
from wisp_gym.scenario import DraftTime

CATALOGUE = Path(wisp_gym.__path__[0]) / "scenarios" / "catalogue"
BF16_BYTES = 2

# One all-reduce of a step on two H100, all that is not layers and weights: Llama-3.2-1B drafts beside a 70B target in 2.28 ms
# (vLLM logs of tomasruizt/vllm-scripts, a fit with rounded values), which is 16 layers of two all-reduces each.
# On four H100 it drafts in 12.5 % of the target's step (SpecDecode-Bench, arXiv 2601.11580), about 2 ms: 0.03 ms again.
ALL_REDUCE_S = 0.028e-3


@dataclass(frozen=True)
class Shape:
    """What a step of a model reads and computes.

    Attributes:
        layers: each launches its kernels.
        parameters: read and multiplied in a step; an embedding that is no output layer too is not among them.
        kv_bytes: keys and values of one token, bf16.
    """

    layers: int
    parameters: int
    kv_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in bf16."""
        return BF16_BYTES * self.parameters


def kv_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Return bytes of keys and values of one token in bf16."""
    return 2 * layers * kv_heads * head_dim * BF16_BYTES


def eagle3(hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> Shape:
    """Return an EAGLE-3 head: one layer on [embedding, state], three states of the target joined, 32,000 outputs.

    Attention reads 2·hidden, the three matrices of the MLP are hidden × intermediate, the joint is 3·hidden × hidden
    (arXiv 2503.01840). The embedding is the target's own.
    """
    attention = 2 * hidden * (heads + 2 * kv_heads) * head_dim + heads * head_dim * hidden
    parameters = attention + 3 * hidden * intermediate + 3 * hidden * hidden + 32_000 * hidden
    return Shape(1, parameters, kv_bytes(1, kv_heads, head_dim))


# Configuration files of the models' Hugging Face pages (num_hidden_layers, num_key_value_heads, head_dim) and their cards
# (parameters); all four share one matrix between embedding and output. Heads: SpecForge's qwen3-32b-eagle3.json, and
# the same with the target's own sizes for Llama-70B.
DRAFTS = {
    "qwen3-0.6b": Shape(28, 596_000_000, kv_bytes(28, 8, 128)),
    "qwen3-1.7b": Shape(28, 1_720_000_000, kv_bytes(28, 8, 128)),
    "qwen3-4b": Shape(36, 4_022_000_000, kv_bytes(36, 8, 128)),
    "llama-3.2-1b": Shape(16, 1_240_000_000, kv_bytes(16, 8, 64)),
    "eagle3-qwen3-32b": eagle3(5120, 25_600, 64, 8, 128),
    "eagle3-llama-70b": eagle3(8192, 28_672, 64, 8, 128),
}
TARGETS = {  # without their embedding, which a step reads a few rows of: vocabulary × hidden size
    "qwen3-32b": Shape(64, 32_800_000_000 - 151_936 * 5120, kv_bytes(64, 8, 128)),
    "llama-70b": Shape(80, 70_600_000_000 - 128_256 * 8192, kv_bytes(80, 8, 128)),
}
# The target whose fitted time tells how fast a server reads.
READS = {"a100-80gb": "qwen3-32b", "h100-80gb": "qwen3-32b", "h200-141gb": "qwen3-32b"} | dict.fromkeys(
    ("a100-80gb-x2", "a100-80gb-x4"), "llama-70b"
)
# Whose measured overhead a draft takes: its own, or (assumption) that of the model most like it.
OVERHEAD_OF = {"qwen3-4b": "qwen3-4b"} | dict.fromkeys(("eagle3-qwen3-32b", "eagle3-llama-70b"), "eagle3-qwen3-32b")
MEASURED = ("qwen3-1.7b", "qwen3-4b", "eagle3-qwen3-32b")


@dataclass(frozen=True)
class Parts:
    """What the derivation takes from measured steps, in seconds.

    Attributes:
        layer_s: kernels of one layer of a step.
        s_per_byte: reading one byte of weights, on the measured GPU.
        sequence_s: of a draft model, for each sequence in a step.
        overhead_s: by measured draft, once for a batch.
    """

    layer_s: float
    s_per_byte: float
    sequence_s: float
    overhead_s: Mapping[str, float]


def parts(launch_s: Mapping[str, float]) -> tuple[float, float]:
    """Return seconds of a layer and of a byte that meet measured steps best, in relative errors.

    Args:
        launch_s: seconds of a step before any sequence, by name of `DRAFTS` or `TARGETS`.
    """
    shapes = [(DRAFTS | TARGETS)[name] for name in launch_s]
    seconds = np.array(list(launch_s.values()))
    design = np.array([[shape.layers, shape.bytes] for shape in shapes]) / seconds[:, None]
    layer_s, s_per_byte = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)[0]
    return float(layer_s), float(s_per_byte)


def catalogue(kind: str) -> dict[str, dict[str, Any]]:
    """Return one file of the catalogue of scenarios."""
    return tomllib.loads(read_text(CATALOGUE / f"{kind}.toml"))


def reading(server: str, layer_s: float) -> float:
    """Return seconds a byte at which a server reads its target: all of its time for few tokens that is not layers."""
    target = READS[server]
    time, shape = catalogue("verification")[server][target], TARGETS[target]
    return (time["launch_s"] + time["weights_s"] - shape.layers * layer_s) / shape.bytes


def layer_on(server: str, layer_s: float) -> float:
    """Return seconds of a layer on a server: with two all-reduces where it has several GPUs."""
    return layer_s + (2.0 * ALL_REDUCE_S if catalogue("servers")[server]["gpus"] > 1 else 0.0)


def draft_time(draft: str, server: str, found: Parts) -> DraftTime:
    """Return the time of drafting with `draft`, a key of `DRAFTS` or "ngram", on a server of the catalogue.

    The search in the text has no steps: 0.6 % of the verification on the host (SpecDecode-Bench), which is nothing beside the
    overhead that every source pays, taken as the head's (assumption).
    """
    if draft == "ngram":
        return DraftTime(found.overhead_s["eagle3-qwen3-32b"], 0.0, 0.0, 0.0, 0.0)
    shape, target = DRAFTS[draft], READS[server]
    of_target, time = TARGETS[target], catalogue("verification")[server][target]
    layer_s = layer_on(server, found.layer_s)
    return DraftTime(
        overhead_s=found.overhead_s[OVERHEAD_OF.get(draft, "qwen3-1.7b")],
        launch_s=shape.layers * layer_s + shape.bytes * reading(server, layer_s),
        sequence_s=0.0 if shape.layers == 1 else found.sequence_s,
        token_s=time["token_s"] * shape.parameters / of_target.parameters,
        cached_token_s=time["cached_token_s"] * shape.kv_bytes / of_target.kv_bytes,
    )
