"""Controllers' names: the grammar, what names become, how they are refused, and their long form."""

from __future__ import annotations

import contextlib
import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bundles import random_policy
from wisp_gym.controllers.describe import listing, spelled
from wisp_gym.controllers.lookup import signature
from wisp_gym.controllers.names import ControllerError, Piece, is_policy, one_piece, outside, parse
from wisp_gym.controllers.policy import Policy, PolicyError, save_policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import published_threshold, resolve
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.engine.build import mean_acceptance, separation
from wisp_gym.rules import batching as b
from wisp_gym.rules import speculation as s
from wisp_gym.rules import trimming
from wisp_gym.rules.catalogue import ADDITIONS, ALIASES, BATCHING, CENTRALIZED, COLOCATED, SPECULATION, Rule, Setting
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, load

INF = math.inf
ANYWHERE = {name: rule for name, rule in ADDITIONS.items() if name not in COLOCATED}  # these need a draft at the server


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load("wisp-a100-qwen3-32b")


def unnamed(name: str, scenario: Scenario) -> Controller:
    """The controller of a name, without the name."""
    return replace(resolve(name, scenario), name="")


# --- the grammar -----------------------------------------------------------------------------------------------------


def test_a_name_is_pieces_with_settings_by_place_and_by_name() -> None:
    assert parse("aligned(0.2, A = 0.6)+static:4,0.1+admit()") == [
        Piece("aligned(0.2, A = 0.6)", "aligned", ("0.2",), (("A", "0.6"),)),
        Piece("static:4,0.1", "static", ("4", "0.1")),
        Piece("admit()", "admit"),
    ]
    assert parse("fixed(k=1e+1)+fcfs")[0].keywords == (("k", "1e+1"),)  # a plus sign inside brackets joins nothing


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("speculation-v1+aged+chunk:96,0.2+admit", ["speculation-v1", "aged", "chunk:96,0.2", "admit"]),
        ("speculation-v1+joint-v1", ["speculation-v1", "joint-v1"]),
        ("a+b/policy.json+fcfs", ["a+b/policy.json", "fcfs"]),
        ("a(b,c/policy.json+fcfs", ["a(b,c/policy.json", "fcfs"]),
        ("runs/a+b+edf()+chunk", ["runs/a+b", "edf()", "chunk"]),
        ("a/policy.json+b+c/policy.json+admit", ["a/policy.json", "b+c/policy.json", "admit"]),
        ("fixed(4)+runs/x (2)+admit:0.9", ["fixed(4)", "runs/x (2)", "admit:0.9"]),
        ("runs/x+fcfs/policy.json", ["runs/x+fcfs/policy.json"]),
        ("./wisp+edf", ["./wisp", "edf"]),
    ],
)
def test_paths_may_hold_what_else_divides_names(text: str, pieces: list[str]) -> None:
    assert [piece.text for piece in parse(text)] == pieces
    assert all(piece.is_policy == ("/" in piece.text or piece.text in shipped_names()) for piece in parse(text))


def test_a_path_that_exists_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("mine(2)", "a+fcfs", "wisp", "runs/a", "runs/b"):
        (tmp_path / folder).mkdir(parents=True)
    assert is_policy("mine(2)")
    assert [piece.text for piece in parse("a+fcfs+edf")] == ["a+fcfs", "edf"]
    assert [piece.text for piece in parse("runs/a+runs/b+chunk")] == ["runs/a", "runs/b", "chunk"]
    assert not is_policy("wisp")  # a rule's name always means the rule
    assert is_policy("./wisp")
    assert not is_policy("mine(2)+fcfs")


def test_no_path_breaks_the_reading_of_names(scenario: Scenario) -> None:
    for text in ("a/\0", "a/\ud800", "x" * 5000 + "/", "/dev/null", "~/x", "+" * 400 + "/"):
        with pytest.raises((ControllerError, PolicyError)):
            resolve(text, scenario)


