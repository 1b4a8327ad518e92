"""`wisp_gym/Batching-v1`: which waiting requests the next verification batch takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import gymnasium as gym
from gymnasium.vector import VectorEnv

from wisp_gym.contract import request, server
from wisp_gym.contract.entry import markdown
from wisp_gym.contract.ladders import PRICES
from wisp_gym.envs.episodes import PLAIN, Episodes, EpisodeSettings, with_default_controller
from wisp_gym.envs.rewards import BATCHING_WEIGHTS, weights_of
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv, Task
from wisp_gym.values import FLAG, number, whole


@dataclass(frozen=True, kw_only=True)
class BatchingSettings(EpisodeSettings):
    """Arguments of `BatchingEnv`, which says what they mean."""

    visible: Annotated[int, whole(1, 1024)] = 32
    average_reward: Annotated[float, number(lambda value: value >= 0.0, "a rate of at least 0 tokens/s")] = 0.0
    reward_weights: Annotated[Mapping[str, float] | None, weights_of(BATCHING_WEIGHTS)] = None
    responses_join: Annotated[bool, FLAG] = True
    hosting: Annotated[bool, FLAG] = True


class BatchingTask(Task):
    """The server of each world composes its batches request by request.

    Attributes:
        prices: whether it prices drafts too.
        devices_follow: controller's name, where the settings name none.
        visible: places for requests, Q. launches: launch actions, L (one, or one for each price).
    """

    settings_type: ClassVar[type[EpisodeSettings]] = BatchingSettings
    prices = False
    devices_follow = PLAIN

    def __init__(self, n: int, settings: BatchingSettings, log_rows: int = 0, threads: int | None = None):
        visible = settings.visible
        if settings.hosting:
            settings = with_default_controller(settings, f"{self.devices_follow}+by-load", "colocated:4")
        elif settings.controller is None:
            settings = replace(settings, controller=self.devices_follow)
        episodes = Episodes(n, settings, log_rows, threads)
        config = episodes.template.arrays.config[0, 0]
        config["external_batching"], config["visible_requests"], config["sets_prices"] = 1, visible, self.prices
        config["responses_join"], config["external_hosting"] = settings.responses_join, settings.hosting
        self.visible, self.launches = visible, len(PRICES) if self.prices else 1
        low, high = server.LOW + visible * request.LOW, server.HIGH + visible * request.HIGH
        weights = BATCHING_WEIGHTS | dict(settings.reward_weights or {})
        super().__init__(episodes, low, high, weights, settings.average_reward)


class BatchingEnv(DecisionEnv, gym.Env):
    """Which requests does the next batch take?

    ## Description
    One GPU server verifies the drafts of many devices in batches; a batch ends when its heaviest member ends. When the
    server is free and requests wait, responses whose context is in memory join the next batch by themselves, in order of
    arrival, as far as memory and the batch limit allow. The agent decides about the others, prompts and evicted sessions: how
    many of their tokens this batch computes, which of them begin or go on, how many tokens the server drafts for its own
    sessions in this batch, and for whom it drafts from the end of their rounds on; then it launches. The devices' drafting follows
    a given controller. The model: docs/model/model.md.

    ## Action Space
    `Discrete(2·Q + 23)`: 0 … Q − 1 pick the waiting request in that place (in order of arrival), Q launches the batch, Q + 1, with
    an empty batch, waits for the next arrival, at most a quarter of a mean batch time. Q + 2 … Q + 13, before the first pick of a
    request that lacks context in memory and while one waits, let this batch prefill at most 0, 64, 96, 128, 192, 256, 384, 512,
    768, 1,024, 2,048 or 4,096 tokens; without this choice the controller's or the scenario's chunk holds. A pick that memory, the
    prefill chunk or the batch limit forbid is masked. Q + 14 … Q + 22 let the server draft 0 … 8 tokens for each of its sessions in
    this batch, once a batch, where it drafts for any, as far as its rule's longest (`colocated:k`: k); without this choice the
    rule's own length holds. Q + 23 … 2·Q + 22 change who drafts for the session in place 0 … Q − 1 (in the batch or not) once its
    round has ended, each once a batch; responses begin at their devices, and a session that stays at the server joins its queue
    again. Both need a controller with a rule of who drafts, which the agent's choice replaces. What is masked, taken all the
    same, launches (or waits), and is counted.

    ## Observation Space
    `Box(({g} + {r}·Q,), float32)`: global entries, then Q places of the same entries (zeros where nobody waits). T is the mean
    batch time, K the cap on drafted tokens.

    {globals}

    For each place q, entry {g} + {r}·q + …:

    {requests}

    ## Starting State
    An empty server, at the first arrival.

    ## Rewards
    Named terms in `info["reward_…"]`, weighted by `reward_weights` (defaults in brackets): `on_time_tokens` [1]: tokens
    delivered on time to all devices since the last decision; `late_tokens` [0]: −tokens delivered late; `time` [1]: −ρ × dt
    with ρ the given `average_reward` in tokens/s (default 0); `starvation` [1]: −device-seconds of waiting requests that starve:
    less than one token for each second since the request, beyond the first 20.

    ## Episode End
    Never terminates; truncated at `horizon_s` of simulated time.

    ## Information
    `dt`: seconds since the last decision (0 between the picks of one batch); `reward_…`, the unweighted terms; `action_mask` (2·Q + 23,) int8;
    `time_s`; `invalid_actions`. `action_masks()` returns the mask.

    ## Arguments
    `scenario` ("wisp-a100-qwen3-32b"), `devices`, `controller` ("wisp+wisp+by-load+colocated:4", without
    `colocated` where the server has no draft: the devices follow its first half), `visible` (32):
    Q, `horizon_s` (60), `average_reward` (0), `reward_weights`, `randomise`, `slo`: as for `wisp_gym/Speculation-v1`.
    `responses_join` (True): False leaves responses in memory to be picked one by one too, as rules such as `wisp`, `marginal` and
    `static` need; learned policies never pick them. `hosting` (True): False leaves for whom the server drafts, and how long, to
    the controller's rules ("wisp+wisp": it drafts for nobody), without their actions: `Discrete(Q + 14)`, as in v0.

    ## Version History
    * v1: actions for whom the server drafts and how long, with five entries more of the server and five of a request.
    * v0: first version.
    """

    task_type = BatchingTask


class BatchingVectorEnv(DecisionVectorEnv, VectorEnv):
    """Many `wisp_gym/Batching-v1` at once, in one compiled call on all cores.

    ## Arguments
    Those of `wisp_gym/Batching-v1`, `num_envs` and `threads` (default: one for each core).
    """

    task_type = BatchingTask


def filled(text: str | None) -> str | None:
    """A docstring with the tables of the contract."""
    parts = {
        "globals": markdown(server.ENTRIES, "    "), "requests": markdown(request.ENTRIES, "    "),
        "g": str(server.SIZE), "r": str(request.SIZE),
    }  # fmt: skip
    for name, part in parts.items():
        text = text and text.replace("{" + name + "}", part)
    return text


BatchingEnv.__doc__ = filled(BatchingEnv.__doc__)
