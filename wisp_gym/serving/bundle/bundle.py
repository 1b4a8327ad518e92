"""A policy bundle: one ONNX file with normalisation, masking and decoding inside and its schema in the metadata.

Loading one runs no code of its author. The file ends with the SHA-256 of all before it (a damaged file is refused), its graph is
checked against an allow-list before onnxruntime sees it (`onnx_file`), and its schema must be the one that this runtime serves.
The seal protects from damage, not from a forger: take bundles from whom you trust to have trained them well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.device import SIZE
from wisp_gym.errors import path_of
from wisp_gym.files import write_bytes
from wisp_gym.serving.bundle import onnx_file, schema
from wisp_gym.serving.bundle.names import find
from wisp_gym.serving.bundle.onnx_file import BOOL, FLOAT, INT64
from wisp_gym.serving.bundle.protobuf import WireError
from wisp_gym.serving.bundle.schema import MOST_REQUESTS, BundleError, Schema
from wisp_gym.serving.bundle.shapes import check_sizes
from wisp_gym.serving.bundle.trial import check_order, first_line, try_out
from wisp_gym.serving.scheduler.factored import Scorer, check_scorer

SEAL_CHARACTERS = 64
MOST_OF_DEVICE, MOST_OF_SERVER = 2**20, 2**28  # numbers in all values of a graph, of one device or of the longest queue
Ends = dict[str, tuple[int, tuple[int | str, ...]]]  # element type and shape by name; a text is a free dimension


def signature_of(described: Schema, scores: bool = False) -> tuple[Ends, Ends]:
    """Inputs and outputs that a graph of a schema has.

    Args:
        scores: of a scorer of an architecture of its own, which answers scores instead of what is best.
    """
    if described.decision in schema.OF_DEVICES:
        return {"observation": (FLOAT, ("n", SIZE))}, {"action": (INT64, ("n",))}
    rows: dict[str, int | str] = {"requests": "queue", "globals": 1}
    inputs: Ends = {name: (FLOAT, (rows[name], len(features))) for name, features in described.inputs.items()}
    if described.decision not in schema.SCORERS:
        return inputs, {"key": (FLOAT, ("queue",)), "leads": (BOOL, ("queue",)), "limit": (FLOAT, ("queue",))}
    hosts = OF_SERVERS[described.decision].lengths > 0
    if scores:
        outputs: Ends = {"scores": (FLOAT, ("queue",)), "actions": (FLOAT, (1, len(described.actions)))}
        return inputs, outputs | ({"moves": (FLOAT, ("queue",))} if hosts else {})
    decided: Ends = {"pick": (INT64, (1,)), "takes": (BOOL, (1,)), "other": (INT64, (1,))}
    return inputs, decided | ({"moves": (BOOL, ("queue",))} if hosts else {})


@dataclass(frozen=True, eq=False)
class Bundle:
    """A policy ready to decide.

    Attributes:
        schema: what it says of itself. sha256: of the file. data: the file. session: onnxruntime's, on one thread.
        scorer: its tensors where it picks request by request, and the graph is that of `wisp_gym.rules.scorer`.
    """

    schema: Schema
    sha256: str
    data: bytes = field(repr=False)
    session: Any = field(repr=False)
    scorer: Scorer | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or another process, is handed: all but the session, which cannot travel."""
        return {**self.__dict__, "session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same bundle, with a session of its own."""
        self.__dict__.update(state, session=open_session(state["data"]))

    def save(self, path: str | Path) -> None:
        """Write the file whole, or leave what was there.

        Raises:
            BundleError: the place cannot be written.
        """
        try:
            write_bytes(path_of("path", path, BundleError), self.data)
        except OSError as error:
            raise BundleError(f"{path}: cannot be written: {error.strerror}") from None

    def decide(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The graph's outputs for its inputs, (n, SIZE) float32 `observation` for speculation."""
        outputs: list[NDArray[Any]] = self.session.run(None, inputs)
        return outputs


def load_bundle(name: str | Path, decision: str = "") -> Bundle:
    """Read a bundle by its name: a shipped one (`speculation-v1`, `batching-wisp`), a rule's (`aligned`), a file, a run's folder.

    Args:
        decision: "token" or "batching", where the name of a rule of devices and of servers (`wisp`) leaves it open (`names.find`).

    Raises:
        BundleError: unknown name, missing, damaged or oversized file, a graph or schema that is not allowed; one line.
    """
    path = find(name, decision)
    try:
        if not path.is_file():
            raise BundleError("no such file")
        if path.stat().st_size > onnx_file.MAX_BYTES:
            raise BundleError(f"{path.stat().st_size} bytes, allowed are {onnx_file.MAX_BYTES}")
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def from_bytes(data: bytes) -> Bundle:
    """The bundle of a file's bytes; raises BundleError."""
    if len(data) > onnx_file.MAX_BYTES:
        raise BundleError(f"{len(data)} bytes, allowed are {onnx_file.MAX_BYTES}")
    check_seal(data)
    try:
        model = onnx_file.read_model(data)
        described = read_schema(model["metadata_props"])
        scores = check_signature(model["graph"], described)
        check_sizes(model["graph"], onnx_file.tensors_of(model["graph"]), *largest(described))
    except WireError as error:
        raise BundleError(str(error)) from None
    bundle = Bundle(described, data[-SEAL_CHARACTERS:].decode(), data, open_session(data))
    try_out(bundle.decide, described, signature_of(described, scores)[1])
    if scores:
        check_order(bundle.decide, described)
        return bundle
    return with_scorer(bundle, model["graph"]) if described.decision in schema.SCORERS else bundle


def largest(described: Schema) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of the inputs of one decision at the most, and how many numbers all values of the graph may hold then."""
    if described.decision in schema.OF_DEVICES:
        return {"observation": (1, SIZE)}, MOST_OF_DEVICE
    rows = {"requests": MOST_REQUESTS, "globals": 1}
    return {name: (rows[name], len(features)) for name, features in described.inputs.items()}, MOST_OF_SERVER


def with_scorer(bundle: Bundle, graph: dict[str, Any]) -> Bundle:
    """The bundle with the tensors of its scorer, by which its graph must decide."""
    scorer = Scorer(onnx_file.tensors_of(graph), *OF_SERVERS[bundle.schema.decision], bundle.schema.max_draft_tokens)
    try:
        check_scorer(scorer, bundle.decide)
    except (ValueError, TypeError) as error:
        raise BundleError(str(error)) from None
    return replace(bundle, scorer=scorer)


def seal(data: bytes) -> bytes:
    """SHA-256 of all but the last 64 bytes of a file, as it stands there."""
    return hashlib.sha256(data[:-SEAL_CHARACTERS]).hexdigest().encode()


def check_seal(data: bytes) -> None:
    """The file must be whole."""
    if len(data) <= SEAL_CHARACTERS or data[-SEAL_CHARACTERS:] != seal(data):
        raise BundleError("not a whole policy bundle: its last 64 characters must be the SHA-256 of all before them")


def read_schema(properties: list[dict[str, str]]) -> Schema:
    """The schema in the metadata; the seal is its only neighbour."""
    given = [entry.get("key") for entry in properties]
    if given != [schema.KEY, schema.SEAL]:
        raise BundleError(f"metadata: given {given}, allowed are {[schema.KEY, schema.SEAL]}")
    return schema.parse(properties[0].get("value", ""))


def check_signature(graph: dict[str, Any], described: Schema) -> bool:
    """Inputs and outputs of the graph must be those of its schema; returns whether they are scores."""
    given, wanted = (onnx_file.signature(graph["input"]), onnx_file.signature(graph["output"])), signature_of(described)
    if described.decision in schema.SCORERS and given == signature_of(described, scores=True):
        wanted = given
    if given != wanted or len(graph["input"]) != len(given[0]) or len(graph["output"]) != len(given[1]):
        raise BundleError(f"graph: inputs and outputs given {given}, allowed for '{described.decision}' are {wanted}")
    return "scores" in wanted[1]


def open_session(data: bytes) -> Any:
    """An onnxruntime session on one thread of the processor.

    Raises:
        BundleError: onnxruntime refuses the graph, or is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BundleError("needs onnxruntime; install wisp-gym[serve]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Graphs of a few numbers: planning memory takes longer than it saves.
    options.enable_mem_reuse = options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # what is wrong is raised, not printed
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise BundleError(f"onnxruntime refuses the graph: {first_line(error)}") from None