def test_one_piece_is_one() -> None:
    assert one_piece("static(n=8)").keywords == (("n", "8"),)
    with pytest.raises(ControllerError, match="given 2 rules joined by '\\+', allowed is one"):
        one_piece("wisp+edf")


def test_commas_inside_brackets_divide_nothing() -> None:
    assert outside("a(b,c),d:1,(e", ",") == ["a(b,c)", "d:1", "(e"]
    assert outside("a),b", ",") == ["a)", "b"]


GRAMMAR = [
    ("aligned(thr=0.2+fcfs", "'(' is not closed"),
    ("aligned thr=0.2)+fcfs", "')' without '('"),
    ("aligned((0.2))+fcfs", "brackets inside brackets"),
    ("aligned(0.2)x+fcfs", "'x+fcfs' follows ')'"),
    ("aligned(thr=0.2, 0.6)+fcfs", "'0.6' follows 'thr='; allowed are values without a name first"),
    ("aligned(thr=, A=1)+fcfs", "a setting is empty in 'thr=, A=1'"),
    ("aligned(0.2,)+fcfs", "a setting is empty"),
    ("aligned:thr=0.2+fcfs", "settings by name stand in brackets: 'aligned(thr=0.2)'"),
    ("", "a rule is empty"),
    ("+", "a rule is empty"),
    ("fixed:4++fcfs", "a rule is empty"),
    ("fixed:4+", "a rule is empty"),
    ("fixed:4 + fcfs", "given a space in ' fcfs', allowed inside brackets alone"),
    ("fixed (4)+fcfs", "given a space in 'fixed '"),
]


@pytest.mark.parametrize(("text", "words"), GRAMMAR)
def test_what_follows_no_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(ControllerError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"controller '{text}': ")


SIGNS = st.text(alphabet=string.ascii_lowercase + "0123456789:,.+-()= /", max_size=24)
WORDS = st.lists(
    st.sampled_from([*SPECULATION, *BATCHING, *ADDITIONS, *"+:(),= /", "0.5", "k", "n", "A", ".json"]), max_size=12
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=24) | SIGNS | WORDS)
def test_no_text_breaks_the_grammar(text: str) -> None:
    refusal = ""
    try:
        assert "+".join(piece.text for piece in parse(text)) == text
    except ControllerError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) < 2


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=24) | SIGNS | WORDS)
def test_no_text_breaks_the_reading_of_names(text: str) -> None:
    with contextlib.suppress(ControllerError, PolicyError):
        assert resolve(text, load("wisp-a100-qwen3-32b")).name == text


# --- what names become -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "speculation", "parameters", "batching", "batch_parameters"),
    [
        ("fixed:7+edf", s.FIXED, (7.0,), b.EDF, ()),
        ("fixed+fcfs", s.FIXED, (4.0,), b.FCFS, ()),
        ("sled", s.FIXED, (8.0,), b.STATIC, (4.0, 0.1)),
        ("sled-confidence", s.CONFIDENCE_RULE, (0.6, INF), b.STATIC, (4.0, 0.1)),
        ("survival:0.5,8,2+wisp:0.1", s.SURVIVAL_RULE, (0.5, 8.0, 2.0), b.WISP, (0.1, 4.0)),
        ("wisp:0.25,6+static:8", s.WISP, (0.25, 6.0), b.STATIC, (8.0, 0.1)),
        ("oracle+fcfs", s.ORACLE, (), b.FCFS, ()),
        ("centralized", s.FIXED, (0.0,), b.CONTINUOUS, (16.0, 0.0)),
        ("centralized:0,24", s.FIXED, (0.0,), b.CONTINUOUS, (0.0, 24.0)),
        ("centralized-paced:0.1", s.FIXED, (0.0,), b.PACED, (0.1,)),
        ("fixed:4+edf-demoted", s.FIXED, (4.0,), b.EDF_DEMOTED, (0.0,)),
        ("fixed:4+control-limit:6", s.FIXED, (4.0,), b.CONTROL_LIMIT, (6.0, 0.1)),
        ("fixed:4+aged", s.FIXED, (4.0,), b.AGED, (30.0,)),
    ],
)
def test_names_become_rules_and_numbers(
    scenario: Scenario, name: str, speculation: int, parameters: Any, batching: int, batch_parameters: Any
) -> None:
    found = resolve(name, scenario)
    assert (found.speculation, found.speculation_parameters) == (speculation, parameters)
    assert (found.batching, found.batching_parameters) == (batching, batch_parameters)
    assert found.centralized == name.startswith("centralized")
    assert found.name == name
    assert (found.trim, found.chunk_tokens) == (trimming.NONE, None)


