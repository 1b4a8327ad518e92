"""The commands of docs/serving on vLLM, run as they stand but for models, ports and sizes. All start at once: most of it is waiting."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.support.testbed_world import text_of, wait_for
from tests.support.vllm_world import greedy, prompts, save_draft
from wisp_gym.testbed.dashboard import DASHBOARD
from wisp_gym.testbed.tokenizers import load_tokenizer

DOCS = Path(__file__).resolve().parents[3] / "docs" / "serving"
STEERING, EDGE, TABLES = (DOCS / name for name in ("steering.md", "vllm.md", "tables.md"))
TARGET, DRAFT = "Qwen/Qwen3-32B", "Qwen/Qwen3-1.7B"  # as the pages name them
SMALL = {"max_model_len": 256, "block_size": 32}
START_S = 900.0  # for a machine that does other things besides; half a minute of one that does not
QUIET = {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path, start: str) -> list[list[str]]:
    """The words of a page's commands that begin so."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


class Pages:
    """Processes of the pages' commands, in a folder, with a small pair in place of the named models."""

    def __init__(self, folder: Path, target: Path, draft: Path) -> None:
        self.folder, self.names = folder, {TARGET: str(target), DRAFT: str(draft)}
        self.port, self.metrics = free_port(), free_port()
        self.running: dict[str, subprocess.Popen[str]] = {}

    def here(self, text: str) -> str:
        """A text of a page with what is here in place of what it names."""
        for name, path in self.names.items():
            text = text.replace(name, path)
        return text.replace("8000", str(self.port)).replace("127.0.0.1:9091", f"127.0.0.1:{self.metrics}")

    def start(self, name: str, words: list[str]) -> None:
        """Start a command, its output into files."""
        out, err = (self.folder / f"{name}.{end}" for end in ("out", "err"))
        environment = {**os.environ, **QUIET}
        with out.open("w") as stdout, err.open("w") as stderr:
            self.running[name] = subprocess.Popen(
                words, cwd=self.folder, env=environment, text=True, stdout=stdout, stderr=stderr
            )

    def said(self, name: str, end: str = "out") -> str:
        """What a command has printed."""
        return (self.folder / f"{name}.{end}").read_text()

    def ended(self, name: str) -> str:
        """Wait for a command's good end; its output."""
        assert self.running[name].wait(START_S) == 0, self.said(name, "err")[-3000:]
        return self.said(name)


@pytest.fixture(scope="module")
def pages(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    made = Pages(tmp_path_factory.mktemp("pages"), folder, save_draft(tmp_path_factory.mktemp("draft")))
    lines = [json.dumps({"prompt": text_of(ids)}) for ids in prompts(8, 3, 8, 40)]
    (made.folder / "prompts.jsonl").write_text("\n".join(lines))
    ours = [sys.executable, "-m", "wisp_gym"]
    (serve,), steering = commands(STEERING, "vllm serve"), commands(STEERING, "wisp-gym benchmark")[0]
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(1 << 24)]
    # The command `vllm` of the processor's wheel does not start; the page names this instead.
    assert serve[:2] == ["vllm", "serve"]
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    made.start("serve", [*program, *map(made.here, serve[2:]), *small, *more, "--served-model-name", TARGET])
    less = ["--requests", "3", "--tokens", "6", "--cycles", "2", "--concurrency", "1,2", "--threads", "1", "--longest", "2",
            "--dtype", "float32", "--kv-tokens", "1024", "--vllm", json.dumps(SMALL),
            "--lengths", "off", "vllm:2", "table", "turbospec", "--steps", "steps.csv"]  # fmt: skip
    made.start("benchmark", [*ours, *map(made.here, steering[1:]), *less])
    server = commands(EDGE, "wisp-gym server --engine vllm --scheduler")[0]
    made.start("server", [*ours, *server[1:], "--target", str(folder), "--listen", "127.0.0.1:0"])
    (python,) = blocks(STEERING, "python")
    small_too = f"dtype='float32', enforce_eager=True, kv_cache_memory_bytes=1 << 24, **{SMALL}, async_scheduling"
    code = made.here(python).replace("async_scheduling", small_too)
    guarded = "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines())
    (made.folder / "page.py").write_text(f"{guarded}    print(list(answers[0].outputs[0].token_ids))\n")
    made.start("python", [sys.executable, "page.py"])
    yield made
    for process in made.running.values():
        process.terminate()
    for process in made.running.values():
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def words_of(folder: Path, text: str) -> list[int]:
    """Tokens of a text; words that the small pair does not know are all the same."""
    return list(load_tokenizer(str(folder), "--model")(text)["input_ids"])


