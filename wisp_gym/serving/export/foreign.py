"""A graph that somebody else's exporter wrote, copied node by node into one of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from wisp_gym.errors import InputError
from wisp_gym.serving.bundle.onnx_file import ATTRIBUTES, OPERATORS, OPSET
from wisp_gym.serving.export.graph import Graph

PASSES_ON = ("Identity", "Dropout")  # what they are given, where a network decides and does not learn
NEUTRAL = {"allowzero": 0, "alpha": 1.0, "beta": 1.0}  # of attributes that exporters write out
MAX_FILE_BYTES = 1 << 26


def read(given: Any) -> onnx.ModelProto:
    """The model of a file's path, of its bytes, or itself, with opset 18.

    Raises:
        InputError: no such file, no ONNX, weights in other files, or an opset that cannot be brought to 18; one line.
    """
    if isinstance(given, onnx.ModelProto):
        model = given
    else:
        model = of_bytes(given if isinstance(given, bytes) else of_file(Path(given)))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # its exceptions have no base of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"policy: a graph of opset {opset}, allowed is {OPSET} or what can be brought there ({reason})"
        ) from None


def of_file(path: Path) -> bytes:
    """A file's bytes."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"policy: {path}: {path.stat().st_size} bytes, allowed are {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"policy: {path}: {error.strerror}") from None


def of_bytes(data: bytes) -> onnx.ModelProto:
    """The model of a file's bytes, all in one file."""
    try:
        model = onnx.load_from_string(data)
        outside = [
            tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
        ]
    except Exception as error:
        raise InputError(f"policy: no ONNX file: {type(error).__name__}") from None
    if outside:
        raise InputError(f"policy: the weights lie in another file ({outside[0]}), allowed is one file with all")
    return model


def copy(g: Graph, model: onnx.ModelProto, inputs: dict[str, str]) -> list[str]:
    """Write a model's nodes into `g`; returns the values that are its outputs, in their order.

    Args:
        inputs: for each input of the model the value that it is given.

    Raises:
        InputError: a node that a bundle may not hold; one line that names it.
    """
    values = dict(inputs)
    for tensor in model.graph.initializer:
        values[tensor.name] = constant(g, numpy_helper.to_array(tensor))
    for node in model.graph.node:
        copy_node(g, node, values)
    return [values[output.name] for output in model.graph.output]


def constant(g: Graph, array: np.ndarray) -> str:
    """A constant, in one of the types that a bundle holds."""
    kind = {"i": np.int64, "u": np.int64, "b": np.bool_, "f": array.dtype if array.dtype == np.float64 else np.float32}
    if array.dtype.kind not in kind:
        raise InputError(f"policy: a tensor of {array.dtype}, allowed are numbers")
    return g.constant(array, kind[array.dtype.kind])


def copy_node(g: Graph, node: onnx.NodeProto, values: dict[str, str]) -> None:
    """Write one node, and what its outputs are called."""
    given = [values.get(name, "") for name in node.input]
    told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Constant":
        values[node.output[0]] = constant(g, constant_of(told))
    elif node.op_type in PASSES_ON:
        values[node.output[0]] = given[0]
    elif node.op_type == "ConstantOfShape":
        values[node.output[0]] = g.op("Expand", constant(g, constant_of(told or {"value": 0.0})), *given)
    elif node.op_type == "Clip":
        values[node.output[0]] = clip(g, [*given, "", ""])
    else:
        values |= zip(node.output, call(g, node, given, told), strict=True)


def constant_of(told: dict[str, Any]) -> np.ndarray:
    """The numbers of a `Constant`."""
    (value,) = told.values()
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def clip(g: Graph, given: list[str]) -> str:
    """`Clip`, either end of which may be missing."""
    value, low, high = given[:3]
    value = g.op("Max", value, low) if low else value
    return g.op("Min", value, high) if high else value


def call(g: Graph, node: onnx.NodeProto, given: list[str], told: dict[str, Any]) -> list[str]:
    """Write a node of an operator that bundles hold; returns its values."""
    kept = {name: value for name, value in told.items() if not neutral(node.op_type, name, value)}
    attributes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()
    }
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        raise InputError(f"policy: operator '{node.op_type}' is none that bundles hold: {', '.join(sorted(OPERATORS))}")
    if unknown := sorted(set(attributes) - ATTRIBUTES):
        raise InputError(
            f"policy: attribute '{unknown[0]}' of '{node.op_type}' is none that bundles hold: {', '.join(sorted(ATTRIBUTES))}"
        )
    if "" in given:
        raise InputError(
            f"policy: '{node.op_type}' leaves out an input, or reads '{node.input[given.index('')]}', which is not there"
        )
    if len(node.output) == 1:
        return [g.op(node.op_type, *given, **attributes)]
    return g.several(node.op_type, given, len(node.output), **attributes)


def neutral(operator: str, name: str, value: Any) -> bool:
    """Whether an attribute changes nothing: a factor of 1 of a product, an axis length of 0 that means itself."""
    if name in ("alpha", "beta") and operator != "Gemm":
        return False
    return name in NEUTRAL and math.isclose(value, NEUTRAL[name])
