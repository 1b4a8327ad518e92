"""An ONNX file that decides for devices: a policy bundle, or any graph of the observation."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import device
from wisp_gym.errors import InputError, require


class OnnxFile:
    """Decides by a graph with one input, (n, SIZE) float32 observations, and as first output (n,) actions or (n, actions) scores.

    Args:
        path: the file. It runs in onnxruntime, which runs no code of the file's author.

    Raises:
        InputError: no such file, or another signature; one line.
    """

    def __init__(self, path: str | PathLike[str]):
        require("onnxruntime", "serve")
        import onnxruntime

        self.path = fspath(path)
        if not Path(self.path).is_file():
            raise InputError(f"{self.path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong is raised, not printed
        try:
            self.session: Any = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise InputError(f"{self.path}: onnxruntime refuses it: {str(error).splitlines()[0]}") from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].shape[1] not in (device.SIZE, None):
            given = [(each.name, each.shape) for each in inputs]
            raise InputError(f"{self.path}: inputs given {given}, allowed is one of (n, {device.SIZE}) observations")
        self.input = inputs[0].name

    def predict(self, observation: np.ndarray) -> tuple[np.ndarray, None]:
        """(n,) actions."""
        found = np.asarray(self.session.run(None, {self.input: observation})[0])
        return (found.argmax(1) if found.ndim == 2 else found), None
