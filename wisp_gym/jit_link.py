"""Compiled functions that call each other become code once, as a part of those that Python calls.

numba optimises every function with all that it calls and makes machine code of it, then does so again in each of its callers:
the time grows with the depth of the calls. Here a function that compiled code calls is lowered and kept as it is; what Python
calls collects the functions below it, each once, and optimises and emits the whole in one go. The code is what numba makes, by
numba's own passes. It takes a third of the time.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

from wisp_gym.jit_passes import pipeline

# What this file builds on is no promise of numba's: with other versions functions are compiled as numba does it, only slower.
SUITS = numba.version_info[:2] == (0, 68)
PART_LINKAGE = "linkonce_odr"


class Part(JITCodeLibrary):
    """Code of one function, neither optimised nor emitted, that waits for a caller to be a part of."""

    def add_llvm_module(self, ll_module: Any) -> None:
        """Take the function's code as it was lowered."""
        self._final_module.link_in(ll_module)

    def finalize(self) -> None:
        """Nothing can be added any more."""
        self._raise_if_finalized()
        self._finalized = True

    def own_module(self) -> Any:
        """The function's code alone, to be linked any number of times."""
        if self._shared_module is None:
            self._shared_module = self._final_module
            for function in self._shared_module.functions:
                if not function.is_declaration and function.linkage.name == "external":
                    function.linkage = PART_LINKAGE
        return self._shared_module

    def _get_module_for_linking(self) -> Any:  # for a library of numba's own, which knows no parts
        whole = self.own_module().clone()
        for library in below(self):
            whole.link_in(module_of(library), preserve=True)
        return whole


class Whole(JITCodeLibrary):
    """Code of a function that Python calls, with all that it calls."""

    def finalize(self) -> None:
        """Link every part once, then go on as numba does."""
        libraries = below(self)
        self._linking_libraries = []
        for library in libraries:
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(module_of(library), preserve=True)
        make_parts_private(self._final_module, self.name)
        super().finalize()


def below(library: Any) -> list[Any]:
    """All libraries that one links, directly or through its parts, each once."""
    found: dict[Any, None] = {}
    waiting = list(reversed(library._linking_libraries))
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = None
            waiting += reversed(one._linking_libraries) if isinstance(one, Part) else ()
    return list(found)


def module_of(library: Any) -> Any:
    """A library's code as another one links it."""
    return library.own_module() if isinstance(library, Part) else library._get_module_for_linking()


def make_parts_private(module: Any, whole: str) -> None:
    """Let nobody outside call what came from parts: LLVM then drops arguments that a function does not use.

    An array is passed as seven numbers or more, of which a function needs a few: rounds take less time. Names are
    made their own too: what is loaded later would take functions of the same name for its own, whatever their arguments.
    """
    for function in module.functions:
        if not function.is_declaration and function.linkage.name == PART_LINKAGE:
            function.linkage, function.name = "internal", f"{whole}.{function.name}"


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerPart(NativeLowering):
    """Lowers a function that compiled code calls."""

    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        """Lower into a `Part`; other functions find it by a key of its own, as there is nothing that Python could call."""
        state.library = Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        key = object()
        state.targetctx.insert_user_function(key, state["cr"].fndesc, [state.library])
        state["cr"] = state["cr"]._replace(cfunc=key)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerWhole(NativeLowering):
    """Lowers a function that Python calls."""

    _name = "lower_whole"

    def run_pass(self, state: Any) -> bool:
        """Lower into a `Whole`."""
        state.library = Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        super().run_pass(state)
        return True


PART, WHOLE = pipeline(LowerPart), pipeline(LowerWhole)


def joined(whole: Any, part: Any) -> Any:
    """One function for all callers: Python gets the whole, compiled code the part."""

    def add_overload(result: Any) -> None:  # there is nothing that numba's dispatcher in C could call
        part.overloads[tuple(result.signature.args)] = result

    find: Callable[[Any, Any], Any] = part.get_call_template

    def get_call_template(arguments: Any, keywords: Any) -> Any:
        """One code for all numbers: numba would make one for each constant."""
        return find(
            tuple(map(types.unliteral, arguments)), {name: types.unliteral(kind) for name, kind in keywords.items()}
        )

    part.add_overload = add_overload
    whole.get_call_template, whole.get_overload = get_call_template, part.get_overload
    return whole
