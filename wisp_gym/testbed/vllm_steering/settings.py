"""How an operator says what steers: the object `wisp_gym` in vLLM's `--additional-config`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wisp_gym.cli import address
from wisp_gym.controllers.lookup import Part, find
from wisp_gym.controllers.names import one_piece
from wisp_gym.errors import InputError, did_you_mean, shown
from wisp_gym.rules import server_lengths
from wisp_gym.rules.catalogue import COLOCATED, SOURCE
from wisp_gym.testbed.vllm_engine.version import check_version

KEY = "wisp_gym"
ASKED_BY = "WispScheduler"
DEFAULT_LENGTHS = "colocated-turbospec"
PREFIX = "colocated-"


@dataclass(frozen=True)
class Steering:
    """What steers.

    Attributes:
        lengths: a rule of the server's own drafts by its name, with or without `colocated-` before it: `turbospec`,
            `throughput(high=6)`, `survival(h=0.5)`, `ema`, `colocated:3`.
        accepted: share of drafted tokens that is believed to be accepted before any were, 0 to 1 [A].
        probe_share: of steps whose length is one off, so that it stays known what lengths cost, 0 to 0.5 [A].
        metrics: HOST:PORT where Prometheus metrics are served; "": none.
    """

    lengths: str = DEFAULT_LENGTHS
    accepted: float = 0.7
    probe_share: float = 0.02
    metrics: str = ""

    def __post_init__(self) -> None:
        for name, most in (("accepted", 1.0), ("probe_share", 0.5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
                raise refused(name, value, f"a number from 0 to {most:g}")
        for name in ("lengths", "metrics"):
            if not isinstance(getattr(self, name), str):
                raise refused(name, getattr(self, name), "a text")
        rule_of(self.lengths)
        if self.metrics:
            self.metrics_address()

    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics."""
        try:
            return address(self.metrics)
        except Exception:
            raise refused("metrics", self.metrics, "HOST:PORT such as 127.0.0.1:9091") from None


def refused(name: str, value: Any, allowed: str) -> InputError:
    """The error of one setting."""
    return InputError(f"--additional-config: {KEY}.{name} given {shown(value)}, allowed is {allowed}")


def read(additional_config: Any) -> Steering:
    """The settings in vLLM's additional configuration; the defaults where it has none.

    Raises:
        InputError: a setting that there is none, or a value that it cannot have; one line.
    """
    given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping):
        raise InputError(f"--additional-config: {KEY} given {shown(given)}, allowed is an object")
    names = [field.name for field in fields(Steering)]
    for name in given:
        if name not in names:
            raise InputError(f"--additional-config: unknown setting '{KEY}.{name}'; {did_you_mean(str(name), names)}")
    return Steering(**given)


def rule_of(text: str) -> Part:
    """The rule that a text names, its numbers without the one that says which draft is loaded: vLLM is told that itself.

    Raises:
        InputError: no such rule, impossible settings, or one that vLLM has itself.
    """
    whole = text if text.startswith(tuple(COLOCATED)) else PREFIX + text
    part = find(one_piece(whole), COLOCATED, "length")
    if part.rule.kind == server_lengths.TABLE:
        own = "vLLM reads tables itself: num_speculative_tokens_per_batch_size (wisp-gym table)"
        raise refused("lengths", text, f"another rule: {own}")
    numbers = dict(zip(part.rule.settings, part.values, strict=True))
    if numbers.pop(SOURCE) != SOURCE.default:
        raise refused(
            "lengths", text, f"a rule without '{SOURCE.name}': vLLM is told in its speculative_config what drafts"
        )
    return Part(part.name, part.rule, tuple(numbers.values()))


def check_engine(config: Any) -> None:
    """Refuse an engine that cannot be steered, by its `VllmConfig`.

    Raises:
        InputError: what must be otherwise; one line.
    """
    check_version(ASKED_BY)
    if config.speculative_config is None or not config.num_speculative_tokens:
        raise InputError(f"{ASKED_BY}: nothing to steer, allowed is vLLM with --speculative-config")
    if config.scheduler_config.async_scheduling:
        raise InputError(f"{ASKED_BY}: drafts do not pass an asynchronous scheduler, allowed is --no-async-scheduling")
    if config.parallel_config.data_parallel_size > 1:
        raise InputError(
            f"{ASKED_BY}: ranks that draft different lengths block each other, allowed is no data parallelism"
        )
