import math

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom
from statsmodels.stats.power import NormalIndPower

from benchmarks.experiment_draws import WORLDS
from benchmarks.experiment_intervals import decisions, plan_of
from sonder.core.errors import DataError
from sonder.experiments.enrolment import days_to_enrol, enrolled
from sonder.experiments.planning import plan
from tests.user_frames import BOUGHT, CLICKS, FIRST, OPENS, draw_users, experiment

BASELINE = draw_users(5_000)


def test_the_size_is_statsmodels_for_the_same_deviation() -> None:
    made = plan(experiment(FIRST, minimum_effect=0.02), BASELINE, users_per_day=None).metric("first")
    standardised = 0.02 * made.mean / made.deviation
    theirs = NormalIndPower().solve_power(standardised, alpha=0.05, power=0.8)
    assert made.looked_once is not None
    assert made.looked_once.by_arm["old"] == pytest.approx(theirs, abs=2)


def test_looking_costs_about_five_percent_and_cuped_saves_what_it_explains() -> None:
    made = plan(experiment(OPENS), BASELINE, users_per_day=None)
    opens = made.metric("opens")
    assert opens.planned is not None
    assert opens.planned_cuped is not None
    assert 0.04 < made.price_of_looking < 0.06
    assert opens.correlation == pytest.approx(float(np.corrcoef(BASELINE["opens"], BASELINE["opens.pre"])[0, 1]))
    assert opens.planned_cuped.total / opens.planned.total == pytest.approx(1 - opens.correlation**2, rel=0.01)
    assert made.users_by_arm == opens.planned_cuped.by_arm


def test_a_guardrail_can_decide_the_size() -> None:
    guarded = experiment(OPENS, BOUGHT, guardrails=[{"metric": "bought", "margin": 0.02}])
    made = plan(guarded, BASELINE, users_per_day=None)
    bought = made.metric("bought")
    assert made.decided_by == "bought"
    assert bought.sides == "one-sided"
    assert bought.effect == 0.02


def test_weights_and_arms_make_it_larger() -> None:
    two = plan(experiment(OPENS), BASELINE, users_per_day=None)
    three = plan(experiment(OPENS, arms=("old", "new", "newer")), BASELINE, users_per_day=None)
    arms = [{"name": "old", "release": "a", "weight": 3}, {"name": "new", "release": "b"}]
    uneven = plan(
        type(experiment()).model_validate({**experiment(OPENS).model_dump(), "arms": arms}),
        BASELINE,
        users_per_day=None,
    )
    assert three.alpha_of_each_arm == 0.025
    assert three.users_by_arm["old"] > two.users_by_arm["old"]
    assert uneven.users_by_arm["old"] == pytest.approx(3 * uneven.users_by_arm["new"], abs=3)
    assert uneven.total_users > two.total_users


def test_days_follow_the_ramp_and_the_window() -> None:
    ramped = experiment(OPENS, share=0.5, ramp=[{"share": 0.1, "hours": 48}, {"share": 0.5, "hours": 24}])
    assert enrolled(ramped, 1_000, 3) == 200 + 500
    assert days_to_enrol(ramped, 1_000, 100) == 1
    assert days_to_enrol(ramped, 1_000, 700 + 1_000) == 5
    assert math.isinf(days_to_enrol(ramped, 0, 10))
    made = plan(ramped, BASELINE, users_per_day=400)
    assert made.days == pytest.approx(made.enrolment_days + 3)
    assert made.is_feasible == (made.enrolment_days <= 14)
    assert made.users_until_max_days == 80 + 2_400


def test_the_effect_that_is_found_in_time_needs_the_users_of_that_time() -> None:
    made = plan(experiment(OPENS), BASELINE, users_per_day=300).metric("opens")
    assert made.detectable is not None
    again = plan(experiment(OPENS, minimum_effect=made.detectable), BASELINE, users_per_day=None)
    assert again.total_users == pytest.approx(300 * 14, rel=0.01)


def test_a_plan_is_json_even_where_nobody_comes() -> None:
    made = plan(experiment(OPENS, CLICKS, BOUGHT, FIRST), BASELINE, users_per_day=0.0)
    assert type(made).model_validate_json(made.model_dump_json()) == made
    assert made.days is None
    assert made.is_feasible is False


def test_a_baseline_without_the_action_is_told() -> None:
    with pytest.raises(DataError, match="opens is known of 5000 users, too few or all of them alike"):
        plan(experiment(OPENS), BASELINE.with_columns(pl.lit(0.0).alias("opens")), users_per_day=None)


@pytest.mark.parametrize("world", ["mean, CUPED", "retention"])
def test_the_effect_is_found_as_often_as_planned_and_no_effect_as_seldom(world: str) -> None:
    """Whole verdicts of 200 runs, 30 looks each; within what chance does once in a thousand times."""
    runs, made = 200, plan_of(WORLDS[world], 0.1)
    final, stopped = decisions(WORLDS[world], made, runs, 1.1, [11])
    assert (final == 1).sum() >= binom.ppf(0.001, runs, 0.8)
    assert (stopped == 1).sum() >= binom.ppf(0.001, runs, 0.8)
    _, stopped = decisions(WORLDS[world], made, runs, 1.0, [12])
    assert (stopped != 0).sum() <= binom.isf(0.001, runs, 0.05)
