"""`wisp_gym/Speculation-v1` and `wisp_gym/SpeculationLength-v1`: how many tokens to draft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from wisp_gym.contract import device
from wisp_gym.contract.actions import TOKEN_ACTIONS, WAYS
from wisp_gym.contract.entry import markdown
from wisp_gym.controllers.policy import load_policy
from wisp_gym.engine import gather
from wisp_gym.engine.rewards import OWN_RATE
from wisp_gym.engine.session import EXTERNAL_LENGTH, EXTERNAL_TOKEN
from wisp_gym.envs.episodes import Episodes, EpisodeSettings, with_default_controller
from wisp_gym.envs.rewards import SPECULATION_WEIGHTS, weights_of
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv, Task
from wisp_gym.errors import InputError
from wisp_gym.rules.who_drafts import MOST_TOKENS
from wisp_gym.values import FLAG, Kind, number, optional, texts, whole

RATE = number(lambda value: value >= 0.0, "a rate of at least 0 tokens/s")


def take_average(given: Any) -> float | str:
    """'own', the device's own running rate, or a fixed one in tokens/s."""
    return given if isinstance(given, str) and given == "own" else RATE.take(given)


AVERAGE = Kind(f"'own' or {RATE.words}", take_average)


@dataclass(frozen=True, kw_only=True)
class SpeculationSettings(EpisodeSettings):
    """Arguments of `SpeculationEnv`, which says what they mean."""

    others: Annotated[str | PathLike[str] | None, optional(texts("a policy file"))] = None
    average_reward: Annotated[float | str, AVERAGE] = "own"
    reward_weights: Annotated[Mapping[str, float] | None, weights_of(SPECULATION_WEIGHTS)] = None
    reveal_fates: Annotated[bool, FLAG] = False
    ways: Annotated[bool, FLAG] = True
    overlap_tokens: Annotated[int, whole(0, MOST_TOKENS)] = 8


def speculating(n: int, settings: Any, log_rows: int = 0, threads: int | None = None) -> Episodes:
    """`n` worlds some or all of whose devices decide outside, by `settings` with `ways` and `overlap_tokens`.

    Raises:
        InputError: a controller under which devices draft nothing.
    """
    if settings.ways:
        settings = with_default_controller(settings, "wisp+wisp+by-device", "colocated:2")
    episodes = Episodes(n, settings, log_rows, threads)
    if episodes.controller.centralized:
        reason = "but centralized serving drafts nothing: no decision"
        raise InputError(f"controller: given {settings.controller!r}, {reason}")
    drafting = episodes.controller.drafting
    # the deciding device alone, unless others are sure
    if settings.ways and settings.overlap_tokens and not drafting.overlap_tokens:
        drafting = replace(drafting, overlap_tokens=settings.overlap_tokens, overlap_chance=1.0)
        episodes.set_controller(replace(episodes.controller, drafting=drafting))
    return episodes


class SpeculationTask(Task):
    """One device of each world decides after every drafted token."""

    settings_type = SpeculationSettings
    external = EXTERNAL_TOKEN

    def __init__(self, n: int, settings: SpeculationSettings, log_rows: int = 0, threads: int | None = None):
        if settings.reveal_fates:  # for the bounds, which are to be run outside the engine too
            self.columns = {
                **self.columns,
                "last_fate": (gather.LAST_FATE, np.int64),
                "next_fate": (gather.NEXT_FATE, np.int64),
            }
        episodes = speculating(n, settings, log_rows, threads)
        if settings.others is not None:
            episodes.set_policy(load_policy(settings.others))
        c = episodes.template.arrays.config[0, 0]
        c["external_speculation"], c["external_ways"] = self.external, settings.ways
        weights = SPECULATION_WEIGHTS | dict(settings.reward_weights or {})
        rate = OWN_RATE if isinstance(settings.average_reward, str) else settings.average_reward
        super().__init__(episodes, device.LOW, device.HIGH, weights, rate)

    def place(self, index: int, drawn: Mapping[str, float]) -> None:
        """The device that decides in this episode."""
        self.device[index] = drawn["device"]
        self.episodes.arrays.config[index, 0]["external_device"] = drawn["device"]


class SpeculationLengthTask(SpeculationTask):
    """One device of each world decides once a round."""

    external = EXTERNAL_LENGTH


