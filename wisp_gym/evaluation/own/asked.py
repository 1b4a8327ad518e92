"""An object with the `predict` of stable-baselines3, asked for many decision makers at once, each with a memory of its own."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError, shown

SIGNATURE = "predict(observation, state=None, episode_start=None, deterministic=False) -> (actions, state)"


def is_asked(given: Any) -> bool:
    """Whether something decides by `predict`."""
    return callable(getattr(given, "predict", None))


def keywords_of(predict: Callable[..., Any]) -> set[str]:
    """The keywords that a `predict` takes, of those that it may be told."""
    told = {"state", "episode_start", "deterministic", "action_masks"}
    try:
        parameters = inspect.signature(predict).parameters.values()
    except (TypeError, ValueError):  # of compiled code, which does not tell
        return set()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return told if takes_all else told & {parameter.name for parameter in parameters}


class Asked:
    """Asks for several of `n` decision makers, and keeps what each remembers.

    Args:
        model: has `predict`. place: what messages call it. n: decision makers. actions: how many there are to choose from.

    Raises:
        InputError: no `predict`.
    """

    def __init__(self, model: Any, place: str, n: int, actions: int):
        if not is_asked(model):
            raise InputError(f"{place}: given {shown(model)}, allowed is what has {SIGNATURE}")
        self.model, self.place, self.n, self.actions = model, place, n, actions
        self.keywords = keywords_of(model.predict)
        self.begun = np.zeros(n, bool)
        self.memory: tuple[np.ndarray, ...] | None = None  # each (layers, n, …)

    def decide(self, seen: NDArray[np.float32], masks: NDArray[np.int8], who: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) actions for (m, size) observations and (m, actions) masks of the decision makers `who`.

        Raises:
            InputError: an answer of another shape or kind; one line.
        """
        told = {
            "state": None if self.memory is None else tuple(part[:, who] for part in self.memory),
            "episode_start": ~self.begun[who], "deterministic": True, "action_masks": masks.astype(bool),
        }  # fmt: skip
        answer = self.model.predict(seen, **{name: told[name] for name in told if name in self.keywords})
        self.begun[who] = True
        actions, state = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        self.remember(state, who)
        return self.checked(actions, len(who))

    def remember(self, state: Any, who: NDArray[np.int64]) -> None:
        """Keep the memory of those who were asked; a model without one says None."""
        if state is None:
            return
        parts = [np.asarray(part) for part in state] if isinstance(state, (tuple, list)) else []
        if not parts or any(part.ndim < 2 or part.shape[1] != len(who) for part in parts):
            given = [part.shape for part in parts] or shown(state)
            raise InputError(
                f"{self.place}: predict gave a state of {given}, allowed is None or arrays of (layers, {len(who)}, …)"
            )
        if self.memory is None:
            self.memory = tuple(np.zeros((len(part), self.n, *part.shape[2:]), part.dtype) for part in parts)
        for kept, part in zip(self.memory, parts, strict=True):
            kept[:, who] = part

    def checked(self, actions: Any, n: int) -> NDArray[np.int64]:
        """The actions as the engine takes them; those that are not valid just now are the engine's matter."""
        found = np.asarray(actions)
        if found.shape != (n,) or found.dtype.kind not in "iub":
            given = f"{found.dtype} of shape {found.shape}"
            raise InputError(
                f"{self.place}: predict gave {given} for {n} observations, allowed are {n} integers below {self.actions}"
            )
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < self.actions:
            wrong = int(found.min()) if found.min() < 0 else int(found.max())
            raise InputError(f"{self.place}: predict gave action {wrong}, allowed are 0 to {self.actions - 1}")
        return found.astype(np.int64)
