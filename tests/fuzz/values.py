"""Arguments for a fuzz: what a parameter asks for, by its annotation, or anything else that a caller may hand over."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.small_worlds import BASE, horizon
from wisp_gym import serving
from wisp_gym.contract import device, request, server
from wisp_gym.controllers.policy import load_policy, save_policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.engine.state import TRACE_ROW
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation.metrics import measure
from wisp_gym.policies import load as load_named
from wisp_gym.rules import scorer
from wisp_gym.rules.catalogue import ADDITIONS, ALIASES, BATCHING, CENTRALIZED, SPECULATION
from wisp_gym.rules.rejection_predictor import load_predictor, save_predictor, shipped
from wisp_gym.scenario import dumps, presets, with_
from wisp_gym.traces.requests import read_trace, sample_path
from wisp_gym.traces.speculation import read_speculation_trace, samples

Make = Callable[[random.Random], Any]
SMALL = with_(BASE, n_devices=3, horizon=horizon(0.0, 2.0))
TOKEN = serving.Token(0.5, 0.6, 1.0, 0.2, 3.0)
REPLY = serving.Reply(1, 2, 1, True, 0.02, 0.05, 0.0, 0.5, 0.01)
PROFILE = serving.DeviceProfile(5.0, 0.02, 0.02, 0.7, 0.05)
WORDS = (
    "", " ", "\0", "a\nb", "nan", "wisp", "wisp+wisp", "fixed:4+fcfs", "azure", "mooncake", "token", "length", "joint", "tanh", "x" * 5000, "é",
    "../nowhere", "speculation-v1", "batching-wisp.onnx", "python-10m-1m.npz", "python-10m-1m.json", BASE.name, "{", "0", "-1", "devices.0.share",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 32, 33, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40, 0.0, -0.0, 0.5, 1.0, 1.5, -3.25, 1e-300, 1e-9, 1e9, 1e18,
    1e300, 5e-324, math.inf, -math.inf, math.nan, True, False, np.int8(-3), np.uint64(2**63), np.float32(0.5), np.bool_(True), 1j,
)  # fmt: skip


class Awkward:
    """An object of somebody else's, of which nothing works."""

    def __repr__(self) -> str:
        raise RuntimeError("no\nname")

    def __len__(self) -> int:
        return -1


@cache
def folder() -> Path:
    """A folder for what is written, with files to read: whole, damaged, empty."""
    place = Path(tempfile.mkdtemp(prefix="wisp-fuzz-"))
    save_policy(load_policy("speculation-v1"), place / "policy.json")
    save_predictor(load_predictor(next(iter(shipped()))), place / "predictor.json")
    (place / "scenario.toml").write_text(dumps(SMALL))
    for name in ("azure-conv-like.csv", "mooncake-conv-like.jsonl"):
        (place / name).write_bytes(sample_path(name).read_bytes()[:4000])
    (place / "trace.npz").write_bytes(next(iter(samples().values())).read_bytes())
    (place / "bundle.onnx").write_bytes(
        (Path(serving.__file__).parents[1] / "data/bundles/batching-fcfs.onnx").read_bytes()
    )
    (place / "empty").touch()
    return place


def a_file(rng: random.Random) -> str:
    """The path of a file, often a damaged one, of a folder, or of nothing."""
    path = rng.choice(sorted(path for path in folder().iterdir() if path.is_file()))
    if rng.random() < 0.5:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 3, 30])):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        cut = rng.choice([len(content), len(content), rng.randrange(len(content) + 1)])
        path = folder() / f"damaged{rng.randrange(20)}{path.suffix}"
        path.write_bytes(content[:cut])
    return rng.choice([str(path)] * 6 + [str(folder()), str(folder() / "none.json"), str(folder() / "no" / "file")])


def an_array(rng: random.Random) -> Any:
    """An array of some type, size, order and content."""
    sizes = [0, 1, 2, 3, device.SIZE, server.SIZE + request.SIZE, 100, 5000]
    shape = tuple(
        rng.choice(sizes if rng.random() < 0.7 else [1, 2, 3]) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))
    )
    while math.prod(shape) > 10**6:
        shape = shape[1:]
    kind = rng.choice(["f4", "f8", "i8", "i4", "u1", "?", ">f4", ">i8", "f2", "O", "U3", "M8[s]", TRACE_ROW])
    made = np.zeros(shape, kind)
    if made.dtype.kind in "fiu":
        fill = np.random.default_rng(rng.randrange(2**32))
        with np.errstate(all="ignore"):
            made = (fill.standard_normal(shape) * rng.choice([0, 1, 1e3, 1e30])).astype(made.dtype)
        if made.size and made.dtype.kind == "f" and rng.random() < 0.2:
            made.flat[fill.integers(made.size)] = rng.choice([math.nan, math.inf, -math.inf])
    if rng.random() < 0.2 and made.ndim:
        made = np.repeat(made, 2, axis=0)[::2]
    if rng.random() < 0.2 and made.ndim:
        made.flags.writeable = False
    return rng.choice([made, made, made, made.tolist() if made.size < 1000 else made])


