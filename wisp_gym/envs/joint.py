"""`wisp_gym/Joint-v1`: the server composes its batches and sets the price of a draft token that its replies carry."""

import gymnasium as gym
from gymnasium.vector import VectorEnv

from wisp_gym.envs.batching import BatchingTask, filled
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv


class JointTask(BatchingTask):
    """The server of each world composes its batches and prices drafts."""

    prices = True
    devices_follow = "aligned:0+fcfs"  # the price in the reply takes the place of the rule's own constant


class JointEnv(DecisionEnv, gym.Env):
    """Which requests does the next batch take, and what does a draft token cost?

    ## Description
    `wisp_gym/Batching-v1` with one more decision: at each launch the server chooses the price of a draft token, in expected
    accepted tokens, that its replies carry from then on. Devices that stop by the `price` or the `aligned` rule, or by a learned
    policy, see it and draft less the higher it is. One controller, on the server, steers both sides. The model: docs/model/model.md.

    ## Action Space
    `Discrete(2·Q + 28)`: 0 … Q − 1 pick the waiting request in that place, Q … Q + 5 launch the batch at a price of 0, 0.02,
    0.05, 0.1, 0.2 or 0.4, Q + 6 waits with an empty batch, Q + 7 … Q + 18 choose the prefill chunk, Q + 19 … Q + 27
    the server's draft length, Q + 28 … 2·Q + 27 who drafts for a session, all as in `wisp_gym/Batching-v1`. A masked action,
    taken all the same, launches at price 0 (or waits), and is counted.

    ## Observation Space
    `Box(({g} + {r}·Q,), float32)`, that of `wisp_gym/Batching-v1`; T is the mean batch time, K the cap on drafted tokens.

    {globals}

    For each place q, entry {g} + {r}·q + …:

    {requests}

    ## Starting State
    An empty server, at the first arrival; the price is 0.

    ## Rewards
    Those of `wisp_gym/Batching-v1`, over all devices: `on_time_tokens` [1], `late_tokens` [0], `time` [1], `starvation` [1].

    ## Episode End
    Never terminates; truncated at `horizon_s` of simulated time.

    ## Information
    As in `wisp_gym/Batching-v1`; `action_mask` is (2·Q + 28,) int8.

    ## Arguments
    As for `wisp_gym/Batching-v1`; `controller` ("aligned:0+fcfs+by-load+colocated:4"): the devices follow its
    first half, a rule or the file of a learned
    speculation policy; rules other than `price` and `aligned` do not look at the price.

    ## Version History
    * v1: as `wisp_gym/Batching-v1`.
    * v0: first version.
    """

    task_type = JointTask


class JointVectorEnv(DecisionVectorEnv, VectorEnv):
    """Many `wisp_gym/Joint-v1` at once, in one compiled call on all cores.

    ## Arguments
    Those of `wisp_gym/Joint-v1`, `num_envs` and `threads` (default: one for each core).
    """

    task_type = JointTask


JointEnv.__doc__ = filled(JointEnv.__doc__)
