"""vLLM's own speculation, steered: settings, lengths, step times and comparison. None of it needs vLLM; tests/testbed/vllm runs it there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from wisp_gym.errors import InputError
from wisp_gym.rules import server_lengths, suggestions
from wisp_gym.testbed.vllm_steering import compare, cycles, settings
from wisp_gym.testbed.vllm_steering.bench_engine import Plan, Played
from wisp_gym.testbed.vllm_steering.lengths import Drafted, Lengths
from wisp_gym.testbed.vllm_steering.settings import Steering, rule_of
from wisp_gym.testbed.vllm_steering.steerer import Steerer
from wisp_gym.testbed.vllm_steering.step_profile import COLUMNS, profile, rows_of
from wisp_gym.testbed.vllm_steering.step_times import Costs, Step, StepTimes

# A step whose every part costs something; seconds of Step's sizes.
TRUE_S = np.array([8e-3, 4e-4, 1e-7, 2e-7, 3e-3, 2e-4, 1e-7])
CHEAP, DEAR = Costs(0.1, 1e-4, 1e-4, -1e-4), Costs(0.01, 0.05, 0.05, -0.05)


def lengths_of(name: str, longest: int = 5) -> Lengths:
    return Lengths(rule_of(name), longest, 0.7)


def rounds(accepted: int, drafted: int = 4, names: str = "abcd") -> list[Drafted]:
    return [Drafted(name, drafted, accepted, drafted) for name in names]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lenghts": "turbospec"}, "unknown setting 'wisp_gym.lenghts'; did you mean 'lengths'"),
        ({"lengths": "turbospek"}, "turbospec"),
        ({"lengths": "table"}, "vLLM reads tables itself"),
        ({"lengths": "turbospec(draft=1)"}, "a rule without 'draft'"),
        ({"lengths": "survival(h=3)"}, "h given 3, allowed is 0 to 1"),
        ({"lengths": 3}, "allowed is a text"),
        ({"accepted": 1.5}, "allowed is a number from 0 to 1"),
        ({"probe_share": True}, "allowed is a number from 0 to 0.5"),
        ({"metrics": "9091"}, "allowed is HOST:PORT"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        settings.read({settings.KEY: given})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_read_and_have_defaults() -> None:
    assert settings.read({}) == settings.read({"other": 1}) == Steering()
    assert settings.read({settings.KEY: {"metrics": "127.0.0.1:9091"}}).metrics_address() == ("127.0.0.1", 9091)
    assert rule_of("turbospec") == rule_of("colocated-turbospec")
    assert rule_of("colocated:3").values == (3.0,)
    assert rule_of("throughput(high=6)").values == (0.0, 2.0, 6.0, 0.05)
    with pytest.raises(InputError, match="allowed is an object"):
        settings.read({settings.KEY: "turbospec"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"speculative_config": None}, "nothing to steer, allowed is vLLM with --speculative-config"),
        ({"scheduler_config": SimpleNamespace(async_scheduling=True)}, "allowed is --no-async-scheduling"),
        ({"parallel_config": SimpleNamespace(data_parallel_size=2)}, "allowed is no data parallelism"),
    ],
)
def test_an_engine_that_cannot_be_steered_is_refused(
    wrong: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "check_version", lambda asked_by: asked_by)
    good = {
        "speculative_config": object(), "num_speculative_tokens": 4, "scheduler_config": SimpleNamespace(async_scheduling=False),
        "parallel_config": SimpleNamespace(data_parallel_size=1),
    }  # fmt: skip
    settings.check_engine(SimpleNamespace(**good))
    with pytest.raises(InputError, match=said):
        settings.check_engine(SimpleNamespace(**{**good, **wrong}))


def test_rules_are_those_of_the_simulated_server() -> None:
    """The same function, memory and numbers give the same length."""
    ours, memory = lengths_of("turbospec"), np.zeros(suggestions.KNOWLEDGE)
    for accepted in (4, 1, 0, 3, 2):
        ours.learn(rounds(accepted))
        server_lengths.server_learns(server_lengths.TURBOSPEC, ours.parameters, memory, 4, float(accepted))
        for _ in range(4):
            server_lengths.note_server_round(server_lengths.TURBOSPEC, memory, 4, accepted)
        assert np.array_equal(ours.memory, memory)
        for costs in (CHEAP, DEAR, Costs(0.02, 2e-3, 1e-3, -2e-3)):
            theirs = server_lengths.server_length(
                server_lengths.TURBOSPEC, ours.parameters, memory, 4, 0, 5, 0.7, *costs
            )
            assert ours.of_step("abcd", costs) == theirs


def test_rules_that_ask_for_costs_draft_while_it_is_cheap() -> None:
    for name in ("turbospec", "throughput"):
        rule = lengths_of(name)
        rule.learn(rounds(4))
        assert rule.of_step("abcd", CHEAP) == 5
        for _ in range(20):
            rule.learn(rounds(0))
        assert rule.of_step("abcd", DEAR) == 0


def test_fixed_and_ladder_need_no_costs() -> None:
    nothing = Costs(0.0, 0.0, 0.0, 0.0)
    assert lengths_of("colocated:3").of_step("ab", nothing) == 3
    assert lengths_of("colocated:9").of_step("ab", nothing) == 5  # no more than the engine can
    ladder = lengths_of("ema")
    assert ladder.of_step("ab", nothing) == 3
    for _ in range(30):
        ladder.learn(rounds(0, 3))
    assert ladder.of_step("ab", nothing) == 1


def test_survival_gives_each_request_its_own_length() -> None:
    rule = lengths_of("survival(h=0.6)")
    for _ in range(20):
        rule.learn([Drafted("sure", 4, 4, 4), Drafted("unsure", 4, 0, 4)])
    assert rule.of_request("sure") == 5
    assert rule.of_request("unsure") == 1
    assert rule.of_request("unsure") <= rule.of_request("new") <= 5
    assert rule.of_step(["unsure"], CHEAP) == 1
    assert rule.of_step(["unsure", "sure"], CHEAP) == 5
    rule.keep({"sure"})
    assert list(rule.sessions) == ["sure"]
    assert rule.rate("unsure") == rule.rate("new")


def test_a_search_that_finds_little_counts_for_little() -> None:
    """Rounds without a draft commit a token each, as `others` do."""
    seldom, always = lengths_of("turbospec"), lengths_of("turbospec")
    for _ in range(60):
        seldom.learn([Drafted("a", 4, 3, 4), *(Drafted(name, 0, 0, 4) for name in "bcd")])
        always.learn(rounds(3))
    assert seldom.offer == pytest.approx(0.25, abs=0.01)
    costs = Costs(0.05, 0.01, 0.0, -0.01)
    assert seldom.of_step("abcd", costs) < always.of_step("abcd", costs)
    assert seldom.of_step("a", CHEAP) == 5  # at least one is taken to be drafted for


def steps(count: int, seed: int = 0) -> list[Step]:
    random = np.random.default_rng(seed)
    found = []
    for place in range(count):
        decoding, context = int(random.integers(1, 9)), int(random.integers(200, 2000))
        new, length = decoding * int(random.integers(1, 6)), place % 6
        found.append(Step(new, float(new * context / decoding), context - new, decoding, context, length))
    return found


def test_step_times_are_learned_from_a_few_steps() -> None:
    random, times = np.random.default_rng(1), StepTimes(18)
    for step in steps(17):
        times.observe(step, float(TRUE_S @ step.sizes()) * random.lognormal(0.0, 0.05))
        assert times.predict(step) == 0.0
        assert times.costs(4, 800) == Costs(0.0, 0.0, 0.0, 0.0)
    for step in steps(200, 2):
        times.observe(step, float(TRUE_S @ step.sizes()) * random.lognormal(0.0, 0.05))
    errors = [times.predict(step) / float(TRUE_S @ step.sizes()) - 1.0 for step in steps(50, 3)]
    assert np.mean(np.abs(errors)) < 0.05
    costs = times.costs(4, 800)
    assert costs.step_s == pytest.approx(TRUE_S[4] + 4 * TRUE_S[5] + 800 * TRUE_S[6], rel=0.2)
    assert costs.overhead_s == -costs.step_s  # the first token needs no further pass


def test_lengths_are_probed_at_first_and_then_now_and_then() -> None:
    steerer = Steerer(Steering("turbospec", probe_share=0.1), 3)
    first = []
    for step in steps(12):
        first.append(steerer.length(["a", "b"], 400, 0))
        steerer.ended(step, float(TRUE_S @ step.sizes()), rounds(3, 3, "ab"), ())
    assert first == [0, 1, 2, 3] * 3
    later = [steerer.length(["a", "b"], 400, 0) for _ in range(100)]
    common = max(set(later), key=later.count)
    assert 80 <= later.count(common) < 100
    assert set(later) <= {common - 1, common, common + 1}
    assert steerer.length([], 0, 0) == 0
    assert Steerer(Steering("colocated:2"), 3).length(["a"], 100, 0) == 2  # a rule that asks for no costs is not probed


def test_a_rule_that_fails_leaves_vllms_length_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    steerer = Steerer(Steering("survival"), 4)

    def fail(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Lengths, "of_step", fail)
    monkeypatch.setattr(Lengths, "of_request", fail)
    assert steerer.length(["a"], 100, 0) == 4
    assert steerer.verified("a", 4, 2) == 2
    monkeypatch.setattr(Lengths, "learn", fail)
    steerer.ended(Step(1, 1.0, 0, 1, 1), 0.1, rounds(1), ())
    assert steerer.fallbacks == 3
    assert steerer.metrics.registry.get_sample_value("wisp_scheduler_fallbacks_total", {"reason": "failed"}) == 3


def test_verified_drafts_end_with_the_answer() -> None:
    steerer = Steerer(Steering("colocated:4"), 4)
    assert [steerer.verified("a", 4, room) for room in (9, 3, 0, -1)] == [4, 3, 0, 0]


# --- the comparison ----------------------------------------------------------------------------------------------------


class World:
    """Plays in a world where length k takes `seconds[k]`; rules draft as the fastest."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.played = seconds, list[tuple[str, int]]()

    def play(self, plan: Plan) -> Played:
        self.played.append((plan.lengths, plan.concurrency))
        spent_s = self.seconds.get(plan.lengths, 1.0)
        return Played(spent_s, 10, 40, 20, 0, 0, [[1] * plan.tokens for _ in plan.prompts])