def test_trim_and_chunk_follow_the_batching_rule(scenario: Scenario) -> None:
    found = resolve("fixed:8+edf-demoted:0.5+tetris:48+chunk:32", scenario)
    assert (found.speculation_parameters, found.batching, found.batching_parameters) == ((8.0,), b.EDF_DEMOTED, (0.5,))
    assert (found.trim, found.trim_tokens, found.chunk_tokens, found.uses_predictor) == (trimming.TETRIS, 48, 32, True)
    assert resolve("fixed:8+fcfs+chunk+dspark", scenario).chunk_tokens == 128
    alone = resolve("centralized:4+chunk:64", scenario)
    assert (alone.centralized, alone.chunk_tokens, alone.uses_predictor) == (True, 64, False)
    assert resolve("dspark", scenario).trim == trimming.DSPARK
    assert resolve("fixed:8+aged+admit:0.8+chunk:64", scenario).admit_share == 0.8
    assert resolve("centralized:0+admit", scenario).admit_share == 0.95


def test_a_policys_path_may_hold_a_plus_sign(scenario: Scenario) -> None:
    paths: list[str] = []

    def load_policy(path: str | Path) -> Policy:
        paths.append(str(path))
        return random_policy("token")

    for name, batching, trim in (
        ("a+b/policy.json", b.WISP, trimming.NONE), ("a+b/policy.json+fcfs", b.FCFS, trimming.NONE),
        ("a+b/policy.json+edf+dspark+chunk:64", b.EDF, trimming.DSPARK),
    ):  # fmt: skip
        found = resolve(name, scenario, load_policy)
        assert (found.batching, found.trim) == (batching, trim)
    assert paths == ["a+b/policy.json"] * 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wsip", "did you mean 'wisp'"),
        ("survivall:0.5+fcfs", "did you mean 'survival'"),
        ("fixed:4+edff", "did you mean 'edf'"),
        ("qqq+fcfs", "allowed: fixed, confidence"),
        ("fixed:4", "for instance 'fixed:4+fcfs'"),
        ("fixed:-1+fcfs", "allowed is 0 to 32"),
        ("fixed:nan+fcfs", "k given nan"),
        ("fixed:1,2+fcfs", "at most 1"),
        ("confidence:1.5+fcfs", "c given 1.5, allowed is 0 to 1"),
        ("wisp+static:0", "n given 0, allowed is 1 to 4096"),
        ("centralized:x", "b given 'x'"),
        (
            "aligned(thresh=0.2)+fcfs",
            "unknown setting 'thresh'; did you mean 'thr'? allowed: thr, A, margin, guard, k_max",
        ),
        ("aligned(0.2, thr=0.3)+fcfs", "setting 'thr' is given twice"),
        ("aligned(A=1, A=2)+fcfs", "setting 'A' is given twice"),
        ("fixed:4+static(n=0)", "controller 'static(n=0)': n given 0, allowed is 1 to 4096"),
        ("fixed(k=four)+fcfs", "k given 'four', allowed is a number from 0 to 32"),
        ("fixed(4)+static(1, 2, 3)", "at most 2: static(n=4, timeout_s=0.1)"),
        ("fixed(4)+edf(n=1)", "unknown setting 'n'; allowed: none"),
        ("sled+chunk", "'sled' stands alone, it is short for 'fixed:8+static:4,0.1+overlap'"),
        ("speculation-v2+fcfs", "did you mean 'speculation-v1'"),
        ("speculation-v1:3", "a saved policy has no settings"),
        ("speculation-v1+chunk", "a batching rule is missing"),
        ("centralised", "did you mean 'centralized'"),
        ("centralized-paced:-1", "margin given -1, allowed is 0 to 10"),
        ("fixed:4+edf-demotd", "did you mean 'edf-demoted'"),
        ("fixed:4+fcfs+dsprak", "did you mean 'dspark'"),
        ("fixed:4+dspark", "a batching rule is missing"),
        ("fixed:4+fcfs+edf", "allowed: dspark, tetris, adaserve, chunk, admit"),
        ("fixed:4+fcfs+dspark+tetris", "'tetris' does not fit"),
        ("fixed:4+fcfs+chunk+chunk", "allowed: one each of trimming, chunk, admission, pacing, co-located drafting"),
        ("fixed:4+fcfs+chunk:-1", "tokens given -1"),
        ("fixed:4+fcfs+admit:0.9+admit:0.8", "'admit' does not fit"),
        ("fixed:4+fcfs+admit:0", "share given 0, allowed is 0.01 to 1"),
        ("centralized+dspark", "trimming needs drafts; allowed: colocated"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest_choice(scenario: Scenario, name: str, words: str) -> None:
    with pytest.raises(ControllerError) as caught:
        resolve(name, scenario)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_listing_names_every_rule() -> None:
    for name, rule in (*SPECULATION.items(), *BATCHING.items(), *CENTRALIZED.items(), *ADDITIONS.items()):
        assert signature(name, rule) in listing()
        assert rule.meaning in listing()
        for setting in rule.settings:
            assert math.isnan(setting.default) or setting.low <= setting.default <= setting.high
            assert setting.tune is None or setting.low <= setting.tune[0] < setting.tune[1] <= setting.high
    assert set(ALIASES) | set(shipped_names()) <= set(listing().replace(",", " ").split())


def test_wisp_stops_at_its_published_operating_point(scenario: Scenario) -> None:
    threshold = published_threshold(scenario)
    assert resolve("wisp", scenario).speculation_parameters == (threshold, INF)
    # evidence ~ N(±d/2, 1) for accepted and rejected tokens; the threshold passes 80.1 % of the accepted ones
    d, share = separation(scenario.draft.statistics.auc), mean_acceptance(scenario.draft.acceptance)
    evidence = np.random.default_rng(0).normal(d / 2, 1.0, 200_000)
    p = 1.0 / (1.0 + np.exp(-(math.log(share / (1 - share)) + d * evidence)))
    assert (p >= threshold).mean() == pytest.approx(0.801, abs=0.004)


# --- both forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("aligned(thr=0.2, A=0.6)+fcfs", "aligned:0.2,0.6+fcfs"),
        ("aligned(0.2, A=0.6)+fcfs", "aligned:0.2,0.6+fcfs"),
        ("aligned(k_max=4)+fcfs", "aligned:0.15,0.9,2,0.05,4+fcfs"),
        ("fixed()+static(timeout_s=0.05, n=8)", "fixed+static:8,0.05"),
        (
            "sglang(low=1, high=8)+wisp+chunk(tokens=96, share=0.2)+admit(share=0.9)",
            "sglang:1,3,8+wisp+chunk:96,0.2+admit:0.9",
        ),
        ("centralized(n=24)+admit", "centralized:16,24+admit:0.95"),
        ("fixed(k=8)+static(n=4, timeout_s=0.1)", "sled-plain"),
        ("wisp(k_max=inf)+wisp()", "wisp"),
        ("speculation-v1+batching-v1+admit", "batching-v1"),
        ("speculation-v1+wisp", "speculation-v1"),
    ],
)
def test_long_and_short_forms_are_the_same_controller(scenario: Scenario, long: str, short: str) -> None:
    assert unnamed(long, scenario) == unnamed(short, scenario)
    assert spelled(long, scenario) == spelled(short, scenario)


