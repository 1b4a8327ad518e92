"""What the host does for a message: the fit by hand, and a server that is really asked."""

from __future__ import annotations

import pytest

from estimators.profiling import host
from wisp_gym.cli import run

pytest.importorskip("grpc")


def test_a_line_is_found_in_the_times_of_batches():
    sizes = (1, 2, 4, 8)
    row = host.fitted("line", sizes, [0.003 + 0.0005 * n for n in sizes])
    assert row["request_ms"] == pytest.approx(0.5)
    assert row["batch_ms"] == pytest.approx(3.0)
    assert row["largest_error"] == pytest.approx(0.0, abs=1e-9)


def test_the_engine_without_a_model_answers_every_session(monkeypatch, capsys):
    """Prompts longer than a chunk in sum, as 32 devices bring them: none may be taken for computed before it is."""
    monkeypatch.setattr(
        host, "importlib", type("none", (), {"util": type("util", (), {"find_spec": lambda name: None})})
    )
    assert run(host.main, host.PROGRAM, ["--tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert "testbed message" in out
    assert 0.0 < float(out.splitlines()[-1].split()[2]) < 1000.0
