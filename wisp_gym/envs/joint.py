"""`wisp_gym/Joint-v0`: the server composes its batches and sets the price of a draft token that its replies carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wisp_gym.contract import request, server
from wisp_gym.contract.entry import markdown
from wisp_gym.envs.batching import BatchingTask
from wisp_gym.envs.rendering import Recorder
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv
from wisp_gym.envs.speculation import DEFAULT_SCENARIO
from wisp_gym.scenario import Scenario

DEFAULT_CONTROLLER = "aligned:0+fcfs"  # the price in the reply takes the place of the rule's own constant


class JointEnv(DecisionEnv):
    """Which requests does the next batch take, and what does a draft token cost?

    ## Description
    `wisp_gym/Batching-v0` with one more decision: at each launch the server chooses the price of a draft token, in expected
    accepted tokens, that its replies carry from then on. Devices that stop by the `price` or the `aligned` rule, or by a learned
    policy, see it and draft less the higher it is. One controller, on the server, steers both sides. The model: docs/model/model.md.

    ## Action Space
    `Discrete(Q + 19)`: 0 … Q − 1 pick the waiting request in that place, Q … Q + 5 launch the batch at a price of 0, 0.02,
    0.05, 0.1, 0.2 or 0.4, Q + 6 waits with an empty batch, Q + 7 … Q + 18 choose the prefill chunk, all as in
    `wisp_gym/Batching-v0`. A masked action, taken all the same, launches at price 0 (or waits), and is counted.

    ## Observation Space
    `Box((16 + 23·Q,), float32)`, that of `wisp_gym/Batching-v0`; T is the mean batch time, K the cap on drafted tokens.

    {globals}

    For each place q, entry 16 + 23·q + …:

    {requests}

    ## Starting State
    An empty server, at the first arrival; the price is 0.

    ## Rewards
    Those of `wisp_gym/Batching-v0`, over all devices: `on_time_tokens` [1], `late_tokens` [0], `time` [1], `starvation` [1].

    ## Episode End
    Never terminates; truncated at `horizon_s` of simulated time.

    ## Information
    As in `wisp_gym/Batching-v0`; `action_mask` is (Q + 19,) int8.

    ## Arguments
    As for `wisp_gym/Batching-v0`; `controller` ("aligned:0+fcfs"): the devices follow its first half, a rule or the file of a learned
    speculation policy; rules other than `price` and `aligned` do not look at the price.

    ## Version History
    * v0: first version.
    """

    def __init__(
        self, scenario: Scenario | str = DEFAULT_SCENARIO, devices: int | None = None, controller: str = DEFAULT_CONTROLLER, visible: int = 32,
        horizon_s: float = 60.0, average_reward: float = 0.0, reward_weights: Mapping[str, float] | None = None,
        randomise: Mapping[str, Any] | None = None, slo: float | None = None, render_mode: str | None = None, responses_join: bool = True,
    ):  # fmt: skip
        recorder = Recorder(render_mode, self.metadata["render_modes"])
        task = BatchingTask(
            1, scenario, devices, controller, visible, horizon_s, average_reward, reward_weights, randomise, slo, recorder.log_rows, 1,
            prices=True, responses_join=responses_join,
        )  # fmt: skip
        self.set_up(task, recorder)


class JointVectorEnv(DecisionVectorEnv):
    """Many `wisp_gym/Joint-v0` at once, in one compiled call on all cores.

    ## Arguments
    Those of `wisp_gym/Joint-v0`, `num_envs` and `threads` (default: one for each core).
    """

    def __init__(
        self, num_envs: int = 1, scenario: Scenario | str = DEFAULT_SCENARIO, devices: int | None = None,
        controller: str = DEFAULT_CONTROLLER, visible: int = 32, horizon_s: float = 60.0, average_reward: float = 0.0,
        reward_weights: Mapping[str, float] | None = None, randomise: Mapping[str, Any] | None = None, slo: float | None = None,
        threads: int | None = None, render_mode: str | None = None,
        responses_join: bool = True,
    ):  # fmt: skip
        task = BatchingTask(
            num_envs, scenario, devices, controller, visible, horizon_s, average_reward, reward_weights, randomise, slo, threads=threads,
            prices=True, responses_join=responses_join,
        )  # fmt: skip
        self.set_up(task, render_mode)


if JointEnv.__doc__:
    JointEnv.__doc__ = JointEnv.__doc__.replace("{globals}", markdown(server.ENTRIES, "    "))
    JointEnv.__doc__ = JointEnv.__doc__.replace("{requests}", markdown(request.ENTRIES, "    "))
