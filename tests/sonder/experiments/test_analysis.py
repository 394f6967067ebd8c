import json
import subprocess
import sys
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from sonder.core.errors import ConfigurationError, DataError
from sonder.experiments.analysis import analyse
from sonder.experiments.metrics import user_numbers
from sonder.experiments.planning import Plan, plan
from sonder.experiments.results import Analysis
from sonder.experiments.specification import Experiment
from tests.user_frames import (
    BACK,
    BOUGHT,
    CLICKS,
    FIRST,
    OPENS,
    START,
    counts,
    draw_users,
    experiment,
    known_at,
)


def analysed(
    what: Experiment, users: pl.DataFrame, *, day: float = 40.0, planned: Plan | None = None, num_in_several: int = 0
) -> Analysis:
    until = START + timedelta(days=day)
    seen = known_at(users, what, until)
    return analyse(
        what, seen, exposures_by_arm=counts(seen), num_in_several=num_in_several, until=until, planned=planned
    )


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(experiment(OPENS), draw_users(5_000, seed=9), users_per_day=None)


def test_every_kind_of_metric_is_analysed_and_the_result_is_json() -> None:
    what = experiment(OPENS, BOUGHT, CLICKS, BACK, FIRST, guardrails=[{"metric": "bought", "margin": 0.2}])
    found = analysed(what, draw_users(3_000, effect=0.1), day=12)
    content = found.model_dump_json()
    assert Analysis.model_validate_json(content) == found
    assert "NaN" not in content
    assert "Infinity" not in content
    assert {one.metric for one in found.effects} == {"opens", "bought", "clicks", "back", "first"}
    for effect in found.effects:
        assert effect.estimate is not None
        assert effect.always_valid is not None
        assert effect.num_immature_control > 0
    assert [one.role for one in found.effects] == ["primary", "guardrail", "secondary", "secondary", "secondary"]


def test_immature_users_are_left_out_and_counted() -> None:
    what, users = experiment(OPENS), draw_users(2_000)
    effect = analysed(what, users, day=8).effect("opens", "new")
    seen = users.filter(pl.col("exposed_at") < START + timedelta(days=8))
    over = seen.filter(pl.col("exposed_at") + timedelta(days=3) <= START + timedelta(days=8))
    assert effect.num_control == counts(over)["old"]
    assert effect.num_control + effect.num_immature_control == counts(seen)["old"]


def test_cuped_stands_beside_the_unadjusted_estimate_and_says_what_it_took_away() -> None:
    users = draw_users(3_000, effect=0.1)
    effect = analysed(experiment(OPENS), users).effect("opens", "new")
    assert effect.estimate is not None
    assert effect.unadjusted is not None
    widths = [one.interval.upper - one.interval.lower for one in (effect.estimate, effect.unadjusted)]  # type: ignore[operator]
    assert effect.variance_reduction == pytest.approx(1 - (widths[0] / widths[1]) ** 2, abs=0.001)
    without = analysed(experiment(OPENS), users.drop("opens.pre")).effect("opens", "new")
    assert without.estimate == effect.unadjusted
    assert without.variance_reduction is None


def test_a_cap_is_the_quantile_of_both_arms_and_says_whom_it_touched() -> None:
    users = draw_users(3_000)
    whale = users.with_columns(
        pl.when(pl.col("user_id") == users.filter(arm="new")["user_id"][0]).then(1e6).otherwise("opens").alias("opens")
    )
    found = analysed(experiment({**OPENS, "cap": 0.99}), whale).effect("opens", "new")
    limit = whale["opens"].quantile(0.99, "higher")
    assert found.capping is not None
    assert found.capping.value == limit
    assert found.capping.num_capped == (whale["opens"] > limit).sum()
    assert found.estimate is not None
    assert abs(found.estimate.interval.relative or 1) < 0.2


def test_a_cap_of_a_rare_action_whose_quantile_is_zero_caps_nothing() -> None:
    rare = draw_users(2_000).with_columns(opens=(pl.int_range(pl.len()) % 500 == 0).cast(pl.Float64))
    found = analysed(experiment({**OPENS, "cap": 0.9}), rare).effect("opens", "new")
    assert found.capping is not None
    assert found.capping.value is None
    assert "nothing was capped" in found.note


