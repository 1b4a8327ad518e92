"""Engines on vLLM that the tests of this folder share: each takes half a minute to start.

Where vLLM is missing the tests skip: it has an environment of its own (`bash .ci/run vllm`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target, saved."""
    from tests.support import vllm_world

    return vllm_world.save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def roomy_engine(folder: Path) -> Iterator[Any]:
    from tests.support import vllm_world

    engine = vllm_world.start(folder, vllm_world.ROOMY)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def tight_engine(folder: Path) -> Iterator[Any]:
    from tests.support import vllm_world

    engine = vllm_world.start(folder, vllm_world.TIGHT)
    yield engine
    engine.close()


@pytest.fixture
def roomy(roomy_engine: Any) -> Iterator[Any]:
    """An engine with memory for all, and no session yet."""
    yield roomy_engine
    clear(roomy_engine)


@pytest.fixture
def tight(tight_engine: Any) -> Iterator[Any]:
    """An engine with twelve blocks of memory, and no session yet."""
    yield tight_engine
    clear(tight_engine)


def clear(engine: Any) -> None:
    """Forget what a server or a test has left."""
    for key in list(engine._kept):
        engine.forget(key)
    engine.reserve({})
