"""Models by name or folder, and what is taken where none is given: a pretrained pair that is there, or a small one trained once."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM

from wisp_gym.errors import InputError
from wisp_gym.process import call
from wisp_gym.testbed.tokenizers import loaded
from wisp_gym.traces.requests import sample_path

# The smallest pretrained pair that the traces were recorded with, Apache-2.0.
TARGET, DRAFT = "Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class Pair(NamedTuple):
    """A target and a draft, by name or folder, and the file of prompts that go with them."""

    target: str
    draft: str
    prompts: Path


def load_model(name: str, flag: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """A causal language model of transformers in evaluation mode.

    Raises:
        InputError: it cannot be loaded.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch sees no CUDA device; allowed here: cpu")
    return loaded(AutoModelForCausalLM, name, flag, dtype=getattr(torch, dtype)).to(device).eval()


def cache_folder() -> Path:
    """Where the default pair is kept: $WISP_GYM_CACHE, or wisp-gym in the user's cache folder."""
    given = os.environ.get("WISP_GYM_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else user / "wisp-gym"


def default_models() -> Pair:
    """What server and devices take where no model is given: the pretrained pair where the hub's cache holds both, else the small one.

    Nothing is fetched.

    Raises:
        InputError: as `default_pair`.
    """
    if is_cached(TARGET) and is_cached(DRAFT):
        return Pair(TARGET, DRAFT, sample_path("prompts-chat.jsonl"))
    small = default_pair()
    return Pair(str(small / "target"), str(small / "draft"), small / "prompts.jsonl")


def is_cached(name: str) -> bool:
    """Whether the hub's cache on this machine holds a model of this name, with weights."""
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)


def default_pair() -> Path:
    """Folder of the recorder's small pair: `target`, `draft` and `prompts.jsonl`; trained at the first call.

    Raises:
        InputError: the training failed.
    """
    folder = cache_folder() / "pair"
    if (folder / "recipe.json").is_file():  # written last: the folder is whole
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # a server and its devices may all start at once
        if not (folder / "recipe.json").is_file():
            command = [sys.executable, "-m", f"{_recorder()}.train_pair", "--out", str(folder)]
            print(f"training the default pair, once, about a quarter of an hour: {' '.join(command)}", file=sys.stderr)
            if call(command)[0]:
                allowed = "--target and --draft of your own"
                raise InputError(f"{folder}: the default pair was not trained; allowed are {allowed}")
    return folder


def _recorder() -> str:
    """The recorder's package: beside this one in a checkout, inside it where it is installed."""
    for name in ("wisp_gym._traces", "traces"):
        if importlib.util.find_spec(name) is not None:
            return name
    raise InputError("the recorder of traces is missing; give --target and --draft")