def test_secondary_metrics_are_adjusted_by_benjamini_hochberg_over_metrics_and_arms() -> None:
    arms = ("old", "new", "newer")
    found = analysed(experiment(OPENS, BOUGHT, CLICKS, BACK, arms=arms), draw_users(3_000, arms=arms, effect=0.1))
    secondary = [one for one in found.effects if one.role == "secondary"]
    p = sorted(one.estimate.interval.p_value for one in secondary)  # type: ignore[union-attr, type-var]
    expected = [min(1.0, *(6 / (rank + 1) * p[rank] for rank in range(place, 6))) for place in range(6)]  # type: ignore[operator]
    assert sorted(one.p_adjusted for one in secondary) == pytest.approx(expected)  # type: ignore[type-var]
    primary = found.effect("opens", "newer")
    assert primary.estimate is not None
    assert primary.estimate.interval.confidence == 0.975
    assert primary.p_adjusted == pytest.approx(min(1, 2 * (primary.estimate.interval.p_value or 1)))


def test_a_time_to_event_has_a_hazard_ratio_and_a_log_rank_test_beside_its_mean() -> None:
    from statsmodels.duration.hazard_regression import PHReg
    from statsmodels.duration.survfunc import survdiff

    users = draw_users(1_000, effect=0.5)
    found = analysed(experiment(FIRST), users).effect("first", "new")
    treated = (users["arm"] == "new").to_numpy().astype(float)
    exact = PHReg(users["first"].to_numpy(), treated[:, None], status=users["first.event"].to_numpy()).fit(disp=0)
    assert found.survival is not None
    assert found.survival.hazard_ratio == pytest.approx(float(pl.Series(exact.params).exp()[0]), rel=2e-3)
    theirs = survdiff(users["first"].to_numpy(), users["first.event"].to_numpy(), treated)[1]
    assert found.survival.p_log_rank == pytest.approx(theirs)
    assert found.survival.hazard_ratio > 1
    assert found.estimate is not None
    assert found.estimate.interval.difference < 0  # type: ignore[operator]


def test_cuts_too_small_are_refused_with_their_number() -> None:
    users = draw_users(2_000).with_columns(
        lifecycle=pl.when(pl.int_range(pl.len()) < 60).then(pl.lit("dormant")).otherwise(pl.lit("core"))
    )
    lifecycle, segment = analysed(experiment(OPENS), users).cuts
    refused = next(one for one in lifecycle.effects if one.value == "dormant")
    assert refused.interval is None
    assert refused.num_control + refused.num_treatment == 60
    assert "100 are needed" in refused.refused
    assert lifecycle.p_differ is None
    assert segment.p_differ is not None
    assert segment.p_differ_adjusted == segment.p_differ


def test_an_effect_in_one_segment_only_is_found_and_decides_nothing() -> None:
    users = draw_users(4_000)
    hit = (pl.col("segment") == "readers") & (pl.col("arm") == "new")
    users = users.with_columns(opens=pl.col("opens") + pl.when(hit).then(2.0).otherwise(0.0))
    _, segment = analysed(experiment(OPENS), users).cuts
    assert segment.p_differ_adjusted is not None
    assert segment.p_differ_adjusted < 1e-6


def test_an_effect_that_wears_off_shows_as_a_trend() -> None:
    users = draw_users(4_000)
    early = (pl.col("exposed_at") < START + timedelta(days=4)) & (pl.col("arm") == "new")
    worn = users.with_columns(opens=pl.col("opens") + pl.when(early).then(2.5).otherwise(0.0))
    (found,) = analysed(experiment(OPENS), worn).by_day
    assert found.p_trend is not None
    assert found.p_trend < 1e-4
    assert found.trend_per_day is not None
    assert found.trend_per_day < 0
    assert found.early_minus_late is not None
    assert found.early_minus_late > 0
    (steady,) = analysed(experiment(OPENS), users).by_day
    assert steady.p_trend is not None
    assert steady.p_trend > 0.001


