"""wisp-gym: edge-cloud speculative decoding as Gymnasium environments over one calibrated model.

Importing this package registers `wisp_gym/Speculation-v1`, `wisp_gym/SpeculationLength-v1`, `wisp_gym/Batching-v1` and
`wisp_gym/Joint-v1`: at once where Gymnasium is loaded already, else as soon as it is. So a server that imports `wisp_gym.serving`
loads no Gymnasium.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

ENVIRONMENTS = {
    "wisp_gym/Speculation-v1": ("speculation", "Speculation"),
    "wisp_gym/SpeculationLength-v1": ("speculation", "SpeculationLength"),
    "wisp_gym/Batching-v1": ("batching", "Batching"),
    "wisp_gym/Joint-v1": ("joint", "Joint"),
}


def register_environments() -> None:
    """Register every environment with Gymnasium; a second call changes nothing."""
    import gymnasium

    for name, (module, cls) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"wisp_gym.envs.{module}:{cls}Env",
                vector_entry_point=f"wisp_gym.envs.{module}:{cls}VectorEnv",
            )


class RegisterOnImport(MetaPathFinder):
    """Registers the environments when Gymnasium is imported after this package; then it has done its work and goes."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Gymnasium's own spec, whose execution ends with the registration; nothing for any other name."""
        if name != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register_environments()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    register_environments()
elif not any(
    type(finder).__name__ == RegisterOnImport.__name__ for finder in sys.meta_path
):  # a reload adds no second one
    sys.meta_path.insert(0, RegisterOnImport())
