"""The testbed over the network: answers are the target's own, and the server keeps what it promises to operators."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
grpc = pytest.importorskip("grpc")
pytest.importorskip("transformers")

import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.testbed_world import (
    SlowTarget,
    World,
    answer_all,
    controllers,
    greedy,
    prompt,
    right,
    target_model,
    wait_for,
)
from wisp_gym.errors import InputError
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.serving import Batch, BundleError, SpeculationController
from wisp_gym.serving import Reply as Outcome
from wisp_gym.serving import Request as Waiting
from wisp_gym.serving.device.facts import reply_fault
from wisp_gym.testbed.client import Device, GaveUp, Request
from wisp_gym.testbed.connection import Link, NotWelcome
from wisp_gym.testbed.controlling import FixedLength, find_controller
from wisp_gym.testbed.scheduling import make_scheduler
from wisp_gym.testbed.security import (
    AccessTokens,
    SecurityError,
    channel_credentials,
    server_credentials,
)
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.torch_engine.engine import TorchEngine
from wisp_gym.testbed.torch_engine.target import Target


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


def test_answers_are_the_targets_own_token_for_token(world: World) -> None:
    before = world.count("wisp_batch_rounds_sum") - world.count("wisp_batch_rounds_count")
    devices = [world.device(controller) for controller in controllers() * 2]
    requests = [Request(prompt(i, 5 + 9 * (i % 5)), 24 + i) for i in range(16)]
    answers = answer_all(devices, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == right(request)
        assert answer.reconnects == answer.refusals == 0
        assert answer.accepted <= answer.examined <= answer.drafted
    assert (
        0 < sum(a.accepted for a in answers) < sum(a.examined for a in answers)
    )  # the draft is neither perfect nor useless
    assert (
        min(a.rounds for a in answers[:1]) < 24 < answers[2].rounds
    )  # drafting saves rounds; without it there are as many as tokens
    shared = world.count("wisp_batch_rounds_sum") - world.count("wisp_batch_rounds_count")
    assert shared > before  # rounds of several devices were verified together


def test_an_answer_ends_at_the_targets_end_token() -> None:
    request = Request(prompt(3), 40)
    output = right(request)
    end = next(token for n, token in enumerate(output) if n > 8 and token not in output[:n])
    target = Target(target_model())

    class Ending:
        vocabulary, max_tokens, end_tokens = target.vocabulary, target.max_tokens, frozenset([end])
        verify = target.verify

    with World(target=Ending()) as world:
        for controller in controllers():
            assert world.device(controller).answer(request).tokens == output[: output.index(end) + 1]
        assert not world.server.table.sessions or wait_for(lambda: not world.server.table.sessions)


def test_sampled_answers_are_repeatable_and_use_the_draft(world: World) -> None:
    requests = [Request(prompt(i), 20, 0.7, seed=i) for i in range(6)]
    devices = [world.device(FixedLength(3)) for _ in range(3)]
    first, second = answer_all(devices, requests), answer_all(devices, requests)
    assert [a.tokens for a in first] == [a.tokens for a in second]
    assert first[0].tokens != world.device(FixedLength(3)).answer(Request(prompt(0), 20, 0.7, seed=99)).tokens
    assert 0 < sum(a.accepted for a in first) < sum(a.examined for a in first)


@pytest.mark.parametrize("name", ["speculation-wisp.onnx", "speculation-aligned", "wisp", "speculation-v1"])
def test_rules_and_policies_run_from_bundles(world: World, name: str) -> None:
    predictor = load_predictor("python-10m-1m.json")
    controller = find_controller(name, slo_tokens_per_s=5.0, ttft_s=1.0)()
    device = world.device(controller, predictor=predictor)
    requests = [Request(prompt(i), 30, slo_tokens_per_s=5.0, ttft_s=1.0) for i in range(3)]
    assert [device.answer(request).tokens for request in requests] == [right(request) for request in requests]
    assert isinstance(controller, SpeculationController)
    assert controller.decisions > 20
    assert not controller.fallbacks  # every input was there, in time and within its range


def test_what_names_no_controller_is_refused() -> None:
    for name in ("fixed:", "fixed:33", "confidence:2", "confidence:0.5,4,1", "fixed:nan"):
        with pytest.raises(InputError, match="allowed are fixed:K"):
            find_controller(name)
    with pytest.raises(BundleError):
        find_controller("no-such-bundle")


def test_replies_tell_of_the_server(world: World) -> None:
    told: list[Outcome] = []

    class Listening(FixedLength):
        def receive(self, reply: Outcome, now_s: float, uplink_s: Any = None, downlink_s: Any = None) -> None:
            told.append(reply)
            super().receive(reply, now_s, uplink_s, downlink_s)

    devices = [world.device(Listening(2)) for _ in range(4)]
    answers = answer_all(devices, [Request(prompt(i), 30) for i in range(4)])
    assert len(told) == sum(answer.rounds for answer in answers)
    assert sum(reply.accepted_tokens for reply in told) == sum(answer.accepted for answer in answers)
    # A batch was launched before the replies of the one before left; they say when it should end.
    assert any(reply.busy and reply.running_left_s > 0 for reply in told)
    assert all(reply_fault(reply) == "" for reply in told)
    assert all(0 < reply.mean_batch_s < 5 and 0 < reply.utilisation <= 1 for reply in told)
    assert all(0 < device.controller.delay_mean_s < 1 for device in devices)


def test_metrics_count_what_devices_saw() -> None:
    with World() as world:
        port = world.server.serve_metrics("127.0.0.1", 0)
        devices = [world.device(controller) for controller in controllers()]
        answers = answer_all(devices, [Request(prompt(i), 20) for i in range(8)])
        assert wait_for(lambda: world.server.table.sessions == {})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(values["wisp_rounds_total"]) == sum(a.rounds for a in answers)
        assert float(values["wisp_drafted_tokens_total"]) == sum(a.drafted for a in answers)
        assert float(values["wisp_accepted_tokens_total"]) == sum(a.accepted for a in answers)
        assert float(values["wisp_committed_tokens_total"]) == sum(len(a.tokens) for a in answers) == 160
        assert float(values["wisp_answers_total"]) == 8
        assert float(values["wisp_batch_seconds_count"]) >= 20
        assert float(values["wisp_connections"]) == 4


def health(world: World) -> str:
    stub = health_pb2_grpc.HealthStub(world.channel())
    status = stub.Check(health_pb2.HealthCheckRequest(service="wisp_gym.testbed.v1.Verification"), timeout=5).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_a_server_that_shuts_down_ends_open_answers_and_takes_no_new_ones() -> None:
    with World(target=SlowTarget(0.02)) as world:
        assert health(world) == "SERVING"
        request, got = Request(prompt(1), 40), []
        device = world.device(FixedLength(1))
        open_one = threading.Thread(target=lambda: got.append(device.answer(request)))
        open_one.start()
        assert wait_for(lambda: world.count("wisp_rounds_total") > 3)
        draining = asyncio.run_coroutine_threadsafe(world.server.drain(20.0), world.loop)
        assert wait_for(lambda: health(world) == "NOT_SERVING")
        late = world.device(give_up_s=0.3)
        with pytest.raises(GaveUp, match="no token for"):
            late.answer(Request(prompt(2), 10))
        assert world.count("wisp_refusals_total", reason="DRAINING") > 0
        draining.result(30)
        open_one.join(10)
        assert got[0].tokens == right(request)
        assert got[0].reconnects == 0


def test_long_prompts_are_computed_in_chunks() -> None:
    with World(limits=Limits(prefill_chunk_tokens=16)) as world:
        largest: list[int] = []
        finished = world.server.verifier.scheduler.finished

        def watch(batch: Batch, seconds: float, committed_tokens: int = 0) -> bool:
            largest.append(sum(new for new in batch.new_tokens if new > 9))
            return finished(batch, seconds, committed_tokens)

        world.server.verifier.scheduler.finished = watch  # type: ignore[method-assign]
        requests = [Request(prompt(i, 90 + i), 12) for i in range(4)]
        answers = answer_all([world.device(c) for c in controllers()], requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert max(largest) <= 16 + 4  # the chunk, and a last token for each
        assert world.count("wisp_computed_tokens_total") >= sum(len(r.prompt) for r in requests)
        assert world.count("wisp_rounds_total") == sum(a.rounds for a in answers)


def test_a_full_queue_pushes_back() -> None:
    with World(target=SlowTarget(0.01), limits=Limits(max_waiting=1, max_batch_rounds=1, retry_after_s=0.01)) as world:
        devices = [world.device(controller) for controller in controllers()]
        requests = [Request(prompt(i), 12) for i in range(8)]
        answers = answer_all(devices, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert sum(a.refusals for a in answers) == world.count("wisp_refusals_total", reason="BUSY") > 0


def test_sessions_are_limited_and_wait_their_turn() -> None:
    with World(limits=Limits(max_sessions=2, retry_after_s=0.01)) as world:
        devices = [world.device(controller) for controller in controllers()]
        requests = [Request(prompt(i), 12) for i in range(8)]
        answers = answer_all(devices, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert world.count("wisp_refusals_total", reason="TOO_MANY_SESSIONS") > 0


def test_sessions_are_given_in_the_order_in_which_devices_asked() -> None:
    """A device that goes on at once with its next request does not push in front of those that wait."""
    finished: list[int] = []
    with World(limits=Limits(max_sessions=1, retry_after_s=0.005)) as world:

        def work(place: int) -> None:
            device = world.device(FixedLength(2))
            for n in range(4):
                device.answer(Request(prompt(n), 8))
                finished.append(place)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(finished) == [0] * 4 + [1] * 4 + [2] * 4
    middle = finished[2:-2]  # all three have asked, and all have more to ask
    assert all(a != b for a, b in pairwise(middle))


def test_a_connection_holds_so_many_sessions() -> None:
    with World(limits=Limits(max_sessions_per_connection=2, retry_after_s=0.01)) as world:
        device = world.device(connect=lambda: Forgetful(world.channel()), give_up_s=0.3)
        requests = [Request(prompt(i), 1) for i in range(3)]
        assert [device.answer(r).tokens for r in requests[:2]] == [right(r) for r in requests[:2]]
        with pytest.raises(GaveUp):
            device.answer(requests[2])
        assert world.count("wisp_refusals_total", reason="TOO_MANY_SESSIONS") > 0


class Forgetful(Link):
    """A device that never says that it is done with a session."""

    def send(self, message: Any) -> None:
        if message.HasField("round"):
            super().send(message)


def test_a_request_beyond_the_limits_is_refused_with_a_reason(world: World) -> None:
    with pytest.raises(GaveUp, match="prompt and answer: 1112 tokens, allowed are 1024"):
        world.device().answer(Request(prompt(0), 1100))
    device = world.device(tokenizer=b"another")
    with pytest.raises(GaveUp, match="not that of the target"):
        device.answer(Request(prompt(0), 8))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    files = {
        name: folder / f"{name}.pem" for name in ("ca", "server", "server-key", "device", "device-key", "other-ca")
    }
    authority.cert_pem.write_to_path(str(files["ca"]))
    trustme.CA().cert_pem.write_to_path(str(files["other-ca"]))
    for name, host in (("server", "localhost"), ("device", "device.test")):
        issued = authority.issue_cert(host)
        issued.private_key_pem.write_to_path(str(files[f"{name}-key"]))
        issued.cert_chain_pems[0].write_to_path(str(files[name]))
    return files


def test_tls_and_tokens_keep_strangers_out(certificates: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# who\nalice alice-has-a-long-token\nbob bob-has-another-token\n")
    f, request = certificates, Request(prompt(4), 10)
    tls = server_credentials(f["server"], f["server-key"], f["ca"])
    with World(credentials=tls, tokens=AccessTokens.read(file)) as world:

        def device(token: str | None, credentials: Any) -> Device:
            channel = world.channel(credentials, "localhost")
            return world.device(connect=lambda: Link(channel, token), reply_timeout_s=1.0, give_up_s=0.5)

        known = channel_credentials(f["ca"], f["device"], f["device-key"])
        assert device("alice-has-a-long-token", known).answer(request).tokens == right(request)
        for token in (None, "alice-has-a-long-toker", "", "bob"):
            with pytest.raises(NotWelcome, match="access token"):
                device(token, known).answer(request)
        assert world.count("wisp_refusals_total", reason="UNAUTHENTICATED") == 4
        strangers = [
            None,
            channel_credentials(f["ca"], None, None),
            channel_credentials(f["other-ca"], f["device"], f["device-key"]),
        ]
        for credentials in strangers:
            with pytest.raises(GaveUp):
                device("alice-has-a-long-token", credentials).answer(request)


def test_a_session_belongs_to_its_client(tmp_path: Path) -> None:
    tokens = AccessTokens([("alice", "a" * 16), ("bob", "b" * 16)])
    with World(tokens=tokens) as world:
        channel, request = world.channel(), Request(prompt(6), 10)
        alice, bob = (world.device(connect=lambda t=t: Link(channel, t * 16)) for t in "ab")
        stolen = Request(prompt(7), 10, session=request.session)
        assert [a.tokens for a in answer_all([alice, bob], [request, stolen])] == [right(request), right(stolen)]
    (tmp_path / "short").write_text("alice secret\n")
    with pytest.raises(SecurityError, match="at least 16"):
        AccessTokens.read(tmp_path / "short")
    (tmp_path / "empty").write_text("\n# nobody\n")
    with pytest.raises(SecurityError, match="nobody could connect"):
        AccessTokens.read(tmp_path / "empty")


def test_the_estimator_begins_with_what_was_measured_and_learns() -> None:
    engine, rng = TorchEngine(Target(target_model()), 512), np.random.default_rng(0)
    scheduler = make_scheduler(None, engine, Limits())

    def waiting(new: int) -> list[Waiting]:
        return [Waiting(0, 0.0, 1.0, new, 0, 0)]

    first_s = scheduler.predict_s(waiting(20))
    assert 1e-4 < scheduler.predict_s(waiting(1)) <= first_s < 1.0
    assert scheduler.predict_s([]) == 0.0
    for new in rng.integers(1, 50, size=200):  # the machine has become twice as slow
        batch = scheduler.compose(waiting(int(new)), 0.0)
        assert batch.new_tokens == [new]
        scheduler.finished(batch, 2 * first_s * (0.5 + new / 40))
    assert scheduler.predict_s(waiting(20)) == pytest.approx(2 * first_s, rel=0.2)


def test_greedy_reference_is_not_trivial() -> None:
    outputs = [greedy(tuple(prompt(i)), 40) for i in range(4)]
    assert len({tuple(output) for output in outputs}) == 4
    assert all(len(set(output)) > 5 for output in outputs)