def test_the_last_cumulative_day_is_the_effect_itself(planned: Plan) -> None:
    what = experiment(OPENS)
    found = analysed(what, draw_users(2_000, effect=0.1), day=12, planned=planned)
    last, effect = found.by_day[0].cumulative[-1], found.effect("opens", "new")
    assert effect.estimate is not None
    assert last.fixed.model_dump() == pytest.approx(effect.estimate.interval.model_dump())
    assert last.always_valid is not None
    assert effect.always_valid is not None
    assert last.always_valid.model_dump() == pytest.approx(effect.always_valid.model_dump())
    assert (last.num_control, last.num_treatment) == (effect.num_control, effect.num_treatment)


def test_before_the_planned_size_a_fixed_interval_decides_nothing(planned: Plan) -> None:
    """An effect that the fixed interval finds and the always-valid one does not yet."""
    what = experiment(OPENS)
    for seed in range(2, 40):
        users = draw_users(900, seed=seed, effect=0.12)
        found = analysed(what, users, day=12, planned=planned)
        effect = found.effect("opens", "new")
        assert effect.estimate is not None
        assert effect.always_valid is not None
        if effect.estimate.interval.excludes_zero and not effect.always_valid.excludes_zero:
            assert found.verdict.decision == "continue"
            return
    raise AssertionError("no such users were drawn")


def test_a_large_effect_ships_before_the_planned_size_and_harm_ends_it(planned: Plan) -> None:
    what = experiment(OPENS)
    better = analysed(what, draw_users(900, effect=0.5), day=12, planned=planned)
    assert (better.verdict.decision, better.verdict.arm) == ("ship", "new")
    assert "always-valid" in better.verdict.reasons[0]
    worse = analysed(what, draw_users(900, effect=-0.4), day=12, planned=planned)
    assert worse.verdict.decision == "no"
    assert "is worse" in worse.verdict.reasons[0]


def test_at_the_planned_size_the_first_planned_users_decide_whoever_comes_later(planned: Plan) -> None:
    what, users = experiment(OPENS), draw_users(4_000, effect=0.1)
    first = analysed(what, users[:2_400], planned=planned)
    # As many again, all for the worse, come after the decision.
    late = draw_users(4_000, seed=7, effect=-0.5).with_columns(
        pl.col("exposed_at") + timedelta(days=20), user_id=pl.lit("late") + pl.col("user_id")
    )
    after = analysed(what, pl.concat([users[:2_400], late]), planned=planned)
    assert first.verdict.decision == "ship"
    assert after.verdict == first.verdict
    assert "planned sample" in first.verdict.reasons[0]


def test_no_effect_is_called_so_at_the_planned_size_and_when_time_is_over(planned: Plan) -> None:
    what = experiment(OPENS)
    full = analysed(what, draw_users(2_400, seed=3), planned=planned)
    assert full.verdict.decision == "no_effect"
    over = analysed(what, draw_users(600, seed=3), day=40, planned=planned)
    assert over.verdict.decision == "no_effect"
    assert "Time is over" in over.verdict.reasons[-1]
    assert analysed(what, draw_users(600, seed=3), day=16, planned=planned).verdict.decision == "continue"


def test_a_broken_guardrail_says_no_and_one_in_doubt_keeps_it_from_shipping(planned: Plan) -> None:
    users = draw_users(2_400, effect=0.5)
    worse = users.with_columns(
        bought=pl.when(arm="new")
        .then(pl.col("bought") * (pl.int_range(pl.len()) % 4 == 0))
        .otherwise("bought")
        .cast(pl.Float64)
    )
    strict = experiment(OPENS, BOUGHT, guardrails=[{"metric": "bought", "margin": 0.1}])
    broken = analysed(strict, worse, planned=planned)
    assert broken.guardrails[0].state == "broken"
    assert broken.verdict.decision == "no"
    same = draw_users(2_400, effect=0.5).with_columns(bought=draw_users(2_400, seed=8)["bought"])
    narrow = experiment(OPENS, BOUGHT, guardrails=[{"metric": "bought", "margin": 0.01}])
    doubted = analysed(narrow, same, planned=planned)
    assert doubted.guardrails[0].state == "undecided"
    assert doubted.verdict.decision == "no_effect"
    assert "not shown to hold" in doubted.verdict.reasons[-1]
    wide = experiment(OPENS, BOUGHT, guardrails=[{"metric": "bought", "margin": 0.5}])
    assert analysed(wide, same, planned=planned).verdict.decision == "ship"


