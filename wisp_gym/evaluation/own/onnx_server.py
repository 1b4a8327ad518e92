"""An ONNX file that composes batches: a bundle of our own scorer runs in the engine, one of another architecture is asked."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS, sets_prices
from wisp_gym.contract.ladders import CHUNK_TOKENS
from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer
from wisp_gym.errors import InputError
from wisp_gym.evaluation.own.onnx_file import check_inputs, session_of

ACTIONS = {name: decision.launches + 1 + len(CHUNK_TOKENS) + decision.lengths for name, decision in OF_SERVERS.items()}


def of_file(path: str | PathLike[str]) -> "ScorerPolicy | OnnxServer":
    """What an ONNX file decides with: the weights of our own scorer where it is the bundle of one, else its graph.

    Raises:
        InputError: no such file, no bundle that can be read, or another signature; one line.
    """
    asked = OnnxServer(path)
    if asked.names[:1] != ["pick"]:
        return asked
    from wisp_gym.serving.bundle.bundle import load_bundle  # needs onnxruntime

    bundle = load_bundle(Path(path))
    assert bundle.scorer is not None  # what picks has one
    return make_scorer(bundle.scorer.layers(), bundle.schema.decision)


class OnnxServer:
    """Composes batches by a graph of (queue, 28) requests and (1, 21) facts of the server, in each world for itself.

    It answers (queue,) scores of the requests, (1, actions) of all else, and of one that hosts (queue,) of moving each session.

    Args:
        path: the file.

    Attributes:
        decision: what it decides, as its number of actions says.

    Raises:
        InputError: no such file, or another signature; one line.
    """

    def __init__(self, path: str | PathLike[str]):
        self.path, self.session = fspath(path), session_of(path)
        widths = {"requests": request.SIZE, "globals": server.SIZE}
        self.inputs = check_inputs(path, self.session, widths)
        self.names = [output.name for output in self.session.get_outputs()]
        self.decision = "" if self.names[:1] == ["pick"] else self.decision_of()

    def decision_of(self) -> str:
        """The decision whose number of actions the graph scores, as a trial shows."""
        trial = [np.zeros((3, request.SIZE), np.float32), np.zeros((1, server.SIZE), np.float32)]
        try:
            answers = [
                np.asarray(answer) for answer in self.session.run(None, dict(zip(self.inputs, trial, strict=True)))
            ]
        except Exception as error:
            raise InputError(f"{self.path}: cannot be run: {str(error).splitlines()[0]}") from None
        sizes = [answer.size for answer in answers]
        for decision, n in ACTIONS.items():
            if sizes == ([3, n, 3] if OF_SERVERS[decision].lengths else [3, n]):
                return decision
        allowed = ", ".join(f"{n} ({decision})" for decision, n in ACTIONS.items())
        raise InputError(
            f"{self.path}: answers {sizes} scores of 3 requests, allowed are 3, then as many as of {allowed}"
        )

    @property
    def prices(self) -> bool:
        """Whether it sets prices."""
        return sets_prices(self.decision)

    @property
    def hosting(self) -> bool:
        """Whether it says for whom the server drafts."""
        return OF_SERVERS[self.decision].lengths > 0

    def predict(self, observation: np.ndarray, action_masks: np.ndarray) -> tuple[np.ndarray, None]:
        """(n,) actions of n worlds."""
        pairs = zip(observation, action_masks, strict=True)
        return np.array([self.choose(seen, mask) for seen, mask in pairs], np.int64), None

    def choose(self, seen: np.ndarray, mask: np.ndarray) -> int:
        """The valid action with the highest score; requests whose context is in memory join by themselves."""
        rows = seen[server.SIZE :].reshape(-1, request.SIZE)
        waits = rows[:, request.PRESENT] > 0.5
        given: list[Any] = [rows[waits], seen[None, : server.SIZE]]
        picks, actions, *moves = (
            np.ravel(answer) for answer in self.session.run(None, dict(zip(self.inputs, given, strict=True)))
        )
        scores = np.full(len(mask), -np.inf)
        n, places = len(rows), np.flatnonzero(waits)
        scores[places] = np.where(rows[waits, request.UNCACHED_TOKENS] > 0.0, picks, -np.inf)
        scores[n : n + len(actions)] = actions
        if moves:
            scores[n + len(actions) + places] = np.where(rows[waits, request.STAYS] > 0.5, -moves[0], moves[0])
        return int(np.where(mask, scores, -np.inf).argmax())
