"""Writing the ONNX graphs of policies node by node, with `onnx.helper`: small, readable, equal inputs give equal bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wisp_gym.serving.bundle.bundle import SEAL_CHARACTERS, schema, seal, signature_of
from wisp_gym.serving.bundle.onnx_file import IR_VERSION, OPSET
from wisp_gym.serving.bundle.schema import Schema

Layers = list[tuple[np.ndarray, np.ndarray]]
ACTIVATION = {"relu": "Relu", "tanh": "Tanh"}


class Graph:
    """Nodes and constants in the order in which they are written; a value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[tuple[Any, ...], str] = {}  # what has been computed already
        self.constants: dict[tuple[str, bytes, tuple[int, ...]], onnx.TensorProto] = {}

    def constant(self, value: Any, dtype: Any) -> str:
        """A constant; an equal one is used again."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def tensor(self, name: str, value: Any) -> str:
        """A float32 constant with a name of its own."""
        array = np.asarray(value, np.float32)
        self.constants[name, b"", array.shape] = numpy_helper.from_array(array, name)
        return name

    def op(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node; returns its value's name. The same node is written once; one with a name of its own always."""
        key = (operator, inputs, tuple(sorted(attributes.items())))
        if key not in self.values or output:
            self.values[key] = output or f"v{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, list(inputs), [self.values[key]], **attributes))
        return self.values[key]

    def cast(self, value: str, kind: int, output: str = "") -> str:
        """A value as another type of `TensorProto`."""
        return self.op("Cast", value, output=output, to=kind)

    def column(self, value: str, index: int) -> str:
        """(n, 1) of one column of (n, m)."""
        return self.op("Gather", value, self.constant([index], np.int64), axis=1)

    def several(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """A node of several values."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def columns(self, value: str, count: int) -> list[str]:
        """All (n, 1) columns of (n, count), by one node."""
        return self.several("Split", [value, self.constant([1] * count, np.int64)], count, axis=1)

    def within(self, value: str, low: Sequence[float], high: Sequence[float]) -> str:
        """(n, m) float32 clipped to the range of each column."""
        raised = self.op("Max", value, self.constant([low], np.float32))
        return self.op("Min", raised, self.constant([high], np.float32))

    def perceptron(self, value: str, layers: Layers, activation: str) -> str:
        """(n, actions) outputs of a network's layers."""
        for index, (w, b) in enumerate(layers):
            value = self.op("Gemm", value, self.constant(w, np.float32), self.constant(b, np.float32), transB=1)
            if index < len(layers) - 1:
                value = self.op(ACTIVATION[activation], value)
        return value


def bundle_bytes(graph: Graph, described: Schema, scores: bool = False) -> bytes:
    """The bundle's file: the graph, its schema, and the seal that ends it; `scores` as in `signature_of`."""
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in ends.items()]
        for ends in signature_of(described, scores)
    )
    made = helper.make_graph(graph.nodes, "policy", inputs, outputs, list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wisp-gym")
    helper.set_model_props(model, {schema.KEY: schema.dump(described), schema.SEAL: "0" * SEAL_CHARACTERS})
    onnx.checker.check_model(model, full_check=True)
    data = bytes(model.SerializeToString(deterministic=True))
    return data[:-SEAL_CHARACTERS] + seal(data)


FLOAT, DOUBLE, INT64, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
