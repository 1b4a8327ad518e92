"""Policies of one's own become bundles, whatever they are made of, and decide as they did; what cannot be served is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from agents.batching.scorer_network import Scorer, symlog
from tests.evaluation.test_own import SHORT, worlds_of
from tests.serving.test_serving_scorer import HOSTING, LIMITS, exported, filled, policy_of, requests_of, scheduler_of
from tests.support.bundles import SCENARIO, network_bytes, random_policy
from tests.support.networks import Attends, AttendsOverQueue
from wisp_gym.cli import run
from wisp_gym.contract import request
from wisp_gym.contract.actions import WAYS
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.device import SIZE
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.predict import named
from wisp_gym.engine.compose import join_responses
from wisp_gym.engine.hosting import open_choices
from wisp_gym.engine.observe_request import observe_request, observe_session
from wisp_gym.errors import InputError
from wisp_gym.evaluation import evaluate, own
from wisp_gym.rules.ways import allows
from wisp_gym.serving import DeviceProfile, SpeculationController, build_bundle, load_bundle
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes
from wisp_gym.serving.bundle.schema import MOST_REQUESTS
from wisp_gym.serving.export import command
from wisp_gym.serving.export.parity import record
from wisp_gym.serving.scheduler.asked import Asked
from wisp_gym.serving.scheduler.features import Server, describe, facts_of
from wisp_gym.serving.scheduler.picking import Picking

CAP = SCENARIO.max_draft_tokens
N_ACTIONS = {"token": 2, "token-way": 4, "length": CAP + 1, "length-way": len(WAYS) * (CAP + 1)}
LEARNED = {"token": "random:0.7", "length": "leviathan", "token-way": "random:0.7", "length-way": "leviathan"}


class SelfAttention(torch.nn.Module):
    """What torch's exporter writes with the number of rows of its example."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(request.SIZE, 2, batch_first=True)

    def forward(self, requests: torch.Tensor, globals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(queue, 28), (1, 21) → (queue,), (1, 14)."""
        rows = requests[None]
        return self.attention(rows, rows, rows, need_weights=False)[0][0, :, 0], globals[:, :14]


class Plain(Scorer):
    """Our own scorer as a module that answers scores."""

    def forward(self, requests: torch.Tensor, globals: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """As `AttendsOverQueue`."""
        trunk, still = self.trunk, torch.tensor([float(entry not in request.MOVING) for entry in range(request.SIZE)])
        each = torch.tanh(trunk.embedding(torch.tanh(trunk.hidden(symlog(requests * still)))))
        read = request.PRESENT if trunk.embeds_all else request.UNCACHED_TOKENS
        scored = torch.gt(requests[:, read : read + 1], 0.5 if trunk.embeds_all else 0.0).float()
        pooled = (each * scored).sum(0, keepdim=True) / scored.sum().clamp(min=1.0)
        context = torch.tanh(trunk.context(torch.cat([symlog(globals), pooled], 1)))
        width = each.shape[1] + 1
        queries = [self.query(context)[:, k * width : (k + 1) * width] for k in range(self.query.out_features // width)]
        picks, *stays = ((each @ query[0, :-1, None])[:, 0] + query[0, -1] for query in queries)
        return (picks, self.heads(context), *stays)


def of_others(decision: str) -> int:
    """How many actions of no request there are."""
    return Scorer(decision).heads.out_features


def best_allowed(scores: np.ndarray, observations: np.ndarray, decision: str) -> np.ndarray:
    """(n,) what (n, actions) scores say where only what the engine allows may be done."""
    n_lengths = CAP + 1 if decision.startswith("length") else 0
    valid = [[allows(k, n_lengths, CAP, row) for k in range(scores.shape[1])] for row in observations]
    return np.where(valid, scores, -np.inf).argmax(1)


@pytest.fixture(scope="module")
def observations() -> dict[str, np.ndarray]:
    """300 observations of each decision, that devices met."""
    return {name: record(SCENARIO, name, named(rule, SCENARIO), 300) for name, rule in LEARNED.items()}


@pytest.mark.parametrize("decision", N_ACTIONS)
def test_a_torch_module_of_any_architecture_decides_as_it_did(
    decision: str, observations: dict[str, np.ndarray]
) -> None:
    module = Attends(N_ACTIONS[decision])
    bundle = build_bundle(module, decision, scenario=SCENARIO, made_by="mine")
    assert module.training  # as it was
    with torch.no_grad():
        scores = module.eval()(torch.from_numpy(observations[decision])).numpy()
    (chosen,) = bundle.decide({"observation": observations[decision]})
    assert len(set(chosen.tolist())) > 1
    assert (chosen == best_allowed(scores, observations[decision], decision)).mean() >= 0.99  # ties to within rounding
    assert (bundle.schema.learned, bundle.schema.decision, bundle.schema.origin.made_by) == (True, decision, "mine")
    assert from_bytes(bundle.data).sha256 == build_bundle(module, decision, scenario=SCENARIO, made_by="mine").sha256


def test_layers_are_the_bundle_of_a_policy(tmp_path: Path) -> None:
    policy = random_policy("token", widths=(8,))
    same = network_bytes(policy)
    inputs = {"observation": np.random.default_rng(0).random((50, SIZE), np.float32)}
    save_policy(policy, tmp_path / "policy.json")
    for given in (policy, policy.layers, tmp_path / "policy.json", str(tmp_path / "policy.json")):
        built = build_bundle(given, scenario=SCENARIO)
        np.testing.assert_array_equal(built.decide(inputs)[0], from_bytes(same).decide(inputs)[0])


class Extractor(BaseFeaturesExtractor):
    """Features of one's own."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 12)
        self.layers = torch.nn.Sequential(torch.nn.Linear(SIZE, 12), torch.nn.ELU())

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """(n, 36) → (n, 12)."""
        return self.layers(observation)


def test_models_of_stable_baselines3(observations: dict[str, np.ndarray]) -> None:
    env, seen = "wisp_gym/Speculation-v1", observations["token"]
    kwargs = {"features_extractor_class": Extractor}
    for model in (
        PPO("MlpPolicy", env, policy_kwargs=kwargs, seed=0),
        PPO("MlpPolicy", env, policy_kwargs=kwargs | {"share_features_extractor": False}, seed=1),
        DQN("MlpPolicy", env, policy_kwargs=kwargs, seed=2, buffer_size=10),
    ):
        bundle = build_bundle(model, "token-way", scenario=SCENARIO)
        with torch.no_grad():
            tensor = torch.from_numpy(seen)
            policy: Any = model.policy
            net = (
                policy.q_net(tensor) if isinstance(model, DQN) else policy.get_distribution(tensor).distribution.logits
            )
        (chosen,) = bundle.decide({"observation": seen})
        assert (chosen == best_allowed(net.numpy(), seen, "token-way")).mean() >= 0.99
    with pytest.raises(InputError, match="allowed are models that decide by the observation alone"):
        build_bundle(RecurrentPPO("MlpLstmPolicy", env, n_steps=8, seed=0), "token-way")


def graph_of(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 18, constants: tuple[Any, ...] = ()
) -> onnx.ModelProto:
    """A model as another exporter might write it."""
    graph = helper.make_graph(nodes, "theirs", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def ints(name: str, values: list[int]) -> onnx.TensorProto:
    """A tensor of whole numbers."""
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


SEEN = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])
ACTION = helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])
SCORES = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])


