"""What a measurement was made on: device, driver, versions, commit. Columns of every row that is shipped."""

import platform
import subprocess
from pathlib import Path
from typing import Any

from estimators.profiling.power import driver


def processor() -> str:
    """Return the product name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def commit() -> str:
    """Return the checkout's commit, marked by "+" where files differ from it; "" without git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short=12", "HEAD")
    return f"{found}+" if found and git("status", "--porcelain", "--untracked-files=no") else found


def gpu_id(device: str) -> str:
    """Return the GPU's name for `nvidia-smi -i`; "" for a CPU."""
    import torch

    if device == "cpu":
        return ""
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    return f"GPU-{uuid.removeprefix('GPU-')}" if uuid else "0"


def about(device: str) -> dict[str, Any]:
    """Return device, driver, Python, torch, CUDA and commit."""
    import torch

    gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else processor(),
        "driver": driver(gpu_id(device)) if gpu else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "commit": commit(),
    }
