"""Train a small pair of language models, a target and a draft about ten times smaller, on Python's standard library.

    python -m traces.train_pair --out pair

No weights are downloaded: the text is the source code and documentation strings of the running Python's standard
library (licence: PSF-2.0), which every machine has. A tenth of its files, chosen by a hash of their names, is held out;
prompts are cut from those alone. The folder then holds `tokenizer` (byte-level BPE), `target` and `draft` (Llama-type,
as transformers saves them), `prompts.jsonl` and `recipe.json` (settings, tokens seen, losses).

The batch of a step is a function of (seed, step), and a checkpoint holds weights and optimiser: an interrupted run
continues where its last checkpoint stood and ends with the same weights. The defaults take about a quarter of an hour on
one core that has bfloat16 arithmetic. The pair is small and little trained; it is real, not good.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wisp_gym.cli import OutOfTime, Parser, between, deadline, run, whole
from wisp_gym.errors import InputError
from wisp_gym.files import write_bytes
from wisp_gym.interrupts import StopRequest, leaves
from wisp_gym.process import program

from .training_text import LICENCE, cut_prompts, split_text, tokens_of, train_tokenizer

if TYPE_CHECKING:  # torch and transformers take seconds to import: --help and wrong flags do without
    import torch
    from transformers import LlamaForCausalLM

LEARNING_RATE = 2e-3  # usual for models of 1–10 M parameters; 6e-4 is for 100 M and more
BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 0.1, 1.0
LIBRARY = Path(sysconfig.get_path("stdlib"))
WARM_UP_SHARE = 0.05
VALIDATION_BATCHES = 16


@dataclass(frozen=True)
class Shape:
    """Size of a Llama-type model; heads and key-value heads as in grouped-query attention."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool


def build(shape: Shape, vocabulary: int, block_tokens: int, seed: int) -> LlamaForCausalLM:
    """A model with fresh weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4 * block_tokens,
        bos_token_id=0,  # the end token is the tokenizer's first
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def batch_at(tokens: np.ndarray, step: int, given: Namespace) -> torch.Tensor:
    """(batch, block) int64 tokens of a step: pieces that start anywhere, a function of (seed, step) alone."""
    import torch

    starts = np.random.default_rng([given.seed, step]).integers(len(tokens) - given.block, size=given.batch)
    return torch.from_numpy(np.stack([tokens[start : start + given.block] for start in starts]))


def learning_rate(step: int, steps: int, highest: float = LEARNING_RATE) -> float:
    """Rises linearly over the first `WARM_UP_SHARE` of the steps, then falls linearly to 0."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    return highest * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, given: Namespace) -> torch.Tensor:
    """Mean cross-entropy of the next token, nats; multiplied in bfloat16 where asked, summed in float32."""
    import torch

    with torch.autocast(given.device, torch.bfloat16, enabled=given.dtype == "bfloat16"):
        return model(ids.to(given.device), labels=ids.to(given.device), use_cache=False).loss


class Checkpoint:
    """Weights and optimiser of a model in training, as one safetensors file."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path, self.settings, self.name = path, settings, path.name.partition(".")[0]

    def save(self, model: Any, optimiser: Any, step: int, losses: list[float]) -> None:
        """Write everything that the steps from `step` on depend on."""
        from safetensors.torch import save

        tensors = dict(model.named_parameters())  # once each: tied weights have one name
        state = {f"{key}/{name}": optimiser.state[weight][key] for name, weight in tensors.items()
                 for key in ("exp_avg", "exp_avg_sq")}  # fmt: skip
        about = {"step": str(step), "settings": self.settings, "losses": json.dumps(losses)}
        everything = {key: value.detach().cpu().contiguous() for key, value in {**tensors, **state}.items()}
        write_bytes(self.path, save(everything, about))

    def load(self, model: Any, optimiser: Any) -> tuple[int, list[float]]:
        """The step to go on from and the losses so far; (0, []) when there is none, or one of other settings."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return 0, []
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata()
                if about["settings"] != self.settings:
                    raise InputError(f"{self.path}: made with other settings; choose another --out or remove it")
                self._fill(file, model, optimiser, int(about["step"]))
        except SafetensorError as error:
            raise InputError(f"{self.path}: damaged ({error}); remove it to begin again") from None
        return int(about["step"]), json.loads(about["losses"])

    @staticmethod
    def _fill(file: Any, model: Any, optimiser: Any, step: int) -> None:
        import torch

        for name, weight in model.named_parameters():
            weight.data.copy_(file.get_tensor(name))
            moments = {key: file.get_tensor(f"{key}/{name}").to(weight.device) for key in ("exp_avg", "exp_avg_sq")}
            optimiser.state[weight] = {"step": torch.tensor(float(step), device=weight.device), **moments}