BEST = [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)]


def test_a_graph_that_answers_actions(tmp_path: Path, observations: dict[str, np.ndarray]) -> None:
    for opset in (13, 18, 21):
        model = graph_of(BEST, [SEEN], [ACTION], opset)
        onnx.save(model, tmp_path / "theirs.onnx")
        seen = observations["length"]
        wanted = np.minimum(seen.argmax(1), best_allowed(np.arange(CAP + 1.0)[None].repeat(300, 0), seen, "length"))
        for given in (model, model.SerializeToString(), tmp_path / "theirs.onnx"):
            (chosen,) = build_bundle(given, "length", scenario=SCENARIO).decide({"observation": seen})
            inside = seen.argmax(1) <= CAP
            np.testing.assert_array_equal(chosen[inside], wanted[inside])


def test_the_command_makes_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(graph_of(BEST, [SEEN], [ACTION]), tmp_path / "mine.onnx")
    flags = [str(tmp_path / "mine.onnx"), "--decision", "length", "-o", str(tmp_path / "out.onnx")]
    assert run(command.main, command.PROGRAM, flags) == 0
    assert "out.onnx: length policy" in capsys.readouterr().out
    same = build_bundle(tmp_path / "mine.onnx", "length", made_by="mine")
    assert load_bundle(tmp_path / "out.onnx").sha256 == same.sha256
    same.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    with pytest.raises(InputError, match="cannot be written"):
        same.save(tmp_path / "none" / "again.onnx")


