"""Functions on demand: compiled when a world first needs them, for all callers; what goes wrong meanwhile is raised."""

from collections.abc import Iterator

import pytest

from wisp_gym import jit_link, warm_up
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.run import run
from wisp_gym.engine.worlds import Worlds
from wisp_gym.jit import COMPILES
from wisp_gym.jit_demand import OnDemand
from wisp_gym.scenario import load

pytestmark = pytest.mark.skipif(not (COMPILES and jit_link.SUITS), reason="everything is compiled at once, or nothing")
RULE = "wisp_gym.rules.speculation.rule_continues"


@pytest.fixture
def rule() -> Iterator[OnDemand]:
    """The stopping rules on demand, as if nothing had called them yet."""
    demanded = next(each for each in OnDemand.every.values() if each.name == RULE)
    demanded.cell.value = None
    yield demanded
    demanded.bind()


def totals(controller: str) -> bytes:
    """Totals of a small world."""
    scenario = load("wisp-a100-qwen3-32b")
    worlds = Worlds(1, 4, threads=1)
    worlds.fill(0, scenario, 0, resolve(controller, scenario), 4)
    worlds.arrays.config["end_s"] = 5.0
    worlds.run()
    return worlds.arrays.totals.tobytes()


def test_a_rule_is_bound_when_a_world_needs_it(rule: OnDemand) -> None:
    totals("wisp+fcfs")
    assert rule.cell.value is None
    first = totals("price+fcfs")
    assert rule.cell.value is not None
    assert totals("price+fcfs") == first


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_stops_a_compilation_is_raised(
    rule: OnDemand, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(OnDemand, "bind", stopped)
        with pytest.raises(error):
            totals("price+fcfs")
    assert rule.cell.value is None
    assert totals("price+fcfs")


def test_everything_can_be_compiled_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    warm_up.main([])
    assert "pieces of compiled code are kept in" in capsys.readouterr().out
    assert all(demanded.cell.value for demanded in OnDemand.every.values())
    totals("wisp+fcfs")
    assert len(run.overloads) == 1  # of the types that worlds have
