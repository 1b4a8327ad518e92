"""Graphs of other people's that score actions, as bundles: clipping before them, a device's masking and decoding behind."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from wisp_gym.errors import InputError
from wisp_gym.scenario import Scenario
from wisp_gym.serving.bundle import onnx_file, schema
from wisp_gym.serving.bundle.protobuf import WireError, message
from wisp_gym.serving.bundle.schema import Origin, Schema
from wisp_gym.serving.bundle.shapes import Shape, check_sizes
from wisp_gym.serving.export import foreign, policies
from wisp_gym.serving.export.graph import DOUBLE, FLOAT, INT64, Graph, bundle_bytes

ROWS = 5  # length of the free axis where shapes are reckoned
MOST = 2**28  # numbers in all values of a graph
WHOLE = (TensorProto.INT32, TensorProto.INT64)
Outputs = list[tuple[str, Shape, int]]  # value, its shape, its element type


def bundle_of_model(model: onnx.ModelProto, decision: str, scenario: Scenario, origin: Origin) -> bytes:
    """The bundle's file.

    Raises:
        InputError: inputs, outputs or operators that a bundle of this decision does not have; one line.
    """
    about = policies.described(decision, True, policies.read_by(decision), scenario, origin)
    g = Graph()
    inside = inputs_of(g, model, about)
    values = foreign.copy(g, model, inside)
    shapes = shapes_in(g, about)
    outputs = [
        (value, shapes[value], output.type.tensor_type.elem_type)
        for value, output in zip(values, model.graph.output, strict=True)
    ]
    if decision in schema.SCORERS:
        of_server(g, outputs, about)
        return bundle_bytes(g, about, scores=True)
    scores = of_device(g, outputs, about)
    policies.decode(g, scores, next(iter(inside.values())), decision, about.max_draft_tokens)
    return bundle_bytes(g, about)


def inputs_of(g: Graph, model: onnx.ModelProto, about: Schema) -> dict[str, str]:
    """What each input of the model is given: the schema's, within the ranges of its features, in the order of the schema's.

    Raises:
        InputError: another number of inputs, or of features.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    told = [(value.name, [d.dim_value or "n" for d in value.type.tensor_type.shape.dim]) for value in given]
    widths = [len(features) for features in about.inputs.values()]
    if [shape[-1:] for _, shape in told] not in ([[n] for n in widths], [["n"] for _ in widths]):
        allowed = " and ".join(
            f"{name} ({'1' if name == 'globals' else 'n'}, {n})" for name, n in zip(about.inputs, widths, strict=True)
        )
        raise InputError(f"policy: inputs given {told}, allowed for '{about.decision}' are {allowed} of float32")
    return {
        value.name: g.within(name, *([feature[k] for feature in features] for k in (2, 3)))
        for value, (name, features) in zip(given, about.inputs.items(), strict=True)
    }


def shapes_in(g: Graph, about: Schema) -> dict[str, Shape]:
    """Shapes of all values so far, with ROWS observations or requests."""
    proto = helper.make_graph(g.nodes, "policy", [], [], list(g.constants.values()))
    read = message(memoryview(proto.SerializeToString()), onnx_file.GRAPH, "graph")
    rows = {"globals": 1}
    inputs = {name: (rows.get(name, ROWS), len(features)) for name, features in about.inputs.items()}
    try:
        return check_sizes(read, onnx_file.tensors_of(read), inputs, MOST)
    except WireError as error:
        raise InputError(
            f"policy: {error}, with {ROWS} rows; is the graph written for another number of them alone?"
        ) from None


def of_device(g: Graph, outputs: Outputs, about: Schema) -> str:
    """(n, actions) scores of a model whose first output are scores, or (n,) actions.

    Raises:
        InputError: another shape.
    """
    value, shape, kind = outputs[0]
    n = len(about.actions)
    if kind in WHOLE and shape in ((ROWS,), (ROWS, 1)):
        chosen = g.op("Reshape", g.cast(value, INT64), g.constant([-1, 1], np.int64))
        return g.cast(g.op("Equal", chosen, g.constant([np.arange(n)], np.int64)), FLOAT)
    if kind not in WHOLE and shape == (ROWS, n):
        return single(g, value, kind)
    given = f"{shape} of {TensorProto.DataType.Name(kind)}"
    raise InputError(
        f"policy: answers {given} for {ROWS} observations, allowed for '{about.decision}' are ({ROWS}, {n}) scores or ({ROWS},) whole actions"
    )


def of_server(g: Graph, outputs: Outputs, about: Schema) -> None:
    """Name the outputs of a scorer: of each request, of all other actions, and of moving each session where it hosts.

    Raises:
        InputError: another number of outputs, or other shapes.
    """
    n, hosts = len(about.actions), about.decision.endswith("hosting")
    allowed = [((ROWS,), (ROWS, 1)), ((n,), (1, n)), *([((ROWS,), (ROWS, 1))] if hosts else [])]
    names = ("scores", "actions", "moves")[: len(allowed)]
    shapes = [shape for _, shape, _ in outputs]
    if len(shapes) != len(names) or any(shape not in fits for shape, fits in zip(shapes, allowed, strict=True)):
        wanted = ", ".join(f"{name} {fits[0]}" for name, fits in zip(names, allowed, strict=True))
        raise InputError(f"policy: answers {shapes} for {ROWS} requests, allowed for '{about.decision}' are {wanted}")
    for name, (value, _, kind) in zip(names, outputs, strict=True):
        shape = [1, -1] if name == "actions" else [-1]
        g.op("Reshape", single(g, value, kind), g.constant(shape, np.int64), output=name)


def single(g: Graph, value: str, kind: int) -> str:
    """A value in single precision."""
    return g.cast(value, FLOAT) if kind == DOUBLE else value
