"""vLLM's processes: started with our scheduler and proposer, asked by messages, and noticed when they die."""

import contextlib
import itertools
import os
import queue
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wisp_gym.errors import InputError
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.vllm_engine.lifetime import SERVER
from wisp_gym.testbed.vllm_engine.sampling_fix import SamplingCheck
from wisp_gym.testbed.vllm_engine.version import check_version

LOOK_S = 0.2  # between looks whether vLLM still lives, while an answer is awaited
CLOSE_S = 5.0  # for vLLM's thread to let go of its socket
PACKAGE = __name__.rpartition(".")[0]
OURS = (
    "scheduler_cls",
    "worker_extension_cls",
    "speculative_config",
    "async_scheduling",
    "pipeline_parallel_size",
    "data_parallel_size",
)


class CoreDied(RuntimeError):
    """vLLM's processes have ended while they were needed."""


@dataclass(frozen=True)
class CoreSettings:
    """With what vLLM is started.

    Attributes:
        model: name or folder. dtype: of the weights. threads: of a processor, 0: vLLM's choice. limits: of the server.
        max_tokens: longest sequence. more: further arguments of `vllm.EngineArgs`.
    """

    model: str
    dtype: str = "float32"
    threads: int = 0
    limits: Limits = field(default_factory=Limits)
    max_tokens: int = 1 << 20
    more: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InputError for arguments that the engine sets itself."""
        if taken := [name for name in OURS if name in self.more]:
            raise InputError(
                f"--vllm: given {', '.join(taken)}, which the engine sets itself; allowed are others of EngineArgs"
            )


def arguments(settings: CoreSettings, on_cpu: bool) -> dict[str, Any]:
    """Arguments of `vllm.EngineArgs`."""
    limits = settings.limits
    rounds = limits.max_batch_rounds * (limits.max_draft_tokens + 1)
    chunk = limits.prefill_chunk_tokens or settings.max_tokens
    drafts = {"method": "custom_class", "model": f"{PACKAGE}.proposer.NoDrafts"}
    return {
        "model": settings.model,
        "dtype": settings.dtype,
        "seed": secrets.randbits(31),  # started anew, it must not draw what it has drawn before
        "max_model_len": settings.max_tokens,
        "max_num_seqs": limits.max_sessions,  # a held session keeps its place
        "max_num_batched_tokens": max(rounds + chunk, limits.max_sessions),
        "enforce_eager": on_cpu,  # compiling takes a minute there
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "scheduler_reserve_full_isl": False,  # a chunk needs room for itself alone
        "disable_log_stats": True,
        "skip_tokenizer_init": True,  # tokens come and go, no text
        **settings.more,
        "async_scheduling": False,
        "scheduler_cls": f"{PACKAGE}.scheduler.OrderedScheduler",
        "worker_extension_cls": f"{PACKAGE}.sampling_fix.{SamplingCheck.__name__}",
        "speculative_config": {**drafts, "num_speculative_tokens": max(limits.max_draft_tokens, 1)},
    }


def prepare_environment(threads: int) -> None:
    """What vLLM reads from the environment; what the user has set stays."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # what the server prints is for programs, too
        "VLLM_NO_USAGE_STATS": "1",  # nothing is sent home
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a server has threads, which forks do not survive
    }
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ[SERVER] = str(os.getpid())
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def block_bytes(model: Any, parallel: Any, block_tokens: int) -> int:
    """Keys and values of one block, of all layers in the model's precision; `model`, `parallel`: vLLM's configurations."""
    numbers = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    return int(numbers * model.dtype.itemsize * block_tokens)


class Core:
    """Running processes of vLLM.

    Raises:
        InputError: no vLLM, another version, arguments or a model that it refuses; one line.

    Attributes:
        block_tokens, blocks: of its memory. samples: whether it may sample above temperature 0.
    """

    def __init__(self, settings: CoreSettings) -> None:
        on_cpu = check_version() == "vllm-cpu"
        settings.check()
        prepare_environment(settings.threads)
        self._numbers = itertools.count(1)
        with started_or_refused(settings.model):
            from vllm import EngineArgs
            from vllm.v1.engine.core_client import EngineCoreClient
            from vllm.v1.executor import Executor

            config = EngineArgs(**arguments(settings, on_cpu)).create_engine_config()
            self.block_tokens = int(config.cache_config.block_size)
            blocks = settings.limits.kv_tokens // self.block_tokens + 1  # one is vLLM's own
            config.cache_config.num_gpu_blocks_override = blocks
            if on_cpu:  # else vLLM would claim nine tenths of the machine's memory
                config.cache_config.kv_cache_memory_bytes = blocks * block_bytes(
                    config.model_config, config.parallel_config, self.block_tokens
                )
            self.client: Any = EngineCoreClient.make_client(True, False, config, Executor.get_class(config), False)
        self.blocks = int(config.cache_config.num_gpu_blocks) - 1
        self.samples = all(self.client.collective_rpc("wisp_samples_right"))

    def add(self, request: Any) -> None:
        """Send a request."""
        with died_or_not():
            self.client.add_request(request)

    def abort(self, names: Sequence[str]) -> None:
        """End requests."""
        with died_or_not():
            self.client.abort_requests(list(names))

    def order(self, rounds: Sequence[Any]) -> Any:
        """Have rounds run; their `Report`.

        Raises:
            CoreDied: before they were done.
        """
        from wisp_gym.testbed.vllm_engine.transport import order_request, report_of

        name = f"order-{next(self._numbers)}"
        self.add(order_request(name, rounds))
        while True:
            with died_or_not(), contextlib.suppress(queue.Empty):
                got = self.client.outputs_queue.get(timeout=LOOK_S)
                if isinstance(got, Exception):
                    raise CoreDied("vLLM's processes have ended") from got
                if (report := report_of(got, name)) is not None:
                    return report
            with died_or_not():
                self.client.ensure_alive()

    def pids(self) -> list[int]:
        """Processes that vLLM's scheduler runs in."""
        return [process.pid for process in self.client.resources.engine_manager.processes]

    def close(self) -> None:
        """End the processes."""
        self.client.shutdown()
        self.client.output_queue_thread.join(CLOSE_S)
        self.client.ctx.destroy(linger=0)


@contextlib.contextmanager
def died_or_not() -> Any:
    """Turn vLLM's error of dead processes into ours."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise CoreDied("vLLM's processes have ended") from error


@contextlib.contextmanager
def started_or_refused(model: str) -> Any:
    """Turn what vLLM raises at its start into one line."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = lines[1] if "validation error" in lines[0] and len(lines) > 1 else lines[0]
        raise InputError(f"--model {model}: vLLM does not start ({said[:300]})") from error
