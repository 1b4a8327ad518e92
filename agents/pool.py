"""Where a command's jobs run: on this machine's threads (`wisp_gym.evaluation.pool`), or as tasks of a Ray cluster.

The cluster is one that Ray starts on this machine, or a running one by its address. Ray places the tasks, keeps what they hand
over, and runs a task again when its worker or machine dies. docs/guide/cluster.md says what is sent where.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import wisp_gym
from wisp_gym.cli import Parser
from wisp_gym.errors import InputError
from wisp_gym.evaluation.pool import Job, Pool, Threads
from wisp_gym.interrupts import kept_signals
from wisp_gym.scenario import Scenario, with_
from wisp_gym.traces.speculation import find

FLAG = "--distributed"
LOCAL = "local"  # a cluster of this machine alone, for the time of the command
RETRIES = 10  # of a task whose worker died; one that kills every worker must come to an end
ANSWER_S = 5.0  # within which a cluster must answer
ADDRESS = re.compile(r"(\[?[\w.:-]+\]?):(\d{1,5})", re.ASCII)
ROOT = Path(__file__).resolve().parents[1]
CODE = ("wisp_gym", "agents", "estimators", "traces")  # what workers of another machine are sent
T = TypeVar("T")


def add_distributed(parser: Parser) -> None:
    """Add the flag."""
    where = "run on Ray (extra 'distributed'): on all cores of this machine, or on the cluster at HOST:PORT"
    parser.add_argument(FLAG, nargs="?", const=LOCAL, metavar="ADDRESS", help=where)


def pool_at(address: str | None) -> contextlib.AbstractContextManager[Pool]:
    """The threads of this machine, or with the address of `--distributed` a Ray cluster.

    Raises:
        InputError: as `cluster`.
    """
    return contextlib.nullcontext(Threads()) if address is None else cluster(address)


# --- connecting ------------------------------------------------------------------------------------------------------


def ray_module() -> Any:
    """Ray, quiet.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        words = "needs the package ray, which is not installed; allowed after pip install -e '.[distributed]'"
        raise InputError(f"argument {FLAG}: {words}") from None
    return ray