REQUESTS = cycles.Requests([[1], [2]], [[3], [4]], 5)


def test_every_second_cycle_is_reversed_and_all_play_the_same() -> None:
    world = World({"vllm:1": 2.0, "turbospec": 0.5})
    every = ["vllm:1", "turbospec", "survival"]
    rows = [row for number in range(3) for row in cycles.cycle(world.play, REQUESTS, [1, 2], every, number)]
    forth, back = [(name, 1) for name in every], [(name, 1) for name in reversed(every)]
    assert [pair for pair in world.played if pair[1] == 1] == [*forth, *back, *forth]
    found = cycles.summary(rows, "vllm:1")
    assert [(each["concurrency"], each["lengths"], each["ratio"]) for each in found[:3]] == [
        (1, "vllm:1", 1.0), (1, "turbospec", 4.0), (1, "survival", 2.0),
    ]  # fmt: skip
    assert found[1]["tokens_per_s"] == 20.0
    assert found[1]["accepted_share"] == 0.5
    assert found[1]["same_answers"] == found[1]["answers"] == 6
    assert len(cycles.as_json(rows)) == 18


def test_answers_that_differ_are_counted() -> None:
    played = Played(1.0, 1, 0, 0, 0, 0, [[1, 2], [3]])
    row = cycles.row("survival", 1, 0, played, played._replace(answers=[[1, 2], [4]]))
    assert (row.same_answers, row.answers, row.accepted_share) == (1, 2, None)


