"""A torch module as an ONNX model, by torch's own exporter."""

from __future__ import annotations

import copy
import io
import sys
import warnings
from typing import Any

import onnx

from wisp_gym.errors import InputError
from wisp_gym.serving.bundle.onnx_file import OPSET

ROWS = {"observation": "n", "requests": "queue"}  # inputs with a free first axis
QUEUE = 3  # rows of the example that a scorer is exported by


def is_module(given: Any) -> bool:
    """Whether something is a torch module; who gives one has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.nn.Module)


def is_sb3(given: Any) -> bool:
    """Whether something is a model of stable-baselines3."""
    return hasattr(given, "predict") and is_module(getattr(given, "policy", None))


def actor_of(model: Any) -> Any:
    """What scores a model's actions, as a module of the observation: an actor's logits, a Q-network's values.

    Raises:
        InputError: a model that decides by more than the observation (an LSTM), or by continuous actions.
    """
    import torch

    policy = model.policy
    if hasattr(policy, "lstm_actor"):
        raise InputError("policy: given a model with an LSTM, allowed are models that decide by the observation alone")
    if callable(getattr(policy, "q_net", None)):
        return policy.q_net
    if not isinstance(getattr(policy, "action_net", None), torch.nn.Module):
        raise InputError(f"policy: given {type(policy).__name__}, allowed are actors with logits, and Q-networks")
    extractor = policy.features_extractor if policy.share_features_extractor else policy.pi_features_extractor
    return torch.nn.Sequential(extractor, actor_part(policy.mlp_extractor), policy.action_net)


def actor_part(extractor: Any) -> Any:
    """The part of an extractor that the actor reads, as a module."""
    import torch

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extractor = extractor

        def forward(self, features: Any) -> Any:
            return self.extractor.forward_actor(features)

    return Part()


def exported(module: Any, widths: dict[str, int]) -> onnx.ModelProto:
    """The model of a module, called with one input of so many features for each name.

    Raises:
        InputError: torch cannot export it; one line.
    """
    import torch

    example = tuple(torch.zeros(QUEUE if name in ROWS else 1, width) for name, width in widths.items())
    axes = {name: {0: ROWS[name]} for name in widths if name in ROWS}
    buffer: Any = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The exporter that traces: it needs no package besides onnx.
            torch.onnx.export(
                copy.deepcopy(module).cpu().eval(), example, buffer, dynamo=False, opset_version=OPSET, input_names=list(widths),
                dynamic_axes=axes,
            )  # fmt: skip
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"policy: torch cannot export {type(module).__name__}: {reason}") from None
    return onnx.load_from_string(buffer.getvalue())
