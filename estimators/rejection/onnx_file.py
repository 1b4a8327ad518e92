"""A rejection predictor as an ONNX graph: raw statistics of n tokens in, their probabilities of acceptance out.

The graph is a handful of nodes, written out with `onnx.helper`; equal predictors give equal bytes.
"""

import json

import onnx
from onnx import TensorProto, helper, numpy_helper

from wisp_gym.rules.rejection_predictor import INPUTS, VERSION, Predictor

OPSET, IR_VERSION = 18, 10  # old enough for every runtime of the last years
UNITS = ("probability", "nats", "probability", "logits")  # of the inputs
ACTIVATION = {"relu": "Relu", "tanh": "Tanh"}


def graph(predictor: Predictor) -> bytes:
    """Return the ONNX model: `statistics` float32 (n, 4) to `acceptance` float32 (n, 1), metadata with the threshold."""
    nodes, constants, values = [], [], "statistics"
    for i, (w, b) in enumerate(predictor.layers):
        constants += [numpy_helper.from_array(w, f"W{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [values, f"W{i}", f"b{i}"], [f"z{i}"], transB=1))
        last = i == len(predictor.layers) - 1
        values = "acceptance" if last else f"a{i}"
        nodes.append(helper.make_node("Sigmoid" if last else ACTIVATION[predictor.activation], [f"z{i}"], [values]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("statistics", len(INPUTS)), ("acceptance", 1))
    ]
    made = helper.make_graph(nodes, "rejection predictor", ends[:1], ends[1:], constants)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="wisp-gym")
    helper.set_model_props(model, metadata(predictor))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def metadata(predictor: Predictor) -> dict[str, str]:
    """Return what a runtime must know beside the graph; every value is text, lists and objects are JSON."""
    return {
        "format": "wisp-gym rejection predictor",
        "version": str(VERSION),
        "inputs": json.dumps(INPUTS),
        "units": json.dumps(UNITS),
        "output": "probability that the token is accepted, given that all before it are",
        "threshold": repr(predictor.threshold),
        "about": json.dumps(predictor.about, sort_keys=True),
    }
