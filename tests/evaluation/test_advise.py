"""`wisp-gym advise`: what case it builds, who wins where, what it says and writes, and how wrong input ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc

from wisp_gym.__main__ import main
from wisp_gym.cli import Bar
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation.advise import Advice, advise, has_capacities, notes
from wisp_gym.evaluation.advise_cases import KINDS, Parts, candidates, loadable, with_parts, with_prompt, with_rtt
from wisp_gym.evaluation.advise_plot import draw, label
from wisp_gym.evaluation.advise_search import TRAIN_SEEDS, settings_for, shortened, training_worlds
from wisp_gym.evaluation.advise_words import sentence
from wisp_gym.evaluation.comparison import evaluate
from wisp_gym.evaluation.outcomes import goodput
from wisp_gym.evaluation.tuning import latin_hypercube
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, with_
from wisp_gym.scenario.known import drafts_of, server_drafts_of, servers_of, targets

SHORT = {"horizon.warmup_s": 5.0, "horizon.measure_s": 20.0, "horizon.drain_s": 20.0, "workload.start_window_s": 4.0}
SEEDS = range(6)


class Count(Bar):
    """A bar that counts."""

    done = 0

    def update(self, n: int = 1) -> None:
        self.done += n


def short(devices: int, **changes: Any) -> Scenario:
    """The default preset with so many devices and a short horizon."""
    return with_(load(DEFAULT_SCENARIO), n_devices=devices, **SHORT, **changes)


@pytest.fixture(scope="module")
def idle() -> Advice:
    """A case with few devices."""
    return advise(short(8), seeds=SEEDS, settings=3, capacities=False)


# --- the case --------------------------------------------------------------------------------------------------------


def test_no_parts_are_the_default_preset() -> None:
    assert with_parts(Parts()) == load(DEFAULT_SCENARIO)


@pytest.mark.parametrize("target", targets())
def test_every_pair_of_the_catalogue_is_a_case(target: str) -> None:
    for server in servers_of(target):
        for draft in drafts_of(target):
            scenario = with_parts(Parts(server, target, draft))
            assert (scenario.server.name, scenario.target.name, scenario.draft.name) == (server, target, draft)
            hosted = [one.name for one in scenario.server_drafts]
            assert sorted(hosted) == sorted(server_drafts_of(server, target))
            assert draft not in hosted or hosted[0] == draft


def test_a_target_brings_a_draft_that_is_known_for_it() -> None:
    assert with_parts(Parts("a100-80gb-x4", "llama-70b")).draft.name == "llama-3.2-1b"


def test_flags_change_links_and_prompts_alone() -> None:
    base = load(DEFAULT_SCENARIO)
    far = with_rtt(base, 0.3)
    assert {device.link.one_way_s for device in far.devices} == {0.15}
    assert with_(far, devices=base.devices) == base
    assert with_prompt(base, 800.0).workload.prompt.median_tokens == 800.0
    assert with_rtt(base, None) == base == with_prompt(base, None)


def test_a_draft_without_room_is_left_out_and_said() -> None:
    base = load(DEFAULT_SCENARIO)
    large = with_(base, **{"server_drafts.0.weights_bytes": 10**10, "server_drafts.0.correlation": 0.5})
    fitting, said = loadable(large)
    assert fitting == [1, 2]
    assert len(said) == 1
    assert "no room for draft 'qwen3-0.6b'" in said[0]


def test_every_candidate_is_a_controller_of_the_case() -> None:
    scenario = with_parts(Parts("h100-80gb"))
    for names in candidates(loadable(scenario)[0]).values():
        assert [resolve(name, scenario).name for name in names] == names


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dimensions"), [(1, 1), (2, 5), (8, 3), (24, 9)])
def test_the_latin_hypercube_is_scipys(count: int, dimensions: int) -> None:
    theirs = qmc.LatinHypercube(dimensions, rng=np.random.default_rng(3)).random(count)
    np.testing.assert_array_equal(latin_hypercube(np.random.default_rng(3), count, dimensions), theirs)


def test_goodput_needs_no_drain() -> None:
    scenario = short(12)
    long = evaluate("aligned+wisp", scenario, seeds=range(3)).outcomes["aligned+wisp"]
    cut = evaluate("aligned+wisp", shortened(scenario), seeds=range(3)).outcomes["aligned+wisp"]
    assert goodput(cut) == goodput(long)


def test_the_budget_shrinks_with_the_devices_and_is_said() -> None:
    each = [settings_for(short(n)) for n in (1, 300, 600, 5000)]
    assert each == sorted(each, reverse=True)
    assert each[0] == each[1] > each[2] > each[3] >= 3
    assert all(count % 3 == 0 for count in each)
    assert not [note for note in notes(short(8), each[0]) if "settings" in note]
    said = notes(short(600), each[2])
    assert f"{each[2]} settings of each controller are tried instead of {each[0]}" in said
    assert any(note.startswith("no capacities") for note in said)


def test_the_bar_counts_to_its_total() -> None:
    scenario, bar = with_(short(3), server_drafts=load(DEFAULT_SCENARIO).server_drafts[2:]), Count()
    advise(scenario, seeds=range(2), settings=6, capacities=False, bar=bar)
    assert bar.done == training_worlds(loadable(scenario)[0], 6) + len(KINDS) * 2


# --- the answer ------------------------------------------------------------------------------------------------------


def test_an_idle_server_should_draft(idle: Advice) -> None:
    assert idle.rows[0]["server_drafted_share"] > 0.9
    assert {row["kind"] for row in idle.rows} == set(KINDS)
    best = {row["kind"]: row["goodput_tokens_per_s"] for row in idle.rows}
    assert best["server"] > 1.2 * max(best["nobody"], best["device"])
    assert "drafting on the server" in idle.sentence or idle.sentence.startswith("The server should draft")


def test_the_rows_are_those_of_evaluate(idle: Advice) -> None:
    first = idle.rows[0]
    again = evaluate(first["controller"], idle.scenario, seeds=SEEDS).rows()[0]
    assert first["goodput_tokens_per_s"] == again["goodput_tokens_per_s"]
    assert [row["reference"] for row in idle.rows] == [first["controller"]] * len(idle.rows)
    assert [row["goodput_tokens_per_s"] for row in idle.rows] == sorted(
        (row["goodput_tokens_per_s"] for row in idle.rows), reverse=True
    )


def test_an_overloaded_server_should_not_draft() -> None:
    found = advise(short(250), seeds=SEEDS, settings=3, capacities=False)
    assert found.rows[0]["kind"] in ("device", "either")
    best = {row["kind"]: row["goodput_tokens_per_s"] for row in found.rows}
    assert best["device"] > 1.2 * max(best["server"], best["nobody"])


def test_far_devices_without_server_drafts_should_not_draft() -> None:
    far = with_rtt(with_(short(8), server_drafts=[]), 1.0)
    found = advise(far, seeds=SEEDS, settings=3, capacities=False)
    best = {row["kind"]: row["goodput_tokens_per_s"] for row in found.rows}
    assert best.keys() == {"device", "either", "nobody"}
    assert best["nobody"] > 1.2 * best["device"]
    assert "nobody" in found.sentence.lower() or "no drafting at all" in found.sentence
    assert any(note.startswith("no draft is known that a100-80gb could host") for note in found.notes)


def test_capacities_are_added_and_shown() -> None:
    scenario = with_(short(4), server_drafts=[])
    found = advise(scenario, seeds=range(2), settings=3)
    assert all(row["capacity_devices"] >= 4 for row in found.rows)
    assert "capacity" in found.table()
    assert not has_capacities(short(400))


def row(
    kind: str, tokens_per_s: float, difference: float, low: float, high: float, drafts: bool = True
) -> dict[str, Any]:
    """What a sentence is made of."""
    key = "goodput_difference_tokens_per_s"
    return {
        "kind": kind, "controller": f"x-{kind}", "goodput_tokens_per_s": tokens_per_s, "server_drafts": drafts,
        "server_drafted_share": 0.5, key: difference, f"{key}_low": low, f"{key}_high": high,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "drafts", "said"),
    [
        ("device", False, "The devices should draft, with x-device: 1,000.0 tokens/s on time"),
        ("server", True, "The server should draft, with x-server: 1,000.0 tokens/s on time"),
        ("nobody", False, "Nobody should draft, with x-nobody: 1,000.0 tokens/s on time"),
        (
            "either",
            True,
            "Device or server should draft, as a rule decides for each session (here the server in 50 % of rounds), with",
        ),
        ("either", False, "Device or nobody should draft, as a rule decides for each session, with x-either"),
    ],
)
def test_the_sentence_says_who_and_with_what(kind: str, drafts: bool, said: str) -> None:
    other = row("server" if kind != "server" else "device", 900.0, -100.0, -120.0, -80.0)
    found = sentence([row(kind, 1000.0, 0.0, 0.0, 0.0, drafts), other])
    assert found.startswith(said)
    doing = "server" if kind != "server" else "devices"
    assert found.endswith(f"100.0 [80.0, 120.0] more than drafting on the {doing}, the next best.")


@pytest.mark.parametrize(
    ("difference", "low", "high"), [(-30.0, -70.0, 5.0), (-5.0, -6.0, -4.0)], ids=["chance", "below 1 %"]
)
def test_a_tie_is_said(difference: float, low: float, high: float) -> None:
    tied = row("device", 1000.0 + difference, difference, low, high)
    last = row("nobody", 700.0, -300.0, -310.0, -290.0)
    found = sentence([row("server", 1000.0, 0.0, 0.0, 0.0), tied, last])
    assert found.startswith(
        "A tie between drafting on the server and drafting on the devices; most has drafting on the"
    )
    assert found.endswith("300.0 [290.0, 310.0] more than no drafting at all, the best of the others.")


def test_nothing_on_time_is_said() -> None:
    assert sentence([row(kind, 0.0, 0.0, 0.0, 0.0) for kind in ("device", "nobody")]).startswith("Nothing is delivered")


def test_a_pictures_label_spells_the_whole_name() -> None:
    name = "aligned:0.2963,1.165,3.752,0.06395+aged:44.49+chunk:48,0.2516+admit:0.9511"
    kind, *lines = label({"kind": "device", "controller": name}).split("\n")
    assert (kind, "".join(lines)) == ("DEVICE", name)
    assert len(lines) > 1


def test_a_picture_is_a_png(idle: Advice) -> None:
    pytest.importorskip("matplotlib")
    assert draw(idle.rows, idle.scenario, idle.sentence).startswith(b"\x89PNG")


# --- the command -----------------------------------------------------------------------------------------------------


def test_it_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(
        f'use = "{DEFAULT_SCENARIO}"\nname = "mine"\nn_devices = 4\nserver_drafts = []\n'
        "[horizon]\nwarmup_s = 2.0\nmeasure_s = 10.0\ndrain_s = 5.0\n"
    )
    words = ["advise", "--scenario", str(tmp_path / "mine.toml"), "--seeds", "3", "--rtt", "0.02"]
    words += ["--no-capacity", "--settings", "3"]
    assert main([*words, "--json", str(tmp_path / "a.json"), "--save", str(tmp_path / "case.toml")]) == 0
    out, err = capsys.readouterr()
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["answer"] == out.splitlines()[0]
    assert f"note: {told['notes'][-1]}" == err.splitlines()[-1]
    assert (told["kind"], told["devices"], told["scenario"]) == (told["rows"][0]["kind"], 4, "mine")
    for one in told["rows"]:
        assert one["controller"] in out
    saved = load(tmp_path / "case.toml")
    assert {device.link.one_way_s for device in saved.devices} == {0.01}
    again = evaluate(told["controller"], saved, seeds=range(3)).rows()[0]
    assert again["goodput_tokens_per_s"] == told["rows"][0]["goodput_tokens_per_s"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "h100"], "argument --server, with qwen3-32b: given 'h100'; did you mean 'h100-80gb'?"),
        (["--target", "qwen3-32"], "argument --target: given 'qwen3-32'; did you mean 'qwen3-32b'?"),
        (["--draft", "qwen3-8b"], "argument --draft, with qwen3-32b: given 'qwen3-8b'; did you mean 'qwen3-"),
        (["--target", "llama-70b"], "argument --server, with llama-70b: given 'a100-80gb'; did you mean 'a100-80gb-x"),
        (["--scenario", "h100-qwen3-32b", "--draft", "qwen3-1.7b"], "argument --draft: given beside --scenario"),
        (["--scenario", "nowhere.toml"], "'nowhere.toml' is neither a preset nor a TOML file"),
        (["--prompt", "5000"], "workload.prompt.median_tokens: given 5000, allowed: 16 to 2048"),
        (["--seeds", "7,"], "seeds: given 7,, allowed are two or more"),
        (
            ["--seeds", f"{TRAIN_SEEDS[0]}-{TRAIN_SEEDS[0] + 5}"],
            f"seeds: given {TRAIN_SEEDS[0]}-{TRAIN_SEEDS[0] + 5}, allowed are others than",
        ),
    ],
)
def test_wrong_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"wisp-gym advise: {said}")


def test_a_server_without_room_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(f'use = "{DEFAULT_SCENARIO}"\n[server]\nmemory_bytes = 40_000_000_000\n')
    assert main(["advise", "--scenario", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "server.memory_bytes: given 40 GB" in err


def test_prompts_of_a_trace_are_not_changed() -> None:
    traced = {"workload.arrivals": "trace", "workload.trace": "azure-conv-like.csv", "workload.trace_format": "azure"}
    with pytest.raises(ValueError, match="takes its prompts from a trace"):
        with_prompt(with_(load(DEFAULT_SCENARIO), **traced), 200.0)