def train(name: str, shape: Shape, steps: int, data: dict[str, np.ndarray], given: Namespace) -> dict[str, Any]:
    """Train one model, or what is left of it, and save it in `given.out / name`; what its recipe says.

    Returns:
        parameters, steps, tokens_seen, train_loss_nats (mean of the last 50 steps) and validation_loss_nats.
    """
    import torch
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    model = build(shape, given.vocabulary, given.block, given.seed).to(given.device)
    optimiser = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    settings = json.dumps({**_settings(given), "shape": asdict(shape), "steps": steps, "text": _digest(data["train"])})
    checkpoint = Checkpoint(given.out / f"{name}.checkpoint.safetensors", settings)
    start, losses = checkpoint.load(model, optimiser)
    with tqdm(range(start, steps), name, steps, initial=start, unit="step", disable=None) as bar:
        losses = learn(model, optimiser, data["train"], bar, losses, checkpoint, given)
    disable_progress_bar()  # ours is the only one
    model.eval().save_pretrained(given.out / name)
    return {
        "shape": asdict(shape),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": steps,
        "tokens_seen": steps * given.batch * given.block,
        "train_loss_nats": round(float(np.mean(losses)), 3),
        "validation_loss_nats": round(validation_loss(model, data["held out"], given), 3),
    }


def learn(
    model: LlamaForCausalLM, optimiser: Any, tokens: np.ndarray, bar: Any, losses: list[float], checkpoint: Checkpoint,
    given: Namespace,
) -> list[float]:  # fmt: skip
    """Take the steps of a progress bar, with checkpoints; the last 50 losses, nats.

    Raises:
        OutOfTime: the time is up; a checkpoint holds all steps so far.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; a checkpoint holds all steps so far.
    """
    import torch

    steps = bar.total
    with StopRequest("stopping after this step, with a checkpoint") as stop:
        for step in bar:
            optimiser.param_groups[0]["lr"] = learning_rate(step, steps, given.learning_rate)
            loss = loss_of(model, batch_at(tokens, step, given), given)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimiser.step()
            optimiser.zero_grad()
            losses = [*losses[-49:], loss.item()]
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", refresh=False)
            left, out_of_time = steps - step - 1, time.monotonic() > given.ends
            if (step + 1) % given.save_every == 0 or not left or out_of_time or stop.asked:
                checkpoint.save(model, optimiser, step + 1, losses)
            stop.obey()
            if out_of_time and left:
                raise OutOfTime(f"{checkpoint.name}: {left} of {steps} steps are left")
    return losses


def validation_loss(model: LlamaForCausalLM, tokens: np.ndarray, given: Namespace) -> float:
    """Mean loss over `VALIDATION_BATCHES` batches of held-out text, nats per token."""
    import torch

    with torch.no_grad():
        batches = (batch_at(tokens, step, given) for step in range(VALIDATION_BATCHES))
        return float(np.mean([loss_of(model, batch, given).item() for batch in batches]))


def _settings(given: Namespace) -> dict[str, Any]:
    names = ("vocabulary", "block", "batch", "seed", "dtype", "device", "threads", "learning_rate")
    return {name: getattr(given, name) for name in names}


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]


def about_text(folders: Sequence[Path]) -> str:
    """The text in a few words; of a folder the last part of its name alone."""
    library = f"the standard library of Python {platform.python_version()}"
    return ", ".join(library if folder == LIBRARY else folder.name for folder in folders)


