"""What a run was asked for, and its folder, which only the same settings may go on with."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from agents.training.arguments import flag
from wisp_gym.cli import positive, whole
from wisp_gym.errors import InputError
from wisp_gym.files import holds_files, read_text, write_json, write_text

FILE = "settings.json"
TORCH, VLLM = "torch", "vllm"  # what runs the target
OTHER_WORLDS = 1_000_000  # added to the seeds of profiles
PROFILE_DRAFT_TOKENS = 8  # drafts of 0 to so many tokens are profiled
START_WINDOW_S = 2.0  # over which first requests are spread
GRACE_S, TTFT_S = 0.5, 2.0  # as the presets' service classes (assumption)
KV_TOKENS, MAX_BATCH_REQUESTS, PREFILL_CHUNK_TOKENS = 65_536, 64, 512  # the testbed's defaults
DTYPES = ("float32", "float64", "bfloat16", "float16")


def device_numbers(text: str) -> tuple[int, ...]:
    """Type of `--loads`."""
    return tuple(whole(1, 4096)(part) for part in text.split(","))


def speeds(text: str) -> tuple[float, ...]:
    """Type of `--slo`."""
    return tuple(positive(1e4)(part) for part in text.split(","))


@dataclass(frozen=True)
class Settings:
    """What the figures of a run depend on. All are flags but `first_seeds`, whose prompts are deployed, one a cycle."""

    draft: str = flag("", "name or folder of a transformers model (default: the small pair's)", metavar="MODEL")
    target: str = flag("", "of the same vocabulary (default: the small pair's)", metavar="MODEL")
    prompts: Path | None = flag(None, "text, or JSON lines with 'prompt' (default: the small pair's)", metavar="FILE")
    n_prompts: int = flag(64, "take the first N", of=whole(1, 100_000), metavar="N")
    target_layers: int = flag(
        24, "deepen a Llama-type target to N layers that change none of its tokens; 0: as it is",
        of=whole(0, 1000), metavar="N",
    )  # fmt: skip
    target_intermediate: int = flag(0, "width of the added MLPs; 0: as the others'", of=whole(0, 10**6), metavar="N")
    engine: str = flag(TORCH, "what runs the target; vllm needs its own environment", choices=(TORCH, VLLM))
    server_python: str = flag(
        sys.executable, "the server's interpreter: with vllm, that of its environment", metavar="FILE"
    )
    device: str = flag("cpu", "of the target: cpu or cuda[:N]")
    dtype: str = flag("float32", "of the target's weights", choices=DTYPES)
    loads: tuple[int, ...] = flag((2, 6, 16), "devices (default 2,6,16)", of=device_numbers, metavar="a,b,...")
    seconds: int = flag(25, "measured in each run", of=whole(2, 36_000), metavar="S")
    warmup_seconds: int = flag(6, "before that", of=whole(0, 3600), metavar="S")
    profile_seconds: int = flag(18, "of profiling at each load, in each cycle", of=whole(1, 3600), metavar="S")
    draft_token_ms: float = flag(40.0, "shaped time of a drafted token", of=positive(10_000), metavar="T")
    one_way_ms: float = flag(20.0, "shaped median delay of a message", of=positive(10_000), metavar="T")
    jitter: float = flag(0.2, "its log-normal spread", of=positive(2), metavar="S")
    slo: tuple[float, ...] = flag(
        (2.0, 4.0, 6.0, 8.0), "tokens/s promised, in turn over the devices (default 2,4,6,8, WISP's)",
        of=speeds, metavar="a,b,...",
    )  # fmt: skip
    max_draft_tokens: int = flag(12, "of a round", of=whole(1, 16), metavar="K")
    max_new_tokens: int = flag(64, "of an answer", of=whole(2, 2048), metavar="N")
    first_seeds: tuple[int, ...] = ()
    repeats: int = flag(3, "cycles of profiling and running all, with other prompts", of=whole(1, 1000), metavar="R")


def open_folder(folder: Path, settings: Settings) -> Path:
    """The run's folder, new or gone on with.

    Raises:
        InputError: it holds something else, or a run with other settings.
    """
    from agents.training.run_folder import versions  # with stable-baselines3, which takes seconds to import

    text = json.dumps(asdict(settings), indent=2, default=str) + "\n"
    path = folder / FILE
    if path.is_file():
        if read_text(path) != text:
            raise InputError(f"--out {folder}: a run with other settings; allowed are the same ones, or a new folder")
    elif folder.exists() and (not folder.is_dir() or holds_files(folder)):
        raise InputError(f"--out {folder}: not empty; allowed is a new folder, or that of a run broken off")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        write_json(folder / "versions.json", versions())
    return folder
