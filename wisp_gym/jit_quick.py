"""What numba finds out again and again while it compiles, found out once; none of it changes what comes out.

The engine is some three hundred functions that call each other a dozen deep, and numba compiles a function when it comes to a call of it.
So all that it does for each call, each variable and each nested compilation counts. This is a third of the time of a first compilation.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from numba.core import errors, event, transforms
from numba.core.base import BaseContext, OverloadSelector
from numba.core.postproc import PostProcessor
from numba.core.types.functions import BaseFunction


def changes() -> Iterator[tuple[Any, str, Any]]:
    """What is put in the place of what: owner, name, value."""
    yield BaseFunction, "get_call_type", remembered(BaseFunction.get_call_type)
    yield BaseContext, "refresh", after_imports(BaseContext.refresh)
    yield OverloadSelector, "_find", found_or_not(OverloadSelector._find)
    yield PostProcessor, "run", lifetimes_once(PostProcessor.run)
    yield event, "broadcast", lambda _: None  # to timers, one for each of the nested compilations
    if hasattr(errors, "HighlightColorScheme"):  # thousands of refusals, each in colours
        yield errors.HighlightColorScheme, "_markup", lambda _, message, *__, **___: message


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """While engine code is compiled, under numba's own lock."""
    before = []
    try:
        for owner, name, value in changes():
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def remembered(find: Callable[..., Any]) -> Callable[..., Any]:
    """`get_call_type` that asks once for the same function and types: an operator's type is looked for by trying all that might fit."""
    known: dict[Any, Any] = {}

    def get_call_type(function: Any, context: Any, arguments: Any, keywords: Any) -> Any:
        question = function, arguments, tuple(sorted(keywords.items()))
        if question not in known:
            known[question] = find(function, context, arguments, keywords)
        return known[question]

    return get_call_type


def after_imports(look: Callable[..., Any]) -> Callable[..., Any]:
    """`refresh` that looks for new functions only where a module has been imported since: whatever numba does not find, it looks for anew."""
    seen: dict[Any, int] = {}

    def refresh(context: Any) -> None:
        if seen.get(context) != len(sys.modules):
            look(context)
            seen[context] = len(sys.modules)

    return refresh


def found_or_not(find: Callable[..., Any]) -> Callable[..., Any]:
    """`_find` that refuses in few words; numba's hold the hundred fields of a world's rows."""

    def find_one(selector: Any, signature: Any) -> Any:
        if not selector._select_compatible(signature):
            raise errors.NumbaNotImplementedError("not found")
        return find(selector, signature)

    return find_one


def lifetimes_once(process: Callable[..., Any]) -> Callable[..., Any]:
    """`PostProcessor.run` that finds out how long variables live only for who asks for it: the last of five."""

    def run(processor: Any, emit_dels: bool = False, extend_lifetimes: bool = False) -> None:
        function = processor.func_ir
        if emit_dels or function.is_generator:
            process(processor, emit_dels, extend_lifetimes)
            return
        function.blocks, function.generator_info = transforms.canonicalize_cfg(function.blocks), None

    return run


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


# Python keeps frames in chunks of 16 kB, and gives a chunk back to the system as soon as its last frame returns: a loop that happens
# to run at a chunk's end asks the system for memory at each call. Compiling, a deep recursion, did so a hundred thousand times.
# A function that claims a large frame gets a chunk to match, half of which is left for the frames above.
FRAME_WORDS = 1 << 17
with_room = FunctionType(_call.__code__.replace(co_stacksize=FRAME_WORDS), globals())
