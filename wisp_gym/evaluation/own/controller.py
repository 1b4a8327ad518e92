"""A controller of one's own: which half decides by what, beside which rules of the engine."""

from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, Literal, cast, get_args

from wisp_gym.contract import device
from wisp_gym.controllers.policy import Policy, make_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import ScorerPolicy
from wisp_gym.errors import InputError, one_of, shown
from wisp_gym.evaluation.own.asked import SIGNATURE, is_asked
from wisp_gym.evaluation.own.driven import Drivers
from wisp_gym.evaluation.own.networks import network_layers
from wisp_gym.evaluation.own.onnx_file import OnnxFile
from wisp_gym.evaluation.own.onnx_server import OnnxServer, of_file
from wisp_gym.jit_pointer import Compiled, is_compiled
from wisp_gym.rules.batching import LEARNED
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario
from wisp_gym.values import FLAG, texts, whole

Decides = Literal["token", "length", "token-way", "length-way"]
TEXT = texts("text")
SERVED = "own.json"  # stands for a policy in a name, which is read by what is given instead


@dataclass(frozen=True)
class Own:
    """A controller of one's own, made by `own`.

    Attributes:
        name: in tables. rules: the engine's name of what is not decided outside. drivers: who decides outside.
        policy, scorer: networks that run inside the engine.
        pays: whether devices spend the rejection predictor's time with each token.
    """

    name: str
    rules: str
    drivers: Drivers
    policy: Policy | None = None
    scorer: ScorerPolicy | None = None
    pays: bool = True

    @property
    def is_driven(self) -> bool:
        """Whether anything is decided outside of the engine."""
        return any(each is not None for each in (self.drivers.devices, self.drivers.server, self.drivers.rule))

    def controller(self, scenario: Scenario) -> Controller:
        """What the engine runs.

        Raises:
            InputError (ControllerError, PolicyError): a rule's name that means none, or a network that does not fit.
        """
        found = resolve(self.rules, scenario, load=self.load)
        if self.scorer is not None:
            found = replace(found, batching=LEARNED, batching_parameters=(), scorer=self.scorer.weights)
        if self.drivers.devices is not None or self.drivers.rule is not None:
            found = replace(found, uses_predictor=self.pays, sees_statistics=True, sees_observation=True)
        return replace(found, name=self.name)

    def load(self, name: str) -> Policy:
        """The network of the devices."""
        assert self.policy is not None
        return self.policy


def own(
    devices: Any = "wisp", server: Any = "fcfs", *, additions: str = "", name: str = "", decides: Decides = "token",
    prices: bool = False, hosting: bool = False, visible: int = 64, pays_predictor: bool = True,
) -> Own:  # fmt: skip
    """A controller of one's own for `evaluate`, in the same worlds as every other.

    Args:
        devices: how every device decides: a rule's or policy's name; an object, or a class of such, with the `predict` of
            stable-baselines3, which is given (n, SIZE) observations of `wisp_gym/Speculation-v1` of the n devices that decide
            together; a function of one (SIZE,) observation decorated by `numba.njit`, a list of (W, b) or a
            `torch.nn.Sequential` of linear layers, which run inside the engine; a `Policy`; an ONNX file.
        server: how batches are composed: a batching rule's or policy's name, or an object with `predict` for
            `wisp_gym/Batching-v1` (`Joint-v1` with `prices`), one world a row; a `ScorerPolicy`; an ONNX file.
        additions: more rules, as in names: "admit+by-load:16+colocated:4".
        name: in tables; default made of what is given.
        decides: what `devices` decides: after each token, or a length once a round, and with "-way" how the round ends too; a policy
            bundle says it itself.
        hosting: whether `server` says for whom the server drafts, too. visible: requests that it sees, 1 to 1,024.
        pays_predictor: whether each token costs the devices the rejection predictor's time, for what reads its entries.

    Raises:
        InputError: what decides nothing; one line that says what is missing.
    """
    one_of("decides", decides, get_args(Decides))
    for flag, value in (("prices", prices), ("hosting", hosting), ("pays_predictor", pays_predictor)):
        FLAG.checked(flag, value)
    whole(1, 1024).checked("visible", visible)
    for argument, text in (("additions", additions), ("name", name)):
        TEXT.checked(argument, text)
    rule = Compiled(devices, device.SIZE) if is_compiled(devices) else None
    if rule and decides.endswith("way"):
        raise InputError(f"decides: given '{decides}', allowed for a compiled function are 'token' and 'length'")
    device_rule, policy, device_driver = ("wisp", None, None) if rule else device_half(devices, decides)
    server_rule, scorer, server_driver = server_half(server)
    if isinstance(device_driver, OnnxFile) and device_driver.decides:
        decides = cast(Decides, device_driver.decides)
    if isinstance(server_driver, OnnxServer):
        prices, hosting = server_driver.prices, server_driver.hosting
    rules = "+".join(part for part in (device_rule, server_rule, additions) if part)
    drivers = Drivers(device_driver, server_driver, rule, decides, prices, hosting, visible)
    label = name or "+".join(part for part in (called(devices), called(server), additions) if part)
    return Own(label, rules, drivers, policy, scorer, pays_predictor)


def called(half: Any) -> str:
    """What a half is called in tables."""
    if isinstance(half, (str, PathLike)):
        return fspath(half)
    return half.__name__ if isinstance(half, type) or is_compiled(half) else type(half).__name__


def made(half: Any) -> Any:
    """An object of a class that is given; what is no class is what it is."""
    if not isinstance(half, type):
        return half
    try:
        return half()
    except TypeError as error:
        raise InputError(f"{half.__name__}: cannot be made without arguments ({error}); give an object of it") from None


def device_half(given: Any, decides: str) -> tuple[str, Policy | None, Any]:
    """Rule's name, network and object of the devices."""
    if isinstance(given, (str, PathLike)) and fspath(given).endswith(".onnx"):
        return "wisp", None, OnnxFile(given)
    if isinstance(given, (str, PathLike)):
        return fspath(given), None, None
    half = made(given)
    if isinstance(half, Policy):
        return SERVED, half, None
    if (network := network_layers(half)) is not None:
        return SERVED, make_policy(network.layers, decides, network.activation), None
    if is_asked(half):
        return "wisp", None, half
    raise InputError(
        f"devices: given {shown(given)}, allowed are a name, what has {SIGNATURE}, layers, a Policy, an ONNX file"
    )


def server_half(given: Any) -> tuple[str, ScorerPolicy | None, Any]:
    """Rule's name, network and object of the server."""
    if isinstance(given, (str, PathLike)) and not fspath(given).endswith(".onnx"):
        return fspath(given), None, None
    half = of_file(given) if isinstance(given, (str, PathLike)) else made(given)
    if isinstance(half, ScorerPolicy):
        return "fcfs", half, None
    if is_asked(half):
        return "fcfs", None, half
    raise InputError(
        f"server: given {shown(given)}, allowed are a name, what has {SIGNATURE}, a ScorerPolicy, an ONNX file"
    )
