"""A bundle that is not whole, or holds what a bundle may not hold, is refused with one line; loading runs nothing of its author's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.support.bundles import SCENARIO, network_bytes, random_policy, rule_bytes
from tests.support.networks import Attends
from wisp_gym.contract.device import SIZE
from wisp_gym.serving import build_bundle
from wisp_gym.serving.bundle.bundle import SEAL_CHARACTERS, from_bytes, load_bundle, schema, seal
from wisp_gym.serving.bundle.names import find, shipped
from wisp_gym.serving.bundle.onnx_file import MAX_BYTES
from wisp_gym.serving.bundle.schema import BundleError

NETWORK = network_bytes(random_policy("token", widths=(8,)))
RULE = rule_bytes("aligned")
ATTENTION = build_bundle(Attends(2), scenario=SCENARIO).data
ROW = {"observation": np.full((1, SIZE), 0.3, np.float32)}


def sealed(data: bytes) -> bytes:
    """The file with a seal that fits: what a forger would write."""
    return data[:-SEAL_CHARACTERS] + seal(data)


def edited(change: Any, data: bytes = NETWORK) -> bytes:
    """The file after a change of its model, sealed anew."""
    model = onnx.load_from_string(data)
    change(model)
    return sealed(model.SerializeToString(deterministic=True))


def refused(data: bytes) -> str:
    """The message with which a file is refused: one line."""
    with pytest.raises(BundleError) as caught:
        from_bytes(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mutated(data: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """The file with bytes changed, cut out or put in."""
    content = bytearray(data)
    for kind, place, value in edits:
        at = place % len(content)
        if kind == 0:
            content[at] = value
        elif kind == 1:
            del content[at : at + value % 64 + 1]
        else:
            content[at:at] = bytes([value]) * (value % 9 + 1)
        content = content or bytearray(b"\0")
    return bytes(content)


EDITS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from([NETWORK, RULE, ATTENTION]), EDITS)
def test_a_damaged_file_is_always_refused(data: bytes, edits: list[tuple[int, int, int]]) -> None:
    damaged = mutated(data, edits)
    if damaged != data:
        assert refused(damaged)


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from([NETWORK, RULE, ATTENTION]), EDITS)
def test_a_forged_file_is_refused_or_decides(data: bytes, edits: list[tuple[int, int, int]]) -> None:
    forged = sealed(mutated(data, edits))
    try:
        bundle = from_bytes(forged)
    except BundleError:
        assert refused(forged)
        return
    assert int(bundle.decide(ROW)[0][0]) in (0, 1)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(data: bytes) -> None:
    assert refused(data)
    assert refused(sealed(data + bytes(SEAL_CHARACTERS)))


def add_node(operator: str, **attributes: Any) -> Any:
    """A change that appends a node of an operator on the observation."""
    return lambda model: model.graph.node.append(helper.make_node(operator, ["observation"], ["extra"], **attributes))


def external(model: onnx.ModelProto) -> None:
    """The first tensor's numbers lie in another file."""
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")