def test_the_table_is_tuned_on_other_requests_by_concurrency() -> None:
    class Crowded(World):
        def play(self, plan: Plan) -> Played:
            assert plan.prompts == REQUESTS.others
            length = int(plan.lengths.removeprefix("vllm:"))
            return super().play(plan)._replace(seconds=1.0 + abs(length - (3 if plan.concurrency == 1 else 0)))

    found = cycles.tune(Crowded({}).play, REQUESTS, [8, 1], 4)
    assert found == "table:[[1, 1, 3], [2, 8, 0]]"


def test_step_times_are_medians_of_steps_in_which_all_decode() -> None:
    """With as many drafts verified as are drafted anew; a step that changes length, or holds a prompt, is none of them."""
    steady = Step(8, 1600.0, 1592, 2, 400, 3)
    timed = [
        (steady, 0.3),
        (steady, 0.1),
        (steady, 0.2),
        (steady._replace(length=2), 9.0),
        (steady._replace(new_tokens=40), 9.0),
    ]
    (row,) = rows_of(timed)
    assert tuple(row) == COLUMNS
    assert tuple(row.values()) == (2, 3, 192, 0.2, 3)

    class Fixed(World):
        def play(self, plan: Plan) -> Played:
            length = int(plan.lengths.removeprefix("colocated:"))
            step = Step(plan.concurrency * (length + 1), 1.0, 1, plan.concurrency, 160 * plan.concurrency, length)
            return super().play(plan)._replace(timed=[(step, 0.1)])

    found = profile(Fixed({}).play, REQUESTS, [4, 1], 2)
    assert [(each["batch"], each["k"]) for each in found] == [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (4, 2)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lengths", "vllm:9"], "allowed is vllm:K with K from 0 to --longest 5"),
        (["--lengths", "table:["], "allowed is table:[[first, last, K], …]"),
        (["--lengths", "turbospec", "--reference", "off"], "--reference: given off, allowed is one of turbospec"),
        (["--model", "m"], "--model: allowed is --draft or --ngram beside it"),
        (["--ngram", "--draft", "d"], "--ngram: allowed is no --draft beside it"),
        (["--vllm", '{"dtype": "half"}'], "--vllm: given dtype, which the comparison sets itself"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.parse(flags)
    assert said in capsys.readouterr().err


def test_an_unknown_rule_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="turbospec"):
        compare.parse(["--lengths", "turbospek"])
