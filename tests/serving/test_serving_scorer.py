"""Learned batching, exported: the same batches as the engine's, the same decisions as torch's, whatever it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch

from agents.batching.scorer_network import Scorer
from tests.serving.test_bundle import sealed
from tests.support.bundles import SCENARIO
from tests.support.homes import at_home
from wisp_gym.cli import run
from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.ladders import PRICES
from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer, save_scorer, shape_for
from wisp_gym.engine.build import empty_arrays, fill_sizes, fill_world
from wisp_gym.engine.compose import begin_batch, join_responses
from wisp_gym.engine.compose_learned import compose_learned
from wisp_gym.engine.hosting import open_choices
from wisp_gym.engine.line import enqueue
from wisp_gym.engine.observe_request import observe_request, observe_session
from wisp_gym.engine.observe_server import observe_batch
from wisp_gym.files import write_bytes
from wisp_gym.rules.batching import AGE_S, COMMITTED_TOKENS, DUE_S, LEARNED
from wisp_gym.rules.drafters import BY_LOAD
from wisp_gym.rules.server_lengths import FIXED
from wisp_gym.scenario import dumps, with_
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes, load_bundle
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.estimator import TERMS, VerificationTimeEstimator
from wisp_gym.serving.export import command
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.factored import MOVING
from wisp_gym.serving.scheduler.features import NO_DRAFT, Request, Server, ServerDraft, describe, facts_of, matrix
from wisp_gym.serving.scheduler.picking import Picking
from wisp_gym.serving.scheduler.scheduler import BatchScheduler

LIMITS = ServerLimits(kv_tokens=40_000, requests=48, prefill_tokens=300)
HOSTING = ("batching-hosting", "joint-hosting")
DECISIONS = ("batching", "joint", *HOSTING)
DRAFT = ServerDraft(5, 0.002, 0.003, 2e-4, 1e-7)


def policy_of(decision: str, seed: int, reluctance: float = 1.0) -> ScorerPolicy:
    """A scorer with random weights; the more reluctant, the larger its batches."""
    rng, layers = np.random.default_rng(seed), []
    shape = shape_for(decision, 32, 24, 32)
    for n_out, n_in in shape.layers():
        w = rng.normal(size=(n_out, n_in)).astype(np.float32) * np.float32(1.5 / np.sqrt(n_in))
        layers.append((w, rng.normal(size=n_out).astype(np.float32)))
    layers[-1][1][: shape.launches] -= np.float32(reluctance)
    if shape.lengths:
        layers[-2][1][-1] -= np.float32(reluctance - 1.0)  # who would rather launch than move
    return make_scorer(layers, decision)


def exported(policy: ScorerPolicy, folder: Path) -> Bundle:
    """Its bundle, by the command."""
    save_scorer(policy, folder / "policy.json")
    write_bytes(folder / "scenario.toml", dumps(SCENARIO).encode())
    assert run(command.main, command.PROGRAM, [str(folder), "-o", str(folder / "policy.onnx")]) == 0
    return load_bundle(folder / "policy.onnx")


def filled(seed: int, now_s: float, hosts: bool = False):  # type: ignore[no-untyped-def]
    """A world whose server has requests waiting: rounds, prompts, evicted prefixes, on time, late and starving.

    One that hosts drafts for half of the sessions.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 90))
    w = empty_arrays(1, n)
    if hosts:
        w = w.with_rows(sessions=n, observation=n)
    fill_world(w, 0, SCENARIO, 0, n)
    c, s, d = w.config[0, 0], w.server[0, 0], w.device[0]
    c["max_batch_requests"], c["kv_capacity_tokens"], c["chunk_tokens"] = (
        LIMITS.requests,
        LIMITS.kv_tokens,
        LIMITS.prefill_tokens,
    )
    c["batching"] = LEARNED
    s["now_s"], s["mean_batch_s"], s["kv_tokens"] = now_s, rng.uniform(0.05, 0.2), int(rng.integers(0, 30_000))
    s["utilisation"], s["token_rate"], s["price"] = rng.random(), rng.uniform(0, 1500), rng.choice(PRICES)
    d["arrived_s"], d["deadline_s"] = np.sort(now_s - rng.uniform(0, 0.5, n)), now_s + rng.uniform(-0.2, 0.8, n)
    d["prompt_tokens"], d["committed"] = rng.integers(50, 1000, n), rng.integers(0, 300, n)
    context = d["prompt_tokens"] + d["committed"]
    alone = rng.random() < 0.3  # no response in memory waits: the batch is empty until a prompt is picked
    d["cached_tokens"] = np.where(
        (rng.random(n) < 0.15) | alone, 0, context - 1 - rng.integers(0, 40, n) * (rng.random(n) < 0.2)
    )
    d["drafted"] = np.where(d["cached_tokens"] > 0, rng.integers(0, 9, n), 0)
    d["expected_tokens"] = 1.0 + d["drafted"] * rng.uniform(0.2, 1.0, n)
    d["arrival_s"], d["first_token_s"] = now_s - rng.uniform(0.5, 60.0, n), now_s - rng.uniform(0.0, 40.0, n)
    d["delay_mean_s"] = rng.uniform(0.001, 0.05, n)
    if hosts:
        draft_here(w, rng, n)
    for k in range(n):
        enqueue(w.server[0, 0], d[k], w.line[0], w.places[0], w.queue[0], k)
    begin_batch(w.at(0))
    return w, n