class SpeculationEnv(DecisionEnv, gym.Env):
    """Draft on, send, draft on while waiting, or let the server draft?

    ## Description
    One edge device of many drafts tokens with a small language model; a server verifies the drafts of all devices in
    batches with a large one. After each drafted token the agent decides for this device whether to draft one more or to
    send what there is, and when it sends, whether to draft on while the round is away, or to ask the server to draft for the
    rest of the response. Drafting beyond the first token that the target rejects is wasted, and every drafted token makes
    the server's batches longer for everyone; sending early pays the way to the server and back for few tokens. The other
    devices and the server's scheduler follow a given controller, or a policy file (`others`, or `set_policy`). The
    model: docs/model/model.md.

    ## Action Space
    `Discrete({actions})`:

    {token_actions}

    Sending before the first token is a round without drafts: the server commits one token. At the cap (`max_draft_tokens`, or
    one less than the tokens still wanted) only the ways to send are left; where there is but one, the engine sends by itself.
    Drafting on (up to `overlap_tokens`) guesses that all that was sent is accepted, and the target's own next token too: then
    the next round begins with these tokens, else their time is lost. A server that is asked takes the session over once the
    round has ended, if its rule of who drafts lets it then (`by-device`: while it drafts for fewer than n), and the device
    decides again in the next response. What is masked, taken all the same, sends, and is counted.

    ## Observation Space
    `Box(({size},), float32)`; T is the mean batch time that the last reply carried, K the cap.

    {table}

    ## Starting State
    An empty server; every device's first request arrives within the scenario's start window. The deciding device is drawn
    at random for each episode.

    ## Rewards
    Named terms in `info["reward_…"]`, weighted by `reward_weights` (defaults in brackets):
    `committed_tokens` [1], `on_time_tokens` [0], `time` [1]: −ρ × seconds of the rounds that ended, with ρ the device's own
    running tokens/s (`average_reward="own"`) or a given rate, `externality` [1]: −(verification time that the drafts
    added) × (tokens/s that the server commits while it verifies), `wasted_tokens` [0]: −tokens beyond the first rejected one.
    With ρ the long-run rate this is the average-reward form: its maximiser maximises tokens per second.
    Against its own rate every policy earns about nothing: to compare returns of policies, give a fixed rate.

    ## Episode End
    Never terminates; truncated at `horizon_s` of simulated time.

    ## Information
    `dt`: seconds since the last decision (steps last unequal times: discount by `exp(−β·dt)`); `reward_…`, the unweighted terms; `action_mask`
    ({actions},) int8; `deciding_device`; `time_s`; `drafted_tokens`; `invalid_actions`. `action_masks()` returns the mask.

    ## Arguments
    `scenario` ("wisp-a100-qwen3-32b"): preset or TOML file. `devices`: population. `controller`
    ("wisp+wisp+by-device+colocated:2", without `colocated` where the server has no draft): drives the other devices and the server;
    without a rule of who drafts no session
    moves to the server, and without `colocated` it drafts nothing there. `ways` (True): False leaves the ways to send to the
    controller's rules ("wisp+wisp"): `Discrete(2)`, send or draft, as in v0. `overlap_tokens` (8; 0: none): the deciding device drafts
    on so far, the others as the controller says. `others`: a policy file that drives the other devices. `horizon_s` (60). `average_reward` ("own").
    `reward_weights`. `randomise`: ranges drawn for each episode, of "devices", "verification_time", "jitter", "separation"
    (the last three are factors). `slo`: tokens/s of a single service class. `reset(options=...)` fixes any of them and "device"
    for one episode. `reveal_fates` (False): `info["last_fate"]` and
    `info["next_fate"]` tell what no device can know, for the two bounds `perfect` and `oracle`.

    ## Version History
    * v1: actions to draft on while waiting and to let the server draft, with six entries more.
    * v0: draft or send.
    """

    task_type = SpeculationTask


class SpeculationLengthEnv(SpeculationEnv, gym.Env):
    """How many tokens to draft in this round, and what then?

    ## Description
    As `wisp_gym/Speculation-v1`, decided once at the start of every round.

    ## Action Space
    `Discrete({ways}·(K + 1))`: action w·(K + 1) + k drafts k tokens, then ends the round in way w:

    {way_actions}

    What is masked, taken all the same, drafts as many as it may and sends, and is counted.

    ## Observation Space
    That of `wisp_gym/Speculation-v1`, seen before the first token.

    ## Starting State
    That of `wisp_gym/Speculation-v1`.

    ## Rewards
    Those of `wisp_gym/Speculation-v1`; every step is one round.

    ## Episode End
    Never terminates; truncated at `horizon_s` of simulated time.

    ## Information
    That of `wisp_gym/Speculation-v1`; `action_mask` is ({ways}·(K + 1),).

    ## Arguments
    Those of `wisp_gym/Speculation-v1`.

    ## Version History
    * v1: as `wisp_gym/Speculation-v1`.
    * v0: first version.
    """

    task_type = SpeculationLengthTask


class SpeculationVectorEnv(DecisionVectorEnv, VectorEnv):
    """Many `wisp_gym/Speculation-v1` at once, in one compiled call on all cores.

    ## Arguments
    Those of `wisp_gym/Speculation-v1`, `num_envs` and `threads` (default: one for each core).
    """

    task_type = SpeculationTask


class SpeculationLengthVectorEnv(SpeculationVectorEnv, VectorEnv):
    """Many `wisp_gym/SpeculationLength-v1` at once; see `SpeculationVectorEnv`."""

    task_type = SpeculationLengthTask


def filled(text: str | None) -> str | None:
    """A docstring with what the contract says."""
    parts = {
        "table": markdown(device.ENTRIES, "    "), "size": str(device.SIZE), "actions": str(len(TOKEN_ACTIONS)),
        "token_actions": numbered(TOKEN_ACTIONS), "ways": str(len(WAYS)), "way_actions": numbered(WAYS),
    }  # fmt: skip
    for name, part in parts.items():
        text = text and text.replace("{" + name + "}", part)
    return text


def numbered(meanings: Sequence[str]) -> str:
    """Actions by their numbers, as a list."""
    return "\n    ".join(f"* {action}: {meaning}" for action, meaning in enumerate(meanings))


SpeculationEnv.__doc__ = filled(SpeculationEnv.__doc__)
SpeculationLengthEnv.__doc__ = filled(SpeculationLengthEnv.__doc__)
