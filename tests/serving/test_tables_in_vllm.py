"""Tables of draft lengths, read by vLLM's own reader, where vLLM is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from wisp_gym.serving.tables import engines
from wisp_gym.serving.tables.lengths import Range

READER = Path("v1", "spec_decode", "dynamic", "utils.py")


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The module of vLLM that reads a table; by its file, since the package takes ten seconds to import."""
    package = importlib.util.find_spec("vllm")
    places = [Path(folder) / READER for folder in (package.submodule_search_locations or [])] if package else []
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip("no vLLM with tables is installed")
    spec = importlib.util.spec_from_file_location("vllm_tables", found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "found",
    [[Range(1, 6, 4), Range(7, 40, 2), Range(41, 64, 0)], [Range(1, 64, 3)], [Range(1, 8, 1), Range(9, 64, 3)]],
    ids=str,
)
def test_vllm_looks_up_the_lengths_that_were_solved(reader: ModuleType, found: list[Range]) -> None:
    given = json.loads(engines.vllm(found))
    table, most = given["num_speculative_tokens_per_batch_size"], given["num_speculative_tokens"]
    lookup = reader.build_dynamic_sd_schedule_lookup(table, 100, most)
    for one in found:
        assert lookup[one.low : one.high + 1] == [one.length] * (one.high - one.low + 1)
    assert set(lookup[65:]) == {found[-1].length}
