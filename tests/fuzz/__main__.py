"""`python -m tests.fuzz --calls 20000 --seed 1`: random calls of every public function and environment, in child processes.

A fault is a signal, a hang, an error of another kind than one line of `InputError`, or a world that a refused call has changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

BATCH = 1000  # calls of one process
ROOT = Path(__file__).resolve().parents[2]


def batch(calls: int, seed: int) -> tuple[Counter[str], list[dict[str, str]]]:
    """Make calls in a process of its own: how often each function was called, and the faults."""
    with tempfile.TemporaryDirectory(prefix="wisp-fuzz-") as folder:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.child",
            "--calls",
            str(calls),
            "--seed",
            str(seed),
            "--out",
            folder,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        result = Path(folder, "result.json")
        if done.returncode == 0 and result.exists():
            read = json.loads(result.read_text())
            return Counter(read["called"]), read["faults"]
        last = Path(folder, "last")
        call = last.read_text().strip() if last.exists() else "before the first call"
        what = f"signal {-done.returncode}" if done.returncode < 0 else f"hang or exit {done.returncode}"
        return Counter(), [
            {"name": call.partition("(")[0], "what": f"{what}: {done.stderr.strip()[-1500:]}", "call": call}
        ]


def main() -> int:
    """Read the flags, make the calls, print each kind of fault once."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--calls", type=int, default=20_000, metavar="N", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the first process (default %(default)s)")
    given = parser.parse_args()
    called, faults, started_s = Counter[str](), dict[tuple[str, str], str](), time.monotonic()
    for k, begin in enumerate(range(0, given.calls, BATCH)):
        more, found = batch(min(BATCH, given.calls - begin), given.seed + k)
        called += more
        for fault in found:
            if (fault["name"], fault["what"]) not in faults:
                print(f"{fault['name']}: {fault['what']}\n    {fault['call']}", flush=True)
            faults.setdefault((fault["name"], fault["what"]), fault["call"])
    print(
        f"{called.total():,} calls of {len(called)} functions in {time.monotonic() - started_s:.0f} s: {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
