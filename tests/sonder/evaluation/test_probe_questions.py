"""What is asked and plainly known reads only the past, answers only the future; what cannot be asked is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sonder.evaluation.probe_questions import LEAST, cut_questions, label, plain_features, plan_questions, valued_action
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from tests.tiny_log import ACTIONS, Event, random_log, timelines_of, vocabulary_of

NUM_ITEMS, CUTOFF_DAY, WITHIN = 8, 40, 10
CUTOFF_US = CUTOFF_DAY * DAY
VOCABULARY = vocabulary_of([f"c{item % 4}" for item in range(NUM_ITEMS)])
LOG = random_log(3, num_users=400, num_items=NUM_ITEMS, num_days=60)


def valued(timelines: Timelines) -> Timelines:
    """Buys have a price, nothing else has a value."""
    prices = np.where(timelines.actions == ACTIONS.index("buy"), 1.0 + timelines.items, np.nan)
    return replace(timelines, values=prices)


def rewritten(change: Callable[[Event], Event], *, past: bool) -> Timelines:
    """Every event on one side of the cutoff is another one at the same moment."""
    return valued(
        timelines_of(
            {
                user: [change(event) if (event[0] < CUTOFF_DAY) == past else event for event in events]
                for user, events in LOG.items()
            }
        )
    )


def other(event: Event) -> Event:
    return event[0], (event[1] + 3) % NUM_ITEMS, {"view": "buy", "buy": "view"}.get(event[2], event[2])


TIMELINES = valued(timelines_of(LOG))


def test_what_is_asked_and_plainly_known_does_not_change_with_the_future() -> None:
    futures = [rewritten(other, past=False), TIMELINES.before(CUTOFF_US)]
    plans, refused = plan_questions(TIMELINES, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    for future in futures:
        others, refused_then = plan_questions(future, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
        assert [(p.task, p.outputs, p.told) for p in others] == [(p.task, p.outputs, p.told) for p in plans]
        assert refused_then == refused == {}
        for plan in plans:
            here, there = (label(plan, log, cutoff_us=CUTOFF_US) for log in (TIMELINES, future))
            np.testing.assert_array_equal(here.rows_A, there.rows_A)
        plain = [plain_features(log, VOCABULARY, cutoff_us=CUTOFF_US) for log in (TIMELINES, future)]
        np.testing.assert_array_equal(*plain)
    changed = [label(plan, futures[0], cutoff_us=CUTOFF_US).labels_AK for plan in plans if plan.kind != "count"]
    assert any(
        not np.array_equal(labels, label(plan, TIMELINES, cutoff_us=CUTOFF_US).labels_AK)
        for labels, plan in zip(changed, [plan for plan in plans if plan.kind != "count"], strict=True)
    )  # the rewritten future is another one


def test_answers_do_not_change_with_the_past_or_with_what_comes_after_the_window() -> None:
    plans, _ = plan_questions(TIMELINES, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    for changed in (rewritten(other, past=True), TIMELINES.before((CUTOFF_DAY + WITHIN) * DAY)):
        for plan in plans:
            here, there = (label(plan, log, cutoff_us=CUTOFF_US) for log in (TIMELINES, changed))
            both, mine, theirs = np.intersect1d(here.rows_A, there.rows_A, return_indices=True)
            assert len(both) > 100
            np.testing.assert_array_equal(here.labels_AK[mine], there.labels_AK[theirs])


def test_answers_are_what_a_reader_of_the_log_would_say() -> None:
    log: dict[str, list[Event]] = {
        "leaves": [(35.0, 0, "view")],
        "gone": [(5.0, 0, "view")],
        "stays": [(35.0, 0, "view"), (41.0, 1, "buy"), (42.0, 1, "buy"), (43.0, 1, "hide"), (55.0, 2, "buy")],
    }
    plans, _ = plan_questions(TIMELINES, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    asked = {plan.task.name: label(plan, valued(timelines_of(log)), cutoff_us=CUTOFF_US) for plan in plans}
    assert asked["churn"].rows_A.tolist() == [0, 2]
    assert asked["churn"].labels_AK[:, 0].tolist() == [1, 0]
    assert asked["activity"].labels_AK[:, 0].tolist() == [0, 0, 3]
    assert asked["value"].labels_AK[:, 0].tolist() == [0, 0, 4]
    for name, output in (("category_propensity", "c1"), ("item_propensity", "i1")):
        here = asked[name]
        assert here.labels_AK[2].tolist() == [float(found == output) for found in here.outputs]
        assert not here.labels_AK[:2].any()


def test_recency_frequency_and_value_are_of_the_past() -> None:
    log: dict[str, list[Event]] = {"a": [(10.0, 3, "view"), (38.0, 1, "buy"), (50.0, 1, "buy")], "nobody": []}
    known = replace(TIMELINES, user_ids=TIMELINES.user_ids)
    joined = Timelines.concat([valued(timelines_of(log)), known])
    plain = plain_features(joined, VOCABULARY, cutoff_us=CUTOFF_US)
    np.testing.assert_allclose(plain[0], np.log1p([2, 2, 2]))
    assert plain[1, 1:].tolist() == [0, 0]
    assert plain.shape == (402, 3)


def test_value_is_that_of_the_rarest_wanted_action_with_values() -> None:
    everything = replace(TIMELINES, values=np.ones(TIMELINES.num_events))
    assert valued_action(everything, VOCABULARY) == "buy"  # hides are rarer and not wanted
    assert valued_action(timelines_of(LOG), VOCABULARY) is None


def vocabulary_without_categories() -> Vocabulary:
    return vocabulary_of([None] * NUM_ITEMS)


def test_what_cannot_be_asked_is_refused_with_its_reason() -> None:
    bare = cut_questions(timelines_of(LOG), vocabulary_without_categories(), cutoff_us=CUTOFF_US, within_days=WITHIN)
    assert [question.name for question in bare.asked] == ["churn", "activity", "item_propensity"]
    assert bare.refused["category_propensity"] == "no item of the catalogue has a category"
    assert "no wanted action has values" in bare.refused["value"]
    assert bare.plain_UF.shape[1] == 2
    few = TIMELINES.take(np.arange(60))
    asked = cut_questions(few, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    assert "20 are needed" in asked.refused["churn"]


def test_rare_outputs_are_left_out_and_common_ones_kept() -> None:
    rare = {user: [event for event in events if event[1] != 7 or event[0] < CUTOFF_DAY] for user, events in LOG.items()}
    asked = cut_questions(valued(timelines_of(rare)), VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    items = next(question for question in asked.asked if question.name == "item_propensity")
    plans, _ = plan_questions(valued(timelines_of(rare)), VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    plan = next(plan for plan in plans if plan.task.name == "item_propensity")
    everything = label(plan, valued(timelines_of(rare)), cutoff_us=CUTOFF_US)
    assert "i7" in everything.outputs
    is_test = asked.is_test_U[everything.rows_A]
    fewest = np.minimum(everything.labels_AK[is_test].sum(axis=0), everything.labels_AK[~is_test].sum(axis=0))
    enough = [name for name, users in zip(everything.outputs, fewest, strict=True) if users >= LEAST]
    assert list(items.outputs) == enough
    assert 0 < len(enough) < NUM_ITEMS
    assert items.labels_AK.shape == (len(everything.rows_A), len(enough))


def test_the_digest_is_of_users_and_answers() -> None:
    cut = {"cutoff_us": CUTOFF_US, "within_days": WITHIN}
    here = cut_questions(TIMELINES, VOCABULARY, **cut).digest
    assert here == cut_questions(valued(timelines_of(LOG)), VOCABULARY, **cut).digest
    assert here != cut_questions(rewritten(other, past=False), VOCABULARY, **cut).digest
    assert here != cut_questions(TIMELINES.take(np.arange(399)), VOCABULARY, **cut).digest


@pytest.mark.parametrize("share", [0.3])
def test_about_so_many_users_are_held_out(share: float) -> None:
    asked = cut_questions(TIMELINES, VOCABULARY, cutoff_us=CUTOFF_US, within_days=WITHIN)
    assert abs(asked.is_test_U.mean() - share) < 4 * np.sqrt(share * (1 - share) / 400)