def draft_here(w, rng: np.random.Generator, n: int) -> None:  # type: ignore[no-untyped-def]
    """The server of a world drafts for half of its sessions, and may for the others."""
    c, s, d, r = w.config[0, 0], w.server[0, 0], w.device[0], w.sessions[0]
    c["drafter"], c["server_length"], c["lookahead_tokens"], c["chooses_hosting"] = (
        BY_LOAD,
        FIXED,
        DRAFT.longest_tokens,
        1,
    )
    c["step_overhead_s"], c["step_launch_s"], c["step_sequence_s"] = DRAFT.overhead_s, DRAFT.launch_s, DRAFT.sequence_s
    c["step_token_s"], c["step_cached_token_s"], c["server_prior"] = 0.0, DRAFT.cached_token_s, 0.7
    d["at_server"], r["stays"] = rng.integers(0, 2, (2, n))
    r["device_tokens"] = rng.integers(1, 6, n)
    d["drafted"] = np.where(d["at_server"] == 1, 0, d["drafted"])
    d["accepted_sum"], d["examined_sum"] = rng.uniform(1, 9, n), 10.0
    s["n_at_server"], s["server_tokens"] = d["at_server"].sum(), rng.integers(0, 6)


def requests_of(w, n: int, now_s: float) -> list[Request]:  # type: ignore[no-untyped-def]
    """The same queue as a server sees it."""
    plain = plain_requests(w, n, now_s)
    return [hosted(w, k, each) for k, each in enumerate(plain)] if w.config[0, 0]["chooses_hosting"] else plain


def hosted(w, k: int, request_: Request) -> Request:  # type: ignore[no-untyped-def]
    """A request with what is told of who drafts."""
    c, s, d, r, row = (
        w.config[0, 0],
        w.server[0, 0],
        w.device[0, k],
        w.sessions[0, k],
        np.zeros(request.SIZE, np.float32),
    )
    observe_session(c, s, d, r, row)
    gain = float(row[request.GAIN]) / float(s["mean_batch_s"])
    return replace(
        request_,
        at_server=bool(d["at_server"]),
        stays=bool(r["stays"]),
        gain_tokens_per_s=gain,
        use=float(row[request.USE]),
    )


def plain_requests(w, n: int, now_s: float) -> list[Request]:  # type: ignore[no-untyped-def]
    """The same without what is told of who drafts."""
    d, f = w.device[0], w.features[0]
    return [
        Request(
            k, float(d[k]["arrived_s"]), float(d[k]["deadline_s"]), int(d[k]["prompt_tokens"] + d[k]["committed"]), int(d[k]["cached_tokens"]),
            int(d[k]["drafted"]), float(d[k]["expected_tokens"]), float(d[k]["slo_tokens_per_s"]), now_s - float(f[k, AGE_S]),
            int(f[k, COMMITTED_TOKENS]), float(f[k, DUE_S]),
        )
        for k in range(n)
    ]  # fmt: skip


