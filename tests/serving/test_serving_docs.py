"""The worked example of docs/serving/serving.md, and what the page says of the bundles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wisp_gym.serving.bundle.names import shipped
from wisp_gym.serving.bundle.onnx_file import MAX_BYTES, MAX_DIMENSION, MAX_NODES, MAX_TENSORS, OPERATORS
from wisp_gym.serving.bundle.schema import Schema

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving" / "serving.md").read_text(encoding="utf-8")


def test_the_worked_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/serving/serving.md", "exec"), {"__name__": "example"})
    found = re.fullmatch(r"(\d+) tokens in (\d+) rounds; replaced decisions: \{\}, \{\}\n", capsys.readouterr().out)
    assert found
    assert 60 <= int(found[1]) <= 72
    assert 5 <= int(found[2]) <= 40


def test_the_page_names_what_there_is() -> None:
    assert all(f"`{name}`" in PAGE for name in shipped())
    assert all(f"`{name}`" in PAGE for name in Schema.__dataclass_fields__)
    prose = " ".join(PAGE.split())  # whatever the width of its lines
    limits = f"at most {MAX_BYTES >> 20} MiB, {MAX_NODES} nodes and {MAX_TENSORS} tensors of at most {MAX_DIMENSION}"
    assert f"{limits} in each axis" in prose
    assert f"{len(OPERATORS)} operators" in prose
