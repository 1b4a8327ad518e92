"""What a server can draft with: presets, catalogue, what is refused and how, TOML there and back, changes."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.scenario import Acceptance, DraftTime, ScenarioError, ServerDraft, dumps, load, loads, presets, with_
from wisp_gym.scenario import toml as scenario_toml

DEFAULT = "wisp-a100-qwen3-32b"
BASE = f'use = "{DEFAULT}"\n'
LLAMA = BASE + 'server.use = "a100-80gb-x4"\ntarget.use = "llama-70b"\ndraft.use = "llama-3.2-1b"\n'
NGRAM = '[[server_drafts]]\nuse = "ngram"\n'
FATES = "acceptance = {logit_mean = 1, request_std = 0, drift_std = 0, drift_tokens = 9, after_rejection_logit = 0}\n"
TIME = "time = {overhead_s = 0, launch_s = 1, sequence_s = 0, token_s = 0, cached_token_s = 0}\n"
OWN_FATES = Acceptance(1.0, 0.0, 0.0, 9.0, 0.0)
OWN_TIME = DraftTime(0.0, 1.0, 0.0, 0.0, 0.0)

# Tokens that memory holds beside each server draft, in the order of the preset; 0 = without any.
ROOM = {
    DEFAULT: (38_523, 23_635, 32_053, 38_523),
    "wisp-a100-qwen3-14b": (281_364, 161_229, 281_364),
    "wisp-a100-llama-70b": (493_149, 441_437, 478_603, 493_149),
    "wisp-a100-llama-70b-nf4": (100_664, 84_633, 100_664),
    "h100-qwen3-32b": (37_224, 22_731, 30_773, 37_224),
    "h200-qwen3-32b": (261_187, 178_532, 251_291, 261_187),
}


@pytest.fixture(scope="module")
def default():
    return load(DEFAULT)


def names(scenario) -> list[str]:
    return [draft.name for draft in scenario.server_drafts]


# --- presets and catalogue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_presets_can_draft_with_the_devices_model_a_head_and_a_search(name):
    scenario = load(name)
    own, *others = scenario.server_drafts
    assert (own.name, own.correlation, own.acceptance) == (scenario.draft.name, 1.0, scenario.draft.acceptance)
    assert own.offer == 1.0
    head = f"eagle3-{scenario.target.name}"
    known = [head] if head in scenario_toml.catalogue("server-drafts") else []  # nobody has published one for Qwen3-14B
    assert [draft.name for draft in others] == [*known, "ngram"]
    assert (others[-1].weights_bytes, others[-1].kv_bytes_per_token) == (0, 0)
    assert all(0 < draft.correlation < 1 for draft in others)


@pytest.mark.parametrize("name", ROOM)
def test_memory_beside_each_draft(name):
    scenario = load(name)
    without, *beside = ROOM[name]
    assert scenario.kv_tokens == without
    assert [scenario.kv_tokens_beside(d.weights_bytes, d.kv_bytes_per_token) for d in scenario.server_drafts] == beside
    for draft, tokens in zip(scenario.server_drafts, beside, strict=True):
        each = scenario.target.kv_bytes_per_token + draft.kv_bytes_per_token
        used = scenario.target.weights_bytes + draft.weights_bytes + scenario.server.activation_bytes + tokens * each
        assert 0 <= scenario.server.memory_bytes * scenario.server.memory_utilisation - used < each


@pytest.mark.parametrize("draft", sorted(scenario_toml.catalogue("server-drafts")))
def test_every_draft_of_the_catalogue_has_an_acceptance_and_a_time_for_every_server(draft):
    entry = scenario_toml.catalogue("server-drafts")[draft]
    assert entry["time"].keys() == scenario_toml.catalogue("servers").keys()
    assert scenario_toml.acceptances(draft).keys() <= scenario_toml.catalogue("targets").keys()
    assert scenario_toml.acceptances(draft)


def test_a_model_that_devices_draft_with_too_has_one_acceptance_by_each_target():
    of_devices = scenario_toml.catalogue("drafts")
    for name, entry in scenario_toml.catalogue("server-drafts").items():
        assert not (name in of_devices and "acceptance" in entry), name


# --- files -----------------------------------------------------------------------------------------------------------


def test_fields_beside_use_replace_those_of_the_catalogue(default):
    text = f'{BASE}{NGRAM}name = "search"\noffer = 0.5\nacceptance.logit_mean = 0.1\ntime.overhead_s = 0.003\n'
    (found,) = loads(text).server_drafts
    known = default.server_drafts[-1]
    changed = {"acceptance": replace(known.acceptance, logit_mean=0.1), "time": replace(known.time, overhead_s=0.003)}
    assert found == replace(known, name="search", offer=0.5, **changed)


def test_a_list_replaces_the_presets_list_whole():
    assert names(loads(BASE + NGRAM)) == ["ngram"]
    assert names(loads(BASE + "server_drafts = []")) == []


def test_the_devices_own_draft_goes_by_its_name():
    text = BASE + 'draft = {use = "qwen3-1.7b", acceptance = {logit_mean = 2}}\n'
    used = [f'[[server_drafts]]\nuse = "qwen3-{size}"\n' for size in ("0.6b", "1.7b")]
    other, own = loads(text + "".join(used)).server_drafts
    assert (own.correlation, own.acceptance.logit_mean) == (1.0, 2.0)
    assert (other.correlation, other.acceptance) == (0.5, load(DEFAULT).draft.acceptance)
    quantised = loads(f"{text}{used[1]}correlation = 0.9\nacceptance.logit_mean = 2.1\n").server_drafts[0]
    assert (quantised.correlation, quantised.acceptance.logit_mean) == (0.9, 2.1)


@pytest.mark.parametrize("base", [DEFAULT, "wisp-study"])
def test_a_presets_own_draft_goes_with_a_files_acceptance(base):
    scenario = loads(f'use = "{base}"\ndraft.acceptance.logit_mean = 0.3\n')
    assert scenario.server_drafts[0].acceptance == scenario.draft.acceptance
    assert scenario.server_drafts[0].acceptance.logit_mean == 0.3


def test_what_a_preset_cannot_have_on_another_machine_is_left_out():
    assert names(loads(LLAMA)) == ["ngram"]
    assert names(loads(BASE + 'server = {use = "a100-80gb", name = "mine"}')) == names(load(DEFAULT))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("server_drafts = 3", ["server_drafts: given 3", "[[server_drafts]]"]),
        ("server_drafts = [3]", ["server_drafts[0]: given 3", 'use = "name"', "weights_bytes"]),
        ('[[server_drafts]]\nuse = "n-gram"', ["server_drafts[0].use: given 'n-gram'", "did you mean 'ngram'"]),
        (NGRAM * 2, ["server_drafts[1].name: given 'ngram' twice", "a name of its own"]),
        (NGRAM + "ofer = 1", ["server_drafts[0]: unknown key 'ofer'", "did you mean 'offer'"]),
        (NGRAM + "offer = 2", ["server_drafts[0].offer: given 2", ">= 0 and <= 1"]),
        (NGRAM + "correlation = -1", ["server_drafts[0].correlation: given -1", ">= 0 and <= 1"]),
        (NGRAM + "weights_bytes = 0.5", ["server_drafts[0].weights_bytes: given 0.5", "whole number"]),
        (NGRAM + "time.launch_s = -1", ["server_drafts[0].time.launch_s: given -1", ">= 0"]),
        (NGRAM + "time.start_s = 1", ["server_drafts[0].time: unknown key 'start_s'", "allowed: cached_token_s"]),
        (NGRAM + "acceptance = 3", ["server_drafts[0].acceptance: given 3", "logit_mean"]),
        ('[[server_drafts]]\nname = "mine"', ["server_drafts[0].weights_bytes: missing"]),
        (
            '[[server_drafts]]\nuse = "eagle3-llama-70b"',
            ["server_drafts[0].acceptance", "'eagle3-llama-70b' by target 'qwen3-32b'", "allowed: llama-70b", "give all its fields"],
        ),
        (
            '[[server_drafts]]\nuse = "qwen3-0.6b"\nacceptance.logit_mean = 3',
            ["server_drafts[0].acceptance", "draft 'qwen3-0.6b' of the devices", "correlation 1", "draft.acceptance"],
        ),
    ],
)  # fmt: skip
def test_impossible_server_drafts_say_where_and_what_is_allowed(tmp_path, text, parts):
    path = tmp_path / "mine.toml"
    path.write_text(BASE + text)
    with pytest.raises(ScenarioError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("mine.toml", *parts):
        assert part in message


def test_an_unknown_server_names_those_that_are_known():
    fields = asdict(load(DEFAULT).server) | {"name": "h100-80g"}
    own = "server = {" + ", ".join(f'{k} = "{v}"' if k == "name" else f"{k} = {v!r}" for k, v in fields.items()) + "}\n"
    complete = dumps(with_(load(DEFAULT), server_drafts=[]))
    text = complete.replace(complete[complete.index("[server]") : complete.index("[target]")], "")
    text = text.replace("max_draft_tokens", own + "max_draft_tokens", 1)
    assert names(loads(text)) == []
    with pytest.raises(ScenarioError, match=r"server_drafts\[0\]\.time: no time of 'ngram' on server 'h100-80g' is known; "
                                            r"did you mean 'h100-80gb'\? allowed: a100-80gb, .*, or give all its fields"):  # fmt: skip
        loads(text + NGRAM)
    assert loads(text + NGRAM + TIME).server_drafts[0].time == OWN_TIME


def test_all_fields_of_its_own_need_no_catalogue():
    text = f'{LLAMA}[[server_drafts]]\nuse = "qwen3-4b"\n{FATES}'
    (found,) = loads(text).server_drafts
    assert (found.acceptance, found.correlation) == (OWN_FATES, 0.5)
    own = f'[[server_drafts]]\nname = "mine"\nweights_bytes = 1\nkv_bytes_per_token = 2\noffer = 1\ncorrelation = 0\n{FATES}{TIME}'
    assert loads(BASE + own).server_drafts == (ServerDraft("mine", 1, 2, 1.0, 0.0, OWN_FATES, OWN_TIME),)


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.floats(min_value=0.0, max_value=1e9),
    share=st.floats(min_value=0.0, max_value=1.0),
    weights=st.integers(min_value=0, max_value=2**53),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_toml_keeps_every_bit(seconds, share, weights, name):
    changes = {"time.sequence_s": seconds, "offer": share, "weights_bytes": weights, "name": name}
    scenario = with_(load(DEFAULT), **{f"server_drafts.2.{key}": value for key, value in changes.items()})
    assert loads(dumps(scenario)) == scenario


# --- changes ---------------------------------------------------------------------------------------------------------


def test_with_names_a_server_draft_by_position_and_by_name(default):
    changed = with_(default, **{"server_drafts.qwen3-0.6b.time.launch_s": 1, "server_drafts.2.offer": 0})
    assert changed.server_drafts[0].time == replace(default.server_drafts[0].time, launch_s=1.0)
    assert changed.server_drafts[2].offer == 0.0
    assert with_(default, server_drafts=[]).server_drafts == ()
    with pytest.raises(ScenarioError, match=r"server_drafts: unknown key 'eagle3'.*allowed: 0, 1, 2, eagle3-qwen3-32b"):
        with_(default, **{"server_drafts.eagle3.offer": 1})


def test_the_same_source_goes_with_the_devices_draft(default):
    changed = with_(default, **{"draft.acceptance.logit_mean": 2.0})
    own, *others = changed.server_drafts
    assert own.acceptance == changed.draft.acceptance != default.draft.acceptance
    assert tuple(others) == default.server_drafts[1:]
    both = {f"{part}.acceptance.logit_mean": 2.0 for part in ("draft", "server_drafts.0")}
    assert with_(default, **both) == changed


def test_the_same_source_does_not_go_where_it_is_another(default):
    renamed = with_(default, **{"draft.name": "mine", "draft.acceptance.logit_mean": 2.0})
    assert renamed.server_drafts == default.server_drafts
    apart = with_(default, **{"server_drafts.0.correlation": 0.9, "draft.acceptance.logit_mean": 2.0})
    assert apart.server_drafts[0].acceptance == default.draft.acceptance
    with pytest.raises(
        ScenarioError, match=r"server_drafts\[0\]\.acceptance: given other numbers than draft 'qwen3-0\.6b'"
    ):
        with_(default, **{"server_drafts.0.acceptance.logit_mean": 2.0})
    with pytest.raises(ScenarioError, match=r"draft: given 3"):
        with_(default, draft=3)