def test_a_sample_ratio_mismatch_blocks_and_its_day_is_named(planned: Plan) -> None:
    users = draw_users(3_000, effect=0.5)
    lost = users.filter(~((pl.col("arm") == "new") & (pl.col("exposed_at").dt.day() == 5)))
    found = analysed(experiment(OPENS), lost, planned=planned)
    assert found.srm.is_broken
    assert found.verdict.decision == "blocked"
    assert "2026-01-05" in found.verdict.reasons[1]
    assert [day.day.day for day in found.srm.by_day if (day.p_adjusted or 1) < 0.001] == [5]


def test_users_seen_in_several_arms_block() -> None:
    users = draw_users(1_000)
    assert analysed(experiment(OPENS), users, num_in_several=11).verdict.decision == "blocked"
    assert analysed(experiment(OPENS), users, num_in_several=3).verdict.decision != "blocked"


def test_the_better_of_two_arms_ships() -> None:
    arms = ("old", "new", "newer")
    users = draw_users(3_000, arms=arms, effect=0.3)
    users = users.with_columns(opens=pl.col("opens") + pl.when(arm="newer").then(1.0).otherwise(0.0))
    found = analysed(experiment(OPENS, arms=arms), users)
    assert (found.verdict.decision, found.verdict.arm) == ("ship", "newer")
    assert [one.decision for one in found.verdict.by_arm] == ["ship", "ship"]


@pytest.mark.parametrize("num_users", [0, 1, 30])
def test_few_users_and_none_are_no_error(num_users: int) -> None:
    what = experiment(OPENS, BOUGHT, CLICKS, BACK, FIRST, guardrails=[{"metric": "bought", "margin": 0.2}])
    found = analysed(what, draw_users(30)[:num_users], day=4)
    assert found.verdict.decision == "continue"
    assert json.loads(found.model_dump_json())["verdict"]["decision"] == "continue"


def test_frames_that_are_not_of_the_experiment_are_told() -> None:
    users = draw_users(100)
    with pytest.raises(DataError, match=r"no column 'clicks\.per'"):
        analysed(experiment(CLICKS), users.drop("clicks.per"))
    with pytest.raises(DataError, match="in the arm 'other'"):
        analysed(experiment(OPENS), users.with_columns(arm=pl.lit("other")))
    with pytest.raises(ConfigurationError, match="interleaves"):
        analysed(experiment(OPENS, method="interleave"), users)


def test_importing_the_analysis_loads_no_statistics() -> None:
    code = (
        "import sys, sonder.experiments.analysis, sonder.experiments.planning as p;"
        "print(*(name for name in ('ibis', 'tea_tasting', 'statsmodels', 'scipy.stats') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_the_frame_that_metrics_make_is_the_one_that_is_read() -> None:
    rng, size = np.random.default_rng(4), 400
    users = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(size)],
            "arm": ["old" if number % 2 else "new" for number in range(size)],
            "exposed_at": [START + timedelta(hours=number) for number in range(size)],
            "lifecycle": ["core"] * size,
            "segment": ["none"] * size,
        }
    )
    num_events = 20_000
    events = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in rng.integers(0, size, num_events)],
            "action": rng.choice(["open", "buy", "click", "view"], num_events),
            "timestamp": [START + timedelta(hours=float(hour)) for hour in rng.uniform(-100, size, num_events)],
            "surface": pl.Series([None] * num_events, dtype=pl.String),
            "value": rng.random(num_events),
        }
    )
    what = experiment(OPENS, BOUGHT, CLICKS, BACK, FIRST)
    until = START + timedelta(days=14)
    frame = user_numbers(what, users, events, until=until)
    found = analyse(what, frame, exposures_by_arm=counts(frame), num_in_several=0, until=until)
    for effect in found.effects:
        assert effect.estimate is not None
        assert (effect.unadjusted is None) == (effect.metric == "first")
        assert effect.num_immature_control > 0
