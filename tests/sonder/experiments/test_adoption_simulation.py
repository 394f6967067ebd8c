"""The simulation that the promises of verdicts are measured by: its policies, its truth, and a few of its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.adoption_off_policy import errors
from benchmarks.adoption_policies import mixtures, of_interests, popular, share_for
from benchmarks.adoption_simulation import Truth, rate, read_lines, simulate, summary, told, true_effects
from benchmarks.adoption_world import LOOKS, METRICS, Stage, build_stage, declared, looks, plan_size
from sonder.experiments.planning import Plan

EFFECT = 0.3  # large, so that few users are planned and a run takes tenths of a second


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(3_000, 7, EFFECT)


@pytest.fixture(scope="module")
def planned(stage: Stage) -> Plan:
    return plan_size(stage, EFFECT, 7)


@pytest.fixture(scope="module")
def truth(stage: Stage) -> Truth:
    return true_effects(stage)


def test_lists_of_interests_hold_different_items_of_what_the_user_likes(stage: Stage) -> None:
    world = stage.world
    lists, common = of_interests(world, 6), popular(world, 6)
    likes = world.people.leaf[:, :, 1]
    own = (world.catalogue.leaf[lists][:, :, None] == likes[:, None, :]).any(axis=2)
    assert own[:, 0].all()
    assert (own | (lists == common)).all()  # a leaf with few items is filled up with what is popular
    assert own.mean() > 0.9
    assert all(len(set(row)) == 6 for row in lists[own.all(axis=1)].tolist())


def test_a_larger_share_keeps_what_a_smaller_one_shows_of_the_interests(stage: Stage) -> None:
    lists = mixtures(stage.world, 6, seed=1)
    changed = [lists(share) != lists(0.0) for share in (0.2, 0.6, 1.0)]
    assert not (changed[0] & ~changed[1]).any()
    assert changed[0].mean() < changed[1].mean() < changed[2].mean()


def test_the_share_that_has_the_wanted_effect_is_found() -> None:
    assert share_for(lambda share: 2 * share - 0.5, 0.3) == pytest.approx(0.4, abs=1e-3)


def test_the_scenarios_have_the_effects_that_they_are_called_by(truth: Truth) -> None:
    assert [effect.relative for effect in truth["same"]["clicks"]] == [0.0] * len(LOOKS)
    assert truth["better"]["clicks"][-1].relative == pytest.approx(EFFECT, abs=0.01)
    assert truth["worse"]["clicks"][-1].relative == pytest.approx(-EFFECT, abs=0.01)


def test_a_run_is_the_same_every_time_and_arms_are_those_of_the_keyed_draw(
    stage: Stage, planned: Plan, truth: Truth
) -> None:
    experiment = declared("a-run", 0.5, EFFECT)
    one, two = (list(looks(stage, experiment, "better", 3, planned)) for _ in range(2))
    assert told("better", 3, one, truth["better"]) == told("better", 3, two, truth["better"])
    assert [sum(analysis.srm.counts.values()) for analysis in one] == sorted(
        sum(analysis.srm.counts.values()) for analysis in one
    )
    assert all(analysis.srm.num_in_several == 0 for analysis in one)


def test_where_both_arms_show_the_same_lists_people_do_the_same_whoever_is_in_which_arm(
    stage: Stage, planned: Plan
) -> None:
    totals = []
    for name in ("one-draw-of-arms", "another-draw-of-arms"):
        last = list(looks(stage, declared(name, 1.0, EFFECT), "control", 3, planned))[-1]
        effect = last.effect("clicks", "treatment")
        assert effect.unadjusted is not None
        clicks = (effect.unadjusted.control * effect.num_control, effect.unadjusted.treatment * effect.num_treatment)
        totals.append(clicks)
    assert sum(totals[0]) == pytest.approx(sum(totals[1]))
    assert totals[0] != pytest.approx(totals[1])


def test_a_cut_short_simulation_goes_on_where_it_was(stage: Stage, planned: Plan, truth: Truth, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    first = list(simulate(stage, truth, planned, 0.4, EFFECT, {"same": 1, "better": 1, "worse": 0}, file))
    kept = file.read_text()
    again = list(simulate(stage, truth, planned, 0.4, EFFECT, {"same": 2, "better": 1, "worse": 0}, file))
    assert file.read_text().startswith(kept)
    assert len(read_lines(file)) == len(again) == 3
    assert [line for line in again if line["repetition"] == 0] == first


def test_most_of_a_few_runs_hold_the_truth_and_see_a_large_effect(
    stage: Stage, planned: Plan, truth: Truth, tmp_path: Path
) -> None:
    """Of 12 intervals of 95 % fewer than 8 hold the truth once in 5,000 sets; of 4 runs with a power of 80 % none ships
    once in 600."""
    share = 1.1 * planned.total_users / truth["same"]["clicks"][-1].num_users
    counts = {"same": 4, "better": 4, "worse": 4}  # a fixed seed: nothing here is left to luck
    lines = list(simulate(stage, truth, planned, share, EFFECT, counts, tmp_path / "lines.jsonl"))
    found = summary(lines, 0.05, 0.8)
    assert found["interval_coverage"]["rate"] * 12 > 7.5
    assert found["power"]["rate"] > 0
    assert found["verdict_error_rate"]["n"] == 12
    assert found["coverage_by_metric"].keys() == {metric.name for metric in METRICS}


def test_the_summary_counts_wrong_verdicts_by_what_is_true() -> None:
    row = {"absolute": True, "relative": True}
    intervals = {metric.name: [{"fixed": row, "always_valid": None}] for metric in METRICS}

    def line(scenario: str, *decisions: str) -> dict[str, object]:
        decided = [place for place, one in enumerate(decisions) if one != "continue"]
        stopped = decided[0] if decided else len(decisions) - 1
        return {"scenario": scenario, "decisions": list(decisions), "stopped": stopped, "intervals": intervals}

    found = summary(
        [
            line("same", "continue", "ship"),
            line("same", "continue", "no_effect"),
            line("better", "ship", "no"),
            line("better", "continue", "no"),
            line("worse", "continue", "no"),
            line("worse", "blocked", "blocked"),
        ],
        0.05,
        0.8,
    )
    assert found["aa_rate"]["rate"] == 0.5
    assert found["power"]["rate"] == 0.5
    assert found["power_to_refuse"]["rate"] == 0.5
    assert found["verdict_error_rate"]["rate"] == pytest.approx(2 / 6, abs=1e-4)
    assert found["verdict_errors_with_an_effect"]["rate"] == 0.25
    assert found["blocked"]["rate"] == pytest.approx(1 / 6, abs=1e-4)
    assert found["stopped_early"]["rate"] == pytest.approx(2 / 6, abs=1e-4)


def test_a_rate_of_nothing_is_none() -> None:
    assert rate([]) == {"rate": None, "n": 0}


def test_weighing_by_propensities_comes_nearer_to_the_truth_than_the_log_itself(stage: Stage) -> None:
    found = errors(stage.world, num_rounds=3_000, repetitions=6, seed=1)["estimators"]
    ips = found["ips"]
    assert abs(ips["relative_bias"]) <= 5 * ips["bias_error"]
    assert ips["relative_rmse"] < found["mean of the log"]["relative_rmse"]
    assert np.isfinite(found["dr"]["relative_rmse"])
