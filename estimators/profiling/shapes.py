"""Shapes of the models that are profiled, and what one batch costs them at least: operations and bytes.

Numbers of the Qwen3 models: `config.json` on their Hugging Face pages (Qwen/Qwen3-8B, -14B, -32B): vocab_size,
hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, rms_norm_eps and
rope_theta; all three have tie_word_embeddings = false and attention_bias = false.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Size of a Qwen3-type decoder: RMSNorm, grouped-query attention with normalised queries and keys, SwiGLU.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary: whole numbers >= 1; heads is a multiple
            of kv_heads, head_dim is even.
        norm_eps: added to the mean square before the root.
        rope_theta: base of the rotary embedding's wavelengths.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 151_936
    norm_eps: float = 1e-6
    rope_theta: float = 1e6

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def qkv_width(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer's matrices; its norms, 2·hidden + 2·head_dim, are left to `parameters`."""
        attention = self.hidden * self.qkv_width + self.heads * self.head_dim * self.hidden
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All parameters: embedding, output layer, layers, norms."""
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        return 2 * self.vocabulary * self.hidden + self.layers * self.layer_parameters + norms

    @property
    def read_parameters(self) -> int:
        """Parameters that every batch reads: all but the embedding, of which it takes a row a token."""
        return self.parameters - self.vocabulary * self.hidden

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes

    def least_bytes(self, sums: Mapping[str, int], dtype_bytes: int) -> int:
        """Fewest bytes a batch moves: weights once, cached keys and values once, new ones written.

        Args:
            sums: new_tokens and cached_tokens of the batch (`estimators.batch_time.regression.COLUMNS`).
            dtype_bytes: bytes of a weight and of a key or value.
        """
        tokens = sums["new_tokens"] + sums["cached_tokens"]
        return self.read_parameters * dtype_bytes + tokens * self.kv_bytes_per_token(dtype_bytes)

    def least_flop(self, sums: Mapping[str, int]) -> int:
        """Operations a batch needs: 2 a parameter and token, 4·heads·head_dim a layer, query and key that it sees.

        Args:
            sums: new_tokens, logit_tokens (of which logits are asked for) and seen_pairs: for each new token the keys
                it attends to, itself among them, summed.
        """
        dense = 2 * self.layers * self.layer_parameters * sums["new_tokens"]
        logits = 2 * self.vocabulary * self.hidden * sums["logit_tokens"]
        return dense + logits + 4 * self.layers * self.heads * self.head_dim * sums["seen_pairs"]


SHAPES = {
    "qwen3-32b": Shape(64, 5120, 25_600, 64, 8, 128),
    "qwen3-14b": Shape(40, 5120, 17_408, 40, 8, 128),
    "qwen3-8b": Shape(36, 4096, 12_288, 32, 8, 128),
    "tiny": Shape(2, 64, 160, 8, 2, 16, vocabulary=512),  # no real model: proves the commands on any machine
}
