"""A forward pass of Qwen3-type models that wastes little: what a serving engine's verification step costs.

Queries, keys and values come from one matrix, gate and up from another; keys and values are written in place into a
cache made once; attention reads each of them once (`estimators.profiling.attention`). On a GPU the small functions between the
matrix products are compiled, so that each is one kernel. The output equals transformers' Qwen3 with the same weights
(a test compares them). Weights are random unless loaded: the time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators.profiling.attention import Layout, attend, join, pack
from estimators.profiling.shapes import Shape

WEIGHT_STD = 0.02  # Qwen3's initializer_range; all that matters is that nothing overflows


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return RMSNorm over the last axis: mean square in float32, weight in x's own type (as transformers has it)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_and_norm(residual: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return residual + change, (T, hidden), and its norm."""
    residual = residual + change
    return residual, norm(residual, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return (T, H, D) rotated by position: halves paired, (T, D) cosines and sines (Su et al. 2021)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]


def split_heads(
    qkv: Tensor, layer: Layer, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, shape: Shape
) -> Tensor:
    """Return queries (T, H, D) of (T, qkv_width), normalised by head and rotated; write keys and values at `slots`."""
    sizes = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    q, k, v = (part.unflatten(-1, (-1, shape.head_dim)) for part in qkv.split(sizes, -1))
    keys.index_copy_(0, slots, rotate(norm(k, layer.k_norm, shape.norm_eps), cos, sin))
    values.index_copy_(0, slots, v)
    return rotate(norm(q, layer.q_norm, shape.norm_eps), cos, sin)


def gate(gate_up: Tensor) -> Tensor:
    """Return SiLU(gate) · up of (T, 2·intermediate): (T, intermediate)."""
    gated, up = gate_up.chunk(2, -1)
    return F.silu(gated) * up


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, each (out, in) or (size,)."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @staticmethod
    def sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return each weight's shape by name."""
        return {
            "input_norm": (shape.hidden,), "qkv": (shape.qkv_width, shape.hidden),
            "q_norm": (shape.head_dim,), "k_norm": (shape.head_dim,), "o": (shape.hidden, shape.heads * shape.head_dim),
            "post_norm": (shape.hidden,), "gate_up": (2 * shape.intermediate, shape.hidden),
            "down": (shape.hidden, shape.intermediate),
        }  # fmt: skip


class Model:
    """A decoder with its cache, on one device.

    Args:
        shape: of the model.
        device: "cpu" or "cuda".
        dtype: of weights, activations, keys and values; FlashAttention needs bfloat16 or float16.
        cache_tokens: rows of the cache, shared by the requests of a batch.
        longest: tokens of the longest sequence: as many positions are prepared.
        seed: of the random weights and of the cache's contents.
        compiled: compile what stands between the matrix products (on a GPU it should be).
    """

    def __init__(
        self, shape: Shape, device: str, dtype: torch.dtype, cache_tokens: int, longest: int, seed: int,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.shape, self.device, self.dtype = shape, torch.device(device), dtype
        self._random = torch.Generator(device).manual_seed(seed)
        self.embedding = self._matrix(shape.vocabulary, shape.hidden)
        self.layers = [
            Layer(**{name: self._matrix(*size) for name, size in Layer.sizes(shape).items()})
            for _ in range(shape.layers)
        ]
        self.final_norm = self._matrix(shape.hidden)
        self.output = self._matrix(shape.vocabulary, shape.hidden)
        room = (cache_tokens, shape.kv_heads, shape.head_dim)
        # Written once: pages that nothing was written to may all be one page of memory.
        self.cache = [(self._matrix(*room), self._matrix(*room)) for _ in range(shape.layers)]
        self.cos, self.sin = rotations(shape, longest, self.device, dtype)
        chosen: dict[str, Any] = {f.__name__: f for f in (norm, add_and_norm, split_heads, gate, pack, join)}
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # a batch of one token, of one piece, ...: each is a case
            chosen = {name: torch.compile(function, dynamic=True) for name, function in chosen.items()}
        self._do = SimpleNamespace(**chosen)

    def _matrix(self, *size: int) -> Tensor:
        """Return random numbers, made in place: a model of 65 GB has no room for a copy; norms are ones."""
        made = torch.empty(size, device=self.device, dtype=self.dtype)
        return made.fill_(1.0) if len(size) == 1 else made.normal_(0.0, WEIGHT_STD, generator=self._random)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a `Qwen3ForCausalLM`, by the names of its state dictionary."""
        self.embedding.copy_(weights["model.embed_tokens.weight"])
        self.output.copy_(weights["lm_head.weight"])
        self.final_norm.copy_(weights["model.norm.weight"])
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}"
            for name, parts in _SOURCES.items():
                getattr(layer, name).copy_(torch.cat([weights[f"{at}.{part}.weight"] for part in parts]))

    @torch.inference_mode()
    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """Run one batch; its keys and values are written into the cache.

        Args:
            ids: (T,) int64 new tokens in the layout's order.
            layout: of the batch.

        Returns:
            (L, vocabulary) logits at the layout's `logit_rows`.
        """
        do, eps = self._do, self.shape.norm_eps
        cos, sin = self.cos[layout.positions], self.sin[layout.positions]
        residual = F.embedding(ids, self.embedding)
        hidden = do.norm(residual, self.layers[0].input_norm, eps)
        next_norms = [*(layer.input_norm for layer in self.layers[1:]), self.final_norm]
        for layer, (keys, values), next_norm in zip(self.layers, self.cache, next_norms, strict=True):
            q = do.split_heads(F.linear(hidden, layer.qkv), layer, cos, sin, layout.slots, keys, values, self.shape)
            seen = attend(q, keys, values, layout, do).flatten(1)
            residual, hidden = do.add_and_norm(residual, F.linear(seen, layer.o), layer.post_norm, eps)
            change = F.linear(do.gate(F.linear(hidden, layer.gate_up)), layer.down)
            residual, hidden = do.add_and_norm(residual, change, next_norm, eps)
        return F.linear(hidden[layout.logit_rows], self.output)


_SOURCES: dict[str, tuple[Any, ...]] = {
    "input_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "o": ("self_attn.o_proj",),
    "post_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def rotations(shape: Shape, longest: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of all positions, (longest, head_dim) each: angle = position · theta^(-2i/head_dim)."""
    powers = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device) / shape.head_dim
    angles = torch.arange(longest, dtype=torch.float32, device=device)[:, None] / shape.rope_theta**powers
    both = torch.cat([angles, angles], -1)
    return both.cos().to(dtype), both.sin().to(dtype)
