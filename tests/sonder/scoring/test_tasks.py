"""What a score promises: population, label, points in time, refusals."""

from __future__ import annotations

import pytest

from sonder.core.config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.tasks import (
    MIN_OF_A_KIND,
    CutoffPlan,
    TaskRefusal,
    check_counts,
    check_task,
    label_task,
    plan_cutoffs,
)
from tests.tiny_log import timelines_of, vocabulary_of

VOCABULARY = vocabulary_of(["c"])
BUY = ScoreTask(name="buy_10d", action="buy", within_days=10)
CHURN = ScoreTask(name="churn_10d", churn=True, within_days=10)
STEP = 1 / DAY


def test_an_action_label_is_true_for_the_action_inside_the_window_alone() -> None:
    users = {
        "at the cutoff": [(1, 0, "view"), (50, 0, "buy")],
        "at the end": [(1, 0, "view"), (60 - STEP, 0, "buy")],
        "after the end": [(1, 0, "view"), (60, 0, "buy")],
        "before the cutoff": [(1, 0, "view"), (50 - STEP, 0, "buy")],
        "another action": [(1, 0, "view"), (55, 0, "view")],
        "unknown at the cutoff": [(55, 0, "buy")],
    }
    eligible, label = label_task(BUY, timelines_of(users), VOCABULARY, cutoff_us=50 * DAY)
    assert dict(zip(users, label, strict=True)) == {
        "at the cutoff": True,
        "at the end": True,
        "after the end": False,
        "before the cutoff": False,
        "another action": False,
        "unknown at the cutoff": True,
    }
    assert eligible.tolist() == [True, True, True, True, True, False]


def test_only_who_was_here_lately_can_churn() -> None:
    users = {
        "leaves": [(45, 0, "view"), (60, 0, "view")],
        "stays": [(45, 0, "view"), (59, 0, "view")],
        "gone already": [(40 - STEP, 0, "view")],
        "just here": [(40, 0, "view")],
    }
    eligible, label = label_task(CHURN, timelines_of(users), VOCABULARY, cutoff_us=50 * DAY)
    assert eligible.tolist() == [True, True, False, True]
    assert label[eligible].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("days", "train", "calibrated_on"),
    [
        (100, (70, 60, 50, 40), "later_time"),
        (52, (22, 12), "later_time"),
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


def test_label_windows_never_overlap() -> None:
    plan = plan_cutoffs(BUY, first_us=0, end_us=100 * DAY)
    assert isinstance(plan, CutoffPlan)
    gaps = [later - earlier for earlier, later in zip(plan.all_us, plan.all_us[1:], strict=False)]
    assert gaps == [10 * DAY] * 5


def test_a_log_that_is_too_short_is_refused_with_numbers() -> None:
    refusal = plan_cutoffs(BUY, first_us=0, end_us=24 * DAY)
    assert isinstance(refusal, TaskRefusal)
    assert refusal.numbers == {"log_days": 24.0, "needed_days": 25.0}
    assert "too short" in refusal.reason


def test_an_unknown_action_is_refused_and_the_known_ones_are_named() -> None:
    refusal = check_task(ScoreTask(name="t", action="purchase", within_days=1), VOCABULARY, is_ordinal=False)
    assert refusal is not None
    assert "'purchase'" in refusal.reason
    assert "view, buy, hide, impression" in refusal.reason


def test_days_mean_nothing_in_a_log_with_order_only() -> None:
    assert check_task(BUY, VOCABULARY, is_ordinal=False) is None
    refusal = check_task(BUY, VOCABULARY, is_ordinal=True)
    assert refusal is not None
    assert "order" in refusal.reason


@pytest.mark.parametrize("part", list(MIN_OF_A_KIND))
@pytest.mark.parametrize("positives", [0, 9, 991, 1000])
def test_too_few_of_either_label_in_any_part_is_refused(part: str, positives: int) -> None:
    enough = dict.fromkeys(MIN_OF_A_KIND, (1000, 500))
    assert check_counts(BUY, enough) is None
    refusal = check_counts(BUY, enough | {part: (1000, positives)})
    assert refusal is not None
    assert f"in the {part} rows" in refusal.reason
    assert refusal.numbers == {"users": 1000, "positives": positives, "negatives": 1000 - positives}