def test_the_long_form_gives_every_setting() -> None:
    assert spelled("aligned:0.2+static:8") == (
        "aligned(thr=0.2, A=0.9, margin=2, guard=0.05, k_max=inf)+static(n=8, timeout_s=0.1)"
    )
    assert spelled("wisp") == "wisp(p, k_max=inf)+wisp(margin=0.05, window=4)"
    assert spelled("joint-v1") == "speculation-v1+joint-v1+admit(share=0.95)"


def values_of(setting: Setting) -> st.SearchStrategy[float]:
    """Values that a setting takes."""
    if setting.whole:
        return st.integers(math.ceil(setting.low), int(min(setting.high, 1e5))).map(float)
    return st.floats(setting.low, min(setting.high, 1e5))


@st.composite
def pieces(draw: st.DrawFn, rules: dict[str, Rule]) -> tuple[str, str]:
    """A rule with some settings, in the short and in a mixed form."""
    name = draw(st.sampled_from(sorted(rules)))
    chosen = [(x.name, draw(values_of(x))) for x in rules[name].settings[: draw(st.integers(0, 8))]]
    by_place = draw(st.integers(0, len(chosen)))
    by_name = draw(st.permutations([f"{word}={value!r}" for word, value in chosen[by_place:]]))
    mixed = ", ".join([*(repr(value) for _, value in chosen[:by_place]), *by_name])
    return name + ":" * bool(chosen) + ",".join(repr(value) for _, value in chosen), f"{name}({mixed})"


