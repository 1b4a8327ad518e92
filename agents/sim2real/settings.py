"""What a run was asked for, and its folder, which only the same settings may go on with."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from wisp_gym.errors import InputError
from wisp_gym.files import write_json, write_text

FILE = "settings.json"
START_WINDOW_S = 2.0  # over which first requests are spread
GRACE_S, TTFT_S = 0.5, 2.0  # as the presets' service classes (assumption)
KV_TOKENS, MAX_BATCH_REQUESTS, PREFILL_CHUNK_TOKENS = 65_536, 64, 512  # the testbed's defaults


@dataclass(frozen=True)
class Settings:
    """What the figures of a run depend on.

    Attributes:
        draft, target: names or folders of models, "" for the small pair's. prompts: file, None for the small pair's.
        n_prompts: so many of them are taken. target_layers: to which the target is deepened (0: as it is).
        target_intermediate: width of the MLPs added (0: as the others'). device, dtype: of the target.
        loads: numbers of devices. seconds, warmup_seconds: of each run. profile_seconds: at each load, in each cycle.
        draft_token_ms, one_way_ms, jitter: shaped time of a drafted token; median and log-normal spread of a message's delay.
        slo: tokens/s promised, in turn over the devices. max_draft_tokens, max_new_tokens: of a round, of an answer.
        first_seeds: whose prompts are deployed, one a cycle. repeats: cycles.
    """

    draft: str
    target: str
    prompts: Path | None
    n_prompts: int
    target_layers: int
    target_intermediate: int
    device: str
    dtype: str
    loads: tuple[int, ...]
    seconds: int
    warmup_seconds: int
    profile_seconds: int
    draft_token_ms: float
    one_way_ms: float
    jitter: float
    slo: tuple[float, ...]
    max_draft_tokens: int
    max_new_tokens: int
    first_seeds: tuple[int, ...]
    repeats: int


def open_folder(folder: Path, settings: Settings) -> Path:
    """The run's folder, new or gone on with.

    Raises:
        InputError: it holds something else, or a run with other settings.
    """
    from agents.training.run_folder import versions  # with stable-baselines3, which takes seconds to import

    text = json.dumps(asdict(settings), indent=2, default=str) + "\n"
    path = folder / FILE
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"--out {folder}: a run with other settings; allowed are the same ones, or a new folder")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {folder}: not empty; allowed is a new folder, or that of a run broken off")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        write_json(folder / "versions.json", versions())
    return folder