def anything(rng: random.Random) -> Any:
    """Whatever a caller may hand over by mistake."""
    return rng.choice([
        lambda: None, lambda: rng.choice(NUMBERS), lambda: rng.choice(WORDS), lambda: an_array(rng), lambda: a_file(rng), lambda: b"bytes",
        lambda: [rng.choice(NUMBERS) for _ in range(rng.choice([0, 1, 3, 40]))], lambda: {rng.choice(WORDS): rng.choice(NUMBERS)}, dict, list, tuple,
        Awkward, object, lambda: int, lambda: (i for i in range(3)), lambda: [[1], [2, 3]], lambda: {"a", 1},
        lambda: rng.choice(list(EXACT.values()))(rng),
    ])()  # fmt: skip


def a_controller_name(rng: random.Random) -> str:
    """A name of the grammar of controllers, with settings that may be impossible."""

    def piece(rules: Any) -> str:
        name = rng.choice(sorted(rules))
        values = ",".join(repr(rng.choice(NUMBERS)) for _ in range(rng.choice([0, 0, 0, 1, 2, 3])))
        return f"{name}:{values}" if values else name

    kinds = [
        lambda: piece(SPECULATION) + "+" + piece(BATCHING),
        lambda: piece(CENTRALIZED),
        lambda: rng.choice([*ALIASES, "speculation-v1", "joint-v1"]),
    ]
    name = rng.choice(kinds)()
    return name + (f"+{piece(ADDITIONS)}" if rng.random() < 0.3 else "") + rng.choice(["", "", "", "", "+", ")", " "])


def a_controller(rng: random.Random) -> Any:
    """A controller by its name, where that can be resolved."""
    try:
        return resolve(a_controller_name(rng), SMALL)
    except ValueError:
        return resolve("wisp", SMALL)


def worlds(rng: random.Random) -> Worlds:
    """Worlds that are ready to run."""
    made = Worlds(2, 3, log_rows=rng.choice([0, 5, 1000]), threads=1)
    for index in range(2):
        made.fill(index, SMALL, index, a_controller(rng))
    return made


def run_worlds(rng: random.Random) -> Worlds:
    """Worlds that have run."""
    made = worlds(rng)
    made.run()
    return made


def some(make: Make, least: int = 0) -> Make:
    """A list of several."""
    return lambda rng: [make(rng) for _ in range(rng.choice([least, 1, 2, 5]))]


def estimator(rng: random.Random) -> Any:
    """One of the shipped estimators."""
    return serving.VerificationTimeEstimator.load("a100-80gb--qwen3-32b")


def limits(rng: random.Random) -> Any:
    """Of a server's batch."""
    return serving.ServerLimits(
        rng.choice([1, 500, 38_000]), rng.choice([1, 16]), rng.choice([0, 64]), rng.choice([0.0, 0.9])
    )


def a_request(rng: random.Random) -> Any:
    """A request that waits at a server, with facts that may be impossible."""
    facts = {name: rng.choice([0, 1, 4, 100]) for name in serving.Request.__dataclass_fields__ if name != "name"}
    if rng.random() < 0.3:
        facts[rng.choice(sorted(facts))] = rng.choice(NUMBERS)
    return serving.Request("mine", **facts)


def layers(rng: random.Random) -> Any:
    """Layers of a network, mostly of shapes that chain."""
    fill = np.random.default_rng(rng.randrange(2**32))
    widths = [
        rng.choice([device.SIZE, 4]),
        *(rng.choice([1, 8]) for _ in range(rng.choice([0, 1, 2]))),
        rng.choice([1, 2, 13]),
    ]
    made = [(fill.standard_normal((b, a)).astype(np.float32), np.zeros(b, np.float32)) for a, b in pairwise(widths)]
    return made if rng.random() < 0.8 else [(an_array(rng), an_array(rng))]


def bundle(decision: str) -> Make:
    """A shipped bundle."""
    names = {"token": ["wisp", "speculation-v1"], "batching": ["batching-wisp.onnx", "batching-v1"]}[decision]
    return lambda rng: serving.load_bundle(rng.choice(names), decision)