def get(address: str, body: dict[str, Any] | None = None) -> str:
    """What an address answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(reply.read().decode())


def is_up(address: str) -> bool:
    try:
        get(address)
    except OSError:
        return False
    return True


def samples(text: str) -> dict[str, float]:
    """Name and labels → value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_vllm_serves_steered_and_exports_what_the_dashboard_asks_for(pages: Pages) -> None:
    there, ours = f"http://127.0.0.1:{pages.port}", f"http://127.0.0.1:{pages.metrics}/metrics"
    assert wait_for(lambda: pages.running["serve"].poll() is not None or is_up(f"{there}/health"), START_S)
    assert pages.running["serve"].poll() is None, pages.said("serve", "err")[-3000:]
    (curl,) = re.findall(r"^curl .*?^\s+\"prompt\".*?'$", STEERING.read_text(), re.DOTALL | re.MULTILINE)
    words = shlex.split(curl)
    body = json.loads(words[words.index("-d") + 1])
    path = words[1].removeprefix("http://127.0.0.1:8000")
    found = json.loads(get(there + path, {**body, "return_token_ids": True, "ignore_eos": True}))["choices"][0]
    assert found["token_ids"] == greedy(found["prompt_token_ids"], body["max_tokens"])
    values, theirs = samples(get(ours)), samples(get(f"{there}/metrics"))
    assert values["wisp_committed_tokens_total"] == body["max_tokens"]
    assert values['wisp_class_answers_total{slo_tokens_per_s="8"}'] == values["wisp_answers_total"] == 1
    assert values['wisp_drafter_rounds_total{drafter="server"}'] > 0
    assert values["wisp_drafted_tokens_total"] == sum(
        value for name, value in theirs.items() if name.startswith("vllm:spec_decode_num_draft_tokens_total")
    )
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"vllm:\w+", target["expr"])
    }
    assert asked <= {name.partition("{")[0] for name in theirs}


def test_the_page_runs_in_python(pages: Pages, folder: Path) -> None:
    (tokens,) = [json.loads(line) for line in pages.ended("python").splitlines() if line.startswith("[")]
    assert tokens == greedy(words_of(folder, "def main():"), 32)


def test_the_comparison_runs(pages: Pages) -> None:
    output = pages.ended("benchmark")
    found = json.loads((pages.folder / "steering.json").read_text())
    assert [each["lengths"] for each in found["summary"]] == 2 * ["off", "vllm:2", "table", "turbospec"]
    assert all(each["same_answers"] == each["answers"] == 6 for each in found["summary"])
    assert len(found["plays"]) == 16
    assert json.loads(found["table"].removeprefix("table:"))[0][:2] == [1, 1]
    assert re.search(r"^2 +turbospec", output, re.MULTILINE)
    header, *rows = (pages.folder / "steps.csv").read_text().splitlines()
    assert header == "batch,k,context,seconds,steps"
    assert {tuple(row.split(",")[:2]) for row in rows} >= {("1", "0"), ("1", "2"), ("2", "0")}


def test_the_server_and_a_device_run(pages: Pages, folder: Path) -> None:
    assert wait_for(
        lambda: "listening on" in pages.said("server") or pages.running["server"].poll() is not None, START_S
    )
    port = re.search(r"listening on 127.0.0.1:(\d+)", pages.said("server"))
    assert port, pages.said("server", "err")[-3000:]
    device = commands(EDGE, "wisp-gym device")[0]
    more = ["--server", f"127.0.0.1:{port.group(1)}", "--draft", str(folder), "--max-new-tokens", "12"]
    pages.start("device", [sys.executable, "-m", "wisp_gym", *device[1:], *more])
    assert pages.ended("device").split() == text_of(greedy(words_of(folder, "def main():"), 12)).split()


@pytest.mark.parametrize(
    "words", [words for words in commands(TABLES, "wisp-gym table") if "--profile" not in words], ids=" ".join
)
def test_tables_are_written(words: list[str], tmp_path: Path) -> None:
    """Those that need measured steps: tests/serving/test_tables.py, where the estimators' packages are installed."""
    done = subprocess.run(
        [sys.executable, "-m", "wisp_gym", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / words[words.index("-o") + 1]).read_text() if "-o" in words else done.stdout
    assert json.loads(text)["num_speculative_tokens_per_batch_size"][0][0] == 1
