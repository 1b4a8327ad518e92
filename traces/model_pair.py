"""A draft and a target model of one tokenizer, and what both say about one request.

The keys and values of the true prefix are computed once per model. To go on from many positions at once, each row of
a batch takes the prefix up to its own position out of that cache, moved to the right, so that the rows end together:
to the model it is an ordinary batch of sequences padded on the left.
"""

from __future__ import annotations

import zlib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

from wisp_gym.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Pair:
    """Two models in evaluation mode.

    Attributes:
        draft, target: causal language models of transformers.
        tokenizer: of both.
        names: what to call the two in a trace: hub names, or the last part of a folder's path.
    """

    draft: Any
    target: Any
    tokenizer: Any
    names: dict[str, str]

    @classmethod
    def load(cls, draft: str, target: str, device: str = "cpu", dtype: str = "float32") -> Pair:
        """Load both from the hub or from folders.

        Raises:
            InputError: a model cannot be loaded, or the tokenizers differ.
        """
        logging.disable_progress_bar()  # ours is the only one
        tokenizers = [_load(AutoTokenizer, name, flag) for name, flag in ((draft, "--draft"), (target, "--target"))]
        if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
            sizes = [len(tokenizer) for tokenizer in tokenizers]
            raise InputError(f"--draft {draft}: its tokenizer ({sizes[0]} tokens) is not the one of --target {target} "
                             f"({sizes[1]}); allowed: models of one tokenizer")  # fmt: skip
        small, large = (_load(AutoModelForCausalLM, name, flag, dtype=getattr(torch, dtype)).to(device).eval()
                        for name, flag in ((draft, "--draft"), (target, "--target")))  # fmt: skip
        names = {"draft": _public_name(draft), "target": _public_name(target)}
        return cls(small, large, tokenizers[1], names)

    @property
    def max_tokens(self) -> int:
        """Longest sequence that both models take."""
        longest = (getattr(model.config, "max_position_embeddings", 1 << 20) for model in (self.draft, self.target))
        return min(longest)

    @property
    def vocabulary(self) -> int:
        """Logits that both models have: embeddings may be padded differently beyond the tokenizer's words."""
        return min(self.draft.config.vocab_size, self.target.config.vocab_size)

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end an answer."""
        ends = self.target.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def encode(self, text: str, chat: bool = False) -> list[int]:
        """The tokens of a prompt; of a `chat` those of the tokenizer's template, with the text as what the user says.

        Raises:
            InputError: the tokenizer has no template.
        """
        if not chat:
            return list(self.tokenizer(text)["input_ids"])
        if not self.tokenizer.chat_template:
            raise InputError("--chat: the target's tokenizer has no chat template")
        says = [{"role": "user", "content": text}]
        text = self.tokenizer.apply_chat_template(says, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def describe(self, side: str) -> dict[str, Any]:
        """Name, size and a checksum over the beginnings of all weights, so that retrained models are told apart."""
        weights = list(getattr(self, side).parameters())
        checksum = 0
        for weight in weights:
            head = weight.detach().reshape(-1)[:256].float().cpu().numpy()
            checksum = zlib.crc32(head.tobytes(), checksum)
        return {"name": self.names[side], "parameters": sum(w.numel() for w in weights), "crc32": f"{checksum:08x}"}


def _load(kind: Any, name: str, flag: str, **options: Any) -> Any:
    parent = Path(name).parent
    if not Path(name).is_dir() and name != Path(name).name and parent.is_dir():  # else it is a name on the hub
        folders = [other.name for other in parent.iterdir() if other.is_dir()]
        raise InputError(f"{flag} {name}: no such folder; {did_you_mean(Path(name).name, folders)}")
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:  # what transformers raises for unknown names and bad folders
        raise InputError(f"{flag} {name}: cannot be loaded ({str(error).splitlines()[0][:160]})") from None


def _public_name(name: str) -> str:
    return Path(name).name if Path(name).is_dir() else name


class Draws:
    """All chance of one request, drawn before anything is computed: it depends on (seed, request) alone.

    Attributes:
        target: (N,) of the target's tokens; draft, accept: (N, K) of the proposals and of their fates. Uniform in [0, 1).
    """

    def __init__(self, seed: int, request: int, positions: int, k: int) -> None:
        rng = np.random.default_rng([seed, request])
        self.target = rng.random(positions)
        self.draft, self.accept = rng.random((positions, k)), rng.random((positions, k))


def distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(…, V) float64 probabilities; at temperature 0 those of temperature 1, whose largest is the greedy token."""
    return torch.softmax(logits.double() / (temperature or 1.0), -1)