def check_address(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for half a minute and then say a page.

    Raises:
        InputError: no address, or nobody there.
    """
    match = ADDRESS.fullmatch(address)
    if not match or not 0 < int(match[2]) < 65_536:
        allowed = "HOST:PORT of a Ray cluster, such as 10.0.0.5:6379, or nothing"
        raise InputError(f"argument {FLAG}: given '{address}', allowed is {allowed}")
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), ANSWER_S).close()
    except OSError as error:
        words = f"nothing answers at {address} ({error.strerror or error})"
        raise InputError(f"argument {FLAG}: {words}; allowed is the address that 'ray start --head' prints") from None


def worker_settings(address: str) -> dict[str, Any]:
    """Ray's `runtime_env`: workers of this machine read the checkout, with its compiled code; others are sent a copy."""
    alone = {"OMP_NUM_THREADS": "1"}  # a worker for each core: linear algebra must not start threads of its own
    if address == LOCAL:
        return {"env_vars": {**alone, "PYTHONPATH": str(ROOT)}}
    return {"env_vars": alone, "py_modules": [str(ROOT / name) for name in CODE], "excludes": ["__pycache__"]}


@contextlib.contextmanager
def cluster(address: str) -> Iterator[RayPool]:
    """A pool on the cluster at an address, or on one of this machine for the time of the context.

    Args:
        address: HOST:PORT, or LOCAL. A process that is connected to a cluster already stays with that one.

    Raises:
        InputError: no Ray, no cluster there, one of another version, or a task that killed each of its workers.
    """
    ray = ray_module()
    ours = not ray.is_initialized()
    if ours:
        connect(ray, address)
    try:
        yield RayPool(ray)
    except ray.exceptions.RaySystemError as error:
        raise InputError(f"the Ray cluster failed: {first_line(error)}; the same command begins again") from None
    finally:
        if ours:
            ray.shutdown()


def connect(ray: Any, address: str) -> None:
    """Join the cluster, or start one."""
    where: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False}
    if address != LOCAL:
        check_address(address)
        where = {"address": address}
    try:
        with kept_signals():
            ray.init(**where, runtime_env=worker_settings(address), log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises many kinds, bare ones among them
        what = "Ray did not start on this machine" if address == LOCAL else f"no Ray cluster at {address}"
        raise InputError(f"argument {FLAG}: {what}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error of Ray's says at first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carried:
    """A scenario with the content of the files that it names, which another machine does not have.

    Attributes:
        files: what names a file, as `with_` spells it → name and content.
    """

    scenario: Scenario
    files: dict[str, tuple[str, bytes]]


def carried(scenario: Scenario) -> Carried:
    """A scenario ready to be sent."""
    draft, workload = scenario.draft, scenario.workload
    paths = {
        "draft.trace": find(draft.trace) if draft.trace else None,
        "draft.predictor": Path(draft.predictor) if draft.predictor else None,
        "workload.trace": Path(workload.trace) if workload.arrivals == "trace" else None,
    }
    return Carried(scenario, {field: (path.name, path.read_bytes()) for field, path in paths.items() if path})


@cache
def own_folder() -> Path:
    """A folder of this worker for the files of scenarios."""
    folder = Path(tempfile.mkdtemp(prefix="wisp-gym-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def written(name: str, content: bytes) -> str:
    """The path of a file with this content; the same content is written once, so that what was read from it is found again."""
    path = Path(tempfile.mkdtemp(dir=own_folder())) / name
    path.write_bytes(content)
    return str(path)


def received(argument: Any) -> Any:
    """An argument as the function expects it. Ray's arrays lie in shared memory and are read-only; these are copies."""
    if isinstance(argument, Carried):
        return with_(argument.scenario, **{field: written(*file) for field, file in argument.files.items()})
    return copy.deepcopy(argument)


@cache
def sources_digest() -> str:
    """SHA-256 over the sources that jobs run."""
    digest = hashlib.sha256()
    for folder in (Path(wisp_gym.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def call(digest: str, function: Callable[..., T], *arguments: Any) -> T:
    """What a task does, if its sources are those of the command.

    Raises:
        InputError: others; Ray prefers a checkout at the command's own path to the copy that it was sent.
    """
    if digest != sources_digest():
        words = f"{socket.gethostname()} has other sources in '{ROOT}'"
        raise InputError(f"argument {FLAG}: {words}; allowed are the same, or none at that path")
    return function(*map(received, arguments))


class RayPool:
    """Jobs as stateless tasks, each on a core of its own.

    Args:
        ray: the module, connected. retries: how often a task is run again after its worker died.
    """

    def __init__(self, ray: Any, retries: int = RETRIES):
        self.ray, self.retries = ray, retries
        self.task = ray.remote(num_cpus=1, max_retries=retries)(call)
        self.sent: dict[int, tuple[Any, Any]] = {}  # id of what several jobs share → itself, and its reference

    def map(self, function: Callable[..., T], jobs: Iterable[Job]) -> Iterator[T]:
        """As of `Pool`; closing the iterator cancels what has not begun.

        Raises:
            InputError: a job killed each of its workers.
            Exception: that of the first job that raised one.
        """
        waiting = deque(self.submit(function, job) for job in jobs)
        try:
            while waiting:
                yield self.result(waiting.popleft())
        finally:
            for reference in waiting:
                self.ray.cancel(reference)

    def submit(self, function: Callable[..., Any], job: Job, returns: int = 1) -> Any:
        """Begin a job; the reference, or so many, of what it will return."""
        return self.task.options(num_returns=returns).remote(sources_digest(), function, *map(self.shared, job))

    def shared(self, argument: Any) -> Any:
        """Scenarios and arrays are sent once, however many jobs they belong to."""
        if not isinstance(argument, (Scenario, np.ndarray)):
            return argument
        if id(argument) not in self.sent:
            value = carried(argument) if isinstance(argument, Scenario) else argument
            self.sent[id(argument)] = argument, self.ray.put(value)
        return self.sent[id(argument)][1]

    def result(self, reference: Any) -> Any:
        """What a job returned, once it is there."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as error:
            died = f"a task of the Ray cluster died {self.retries + 1} times ({first_line(error)})"
            raise InputError(f"{died}; allowed are workers with more memory") from None