def scheduler_of(bundle: Bundle, s=None) -> BatchScheduler:  # type: ignore[no-untyped-def]
    """A scheduler that knows what a world's server knows."""
    estimator = VerificationTimeEstimator({name: float(getattr(SCENARIO.estimator, name)) for name in TERMS})
    hosts = bundle.schema.decision in HOSTING
    scheduler = BatchScheduler(bundle, estimator, LIMITS, DRAFT if hosts else NO_DRAFT)
    if s is not None:
        scheduler.mean_batch_s, scheduler.utilisation = float(s["mean_batch_s"]), float(s["utilisation"])
        scheduler.tokens_per_s, scheduler.price = float(s["token_rate"]), float(s["price"])
        scheduler.server_tokens = int(s["server_tokens"])
    return scheduler


@pytest.mark.parametrize("decision", DECISIONS)
def test_batches_are_those_of_the_engine(tmp_path: Path, decision: str) -> None:
    sizes, prices, lengths, waits, chunks, moves, same, hosts = set(), set(), set(), 0, 0, 0, 0, decision in HOSTING
    policies = [
        (policy_of(decision, seed, reluctance), seed) for seed, reluctance in enumerate((0.0, 1.0, 2.0, 4.0, 8.0))
    ]
    for policy, number in policies:
        bundle = exported(policy, tmp_path)
        for seed in range(30):
            w, n = filled(100 * number + seed, 70.0, hosts)
            s, d = w.server[0, 0], w.device[0]
            scheduler, stayed = scheduler_of(bundle, s), w.sessions[0]["stays"].copy()
            batch = scheduler.compose(requests_of(w, n, 70.0), 70.0, int(s["kv_tokens"]))
            at_home(compose_learned, w._replace(scorer=policy.weights).at(0))
            members = w.batch[0, : int(s["n_batch"])].tolist()
            assert not scheduler.fallbacks
            # sums are taken in another order: where two scores are equal to seven digits, the other may win
            theirs = (
                members,
                d["take_tokens"][members].tolist(),
                np.flatnonzero(w.sessions[0]["stays"] != stayed).tolist(),
            )
            same += (batch.members, batch.new_tokens, sorted(batch.moves)) == theirs
            lengths.add(batch.draft_tokens)
            moves += len(batch.moves)
            assert (batch.draft_tokens is None) == (not hosts or s["chosen_tokens"] < 0)
            assert batch.draft_tokens in (None, int(s["chosen_tokens"]))
            assert batch.waits == (not batch.members)
            assert scheduler.price == pytest.approx(float(s["price"]))
            sizes.add(len(members))
            waits += batch.waits
            chunks += int(s["chunk_settled"])
            prices.add(scheduler.price)
    assert same >= 149
    assert len(sizes) > 8
    assert chunks > 0
    assert waits > 0
    assert not decision.startswith("joint") or len(prices) > 2
    assert (len(lengths) > 3, moves > 100) == (hosts, hosts)


