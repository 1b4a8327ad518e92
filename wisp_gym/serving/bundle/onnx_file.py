"""What an ONNX file of a bundle may hold, checked before onnxruntime sees it: a small feed-forward graph and nothing else.

Allowed: opset 18 of the standard domain, the operators of `shapes` with plain attributes, tensors inside the file. So a bundle
cannot name other files, loop, branch, or bring operators, functions or libraries of its own; how large its values are is reckoned
beforehand (`shapes`).
Field numbers: onnx/onnx.proto of ONNX 1.23.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.serving.bundle.protobuf import MANY, WireError, message, table
from wisp_gym.serving.bundle.shapes import RULES

OPSET, IR_VERSION = 18, 10  # old enough for every runtime of the last years
MAX_BYTES, MAX_NODES, MAX_TENSORS, MAX_DIMENSION, MAX_AXES = 4 * 2**20, 256, 256, 512, 4

OPERATORS = frozenset(RULES)
ATTRIBUTES = frozenset(
    (
        "allowzero",
        "alpha",
        "axes",
        "axis",
        "beta",
        "epsilon",
        "gamma",
        "keepdims",
        "num_outputs",
        "perm",
        "to",
        "transA",
        "transB",
    )
)

FLOAT, INT64, BOOL, DOUBLE = 1, 7, 9, 11
DTYPES = {FLOAT: np.float32, INT64: np.int64, BOOL: np.bool_, DOUBLE: np.float64}

# --- the tables -------------------------------------------------------------------------------------------------------

TENSOR = table(dims=(1, "int", MANY), data_type=(2, "int"), name=(8, "text"), raw_data=(9, "bytes"))
DIMENSION = table(value=(1, "int"), parameter=(2, "text"))
SHAPE = table(dim=(1, DIMENSION, MANY))
TENSOR_TYPE = table(elem_type=(1, "int"), shape=(2, SHAPE))
TYPE = table(tensor_type=(1, TENSOR_TYPE))
VALUE = table(name=(1, "text"), type=(2, TYPE))
ATTRIBUTE = table(name=(1, "text"), f=(2, "float"), i=(3, "int"), ints=(8, "int", MANY), type=(20, "int"))
NODE = table(
    input=(1, "text", MANY), output=(2, "text", MANY), name=(3, "text"), op_type=(4, "text"), attribute=(5, ATTRIBUTE, MANY)
)  # fmt: skip
GRAPH = table(
    node=(1, NODE, MANY), name=(2, "text"), initializer=(5, TENSOR, MANY), input=(11, VALUE, MANY), output=(12, VALUE, MANY)
)  # fmt: skip
OPERATOR_SET = table(domain=(1, "text"), version=(2, "int"))
PROPERTY = table(key=(1, "text"), value=(2, "text"))
MODEL = table(
    ir_version=(1, "int"), producer_name=(2, "text"), graph=(7, GRAPH), opset_import=(8, OPERATOR_SET, MANY),
    metadata_props=(14, PROPERTY, MANY),
)  # fmt: skip

# --- the checks -------------------------------------------------------------------------------------------------------


def read_model(data: bytes) -> dict[str, Any]:
    """The model of a file whose graph is allowed.

    Raises:
        WireError: anything that is not allowed; one line.
    """
    model = message(memoryview(data), MODEL, "model")
    given = [(entry.get("domain", ""), entry.get("version")) for entry in model["opset_import"]]
    if given != [("", OPSET)]:
        raise WireError(f"operator sets: given {given}, allowed is {OPSET} of the standard domain")
    if model.get("ir_version") != IR_VERSION:
        raise WireError(f"ir_version: given {model.get('ir_version')}, allowed is {IR_VERSION}")
    check_graph(model.get("graph") or {})
    return model


def check_graph(graph: dict[str, Any]) -> None:
    """Few nodes of allowed operators, in an order in which each reads only what is there already."""
    nodes, tensors = graph.get("node", []), graph.get("initializer", [])
    if not 1 <= len(nodes) <= MAX_NODES or len(tensors) > MAX_TENSORS:
        given = f"{len(nodes)} nodes and {len(tensors)} tensors"
        raise WireError(f"graph: {given}, allowed are 1 to {MAX_NODES} and {MAX_TENSORS}")
    known: set[str] = set()
    for value in (*graph["input"], *tensors):
        define(known, value.get("name", ""), "graph")
    for tensor in tensors:
        check_tensor(tensor)
    for node in nodes:
        check_node(node, known)
    for value in graph["output"]:
        if value.get("name") not in known:
            raise WireError(f"graph: output {value.get('name')!r} is computed by no node")


def define(known: set[str], name: str, where: str) -> None:
    """Add a name that must be new."""
    if not name or name in known:
        raise WireError(f"{where}: name {name!r} is empty or given twice")
    known.add(name)


def check_node(node: dict[str, Any], known: set[str]) -> None:
    """An allowed operator on known values, with plain attributes."""
    operator = node.get("op_type", "")
    if operator not in OPERATORS:
        raise WireError(f"operator {operator!r} is not allowed; allowed: {', '.join(sorted(OPERATORS))}")
    if not node["input"]:
        raise WireError(f"{operator}: no input")
    for name in node["input"]:
        if name not in known:
            raise WireError(f"{operator}: input {name!r} is not there")
    for attribute in node["attribute"]:
        if attribute.get("name") not in ATTRIBUTES:
            raise WireError(f"{operator}: attribute {attribute.get('name')!r} is not allowed")
        if not math.isfinite(attribute.get("f", 0.0)):
            raise WireError(f"{operator}: attribute {attribute['name']!r} is not a finite number")
    for name in node["output"]:
        define(known, name, operator)


def check_tensor(tensor: dict[str, Any]) -> None:
    """Numbers of the stated shape, all finite."""
    name, dims, kind = tensor.get("name"), tensor["dims"], tensor.get("data_type")
    if kind not in DTYPES or len(dims) > MAX_AXES or not all(0 < n <= MAX_DIMENSION for n in dims):
        raise WireError(f"tensor {name!r}: type {kind} of shape {dims} is not allowed")
    dtype, raw = np.dtype(DTYPES[kind]), tensor.get("raw_data", b"")
    if len(raw) != dtype.itemsize * math.prod(dims):
        raise WireError(f"tensor {name!r}: {len(raw)} bytes for the shape {dims}")
    if kind == BOOL and not set(raw) <= {0, 1}:
        raise WireError(f"tensor {name!r}: flags must be 0 or 1")
    if kind != BOOL and not np.isfinite(np.frombuffer(raw, dtype)).all():
        raise WireError(f"tensor {name!r}: must be finite numbers")


def tensors_of(graph: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The graph's tensors by name."""
    return {
        tensor["name"]: np.frombuffer(tensor.get("raw_data", b""), DTYPES[tensor["data_type"]]).reshape(tensor["dims"])
        for tensor in graph["initializer"]
    }


def signature(values: list[dict[str, Any]]) -> dict[str, tuple[int, tuple[int | str, ...]]]:
    """Element type and shape of a graph's inputs or outputs by name; a free dimension is its name."""
    found = {}
    for value in values:
        kind = value.get("type", {}).get("tensor_type", {})
        dims = kind.get("shape", {}).get("dim", [])
        shape = tuple(d.get("value", d.get("parameter", "")) for d in dims)
        found[value.get("name", "")] = (kind.get("elem_type", 0), shape)
    return found
