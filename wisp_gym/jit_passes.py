"""The passes by which a function of the engine is lowered: those of numba's that its subset of Python needs, without numba's notes.

numba runs thirty passes over each function, most of which look for what is not there: closures, generators, object mode, parallel
loops. Around each it notes times and types in words, for events and messages that nobody reads.
"""

from typing import Any

from numba.core import typed_passes, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, _pass_registry

BEFORE_TYPES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.GenericRewrites,  # constant places in tuples and rows, constant powers
    untyped_passes.ReconstructSSA,
)
WITH_TYPES = (typed_passes.NopythonTypeInference, typed_passes.PreLowerStripPhis, typed_passes.IRLegalization)


class Passes(PassManager):
    """Passes that are run one after the other, and that is all."""

    def run(self, state: Any) -> None:
        """Run them over a function."""
        for kind, _ in self.passes:
            _pass_registry.get(kind).pass_inst.run_pass(state)


def pipeline(lowering: type) -> type[CompilerBase]:
    """A compiler with `lowering` as its last pass but one."""

    class Pipeline(CompilerBase):
        def define_pipelines(self) -> list[Any]:
            passes = Passes(lowering.__name__)
            passes.passes = [(one, "") for one in (*BEFORE_TYPES, *WITH_TYPES, lowering, typed_passes.NoPythonBackend)]
            passes.finalize()
            return [passes]

    return Pipeline