def spoil_weight(model: onnx.ModelProto) -> None:
    """A weight that is no number."""
    tensor = model.graph.initializer[2]
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "field 13 is not allowed"),
        (spoil_weight, "must be finite numbers"),
        (add_node("Loop"), "operator 'Loop' is not allowed"),
        (add_node("If"), "operator 'If' is not allowed"),
        (add_node("Tile"), "operator 'Tile' is not allowed"),
        (add_node("Relu", domain="com.example"), "field 7 is not allowed"),
        (add_node("Relu", body="text"), "field 4 is not allowed"),
        (add_node("Relu", ghost=1), "attribute 'ghost' is not allowed"),
        (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)), "operator sets"),
        (lambda m: setattr(m.opset_import[0], "version", 17), "operator sets: given .* allowed is 18"),
        (lambda m: setattr(m, "ir_version", 11), "ir_version"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 27), "inputs and outputs"),
        (
            lambda m: m.graph.output.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, [1, SIZE])),
            "inputs and outputs",
        ),
        (lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros((600, 2), np.float32), "big")), "shape"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "given twice"),
        (lambda m: [add_node("Relu")(m) for _ in range(300)], "nodes"),
        (lambda m: m.metadata_props.insert(0, onnx.StringStringEntryProto(key="more", value="x")), "metadata"),
    ],
)
def test_what_a_bundle_may_not_hold(change: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_bytes(edited(change))


@pytest.mark.parametrize("number", [20, 25])  # training_info, functions
def test_functions_and_training_graphs_are_refused(number: int) -> None:
    empty = bytes([(number << 3 | 2) & 0x7F | 0x80, number >> 4, 0])
    assert f"field {number} is not allowed" in refused(sealed(empty + NETWORK))


def with_schema(**changes: Any) -> bytes:
    """The file with another schema."""

    def change(model: onnx.ModelProto) -> None:
        document = {**json.loads(model.metadata_props[0].value), **changes}
        model.metadata_props[0].value = json.dumps({k: v for k, v in document.items() if v is not ...})

    return edited(change)


FEATURES = schema.features_of("observation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version given 1, allowed is 2"),
        ({"version": True}, "version given True"),
        ({"format": "x"}, "'format' must be"),
        ({"decision": "joy"}, "decision given 'joy'"),
        ({"decision": ["token"]}, "decision given"),
        ({"learned": 1}, "learned given 1"),
        ({"max_draft_tokens": 99}, "max_draft_tokens given 99"),
        ({"actions": ["send"]}, "actions given"),
        ({"extra": 1}, r"not allowed \['extra'\]"),
        ({"fallback": ...}, r"missing \['fallback'\]"),
        ({"fallback": {"threshold": "high"}}, "threshold given 'high'"),
        ({"origin": {}}, "origin: missing"),
        ({"inputs": {}}, "inputs given"),
        ({"inputs": {"observation": [*FEATURES[:3], ["confidence", "percent", 0, 100], *FEATURES[4:]]}}, "percent"),
        ({"inputs": {"observation": FEATURES[:-1]}}, "another number of features"),
        ({"inputs": {"observation": 3}}, "allowed is a list of"),
    ],
)
def test_a_schema_of_another_kind_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_bytes(with_schema(**changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 1}', '{"a": NaN}', "[" * 10_000, "x" * 70_000])
def test_a_schema_that_is_no_strict_json_is_refused(text: str) -> None:
    assert "schema" in refused(edited(lambda m: m.metadata_props[0].__setattr__("value", text)))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "big.onnx").write_bytes(bytes(MAX_BYTES + 1))
    for name, message in (("none.onnx", "no such file"), ("big.onnx", "bytes, allowed are"), ("", "no such file")):
        with pytest.raises(BundleError, match=message):
            load_bundle(tmp_path / name)
    with pytest.raises(
        BundleError, match=r"nothing.onnx: no such file; .*allowed: .*speculation-wisp, .*a file, a run's folder"
    ):
        load_bundle("nothing.onnx")


def test_every_shipped_bundle_loads() -> None:
    assert {"speculation-wisp.onnx", "batching-v1.onnx"} <= set(shipped())
    for name, path in shipped().items():
        assert load_bundle(name).schema.learned == (path.parent.name == "policies")
        assert find(path.stem) == path


NAMES = {
    ("speculation-v1", ""): "speculation-v1", ("batching-v1", ""): "batching-v1", ("joint-v1", ""): "joint-v1",
    ("speculation-v1", "token"): "speculation-v1", ("batching-v1", "batching"): "batching-v1", ("joint-v1.onnx", "batching"): "joint-v1",
    ("wisp", "token"): "speculation-wisp", ("wisp", "batching"): "batching-wisp", ("aligned", ""): "speculation-aligned",
    ("fcfs", ""): "batching-fcfs", ("edf-demoted", "batching"): "batching-edf-demoted",
    ("batching-wisp.onnx", ""): "batching-wisp", ("batching-wisp", "token"): "batching-wisp",
}  # fmt: skip


@pytest.mark.parametrize(("name", "decision"), NAMES)
def test_one_resolver_knows_every_shipped_name(name: str, decision: str) -> None:
    assert find(name, decision).stem == NAMES[name, decision]


def test_runs_and_files_resolve_too(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="make it with: wisp-gym export"):
        find(tmp_path)
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "policy.onnx").write_bytes(shipped()["speculation-v1.onnx"].read_bytes())
    for name in (tmp_path, tmp_path / "policy.json", tmp_path / "policy.onnx"):
        for form in (name, str(name)):
            assert load_bundle(form).schema.learned


@pytest.mark.parametrize(
    ("name", "decision", "message"),
    [
        ("wisp", "", "a rule of devices and of servers; allowed are speculation-wisp and batching-wisp"),
        ("alinged", "token", "did you mean 'aligned'"),
        ("batching-v2", "batching", "did you mean 'batching-v1'"),
        ("fcfs", "token", "no such file; allowed: aligned, wisp, speculation-aligned"),
        ("", "", "no such file"),
    ],
)
def test_what_names_no_bundle_is_told_the_nearest(name: str, decision: str, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        find(name, decision)
    assert "\n" not in str(caught.value)


def test_a_large_network_fits() -> None:
    assert from_bytes(network_bytes(random_policy("length", widths=(512, 512)))).schema.decision == "length"
