"""Points in time of a task: nothing that is trained, stopped or calibrated reaches into what comes after."""

from __future__ import annotations

import pytest

from sonder.core.score_config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.cutoffs import CutoffPlan, TaskRefusal, plan_backtest, plan_cutoffs

BUY = ScoreTask(name="buy_10d", action="buy", within_days=10)


@pytest.mark.parametrize(
    ("days", "train", "calibrated_on"),
    [
        (100, (70, 65, 60, 55, 50, 45, 40, 35), "later_time"),
        (52, (22, 17, 12, 7), "later_time"),
        (35, (5,), "later_time"),
        (34, (14,), "held_out_users"),
        (25, (5,), "held_out_users"),
    ],
)
def test_cutoffs_use_the_log_from_its_end(days: int, train: tuple[int, ...], calibrated_on: str) -> None:
    plan = plan_cutoffs(BUY, first_us=0, end_us=days * DAY)
    assert isinstance(plan, CutoffPlan)
    assert [cutoff // DAY for cutoff in plan.train_us] == list(train)
    assert (plan.calibration_us, plan.test_us) == ((days - 20) * DAY, (days - 10) * DAY)
    assert plan.calibrated_on == calibrated_on
    assert CutoffPlan.from_dict(plan.to_dict()) == plan


def test_no_label_of_one_part_is_younger_than_the_next_parts_cutoff() -> None:
    task = BUY.model_copy(update={"delay_days": 2, "embargo_days": 3})
    plan = plan_cutoffs(task, first_us=0, end_us=100 * DAY)
    assert isinstance(plan, CutoffPlan)
    assert plan.test_us == (100 - 2 - 10) * DAY  # its newest label may come two days late
    assert plan.calibration_us == plan.test_us - (10 + 3) * DAY
    assert max(plan.train_us) == plan.calibration_us - (10 + 3) * DAY


def test_a_delay_is_an_embargo_even_where_none_is_declared() -> None:
    assert ScoreTask(name="t", action="buy", within_days=1, delay_days=4).gap_days == 4
    assert ScoreTask(name="t", action="buy", within_days=1, delay_days=4, embargo_days=1).gap_days == 4
    assert ScoreTask(name="t", action="buy", within_days=1, delay_days=4, embargo_days=9).gap_days == 9


def test_the_backtest_asks_a_model_that_was_made_before_all_its_cutoffs() -> None:
    plan = plan_backtest(BUY, first_us=0, end_us=200 * DAY, num_cutoffs=4)
    assert plan is not None
    assert [cutoff // DAY for cutoff in plan.asked_us] == [160, 170, 180, 190]
    assert plan.calibration_us == 150 * DAY
    assert max(plan.train_us) == 140 * DAY


def test_in_a_short_log_the_backtest_asks_closer_together_or_not_at_all() -> None:
    close = plan_backtest(BUY, first_us=0, end_us=55 * DAY, num_cutoffs=4)
    assert close is not None
    assert [cutoff / DAY for cutoff in close.asked_us] == [30, 35, 40, 45]
    assert plan_backtest(BUY, first_us=0, end_us=40 * DAY, num_cutoffs=4) is None
    assert plan_backtest(BUY, first_us=0, end_us=200 * DAY, num_cutoffs=0) is None


def test_a_log_that_is_too_short_is_refused_with_numbers() -> None:
    refusal = plan_cutoffs(BUY, first_us=0, end_us=24 * DAY)
    assert isinstance(refusal, TaskRefusal)
    assert refusal.numbers == {"log_days": 24.0, "needed_days": 25.0}
    assert "too short" in refusal.reason
