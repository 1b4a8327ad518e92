"""An ONNX file that decides for devices: a policy bundle, or any graph of the observation."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import device
from wisp_gym.errors import InputError, require
from wisp_gym.serving.bundle.schema import KEY, parse


def session_of(path: str | PathLike[str]) -> Any:
    """An onnxruntime session on one thread; it runs no code of the file's author.

    Raises:
        InputError: no such file, or onnxruntime is not installed or refuses it; one line.
    """
    require("onnxruntime", "serve")
    import onnxruntime

    if not Path(path).is_file():
        raise InputError(f"{fspath(path)}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised, not printed
    try:
        return onnxruntime.InferenceSession(fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise InputError(f"{fspath(path)}: onnxruntime refuses it: {str(error).splitlines()[0]}") from None


def check_inputs(path: str | PathLike[str], session: Any, widths: dict[str, int]) -> list[str]:
    """Names of a graph's inputs, which must be matrices with so many columns.

    Raises:
        InputError: another number of inputs, or another width.
    """
    inputs = session.get_inputs()
    fits = [
        len(each.shape) == 2 and each.shape[1] in (width, None)
        for each, width in zip(inputs, widths.values(), strict=False)
    ]
    if len(inputs) != len(widths) or not all(fits):
        given = [(each.name, each.shape) for each in inputs]
        allowed = " and ".join(f"(n, {width}) {name}" for name, width in widths.items())
        raise InputError(f"{fspath(path)}: inputs given {given}, allowed are {allowed}")
    return [each.name for each in inputs]


class OnnxFile:
    """Decides by a graph with one input, (n, SIZE) float32 observations, and as first output (n,) actions or (n, actions) scores.

    Args:
        path: the file.

    Attributes:
        decides: what a bundle says that it decides; empty of any other graph.

    Raises:
        InputError: no such file, or another signature; one line.
    """

    def __init__(self, path: str | PathLike[str]):
        self.path, self.session = fspath(path), session_of(path)
        told = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        self.decides = parse(told).decision if told else ""
        (self.input,) = check_inputs(path, self.session, {"observations": device.SIZE})

    def predict(self, observation: np.ndarray) -> tuple[np.ndarray, None]:
        """(n,) actions."""
        found = np.asarray(self.session.run(None, {self.input: observation})[0])
        return (found.argmax(1) if found.ndim == 2 else found), None