def test_a_device_serves_it() -> None:
    device = SpeculationController(build_bundle(Attends(2)), DeviceProfile(8.0, 0.02, 0.01, 0.8, 0.05))
    device.begin_request(0.0, 100, 50)
    device.begin_round(0.1)
    assert isinstance(device.wants_more(0.1), bool)


OTHER = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 30])
LARGE = [helper.make_node("Reshape", ["x", "column"], ["a"]), helper.make_node("Reshape", ["x", "row"], ["b"])]


@pytest.mark.parametrize(
    ("policy", "decision", "message"),
    [
        (7, "token", "policy: given 7, allowed are an ONNX file"),
        (b"nothing", "token", "no ONNX file"),
        ("none.onnx", "token", "none.onnx: No such file"),
        (Attends(2), "tokens", "decision: given 'tokens'; did you mean 'token'"),
        (Attends(3), "token", r"answers \(5, 3\) of FLOAT for 5 observations, allowed for 'token' are \(5, 2\) scores"),
        (graph_of([helper.make_node("Relu", ["x"], ["y"])], [OTHER], [SCORES]), "token", r"inputs given .*30.*allowed .* observation \(n, 36\)"),
        (graph_of([helper.make_node("Relu", ["x"], ["y"])], [SEEN, SCORES], [SCORES]), "token", "inputs given"),
        (graph_of([helper.make_node("Det", ["x"], ["y"])], [SEEN], [SCORES]), "token", "operator 'Det' is none that bundles hold"),
        (graph_of([helper.make_node("RandomNormalLike", ["x"], ["y"])], [SEEN], [SCORES]), "token", "operator 'RandomNormalLike'"),
        (graph_of([helper.make_node("Softmax", ["z"], ["y"])], [SEEN], [SCORES]), "token", "reads 'z', which is not there"),
        (SelfAttention(), "batching", "Reshape of .* with 5 rows; is the graph written for another number of them alone"),
        (graph_of([helper.make_node("MatMul", ["x", "x"], ["y"])], [SEEN], [SCORES]), "token", r"MatMul of \(5, 36\) and \(5, 36\)"),
        (AttendsOverQueue(of_others("joint")), "batching", r"answers .* for 5 requests, allowed for 'batching' are scores"),
        (AttendsOverQueue(of_others("batching"), ordered=True), "batching", "change with the order of the requests"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(policy: Any, decision: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_bundle(policy, decision, scenario=SCENARIO)
    assert "\n" not in str(caught.value)


def test_small_files_of_large_values_are_refused() -> None:
    squares = [helper.make_node("Add", ["a", "b"], ["c0"])]
    for k in range(4):
        squares += [
            helper.make_node("Reshape", [f"c{k}", "column"], [f"a{k}"]), helper.make_node("Reshape", [f"c{k}", "row"], [f"b{k}"]),
            helper.make_node("Add", [f"a{k}", f"b{k}"], [f"c{k + 1}"]),
        ]  # fmt: skip
    shapes = (ints("column", [-1, 1]), ints("row", [1, -1]), ints("two", [0, 2]))
    model = graph_of(
        [*LARGE, *squares, helper.make_node("Reshape", ["c4", "two"], ["y"])], [SEEN], [SCORES], constants=shapes
    )
    with pytest.raises(InputError, match="numbers in all values"):
        build_bundle(model, scenario=SCENARIO)
    outer = [
        helper.make_node("Transpose", ["r"], ["t"]),
        *(helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("r", "t", "p"), ("p", "p", "q"))),
    ]
    assert MOST_REQUESTS**2 * 16 <= 2**28 < MOST_REQUESTS**2 * 20
    queue, seen = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("r", ["q", 28]), ("g", [1, 21]))
    )
    squares = [helper.make_node("MatMul", ["p" if k == 0 else f"p{k - 1}", "p"], [f"p{k}"]) for k in range(20)]
    mean = [helper.make_node("ReduceMean", ["p19", "last"], ["s"], keepdims=0)]
    pad = [helper.make_node("Slice", ["g", "zero", "n", "last"], ["a"])]
    scores = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("s", ["q"]), ("a", [1, 14]))
    ]
    constants = (ints("last", [1]), ints("zero", [0]), ints("n", [14]))
    model = graph_of([*outer, *squares, *mean, *pad], [queue, seen], scores, constants=constants)
    with pytest.raises(InputError, match="numbers in all values"):
        build_bundle(model, "batching", scenario=SCENARIO)


# --- of servers ---------------------------------------------------------------------------------------------------------