def fits(parts: tuple[tuple[str, str], ...]) -> bool:
    """Whether the batching rule takes the addition: pacing fits no rule that protects deadlines by its order."""
    (batching, _), (addition, _) = parts[1:]
    return not addition.startswith("pace") or b.takes_pace(BATCHING[parse(batching)[0].name].kind)


@settings(max_examples=150, deadline=None)
@given(st.tuples(pieces(SPECULATION), pieces(BATCHING), pieces(ANYWHERE)).filter(fits) | st.tuples(pieces(CENTRALIZED)))
def test_every_form_of_a_name_is_the_same_controller(parts: tuple[tuple[str, str], ...]) -> None:
    scenario = load("wisp-study")
    short, mixed = ("+".join(forms) for forms in zip(*parts, strict=True))
    first = unnamed(short, scenario)
    for other in (mixed, spelled(short, scenario), spelled(mixed, scenario)):
        assert unnamed(other, scenario) == first
    assert spelled(spelled(short, scenario), scenario) == spelled(short, scenario)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_name_resolves_wherever_a_controller_is_asked_for(name: str, scenario: Scenario) -> None:
    assert is_policy(name)
    found = resolve(name, scenario)
    assert len(found.policy) > 0
    assert (len(found.scorer) > 0) == (found.batching == b.LEARNED) == (not name.startswith("speculation"))
    assert SpeculationPredictor(name, scenario).controller == found
    if found.batching == b.LEARNED:
        assert np.array_equal(BatchingPredictor(name, scenario, prices=name.startswith("joint")).scorer, found.scorer)


def test_predictors_take_settings_by_name(scenario: Scenario) -> None:
    assert SpeculationPredictor("survival(h=0.5)", scenario).parameters[0] == 0.5
    assert BatchingPredictor("static(timeout_s=0.05)", scenario).parameters[:2].tolist() == [4.0, 0.05]
    assert BatchingPredictor("fixed(4)+static(n=8)", scenario).parameters[0] == 8.0


def test_a_run_folder_with_signs_in_its_name_is_a_controller(scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "a+b (2), c"
    folder.mkdir()
    save_policy(random_policy("token"), folder / "policy.json")
    for name in (str(folder), f"{folder}+edf", f"{folder}/policy.json+edf()"):
        assert resolve(name, scenario).speculation == s.POLICY
