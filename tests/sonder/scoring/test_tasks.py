"""What a score promises: population, label, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.core.score_config import Eligibility, ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.tasks import (
    MIN_OF_A_KIND,
    check_counts,
    check_outputs,
    check_task,
    eligible_users,
    is_below,
    label_task,
    outputs_of,
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
    eligible, label = label_task(BUY, ("buy_10d",), timelines_of(users), VOCABULARY, cutoff_us=50 * DAY)
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
    eligible, label = label_task(CHURN, ("churn_10d",), timelines_of(users), VOCABULARY, cutoff_us=50 * DAY)
    assert eligible.tolist() == [True, True, False, True]
    assert label[eligible].tolist() == [True, False, True]


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


SHOP = vocabulary_of(["garden/tools", "garden/tools", "books", "health/tests"])
SHOPPERS = {
    "gardener": [(1, 0, "buy"), (2, 1, "buy"), (52, 0, "buy"), (53, 2, "view")],
    "reader": [(1, 2, "buy"), (51, 2, "buy"), (52, 2, "buy"), (60, 0, "buy")],
    "looker": [(1, 3, "view"), (2, 3, "buy"), (55, 3, "view")],
}
NEXT = ScoreTask(name="next", next_category=3, action="buy", within_days=10)


def test_each_of_the_commonest_categories_is_an_output_unless_it_is_excluded() -> None:
    timelines = timelines_of(SHOPPERS)
    outputs = outputs_of(NEXT, timelines, SHOP, cutoff_us=50 * DAY)
    assert outputs == ("next/garden/tools", "next/books", "next/health/tests")
    assert outputs_of(NEXT, timelines, SHOP, cutoff_us=50 * DAY, excluded_categories=["health"]) == outputs[:2]
    two = NEXT.model_copy(update={"next_category": 2})
    assert outputs_of(two, timelines, SHOP, cutoff_us=50 * DAY) == outputs[:2]
    assert outputs_of(BUY, timelines, SHOP, cutoff_us=50 * DAY) == ("buy_10d",)
    assert check_outputs(NEXT, outputs) is None
    assert check_outputs(NEXT, outputs[:1]) is not None


def test_a_category_is_excluded_with_what_lies_below_it_and_nothing_beside_it() -> None:
    assert is_below("health/tests", ["health"])
    assert is_below("health", ["health"])
    assert not is_below("healthy/food", ["health"])


def test_next_category_labels_every_category_of_the_window_by_its_action() -> None:
    outputs = ("next/books", "next/garden/tools")
    eligible, labels = label_task(NEXT, outputs, timelines_of(SHOPPERS), SHOP, cutoff_us=50 * DAY)
    assert eligible.all()
    assert labels.tolist() == [[0, 1], [1, 0], [0, 0]]


def test_a_count_counts_and_a_value_sums_and_neither_goes_below_nothing() -> None:
    timelines = timelines_of(SHOPPERS)
    count = ScoreTask(name="count", count=True, action="buy", within_days=10)
    assert label_task(count, ("count",), timelines, SHOP, cutoff_us=50 * DAY)[1].tolist() == [1, 2, 0]
    anything = ScoreTask(name="count", count=True, within_days=10)
    assert label_task(anything, ("count",), timelines, SHOP, cutoff_us=50 * DAY)[1].tolist() == [2, 2, 1]
    values = timelines.values.copy()
    values[:] = np.nan
    values[[2, 3, 5, 6, 10]] = [3.5, 100.0, 4.0, -1.5, -7.0]  # of the events inside the window, by user
    paid = type(timelines)(**{**vars(timelines), "values": values})
    value = ScoreTask(name="value", value=True, action="buy", within_days=10)
    assert label_task(value, ("value",), paid, SHOP, cutoff_us=50 * DAY)[1].tolist() == [3.5, 2.5, 0]
    everything = ScoreTask(name="value", value=True, within_days=10)
    assert label_task(everything, ("value",), paid, SHOP, cutoff_us=50 * DAY)[1].tolist() == [103.5, 2.5, 0]


def test_eligibility_narrows_the_population_by_what_lies_before_the_cutoff() -> None:
    def asked(**conditions: object) -> list[bool]:
        task = BUY.model_copy(update={"eligible": Eligibility.model_validate(conditions)})
        return eligible_users(task, timelines_of(SHOPPERS), SHOP, cutoff_us=53 * DAY).tolist()

    assert asked() == [True, True, True]
    assert asked(min_events=3) == [True, True, False]
    assert asked(active_within_days=2) == [True, True, False]
    assert asked(did=["view"]) == [False, False, True]
    assert asked(did=["view", "buy"]) == [False, False, True]
    assert asked(did=["share"]) == [False, False, False]


def test_a_window_of_activity_cannot_make_those_churn_who_are_gone() -> None:
    users = {"gone": [(35.0, 0, "view")], "here": [(45.0, 0, "view")]}
    task = CHURN.model_copy(update={"eligible": Eligibility(active_within_days=30)})
    assert eligible_users(task, timelines_of(users), VOCABULARY, cutoff_us=50 * DAY).tolist() == [False, True]


@pytest.mark.parametrize("part", list(MIN_OF_A_KIND))
@pytest.mark.parametrize("positives", [0, 9, 991, 1000])
def test_too_few_of_either_label_in_any_part_is_refused(part: str, positives: int) -> None:
    enough = dict.fromkeys(MIN_OF_A_KIND, (1000, np.array([500])))
    assert check_counts(BUY, ("buy_10d",), enough) == (("buy_10d",), None)
    _, refusal = check_counts(BUY, ("buy_10d",), enough | {part: (1000, np.array([positives]))})
    assert refusal is not None
    assert f"in the {part} rows" in refusal.reason
    assert ("constant" in refusal.reason) == (positives in (0, 1000))
    assert refusal.numbers == {"users": 1000, "positives": positives, "negatives": 1000 - positives}


def test_a_category_with_too_few_users_is_left_out_and_the_others_are_learnt() -> None:
    outputs = ("next/a", "next/b", "next/c")
    counts = dict.fromkeys(MIN_OF_A_KIND, (1000, np.array([500, 500, 500])))
    counts["stop"] = (1000, np.array([500, 3, 500]))
    assert check_counts(NEXT, outputs, counts) == (("next/a", "next/c"), None)
    counts["test"] = (1000, np.array([0, 500, 500]))
    _, refusal = check_counts(NEXT, outputs, counts)
    assert refusal is not None
    assert refusal.numbers == {"categories": 3, "enough": 1}


def test_next_category_needs_categories() -> None:
    assert check_task(NEXT, SHOP, is_ordinal=False) is None
    refusal = check_task(NEXT, vocabulary_of([None, None]), is_ordinal=False)
    assert refusal is not None
    assert "category" in refusal.reason