def choose(probabilities: torch.Tensor, uniform: np.ndarray, temperature: float) -> torch.Tensor:
    """(B,) int64 tokens of (B, V) probabilities: the likeliest at temperature 0, else by the inverse of their sums."""
    if temperature == 0:
        return probabilities.argmax(-1)
    places = torch.as_tensor(uniform, device=probabilities.device)[:, None]
    sums = probabilities.cumsum(-1)
    chosen = torch.searchsorted(sums, places * sums[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=probabilities.shape[-1] - 1)


def statistics(logits: torch.Tensor, probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, 4) float64: confidence, entropy (nats), top-2 margin of (B, V) probabilities, spread of the logits."""
    confidence = probabilities.gather(-1, tokens[:, None])[:, 0]
    entropy = torch.special.entr(probabilities).sum(-1)
    top = probabilities.topk(2, -1).values
    return torch.stack([confidence, entropy.clamp(min=0), top[:, 0] - top[:, 1], logits.double().std(-1)], -1)


@torch.inference_mode()
def answer(model: Any, ids: list[int], draws: Draws, temperature: float, ends: set[int], size: int) -> list[int]:
    """The target's answer: at most len(draws.target) tokens, its end token the last if it comes."""
    device, cache, output = model.device, DynamicCache(), []
    fresh = torch.tensor([ids], device=device)
    for uniform in draws.target:
        logits = model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1, :size]
        token = choose(distribution(logits, temperature), np.array([uniform]), temperature)
        output.append(int(token))
        if output[-1] in ends:
            break
        fresh = token[None]
    return output


@torch.inference_mode()
def answers(pair: Pair, prompts: list[list[int]], requests: list[int], given: Namespace) -> list[list[int]]:
    """The target's answers to several prompts at once, padded on the left; chance as in `answer`, request by request.

    Batched products are rounded otherwise than single ones, so where two tokens are nearly as likely an answer may
    differ from `answer`'s. It is the target's all the same, and what is recorded along it is computed from it.
    """
    model, ends = pair.target, pair.end_tokens
    draws = [Draws(given.seed, r, given.max_new_tokens, given.draft_tokens).target for r in requests]
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
    longest = int(lengths.max())
    fresh = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=model.device)
    places = torch.arange(longest + given.max_new_tokens, device=model.device)[None]
    mask = (places >= (longest - lengths)[:, None]).long()
    positions = (places - (longest - lengths)[:, None]).clamp(min=0)
    cache, chosen = DynamicCache(), []
    for n in range(given.max_new_tokens):
        seen = longest + n
        logits = model(fresh, past_key_values=cache, attention_mask=mask[:, :seen], use_cache=True, logits_to_keep=1,
                       position_ids=positions[:, seen - fresh.shape[1] : seen]).logits[:, -1, : pair.vocabulary]  # fmt: skip
        uniform = np.array([draw[n] for draw in draws])
        chosen.append(choose(distribution(logits, given.temperature), uniform, given.temperature))
        fresh = chosen[-1][:, None]
        if ends and all(ends & set(row) for row in torch.stack(chosen, 1).tolist()):
            break
    return [until(row, ends) for row in torch.stack(chosen, 1).tolist()]


def until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, itself the last."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


def branch(cache: Any, lengths: torch.Tensor) -> Any:
    """A cache of B rows from one of a single row: row b holds its first `lengths[b]` tokens, at the right end."""
    longest = int(lengths.max())
    places = torch.arange(longest, device=lengths.device)[None] - (longest - lengths)[:, None]  # (B, S), < 0 is padding
    rows = DynamicCache()
    for i, layer in enumerate(cache.layers):
        if getattr(layer, "keys", None) is None or layer.keys.shape[-2] < longest:
            raise InputError("a model without keys and values of all tokens: allowed are plain transformers")
        # (1, H, S, D) -> (B, H, S, D)
        picked = [x[0][:, places.clamp(min=0)].transpose(0, 1).contiguous() for x in (layer.keys, layer.values)]
        rows.update(*picked, i)
    return rows


