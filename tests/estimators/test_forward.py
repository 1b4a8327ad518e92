"""The forward pass that is profiled: it computes what transformers' Qwen3 computes, whatever way attention goes."""

from __future__ import annotations

from itertools import accumulate

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from estimators.profiling import attention
from estimators.profiling.forward import Model
from estimators.profiling.shapes import SHAPES, Shape

SMALL = Shape(layers=2, hidden=48, intermediate=80, heads=6, kv_heads=2, head_dim=16, vocabulary=97)


def qwen3(shape: Shape, seed: int):
    """Transformers' model of this shape, with norms that are not all ones."""
    config = transformers.Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, rms_norm_eps=shape.norm_eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.2)
    return model


def loaded(reference, shape: Shape, cache_tokens: int, **options) -> Model:
    model = Model(shape, "cpu", torch.float32, cache_tokens, longest=2048, seed=0, **options)
    model.load(reference.state_dict())
    return model


def expected(reference, sequences: list[list[int]], new: list[int]) -> list[torch.Tensor]:
    """Logits at the new tokens of each sequence, each computed alone from its beginning."""
    with torch.inference_mode():
        return [reference(torch.tensor([s])).logits[0, -n:] for s, n in zip(sequences, new, strict=True)]


@pytest.mark.parametrize(
    ("cached", "new"),
    [
        ([5], [1]),
        ([700], [3]),  # cut into pieces
        ([9, 0, 600, 33], [4, 7, 1, 40]),  # packed, cold, packed in pieces, a longer chunk on a context
        ([0, 0], [30, 1]),  # nothing cached at all
        ([300, 20, 513], [16, 17, 2]),  # on both sides of what is packed
    ],
)
def test_equals_transformers_on_ragged_batches_with_cached_contexts(cached, new, monkeypatch):
    monkeypatch.setattr(attention, "PIECE_TOKENS", 100)
    reference = qwen3(SMALL, 1)
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(97, (c + n,), generator=generator).tolist() for c, n in zip(cached, new, strict=True)]
    model = loaded(reference, SMALL, sum(map(len, sequences)) + 10)
    starts = [3, *accumulate(map(len, sequences), initial=3)][1:-1]  # not at the cache's beginning
    filled = [i for i, c in enumerate(cached) if c]
    if filled:
        prompts = attention.lay_out(
            [cached[i] for i in filled], [0] * len(filled), SMALL, "cpu", [starts[i] for i in filled]
        )
        model.forward(torch.tensor([t for i in filled for t in sequences[i][: cached[i]]]), prompts)
    layout = attention.lay_out(new, cached, SMALL, "cpu", starts)
    logits = model.forward(torch.tensor([t for i in layout.order for t in sequences[i][cached[i] :]]), layout)
    want = expected(reference, sequences, new)
    packed = [i for i in layout.order if new[i] <= attention.PACKED_TOKENS and cached[i]]
    rows = [want[i] if i in packed else want[i][-1:] for i in layout.order]
    torch.testing.assert_close(logits, torch.cat(rows), rtol=2e-4, atol=2e-4)


def test_steps_one_token_at_a_time_equal_a_prompt_at_once():
    """The cache holds what it should after every step, and no step disturbs another request's rows."""
    reference = qwen3(SMALL, 3)
    model = loaded(reference, SMALL, 100)
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(4))
    starts = [50, 0]
    for at in range(20):
        layout = attention.lay_out([1, 1], [at, at], SMALL, "cpu", starts)
        logits = model.forward(tokens[:, at], layout)
    torch.testing.assert_close(logits, torch.cat(expected(reference, tokens.tolist(), [1, 1])), rtol=2e-4, atol=2e-4)


def test_half_precision_stays_close_to_single():
    reference = qwen3(SMALL, 5)
    layouts = attention.lay_out([12, 4], [0, 0], SMALL, "cpu")
    ids = torch.randint(97, (16,), generator=torch.Generator().manual_seed(6))
    half = Model(SMALL, "cpu", torch.bfloat16, 64, 64, 0)
    half.load(reference.state_dict())
    single = loaded(reference, SMALL, 64).forward(ids, layouts)
    error = (half.forward(ids, layouts).float() - single).norm() / single.norm()
    assert error < 0.05


def test_pieces_cover_each_context_once(monkeypatch):
    monkeypatch.setattr(attention, "PIECE_TOKENS", 8)
    cached, new = [40, 7, 8, 1], [2, 3, 16, 1]
    layout = attention.lay_out(new, cached, SMALL, "cpu")
    seen = {}
    firsts, counts = layout.pieces.key_starts.tolist(), layout.pieces.key_counts.tolist()
    rows = (layout.pieces.query_starts // SMALL.group).tolist()
    for i, count in enumerate(counts):
        for token in layout.piece_rows[rows[i] : rows[i + 1]].tolist():
            seen.setdefault(token, []).extend(range(firsts[i], firsts[i] + count))
    starts = [0, 42, 52, 76]
    owner = [i for i, n in enumerate(new) for _ in range(n)]
    assert seen == {t: list(range(starts[i], starts[i] + cached[i])) for t, i in enumerate(owner)}


@pytest.mark.parametrize(("name", "billions"), [("qwen3-32b", 32.8), ("qwen3-14b", 14.8), ("qwen3-8b", 8.2)])
def test_shapes_have_the_parameters_of_the_model_cards(name, billions):
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, abs=0.05)


def test_shapes_agree_with_the_catalogue_and_with_the_weights_made():
    from wisp_gym import scenario

    for name in ("qwen3-32b", "qwen3-14b"):
        target, shape = scenario.load(f"wisp-a100-{name}").target, SHAPES[name]
        assert (shape.layers, shape.heads, shape.kv_heads) == (target.layers, target.heads, target.kv_heads)
        assert shape.kv_bytes_per_token(2) == target.kv_bytes_per_token
    model = Model(SMALL, "cpu", torch.float32, 1, 1, 0)
    every = [
        model.embedding,
        model.output,
        model.final_norm,
        *(w for layer in model.layers for w in vars(layer).values()),
    ]
    assert sum(w.numel() for w in every) == SMALL.parameters == sum(p.numel() for p in qwen3(SMALL, 0).parameters())