@pytest.mark.parametrize("decision", DECISIONS)
def test_decisions_are_those_of_torch(tmp_path: Path, decision: str) -> None:
    name, visible = ("wisp_gym/Joint-v1", 12) if decision.startswith("joint") else ("wisp_gym/Batching-v1", 12)
    envs = gym.make_vec(
        name,
        num_envs=20,
        vectorization_mode="vector_entry_point",
        hosting=decision in HOSTING,
        controller="wisp+wisp+by-load:6+colocated:4" if decision in HOSTING else None,
        visible=visible,
        devices=60,
        horizon_s=20.0,
    )
    policy = policy_of(decision, 3, 2.0)
    scorer, bundle = Scorer(decision, (32, 24, 32)), exported(policy, tmp_path)
    scorer.load(policy)
    rng = np.random.default_rng(0)
    observations, infos = envs.reset(seed=0)
    seen = same = 0
    kinds = set()
    while seen < 10_000:
        masks = infos["action_mask"] == 1
        with torch.no_grad():
            scores = scorer(torch.from_numpy(observations)).numpy()
        theirs = np.where(masks, scores, -np.inf).argmax(axis=1)
        for o, action, scores_of in zip(observations, theirs, scores, strict=True):
            rows = o[server.SIZE :].reshape(-1, request.SIZE)
            rows = rows[rows[:, request.PRESENT] > 0.5]
            pick, takes, other, *moves = bundle.decide({"requests": rows, "globals": o[None, : server.SIZE]})
            ours = int(pick[0]) if takes[0] else visible + int(other[0])
            if moves and moves[0].any():  # one by one, the best first
                first = visible + len(bundle.schema.actions)
                ours = first + max(np.flatnonzero(moves[0]), key=lambda q: scores_of[first + q])
            same += ours == action
            kinds.add(min(ours, visible))
            assert not takes[0] or rows[pick[0], request.ADMISSIBLE] == 1.0
            assert not moves or (rows[moves[0], request.MOVABLE] == 1.0).all()
        seen += len(observations)
        random = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observations, _, _, _, infos = envs.step(np.where(rng.random(20) < 0.3, random, theirs))
    assert same >= 0.9999 * seen
    assert len(kinds) > 5


def test_facts_that_only_a_learned_policy_reads_may_be_missing(tmp_path: Path) -> None:
    scheduler = scheduler_of(exported(policy_of("joint", 0, 4.0), tmp_path))
    w, n = filled(5, 70.0)
    requests = requests_of(w, n, 70.0)
    assert scheduler.compose(requests, 70.0, 1000).members is not None
    assert not scheduler.fallbacks
    requests[0] = replace(requests[0], due_s=float("nan"))
    assert len(scheduler.compose(requests, 70.0, 1000).members) > 0
    assert scheduler.fallbacks == {"missing": 1}
    assert scheduler.compose(requests, 70.0, None).members == []  # type: ignore[arg-type]
    assert scheduler.fallbacks == {"missing": 1, "failed": 1}


def test_a_graph_that_decides_otherwise_than_its_tensors_is_refused(tmp_path: Path) -> None:
    exported(policy_of("batching", 0), tmp_path)
    data = (tmp_path / "policy.onnx").read_bytes()
    model = onnx.load_from_string(data)
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Relu"
    with pytest.raises(BundleError, match="decides otherwise"):
        from_bytes(sealed(model.SerializeToString(deterministic=True)))
    model = onnx.load_from_string(data)
    next(tensor for tensor in model.graph.initializer if tensor.name == "query.bias").name = "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == "query.bias" else name for name in node.input]
    with pytest.raises(BundleError, match=r"tensor 'query.bias'"):
        from_bytes(sealed(model.SerializeToString(deterministic=True)))


def test_the_same_bytes_again(tmp_path: Path) -> None:
    bundle = exported(policy_of("joint", 1), tmp_path)
    assert exported(policy_of("joint", 1), tmp_path).sha256 == bundle.sha256
    assert bundle.schema.actions[:2] == ["launch at a price of 0", "launch at a price of 0.02"]
    assert bundle.schema.decision == "joint"


def test_admission_is_that_of_the_engine(tmp_path: Path) -> None:
    same = kept_out = 0
    for number, reluctance in enumerate((1.0, 4.0, 8.0)):
        policy = policy_of("batching", number, reluctance)
        bundle = exported(policy, tmp_path)
        for seed in range(20):
            w, n = filled(seed, 70.0)
            c, s = w.config[0, 0], w.server[0, 0]
            free, kept = scheduler_of(bundle, s), scheduler_of(bundle, s)
            c["admit_share"], kept.limits = 0.3, replace(LIMITS, admit_share=0.3)
            requests, used = requests_of(w, n, 70.0), int(s["kv_tokens"])
            batch = kept.compose(requests, 70.0, used)
            at_home(compose_learned, w._replace(scorer=policy.weights).at(0))
            same += batch.members == w.batch[0, : int(s["n_batch"])].tolist()
            kept_out += batch.members != free.compose(requests, 70.0, used).members
            assert not kept.fallbacks
    assert same >= 59  # as above
    assert kept_out > 5