def train_pair(given: Namespace) -> dict[str, Any]:
    """Tokenizer, both models, prompts; returns the recipe and writes it last, as the mark of a whole folder."""
    import torch
    import transformers

    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    texts, held_out = split_text(given.text)
    tokenizer = train_tokenizer(texts, given.vocabulary)
    data = {"train": tokens_of(tokenizer, texts), "held out": tokens_of(tokenizer, held_out)}
    for name in ("tokenizer", "target", "draft"):
        tokenizer.save_pretrained(given.out / name)
    lines = (
        json.dumps({"id": i, "prompt": text}) for i, text in enumerate(cut_prompts(held_out, given.prompts, given.seed))
    )
    write_bytes(given.out / "prompts.jsonl", "".join(f"{line}\n" for line in lines).encode())
    recipe = {
        "text": about_text(given.text), "licence": given.licence,
        "training_tokens": len(data["train"]), "held_out_tokens": len(data["held out"]), "settings": _settings(given),
        "target": train("target", given.target, given.target_steps, data, given),
        "draft": train("draft", given.draft, given.draft_steps, data, given),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    write_bytes(given.out / "recipe.json", (json.dumps(recipe, indent=2) + "\n").encode())
    return recipe


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags, checked; `target` and `draft` are `Shape`s."""
    parser = Parser(prog="python -m traces.train_pair", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument("--text", type=Path, nargs="+", default=[LIBRARY], metavar="FOLDER",
                        help="of Python files; default: the standard library")  # fmt: skip
    parser.add_argument("--licence", default=LICENCE, help="of the text, for the recipe (default: Python's)")
    sizes = {"hidden": (320, 128), "layers": (6, 2), "heads": (4, 2), "kv-heads": (2, 1), "intermediate": (992, 384)}
    for side, model in enumerate(("target", "draft")):
        for name, defaults in sizes.items():
            parser.add_argument(
                f"--{model}-{name}", type=whole(1, 65_536), default=defaults[side], help="(default %(default)s)"
            )
    parser.add_argument("--target-steps", type=whole(1, 10**9), default=2000, help="(default %(default)s)")
    parser.add_argument("--draft-steps", type=whole(1, 10**9), default=1000, help="(default %(default)s)")
    parser.add_argument("--vocabulary", type=whole(257, 1 << 20), default=4096, help="tokens (default %(default)s)")
    parser.add_argument("--batch", type=whole(1, 65_536), default=4, help="sequences a step (default %(default)s)")
    parser.add_argument(
        "--block", type=whole(2, 65_536), default=256, help="tokens of a sequence (default %(default)s)"
    )
    parser.add_argument(
        "--prompts", type=whole(1, 10**6), default=200, help="held-out prompts to cut (default %(default)s)"
    )
    parser.add_argument(
        "--save-every", type=whole(1, 10**9), default=200, help="steps between checkpoints (default %(default)s)"
    )
    parser.add_argument("--threads", type=whole(1, 1024), default=1, help="of the CPU (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=between(1e-6, 1e6), default=LEARNING_RATE, help="highest (default %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=between(0, 1e6), default=0, help="stop after so many, to go on later; 0: never (default)"
    )
    parser.add_argument("--seed", type=whole(0, 2**63), default=0, help="(default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the products")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args(arguments)
    given.target, given.draft = (_shape(parser, given, model) for model in ("target", "draft"))
    for folder in given.text:
        if not folder.is_dir():
            parser.error(f"--text {folder}: no such folder")
    given.ends = deadline(given.minutes)
    return given


def _shape(parser: Parser, given: Namespace, model: str) -> Shape:
    hidden, layers, heads, kv_heads, intermediate = (
        getattr(given, f"{model}_{name}") for name in ("hidden", "layers", "heads", "kv_heads", "intermediate")
    )
    # The draft's embeddings are most of it and are shared with its output layer, as small models have it.
    shape = Shape(hidden, layers, heads, kv_heads, intermediate, tied=model == "draft")
    if shape.hidden % (2 * shape.heads):
        parser.error(f"--{model}-hidden {shape.hidden}: allowed are multiples of twice --{model}-heads {shape.heads}")
    if shape.heads % shape.kv_heads:
        parser.error(f"--{model}-kv-heads {shape.kv_heads}: allowed are divisors of --{model}-heads {shape.heads}")
    return shape


@leaves("the same command continues")
def main(arguments: Sequence[str] | None = None) -> None:
    """Train the pair and say what came of it."""
    given = parse(arguments)
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device; allowed here: cpu")
    recipe = train_pair(given)
    for name in ("target", "draft"):
        made = recipe[name]
        print(f"{given.out / name}: {made['parameters'] / 1e6:.1f} M parameters, {made['tokens_seen'] / 1e6:.1f} M tokens "
              f"seen, held-out loss {made['validation_loss_nats']} nats a token")  # fmt: skip


if __name__ == "__main__":
    program(lambda: run(main, "python -m traces.train_pair"))
