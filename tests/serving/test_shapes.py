"""How large a graph's values are is reckoned as onnxruntime computes them, operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from wisp_gym.serving.bundle.onnx_file import GRAPH, IR_VERSION, OPSET, tensors_of
from wisp_gym.serving.bundle.protobuf import WireError, message
from wisp_gym.serving.bundle.shapes import BROADCAST, MAX_RANK, REDUCE, RULES, SAME, check_sizes

LOGICAL = ("And", "Or", "Not")
FLAT = {"Where": 3, "Not": 1}


def whole(*numbers: int) -> np.ndarray:
    """A tensor of whole numbers."""
    return np.array(numbers, np.int64)


# operator, shape of the first input, further inputs (shapes, or numbers that are known), attributes, outputs
CASES: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any], int]] = [
    *((name, (3, 4), [], {"to": TensorProto.INT64} if name == "Cast" else {}, 1) for name in SAME if name != "LayerNormalization"),
    ("LayerNormalization", (3, 4), [(4,), (4,)], {"axis": -1, "epsilon": 1e-5}, 1),
    *((name, (3, 1), [(2, 1, 4)], {}, 1) for name in BROADCAST if name not in ("Where", "PRelu", "Mod")),
    ("Mod", (3, 1), [(2, 1, 4)], {"fmod": 1}, 1),
    ("PRelu", (3, 4), [(4,)], {}, 1),
    ("Where", (3, 1), [(2, 1, 4), (3, 4)], {}, 1),
    *((name, (3, 4, 2), [whole(0, -1)], {"keepdims": keep}, 1) for name in REDUCE for keep in (0, 1)),
    ("ReduceSum", (3, 4), [], {}, 1),
    ("ArgMax", (3, 4), [], {"axis": 1, "keepdims": 0}, 1),
    ("MatMul", (2, 3, 4), [(4, 5)], {}, 1),
    ("MatMul", (3, 4), [(4,)], {}, 1),
    ("MatMul", (4,), [(2, 4, 5)], {}, 1),
    ("MatMul", (4,), [(4,)], {}, 1),
    ("Gemm", (3, 4), [(5, 4), (5,)], {"transB": 1}, 1),
    ("Gemm", (4, 3), [(4, 5)], {"transA": 1}, 1),
    ("Gather", (3, 4), [whole(1, 1, 0)], {"axis": 1}, 1),
    ("Gather", (3, 4), [np.array(2)], {}, 1),
    ("Split", (3, 4), [whole(1, 3)], {"axis": 1}, 2),
    ("Split", (3, 5), [], {"axis": -1, "num_outputs": 2}, 2),
    ("Concat", (3, 4), [(3, 2)], {"axis": -1}, 1),
    ("Reshape", (3, 4), [whole(0, 2, -1)], {}, 1),
    ("Reshape", (3, 4), [whole(-1)], {}, 1),
    ("Flatten", (2, 3, 4), [], {"axis": 2}, 1),
    ("Flatten", (2, 3, 4), [], {}, 1),
    ("Transpose", (2, 3, 4), [], {"perm": [1, 2, 0]}, 1),
    ("Transpose", (2, 3), [], {}, 1),
    ("Unsqueeze", (3, 4), [whole(0, -1)], {}, 1),
    ("Squeeze", (1, 3, 1), [whole(0)], {}, 1),
    ("Squeeze", (1, 3, 1), [], {}, 1),
    ("Slice", (5, 6), [whole(1), whole(100), whole(1), whole(2)], {}, 1),
    ("Slice", (5, 6), [whole(4, -1), whole(-100, -4), whole(0, 1), whole(-1, -1)], {}, 1),
    ("Expand", (3, 1), [whole(2, 1, 4)], {}, 1),
    ("Shape", (3, 4), [], {}, 1),
]  # fmt: skip


def graph_of(case: tuple[str, tuple[int, ...], list[Any], dict[str, Any], int]) -> tuple[Any, dict[str, np.ndarray]]:
    """A graph of one node, and values for its inputs."""
    operator, first, others, attributes, n = case
    kind = np.bool_ if operator in LOGICAL else np.float32
    fed, constants, names = {"i0": np.ones(first, np.bool_ if operator == "Where" else kind)}, [], ["i0"]
    for k, given in enumerate(others, 1):
        names.append(f"i{k}")
        if isinstance(given, np.ndarray):
            constants.append(numpy_helper.from_array(given, f"i{k}"))
        else:
            fed[f"i{k}"] = np.ones(given, kind)
    node = helper.make_node(operator, names, [f"o{k}" for k in range(n)], **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in fed.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(f"o{k}") for k in range(n)]
    return helper.make_graph([node], "one", inputs, outputs, constants), fed


def reckoned(graph: Any, inputs: dict[str, tuple[int, ...]], most: int = 10**6) -> dict[str, tuple[int, ...]]:
    """What the reader of bundles says."""
    del graph.output[:], graph.input[:]
    read = message(memoryview(graph.SerializeToString()), GRAPH, "graph")
    return check_sizes(read, tensors_of(read), inputs, most)


def test_every_operator_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_shapes_are_those_of_onnxruntime(case: Any) -> None:
    graph, fed = graph_of(case)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    answers = onnxruntime.InferenceSession(model.SerializeToString()).run(None, fed)
    shapes = reckoned(graph, {name: value.shape for name, value in fed.items()})
    assert [shapes[f"o{k}"] for k in range(case[-1])] == [np.shape(answer) for answer in answers]


def chain(*nodes: tuple[Any, ...], **constants: np.ndarray) -> Any:
    """A graph of (operator, inputs, output, attributes)."""
    made = [
        helper.make_node(operator, inputs.split(), [output], **dict(*more)) for operator, inputs, output, *more in nodes
    ]
    return helper.make_graph(
        made, "chain", [], [], [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )


def test_shapes_that_the_graph_computes_are_followed() -> None:
    graph = chain(
        ("Shape", "x", "s"), ("Gather", "s zero", "n", {"axis": 0}), ("Unsqueeze", "n first", "n1"), ("Mul", "n1 two", "n2"),
        ("Div", "n2 two", "n3"), ("Sub", "n3 one", "n4"), ("Add", "n4 one", "n5"), ("Mod", "n5 many", "n6"), ("Cast", "n6", "n7", {"to": 7}),
        ("Concat", "n7 two two", "t", {"axis": 0}), ("Equal", "t two", "is"), ("Where", "is two t", "u"), ("Slice", "u first three", "v"),
        ("Reshape", "v three_", "w"), ("Identity", "w", "z"), ("Reshape", "x z", "y"), ("Expand", "one two", "e"), ("Reshape", "y e", "f"),
        zero=np.array(0), first=whole(0), one=whole(1), two=whole(2), three=whole(3), three_=whole(3), many=whole(1000),
    )  # fmt: skip
    with pytest.raises(WireError, match=r"Reshape of \(7, 2, 2\) to \[1, 1\]"):
        reckoned(graph, {"x": (7, 4)})
    del graph.node[-1]
    assert reckoned(graph, {"x": (7, 4)})["y"] == (7, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([("Relu", "x", "y")], {}, "makes"),
        ([("Reshape", "x x", "y")], {}, "depends on what is observed"),
        ([("Gather", "x two", "y", {"axis": 5})], {"two": whole(2)}, "axis 5 of a value of 2"),
        ([("Add", "x c", "y")], {"c": np.ones(3, np.float32)}, "cannot be computed of values of"),
        ([("Concat", "x c", "y", {"axis": 0})], {"c": np.ones((3, 3), np.float32)}, "Concat of"),
        ([("Transpose", "x", "y", {"perm": [0, 0]})], {}, "Transpose of"),
        ([("Squeeze", "x a", "y")], {"a": whole(0)}, "Squeeze of"),
        ([("Unsqueeze", "x a", "y")], {"a": whole(0, 0)}, "Unsqueeze at"),
        ([("Unsqueeze", "x a", "y")], {"a": whole(0, 1, 2, 3, 4)}, f"and {MAX_RANK} axes"),
        ([("Slice", "x a b c d", "y")], {"a": whole(0), "b": whole(2), "c": whole(0), "d": whole(0)}, "steps of 0"),
        ([("Reshape", "x a", "y", {"allowzero": 1})], {"a": whole(4, 5)}, "Reshape of"),
        ([("Reshape", "x a", "y")], {"a": whole(-1, -1)}, "Reshape of"),
        ([("Gemm", "x x", "y")], {}, "Gemm of"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_told(nodes: Any, constants: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(WireError, match=message):
        reckoned(chain(*nodes, **constants), {"x": (4, 5)}, 19 if message == "makes" else 10**6)


def test_a_node_answers_as_many_values_as_its_operator() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y", "z"])], "two", [], [])
    with pytest.raises(WireError, match="Relu: 2 outputs, allowed are 1"):
        reckoned(graph, {"x": (4, 5)})