def answering_scores(policy: Any, decision: str) -> Bundle:
    """The bundle of our own scorer in the form of one of another architecture."""
    module = Plain(decision, (32, 24, 32))
    module.load(policy)
    bundle = build_bundle(module, decision, scenario=SCENARIO)
    assert bundle.scorer is None
    return bundle


@pytest.mark.parametrize("decision", OF_SERVERS)
def test_a_scorer_that_is_asked_batches_as_one_that_is_multiplied(tmp_path: Path, decision: str) -> None:
    same, moves, n_batches = 0, 0, 0
    for number, reluctance in enumerate((0.0, 1.0, 4.0)):
        policy = policy_of(decision, number, reluctance)
        theirs, ours = answering_scores(policy, decision), exported(policy, tmp_path)
        for seed in range(10):
            w, n = filled(100 * number + seed, 70.0, decision in HOSTING)
            s = w.server[0, 0]
            asked, multiplied = scheduler_of(theirs, s), scheduler_of(ours, s)
            found, wanted = (
                each.compose(requests_of(w, n, 70.0), 70.0, int(s["kv_tokens"])) for each in (asked, multiplied)
            )
            assert not asked.fallbacks
            same += (found.members, found.new_tokens, found.price, found.waits, found.draft_tokens, sorted(found.moves)) == (
                wanted.members, wanted.new_tokens, wanted.price, wanted.waits, wanted.draft_tokens, sorted(wanted.moves)
            )  # fmt: skip
            moves += len(found.moves)
            n_batches += 1
    assert same >= n_batches - 1  # sums in another order
    assert (moves > 20) == (decision in HOSTING)


@pytest.mark.parametrize("decision", ["batching", "batching-hosting"])
def test_every_entry_that_a_graph_is_asked_with_is_the_engines(decision: str) -> None:
    hosts = decision in HOSTING
    scheduler = scheduler_of(build_bundle(AttendsOverQueue(of_others(decision), hosts), decision, scenario=SCENARIO))
    for seed in range(40):
        w, n = filled(seed, 70.0, hosts)
        c, s, d = w.config[0, 0], w.server[0, 0], w.device[0]
        c["responses_join"] = 1
        facts, usable = facts_of(requests_of(w, n, 70.0))
        queue = describe(facts, 70.0, LIMITS.prefill_tokens, scheduler.estimator)
        state = Server(
            float(s["mean_batch_s"]), CAP, float(s["utilisation"]), float(s["token_rate"]), float(s["price"]), float(s["kv_tokens"]),
            float(LIMITS.kv_tokens), scheduler.draft, int(s["server_tokens"]),
        )  # fmt: skip
        picking = Picking(scheduler.scores_of, OF_SERVERS[decision], queue, state, usable, scheduler.estimator, LIMITS)
        picking.policy.scores(picking.sight(), picking)
        assert isinstance(picking.policy, Asked)
        open_choices(w.at(0))
        join_responses(w.at(0))
        row = np.zeros(request.SIZE, np.float32)
        for ours, k in zip(picking.policy.rows, range(n), strict=True):
            observe_request(c, s, d[k], w.features[0, k], row)
            if hosts:
                observe_session(c, s, d[k], w.sessions[0, k], row)
            np.testing.assert_allclose(ours, row, rtol=1e-5, atol=1e-5)


def test_an_onnx_file_composes_batches_in_the_engines_worlds(tmp_path: Path) -> None:
    policy = policy_of("batching", 2, 2.0)
    exported(policy, tmp_path)
    answering_scores(policy, "batching").save(tmp_path / "asked.onnx")
    kinds = ((policy, "scorer"), (tmp_path / "policy.onnx", "bundle"), (str(tmp_path / "asked.onnx"), "asked"))
    given = [own("aligned:0", server=policy, name=name, visible=12) for policy, name in kinds]
    found = evaluate(given, scenario=SHORT, devices=12, seeds=range(4))
    assert worlds_of(found, "bundle") == worlds_of(found, "scorer")
    same = [a == b for a, b in zip(worlds_of(found, "asked"), worlds_of(found, "scorer"), strict=True)]
    assert sum(same) >= 3  # a tie to within rounding may send one world another way
    own(server=tmp_path / "asked.onnx")
    (tmp_path / "bad.onnx").write_bytes(graph_of(BEST, [SEEN], [ACTION]).SerializeToString())
    with pytest.raises(InputError, match=r"inputs given .* allowed are \(n, 28\) requests and \(n, 21\) globals"):
        own(server=tmp_path / "bad.onnx")
