"""What branches tell: spreads, externalities, and a controller that tries its candidates ahead."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.bounds.lookahead import FUTURE, MODEL, Lookahead, leader
from agents.branching import (
    advantages,
    critic,
    externality,
    features,
    improve,
    lookahead,
    margins,
    noise,
    rollout,
    server_time,
    speed,
    urgency,
    variance,
)
from agents.branching.clusters import ratio
from agents.branching.critic import Critic, Moments, fit_linear, fit_network, load_critic, reckoned_critic, save_critic
from agents.branching.externality import Effect, factor
from agents.branching.flags import increasing_seconds
from agents.branching.margin import margins_of
from agents.branching.paired import GOODPUT
from agents.branching.place import at_decision, at_decisions, at_times, decisions_of
from agents.branching.rollout import Rollout
from agents.training.fleet import Fleet, FleetSettings
from wisp_gym.contract.device import SIZE
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.run import WORTH
from wisp_gym.errors import InputError
from wisp_gym.rules.mlp import argmax_action
from wisp_gym.scenario import load, with_
from wisp_gym.simulation import simulate

SHORT = with_(load("wisp-study"), n_devices=12, **{"horizon.warmup_s": 4.0, "horizon.measure_s": 16.0})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    from wisp_gym.scenario import save

    file = tmp_path_factory.mktemp("scenario") / "short.toml"
    save(SHORT, file)
    return str(file)


def ahead(names: list[str], knows: str = MODEL, draws: int = 4) -> Lookahead:
    return Lookahead(SHORT, [resolve(name, SHORT) for name in names], draws, horizon_s=2.0, period_s=1.0, knows=knows)


def goodput(name: str, seed: int) -> float:
    return float(simulate(SHORT, name, [seed])[0].goodput_tokens_per_s)


def test_with_one_candidate_it_is_that_candidate() -> None:
    for name in ("speculation-v1+fcfs", "wisp+wisp"):
        assert [ahead([name]).play(seed) for seed in (0, 1)] == [goodput(name, seed) for seed in (0, 1)]


def test_it_leaves_a_bad_candidate_for_a_good_one_and_repeats() -> None:
    names = ["fixed:12+static:16,2", "speculation-v1+fcfs"]
    plays = [play := ahead(names), ahead(names)]
    reached = [[each.play(seed) for seed in range(3)] for each in plays]
    assert reached[0] == reached[1]
    assert play.times["speculation-v1+fcfs"] > 0.8 * play.times.total()
    bad, good = (np.mean([goodput(name, seed) for seed in range(3)]) for name in names)
    assert np.mean(reached[0]) > bad + 0.8 * (good - bad)


def test_who_knows_the_future_takes_one_copy_of_each() -> None:
    knowing = ahead(["wisp+wisp", "fixed:2+fcfs", "aligned+fcfs"], FUTURE)
    assert knowing.copies_of_each == 1
    best = max(np.mean([goodput(c.name, seed) for seed in range(3)]) for c in knowing.candidates)
    assert np.mean([knowing.play(seed) for seed in range(3)]) > 0.97 * best


def test_the_leader_must_lead_by_a_standard_error() -> None:
    tokens = np.array([[10.0, 12.0, 11.0], [12.0, 10.0, 12.0], [15.0, 17.0, 16.5]])
    assert leader(tokens, 0) == 2
    assert leader(tokens[:2], 0) == 0  # the lead is a third, its error a whole token
    assert leader(tokens[:2, :1], 0) == 1  # one draw of somebody who knows the future


@pytest.mark.parametrize("names", [["wisp+wisp", "centralized:0"], ["banditspec+fcfs"], ["dipsd"]])
def test_candidates_that_cannot_take_over_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match=f"controllers: given '{names[-1].split('+')[0].split(':')[0]}"):
        ahead(names)


def test_a_rollout_improves_a_bad_base_and_repeats() -> None:
    """A device that always drafts twelve tokens wastes most of them; who tries both ways stops earlier."""
    base = resolve("fixed:12+fcfs", SHORT)
    plays = [Rollout(SHORT, base, draws=16).play(seed) for seed in (0, 1, 0)]
    assert plays[0] == plays[2]
    assert all(played.decided > 0.5 * played.decisions > 500 for played in plays)
    alone = np.mean([goodput(base.name, seed) for seed in (0, 1)])
    assert np.mean([played.goodput for played in plays[:2]]) > 1.1 * alone


def test_where_nothing_is_clear_a_rollout_is_its_base() -> None:
    base = resolve("wisp+fcfs", SHORT)
    played = Rollout(SHORT, base, draws=8, horizon_s=1e-6).play(0)  # before anything can differ
    assert played.decided == 0
    assert played.goodput == goodput(base.name, 0)


def test_spreads_are_those_of_the_numbers_they_were_made_of() -> None:
    rng = np.random.default_rng(0)
    places, draws = 4_000, 30
    common = rng.normal(0.0, 7.0, (places, draws, 1))
    effect = rng.normal(0.5, 2.0, (places, 1, 1))
    tokens = 100.0 + np.stack([common, common + effect + rng.normal(0.0, 3.0, (places, draws, 1))], axis=1)
    mean, independent, coupled, spread = (float(column[0]) for column in variance.spreads(tokens))
    assert mean == pytest.approx(100.25, abs=0.2)
    assert independent == pytest.approx((2 * 49.0 + 9.0) ** 0.5, rel=0.02)
    assert coupled == pytest.approx(3.0, rel=0.02)
    assert spread == pytest.approx(2.0, rel=0.05)
    row = variance.Spread("a", 1, variance.DELIVERED, 1.0, mean, independent, coupled, spread)
    assert row.pairs == pytest.approx(9.0, rel=0.1)  # (2·3/2)²


def test_the_factor_is_the_ratio_of_sums() -> None:
    rng = np.random.default_rng(0)
    found = [
        Effect(k // 5, 1.0, 1.0, -2.0 * x + rng.normal(0.0, 0.1), 0.0, 0.1, x)
        for k, x in enumerate(rng.uniform(0.0, 1.0, 500))
    ]
    value, low, high = factor(found)
    assert low < 2.0 < high
    assert value == pytest.approx(2.0, rel=0.02)
    assert high - low < 0.1


def test_intervals_are_as_wide_as_worlds_differ() -> None:
    """Decisions of a world that are alike say no more than one of them."""
    rng = np.random.default_rng(0)
    of_world = 2.0 + rng.normal(0.0, 1.0, 50)
    alike = ratio(10.0 * of_world, np.full(50, 10.0))
    assert alike == pytest.approx(ratio(of_world, np.ones(50)))
    assert alike[2] - alike[1] == pytest.approx(2 * 1.96 / 50**0.5, rel=0.2)


def test_what_is_reckoned_is_what_training_reckons() -> None:
    """The same worlds, played by a learner that logs: the engine keeps the time of a further token only for it."""
    scenario = with_(load("wisp-study"), n_devices=64)
    base = resolve("speculation-v1+fcfs", scenario)
    found = [externality.reckoned_tokens(world) for seed in range(6) for world in at_decisions(scenario, base, seed, 4)]
    policy, rewards = load_policy("speculation-v1"), []
    for factor_taken in (0.0, 1.0):
        fleet = Fleet(FleetSettings([scenario], worlds=4, weights={"externality": factor_taken}), policy, 60_000)
        fleet.collect(policy)  # until all devices have begun
        got = fleet.collect(policy)
        rewards.append(got.rewards.sum())
    reckoned_each = (rewards[0] - rewards[1]) / (got.actions == 1).sum()
    assert np.mean(found) == pytest.approx(reckoned_each, rel=0.2)


def test_a_price_counts_the_others_and_scales_with_the_time() -> None:
    scenario = with_(load("wisp-study"), n_devices=64)
    base = resolve("speculation-v1+fcfs", scenario)
    short, long = (server_time.prices_of(scenario, base, 0, 3, 24, longer_s, [1.0, 2.0]) for longer_s in (0.05, 0.2))
    assert [(one.weight, one.reckoned) for one in short] == [(one.weight, one.reckoned) for one in long]
    assert len(long) == 6
    assert all(0.0 < one.weight < 1.0 and 200.0 < one.reckoned < 1_000.0 for one in long)
    (value, *_), _ = server_time.factors(long)
    assert 0.5 < value < 2.5
    assert long == server_time.prices_of(scenario, base, 0, 3, 24, 0.2, [1.0, 2.0])


def test_a_longer_batch_ends_later_and_nothing_else_is_different() -> None:
    """What is lost before the batch would have ended is nothing."""
    base = resolve("speculation-v1+fcfs", SHORT)
    for worlds in at_times(SHORT, base, 0, 6):
        left_s = float(worlds.arrays.server["batch_end_s"][0, 0]) - worlds.arrays.config["end_s"][0, 0]
        found = server_time.prices_at(worlds.arrays, 0, Branches(worlds, 8), np.arange(4), 0.02, [0.99 * abs(left_s)])
        assert all(one.others == one.on_time == one.spread == 0.0 for one in found)


def test_a_device_that_is_later_loses_about_its_rate() -> None:
    base = resolve("speculation-v1+fcfs", SHORT)
    found = [one for seed in range(6) for one in urgency.delays_of(SHORT, base, seed, 4, 8, 1.0, [5.0])]
    assert len(found) == 24
    assert all(-20.0 <= one.slack <= 20.0 and one.rate > 0.0 for one in found)
    value, low, high = urgency.worth(found, "tokens")
    assert low < value < high
    assert 0.5 < value < 1.5
    assert np.mean([one.on_time <= one.tokens for one in found]) > 0.5
    assert found[:4] == urgency.delays_of(SHORT, base, 0, 4, 8, 1.0, [5.0])


def test_the_pressure_is_the_one_that_the_delays_were_made_with() -> None:
    rng, found = np.random.default_rng(0), []
    for k in range(2_000):
        slack, rate = rng.uniform(-20.0, 20.0), rng.uniform(2.0, 12.0)
        plain = urgency.Delay(8, k // 10, 5.0, slack, rate, 0.0, rate, 0.0)
        lost = 0.8 * rate * (1.0 + 1.5 * plain.urgency) + rng.normal(0.0, 3.0)
        found.append(replace(plain, on_time=lost))
    level, pressure = urgency.fitted(found)
    assert level[0] == pytest.approx(0.8, abs=0.05)
    assert pressure[1] < 1.5 < pressure[2]
    assert pressure[2] - pressure[1] < 0.5


@pytest.mark.parametrize("text", ["1,0.5", "0,1", "a", "", "1e9"])
def test_seconds_that_do_not_increase_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="allowed are seconds up to 10,000 that increase"):
        increasing_seconds(text)
    assert increasing_seconds("0.25,1") == [0.25, 1.0]


def test_margins_are_the_engine_s_own_and_groups_follow_them() -> None:
    policy = load_policy("speculation-v1")
    rng = np.random.default_rng(0)
    seen = rng.uniform(0.0, 1.0, (300, SIZE)).astype(np.float32)
    margin = margins_of(policy, seen)
    assert [int(m > 0.0) for m in margin] == [argmax_action(policy.weights, o) for o in seen]
    groups = margins.grouped(margin, margin / 10.0, 5)
    assert [group.decisions for group in groups] == [60] * 5
    assert [group.effect for group in groups] == sorted(group.effect for group in groups)
    labels = improve.Labels(seen, np.ones(300, np.float32))
    assert f"{100 * (margin > 0).mean():.0f} % of them to draft" in margins.decided(policy, labels)


@pytest.mark.parametrize("loss", [improve.REGRESSION, improve.CLASSIFICATION])
def test_a_policy_is_fitted_to_where_a_further_token_is_worth_something(loss: str) -> None:
    rng = np.random.default_rng(0)
    seen = rng.uniform(0.0, 1.0, (20_000, SIZE)).astype(np.float32)
    effects = (3.0 * (seen[:, 1] - 0.5) + rng.normal(0.0, 2.0, len(seen))).astype(np.float32)
    policy = improve.fit(improve.Labels(seen, effects), loss, seed=0)
    drafts = margins_of(policy, seen) > 0.0
    assert (drafts == (seen[:, 1] > 0.5)).mean() > 0.9
    assert policy.weights.tobytes() == improve.fit(improve.Labels(seen, effects), loss, seed=0).weights.tobytes()


def test_a_policy_that_is_gone_on_with_decides_as_before_until_it_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    start, rng = load_policy("speculation-v1"), np.random.default_rng(0)
    seen = rng.uniform(0.0, 1.0, (500, SIZE)).astype(np.float32)
    monkeypatch.setattr(improve, "EPOCHS", 0)
    policy = improve.fit(improve.Labels(seen, np.ones(500, np.float32)), improve.REGRESSION, 0, start, temperature=10.0)
    assert margins_of(policy, seen) == pytest.approx(margins_of(start, seen) / 10.0, abs=1e-4)


def test_labels_keep_the_level_of_a_policy_where_it_is_indifferent() -> None:
    policy, rng = load_policy("speculation-v1"), np.random.default_rng(0)
    seen = rng.uniform(0.0, 1.0, (5_000, SIZE)).astype(np.float32)
    margin = margins_of(policy, seen)
    found = improve.levelled(improve.Labels(seen, (0.7 + 0.1 * margin).astype(np.float32)), policy)
    assert found.effects[np.abs(margin) < improve.INDIFFERENT].mean() == pytest.approx(0.0, abs=1e-3)
    assert found.effects == pytest.approx(0.1 * margin, abs=0.1)


# --- critics -------------------------------------------------------------------------------------------------------------


def test_features_hold_what_rounds_under_way_are_worth() -> None:
    world = at_decision(SHORT, resolve("speculation-v1+fcfs", SHORT), 0)
    copies = Branches(world.worlds, 8)
    copies.take(0, world.kind)
    copies.afresh(np.arange(8))
    copies.act(np.zeros(8, int))
    for horizon_s, _ in zip((0.1, 0.5, 2.0), copies.run_on([0.1, 0.5, 2.0]), strict=True):
        copies.run(WORTH, outcomes=copies.outcomes)
        found = features.features_of(copies.worlds, copies.begun_s + horizon_s)
        assert found[:, features.UNDER_WAY] == pytest.approx(copies.outcomes[:, 0])
        assert np.isfinite(found).all()
        devices = found[:, [features.NAMES.index(f"{phase}_devices") for phase in features.PHASES]].sum(axis=1)
        assert (devices + found[:, features.THINKING] == SHORT.n_devices).all()
    assert found[0].tolist() != found[1].tolist()


def test_a_label_with_what_is_reckoned_as_critic_is_the_label_without_one() -> None:
    base = resolve("speculation-v1+fcfs", SHORT)
    plain = improve.label_world(SHORT, base, 3, improve.Labelling(3.0, 0.05, 0.1, 3, 0.3))
    same = improve.label_world(SHORT, base, 3, improve.Labelling(3.0, 0.05, 0.1, 3, 0.3, reckoned_critic()))
    assert len(plain.effects) > 10
    assert plain.effects.std() > 0.1
    assert same.effects == pytest.approx(plain.effects, abs=1e-3)  # features are kept in single precision
    assert (same.observations == plain.observations).all()


def test_decisions_are_a_share_of_all_and_repeat() -> None:
    base = resolve("wisp+fcfs", SHORT)
    every, some = ([number for _, number in decisions_of(SHORT, base, 1, 2.0, share)] for share in (1.0, 0.2))
    assert every == list(range(every[0], every[-1] + 1))
    assert set(some) < set(every)
    assert 0.1 < len(some) / len(every) < 0.3


def moments(rows: int, later: np.ndarray | None = None) -> Moments:
    """Fleets whose copies differ by little where they themselves differ by much."""
    rng = np.random.default_rng(0)
    level = rng.normal(0.0, 30.0, (rows, 1, features.SIZE))
    x = (level + rng.normal(0.0, 1.0, (rows, 2, features.SIZE))).astype(np.float32)
    return Moments(x, rng.uniform(8.0, 128.0, rows), np.zeros((rows, 2)) if later is None else later)


def test_a_critic_finds_what_differences_are_worth_under_noise_common_to_both() -> None:
    given, rng = moments(20_000), np.random.default_rng(1)
    truth = Critic(rng.normal(0.0, 1.0, 2 * features.SIZE))
    apart = truth.difference(given.features, given.devices)
    common = rng.normal(0.0, 500.0, (len(apart), 1))
    later = common + np.stack([np.zeros(len(apart)), apart + rng.normal(0.0, 5.0, len(apart))], axis=1)
    found = fit_linear(given._replace(later=later)).difference(given.features, given.devices)
    assert np.std(found - apart) < 0.1 * np.std(apart)
    levels = noise.linear_in_levels(given._replace(later=later))(given.features, given.devices)
    assert np.std(levels - apart) > 0.8 * np.std(apart)


def test_a_network_finds_weights_that_depend_on_the_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critic, "EPOCHS", 60)
    given = moments(60_000)
    apart = given.features[:, 1] - given.features[:, 0]
    worth = np.where(given.features.mean(axis=1)[:, 0] > 0.0, 2.0, -2.0) * apart[:, 1]
    given = given._replace(later=np.stack([np.zeros(len(worth)), worth], axis=1))
    linear, network = fit_linear(given), fit_network(given)
    left = [np.std(each.difference(given.features, given.devices) - worth) for each in (linear, network)]
    assert left[0] > 0.9 * np.std(worth)
    assert left[1] < 0.5 * np.std(worth)
    save_critic(network, tmp_path / "critic.npz")
    read = load_critic(tmp_path / "critic.npz")
    assert (read.difference(given.features, given.devices) == network.difference(given.features, given.devices)).all()
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match="fit it again"):
        load_critic(tmp_path / "other.npz")
    with pytest.raises(InputError, match="cannot be read"):
        load_critic(tmp_path / "none.npz")


def test_noise_and_bias_are_those_of_the_numbers_they_were_made_of() -> None:
    rng = np.random.default_rng(0)
    effect = rng.normal(0.0, 2.0, (2_000, 1))
    truth = effect + rng.normal(0.0, 5.0, (2_000, 40))
    labels = effect + 0.5 + rng.normal(0.0, 1.0, (2_000, 1)) + rng.normal(0.0, 0.8, truth.shape)
    found = noise.noise_of(labels, truth, moment_s=0.4)
    assert found["sd"] == pytest.approx(0.8, rel=0.02)
    assert found["bias"] == pytest.approx(0.5, abs=4.0 * found["bias_error"])
    assert found["distance"] == pytest.approx(1.25**0.5, rel=0.05)
    assert found["error"] == pytest.approx((0.8**2 / 4.0 + 1.25) ** 0.5, rel=0.05)
    assert found["effect"] == pytest.approx(2.0, rel=0.05)


def test_advantages_are_the_effect_about_the_policy_s_mean() -> None:
    policy, rng = load_policy("speculation-v1"), np.random.default_rng(0)
    seen = rng.uniform(0.0, 1.0, (4_000, SIZE)).astype(np.float32)
    found = advantages.decisions(policy, improve.Labels(seen, np.full(4_000, 2.0, np.float32)), rng)
    drafts = 1.0 / (1.0 + np.exp(-margins_of(policy, found.observations)))
    assert found.rewards == pytest.approx(2.0 * (found.actions - drafts))
    assert np.exp(found.log_probabilities) == pytest.approx(
        np.where(found.actions == 1, drafts, 1.0 - drafts), abs=1e-4
    )
    assert abs(found.rewards.mean()) < 0.05
    assert found.ends.all()


def test_an_improvement_goes_on_where_it_was_broken_off(short: str, tmp_path: Path) -> None:
    words = [
        "--scenario",
        short,
        "--devices",
        "6,8",
        "--iterations",
        "1",
        "--worlds",
        "2",
        "--seconds",
        "3",
        "--loads",
        "8",
    ]
    improve.main([*words, "--out", str(tmp_path / "a")])
    policy, labels = (tmp_path / "a" / name for name in ("policy-0.json", "labels-0-1.npz"))
    before = policy.read_bytes()
    policy.unlink()
    labels.unlink()
    improve.main([*words, "--out", str(tmp_path / "a")])
    assert policy.read_bytes() == before
    rows = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert [row["name"] for row in rows] == [
        "speculation-v1+fcfs",
        "policy-0.json+fcfs",
        "aligned+fcfs",
        "perfect+fcfs",
    ]
    with pytest.raises(InputError, match="a run with other settings"):
        improve.main([*words, "--out", str(tmp_path / "a"), "--seed", "1"])


def test_a_critic_is_fitted_and_a_policy_trained_with_it(
    short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, rows = tmp_path / "critic.npz", tmp_path / "rows.json"
    noise.main([
        "--scenario", short, "--devices", "6,8", "--worlds", "2", "--share", "0.05", "--pairs", "2", "--loads", "8", "--decisions", "500",
        "--draws", "4", "--out", str(kept), "--json", str(rows),
    ])  # fmt: skip
    found = json.loads(rows.read_text())
    assert {row["critic"] for row in found} == {
        "none",
        "under way, reckoned",
        "linear, of levels",
        "boosting, of levels",
        "boosting",
        "linear",
        "network",
        "truth",
    }
    assert found[-1]["distance"] == found[-1]["bias"] == 0.0
    assert "error of a label" in capsys.readouterr().out
    monkeypatch.setattr(advantages, "ROLLOUT", 64)
    monkeypatch.setattr(advantages, "BATCH", 32)
    words = ["--scenario", short, "--devices", "6,8", "--rollouts", "2", "--worlds", "1", "--seconds", "2", "--share", "0.3",
             "--pairs", "2", "--horizon", "0.1", "--critic", str(kept), "--start", "speculation-v1", "--loads", "8"]  # fmt: skip
    advantages.main([*words, "--out", str(tmp_path / "a")])
    policy = (tmp_path / "a" / "policy.json").read_bytes()
    assert margins_of(load_policy(tmp_path / "a" / "policy.json"), np.ones((1, SIZE))) != pytest.approx(
        margins_of(load_policy("speculation-v1"), np.ones((1, SIZE))) / improve.TEMPERATURE, abs=1e-6
    )
    advantages.main([*words, "--out", str(tmp_path / "a")])  # is not trained again
    assert (tmp_path / "a" / "policy.json").read_bytes() == policy
    rows = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert [row["name"] for row in rows][:2] == ["speculation-v1+fcfs", "policy.json+fcfs"]


def test_the_commands_print_and_write_what_they_found(
    short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--scenario", short, "--devices", "8"]
    file = tmp_path / "rows.json"
    lookahead.main(
        [*common, "--seeds", "2", "--draws", "2", "--controllers", "wisp+wisp,fixed:2+fcfs", "--json", str(file)]
    )
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["lookahead", "wisp+wisp", "fixed:2+fcfs"]
    assert rows[1][GOODPUT] == pytest.approx(np.mean(rows[1]["worlds"]))
    assert max(row["against"] for row in rows[1:]) == 0.0
    variance.main([*common, "--places", "2", "--draws", "2", "--json", str(file)])
    assert [row["horizon_s"] for row in json.loads(file.read_text())] == 2 * list(variance.HORIZONS_S)
    few = ["--worlds", "2", "--places", "2", "--draws", "2", "--horizons", "0.5,1", "--json", str(file)]
    for command in (externality, server_time, urgency):
        command.main([*common, *few])
        rows = json.loads(file.read_text())
        assert {(row["devices"], row["horizon_s"]) for row in rows} == {(8, 0.5), (8, 1.0)}
    rollout.main(
        [*common, "--seeds", "2", "--draws", "8", "--seconds", "2", "--controllers", "wisp+wisp", "--json", str(file)]
    )
    assert [row["name"] for row in json.loads(file.read_text())] == [
        "rollout of speculation-v1+fcfs", "speculation-v1+fcfs", "wisp+wisp",
    ]  # fmt: skip
    margins.main([*common, "--worlds", "2", "--seconds", "2", "--groups", "4", "--json", str(file)])
    assert len(json.loads(file.read_text())) == 4
    speed.main([*common, "--horizon", "1", "--draws", "2", "--repetitions", "2", "--controllers", "wisp+wisp"])
    printed = capsys.readouterr().out
    for word in (
        "lookahead",
        "against the base",
        "pairs to see it",
        "reckoned loss",
        "others lose",
        "pressure",
        "branches of 8 devices x 1 s, a second",
    ):
        assert word in printed