def test_levels_by_size_count_as_in_the_engine(tmp_path: Path) -> None:
    levels = [{"tokens": 32, "add_s": 0.05}, {"tokens": 256, "add_s": 0.5}]
    estimator = with_(SCENARIO, **{"estimator.sizes": levels}).estimator
    policy, same, other = policy_of("batching", 2, 2.0), 0, 0
    bundle = exported(policy, tmp_path)
    for seed in range(30):
        w, n = filled(seed, 70.0)
        s, requests = w.server[0, 0], requests_of(w, n, 70.0)
        plain, told = scheduler_of(bundle, s), scheduler_of(bundle, s)
        told.estimator = VerificationTimeEstimator(
            {name: float(getattr(SCENARIO.estimator, name)) for name in TERMS} | {"sizes": levels}
        )
        fill_sizes(w.config[0, 0], estimator)
        begin_batch(w.at(0))
        batch, without = (each.compose(requests, 70.0, int(s["kv_tokens"])) for each in (told, plain))
        at_home(compose_learned, w._replace(scorer=policy.weights).at(0))
        same += batch.members == w.batch[0, : int(s["n_batch"])].tolist()
        other += batch.members != without.members
    assert same == 30  # one in a few hundred may differ by a tie, none of these does
    assert other > 3


@pytest.mark.filterwarnings("error")
def test_weights_far_too_large_are_refused(tmp_path: Path) -> None:
    exported(policy_of("batching", 0), tmp_path)
    model = onnx.load_from_string((tmp_path / "policy.onnx").read_bytes())
    for name in ("context.globals", "context.bias"):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, 3e38, np.float32).tobytes()
    with pytest.raises(BundleError, match="no finite numbers"):
        from_bytes(sealed(model.SerializeToString(deterministic=True)))


@pytest.mark.parametrize("decision", ["batching", "batching-hosting"])
def test_every_entry_that_a_server_computes_is_the_engines(tmp_path: Path, decision: str) -> None:
    hosts, scheduler = decision in HOSTING, scheduler_of(exported(policy_of(decision, 0), tmp_path))
    for seed in range(60):
        w, n = filled(seed, 70.0, hosts)
        c, s, d = w.config[0, 0], w.server[0, 0], w.device[0]
        facts, usable = facts_of(requests_of(w, n, 70.0))
        queue = describe(facts, 70.0, LIMITS.prefill_tokens, scheduler.estimator)
        state = Server(
            float(s["mean_batch_s"]), SCENARIO.max_draft_tokens, float(s["utilisation"]), float(s["token_rate"]), float(s["price"]),
            float(s["kv_tokens"]), float(LIMITS.kv_tokens), scheduler.draft, int(s["server_tokens"]),
        )  # fmt: skip
        open_choices(w.at(0))
        globals_row, row = np.zeros(server.SIZE, np.float32), np.zeros(request.SIZE, np.float32)
        observe_batch(c, s, globals_row)
        still = [entry for entry in range(server.SIZE) if entry not in MOVING]
        ours = matrix("globals", server.NAMES, queue, state)[0]
        np.testing.assert_allclose(ours[still], globals_row[still], rtol=1e-6)
        still = [entry for entry in range(request.SIZE) if entry not in request.MOVING]
        for ours, k in zip(matrix("requests", request.NAMES, queue, state), range(n), strict=True):
            observe_request(c, s, d[k], w.features[0, k], row)
            if hosts:
                observe_session(c, s, d[k], w.sessions[0, k], row)
            np.testing.assert_allclose(ours[still], row[still], rtol=1e-6, atol=1e-6)
        picking = Picking(
            scheduler.scores_of, OF_SERVERS[decision], queue, state, usable, scheduler.estimator, LIMITS
        )  # fmt: skip
        join_responses(w.at(0))
        observe_batch(c, s, globals_row)
        np.testing.assert_allclose(picking.sight(), globals_row[MOVING], rtol=1e-5, atol=1e-6)