# Word of an annotation → what fits it. Longer words are looked for first.
EXACT: dict[str, Make] = {
    "Scenario": lambda rng: SMALL,
    "Controller": a_controller,
    "Policy": lambda rng: load_policy("speculation-v1"),
    "ScorerPolicy": lambda rng: load_scorer(rng.choice(["batching-v1", "joint-v1"])),
    "Predictor": lambda rng: load_predictor(next(iter(shipped()))),
    "Plan": lambda rng: resolve("dipsd", SMALL).plan,
    "Worlds": worlds,
    "World": lambda rng: run_worlds(rng).arrays,
    "Metrics": lambda rng: measure(run_worlds(rng).arrays, 0, SMALL),
    "RequestTrace": lambda rng: read_trace(sample_path("azure-conv-like.csv"), "azure"),
    "SpeculationTrace": lambda rng: read_speculation_trace(next(iter(samples().values()))),
    "SpeculationPredictor": lambda rng: SpeculationPredictor(
        rng.choice(["fixed", "wisp", "oracle", "aligned", "speculation-v1"]), SMALL
    ),
    "BatchingPredictor": lambda rng: BatchingPredictor(
        rng.choice(["wisp", "edf", "batching-v1", "static:4,0.1"]), SMALL
    ),
    "VerificationTimeEstimator": estimator,
    "ServerLimits": limits,
    "Request": a_request,
    "Token": lambda rng: TOKEN,
    "Reply": lambda rng: REPLY,
    "DeviceProfile": lambda rng: PROFILE,
    "Batch": lambda rng: serving.Batch([0], [5], 0.1, 50.0, 10.0),
    "Bundle": lambda rng: bundle(rng.choice(["token", "batching"]))(rng),
    "BatchScheduler": lambda rng: serving.BatchScheduler(bundle("batching")(rng), estimator(rng), limits(rng)),
    "FirstComeFirstServed": lambda rng: serving.FirstComeFirstServed(estimator(rng), limits(rng)),
    "Scheduler": lambda rng: serving.FirstComeFirstServed(estimator(rng), limits(rng)),
    "SpeculationController": lambda rng: serving.SpeculationController(bundle("token")(rng), PROFILE),
    "Loaded": lambda rng: load_named(rng.choice(["speculation-v1", "batching-v1", "wisp", "fixed:4"])),
    "Shape": lambda rng: scorer.Shape(request.SIZE, server.SIZE, 4, 4, 4, 1, 12, 0),
}
PLAIN: dict[str, Make] = {
    "bool": lambda rng: rng.random() < 0.5,
    "int": lambda rng: rng.choice([0, 1, 2, 3, 8, 20]),
    "float": lambda rng: rng.choice([0.0, 0.1, 0.5, 1.0, 3.0]),
    "Path": a_file,
    "ndarray": an_array,
    "NDArray": an_array,
    "ArrayLike": an_array,
    "None": lambda rng: None,
}
BY_NAME: dict[str, Make] = {
    "controller": a_controller_name, "controllers": some(a_controller_name, 1), "seeds": lambda rng: rng.choice([[0], [1, 2], range(3)]),
    "layers": layers, "scenario": lambda rng: rng.choice([SMALL, BASE.name, *presets()]) if rng.random() < 0.2 else SMALL, "queue": some(a_request),
    "name": a_controller_name, "observation": lambda rng: np.zeros((2, device.SIZE), np.float32), "threads": lambda rng: rng.choice([None, 1, 2]),
    "path": a_file, "path_or_name": a_file, "format": lambda rng: rng.choice(["azure", "mooncake"]), "text": lambda rng: dumps(SMALL),
}  # fmt: skip


def fitting(name: str, annotation: str, rng: random.Random) -> Any:
    """A value that a parameter asks for, as far as its name and annotation tell."""
    if name in BY_NAME and rng.random() < 0.8:
        return BY_NAME[name](rng)
    words = [word for word in re.findall(r"[A-Za-z_]+", annotation) if word in EXACT or word in PLAIN]
    if not words:
        return rng.choice(WORDS) if "str" in annotation else anything(rng)
    make = (EXACT | PLAIN)[rng.choice(words)]
    return some(make)(rng) if re.search(r"Sequence|list|Iterable|tuple", annotation) else make(rng)


def value_for(name: str, annotation: str, hostile: float, rng: random.Random) -> Any:
    """A fitting value, or with this probability anything."""
    return anything(rng) if rng.random() < hostile else fitting(name, annotation, rng)


def scenario_changes(rng: random.Random) -> dict[str, Any]:
    """Dotted paths with values, mostly of numbers."""
    paths = [
        "n_devices",
        "max_draft_tokens",
        "workload.think_s",
        "server.noise",
        "horizon.measure_s",
        "devices.0.link.loss",
        "slo",
        "devices",
        "nothing",
    ]
    return {rng.choice(paths): anything(rng) for _ in range(rng.choice([1, 2]))}