def go_on(model: Any, rows: Any, lengths: torch.Tensor, done: int, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, V) logits after (B, T) more tokens, of which `done` more than the prefixes stand in the cache already."""
    new = tokens.shape[1]
    padded = int(lengths.max())
    places = torch.arange(padded + done + new, device=tokens.device)[None]
    mask = (places >= (padded - lengths)[:, None]).long()
    position_ids = lengths[:, None] + done + torch.arange(new, device=tokens.device)[None]
    return model(tokens, past_key_values=rows, attention_mask=mask, position_ids=position_ids, use_cache=True).logits


@torch.inference_mode()
def propose(pair: Pair, ids: list[int], output: list[int], draws: Draws, given: Namespace) -> dict[str, torch.Tensor]:
    """What the draft proposes at every position of the output.

    Returns:
        tokens (N, K) int64, statistics (N, K, 4) float64; with a temperature also acceptance (N, K) float64.
    """
    true_ids = torch.tensor([ids + output[:-1]], device=pair.draft.device)
    sides = {"draft": pair.draft, **({"target": pair.target} if given.temperature else {})}
    caches = {side: DynamicCache() for side in sides}
    first = {side: model(true_ids, past_key_values=caches[side], use_cache=True).logits[0, len(ids) - 1 :, : pair.vocabulary]
             for side, model in sides.items()}  # fmt: skip
    found: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(output), given.batch):
        at = slice(start, min(start + given.batch, len(output)))
        lengths = len(ids) + torch.arange(at.start, at.stop, device=true_ids.device)
        rows = _drafted(pair, caches["draft"], lengths, first["draft"][at], draws.draft[at], given)
        if given.temperature:
            rows["acceptance"] = _acceptance(pair, caches["target"], lengths, first["target"][at], rows, given)
        found.append({name: rows[name].cpu() for name in rows if name != "q"})
    return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}


def _drafted(
    pair: Pair, cache: Any, lengths: torch.Tensor, logits: torch.Tensor, uniform: np.ndarray, given: Namespace
) -> dict[str, torch.Tensor]:
    """K tokens from each of B prefixes: tokens (B, K), statistics (B, K, 4), the probability q (B, K) of each."""
    rows = branch(cache, lengths) if given.draft_tokens > 1 else None
    tokens: list[torch.Tensor] = []
    told: list[torch.Tensor] = []
    for j in range(given.draft_tokens):
        if j:
            logits = go_on(pair.draft, rows, lengths, j - 1, tokens[-1][:, None])[:, -1, : pair.vocabulary]
        probabilities = distribution(logits, given.temperature)
        tokens.append(choose(probabilities, uniform[:, j], given.temperature))
        told.append(statistics(logits, probabilities, tokens[-1]))
    seen = torch.stack(told, 1)
    return {"tokens": torch.stack(tokens, 1), "statistics": seen, "q": seen[:, :, 0]}


def _acceptance(
    pair: Pair, cache: Any, lengths: torch.Tensor, first: torch.Tensor, rows: dict[str, torch.Tensor], given: Namespace
) -> torch.Tensor:
    """(B, K) probabilities min(1, p/q) that the target accepts each proposed token, those before it accepted."""
    logits = first[:, None]  # (B, 1, V)
    if given.draft_tokens > 1:
        more = go_on(pair.target, branch(cache, lengths), lengths, 0, rows["tokens"][:, :-1])[:, :, : pair.vocabulary]
        logits = torch.cat([logits, more], 1)
    p = distribution(logits, given.temperature).gather(-1, rows["tokens"][:, :, None])[:, :, 0]
    return (p / rows["q"]).clamp(max=1.0)


def accepted_runs(tokens: np.ndarray, output: np.ndarray) -> np.ndarray:
    """(N,) runs of (N, K) greedy proposals that agree with the (N,) output.

    The run at n is one more than that at n + 1 where the first proposal is right: from there on both follow the same
    tokens. Counting along the output makes the runs agree even where rounding differs between batches.
    """
    runs = np.zeros(len(output) + 1, np.int64)
    for n in reversed(range(len(output))):
        runs[n] = min(tokens.shape[1], runs[n + 1] + 1) if tokens[n, 0] == output[n] else 0
    return runs[:-1]


def drawn_runs(acceptance: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """(N,) runs drawn from (N, K) acceptance probabilities, none beyond the end of the output."""
    accepted = np.cumprod(uniform < acceptance, axis=1).sum(1)
    return np.minimum(accepted, np.arange(len(acceptance), 0, -1))


def record_request(
    pair: Pair, ids: list[int], request: int, given: Namespace, output: list[int] | None = None
) -> dict[str, np.ndarray]:
    """The target's answer to one prompt (or the one given) and the draft's proposals along it, as arrays of a trace."""
    draws = Draws(given.seed, request, given.max_new_tokens, given.draft_tokens)
    output = output or answer(pair.target, ids, draws, given.temperature, pair.end_tokens, pair.vocabulary)
    found = {name: value.numpy() for name, value in propose(pair, ids, output, draws, given).items()}
    rows = {"statistics": found["statistics"].astype(np.float16)}
    if given.temperature == 0:
        return {**rows, "accepted_run": accepted_runs(found["tokens"], np.array(output))}
    # Rounded first: the runs are a draw from the very probabilities that the file holds.
    rows["acceptance"] = found["acceptance"].astype(np.float16)
    return {**rows, "accepted_run": drawn_runs(rows["acceptance"], draws.accept[: len(output)])}
