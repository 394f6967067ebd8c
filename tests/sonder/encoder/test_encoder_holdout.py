"""What the training may see: never the test, and never what validates it."""

from __future__ import annotations

import numpy as np

from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.encoder.holdout import count_eligible, draw_users, hold_out
from sonder.encoder.specification import derive, summarise

DAY = 86_400


def held_out(timelines, vocabulary, **how):
    how = {"cutoff_us": None, "window_us": 0, **how}
    return hold_out(timelines, vocabulary, num_eligible=count_eligible(timelines, vocabulary, **how), **how)


def test_leave_one_out_hides_the_last_item_from_all_and_the_one_before_from_those_that_validate(
    make_timelines, make_vocabulary
):
    holdout = held_out(make_timelines([[1, 2, 3, 4], [5, 6]]), make_vocabulary())
    assert holdout.visible.items.tolist() == [1, 2, 5, 6]  # two events ask nothing, as in the published tables
    assert holdout.validation.history.items.tolist() == [1, 2]
    assert holdout.validation.targets.items.tolist() == [3]


def test_with_many_users_only_some_validate_and_the_others_train_on_their_second_last(make_timelines, make_vocabulary):
    timelines, vocabulary = make_timelines([[1, 2, 3, 4]] * 300), make_vocabulary()
    holdout = hold_out(timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=15_000)
    assert 60 < holdout.validation.history.num_users < 140
    assert sorted(set(holdout.visible.lengths.tolist())) == [2, 3]
    assert 4 not in holdout.visible.items


def test_temporal_validation_users_end_one_window_earlier_and_are_at_most_a_tenth(make_timelines, make_vocabulary):
    timelines = make_timelines(
        [[1, 2, 3, 4, 5]] * 400,
        actions=[[0, 0, 0, 1, 0]] * 400,
        times_s=[[0, 10 * DAY, 65 * DAY, 66 * DAY, 95 * DAY]] * 400,
    )
    holdout = held_out(timelines, make_vocabulary(), cutoff_us=90 * DAY * 10**6, window_us=30 * DAY * 10**6)
    num_held_out = holdout.validation.history.num_users
    assert 15 < num_held_out < 70
    assert set(holdout.validation.targets.items.tolist()) == {3}  # not the hidden 4, not the test's 5
    assert set(holdout.validation.history.items.tolist()) == {1, 2}
    assert np.bincount(holdout.visible.lengths)[[2, 4]].tolist() == [num_held_out, 400 - num_held_out]
    assert holdout.visible.times_us.max() < 90 * DAY * 10**6


def test_a_draw_takes_whole_histories_of_a_share_of_the_users_and_another_draw_those_of_others(make_timelines):
    timelines = make_timelines([[user % 10] * (user % 7) for user in range(2_000)])
    one, again, other = (draw_users(timelines, share=0.25, draw=draw) for draw in ("a", "a", "b"))
    assert one.user_ids.equals(again.user_ids)
    assert 400 < one.num_users < 600
    histories = dict(
        zip(timelines.user_ids.to_pylist(), np.split(timelines.items, timelines.offsets[1:-1]), strict=True)
    )
    for user, items in zip(one.user_ids.to_pylist(), np.split(one.items, one.offsets[1:-1]), strict=True):
        assert items.tolist() == histories[user].tolist()
    both = set(one.user_ids.to_pylist()) & set(other.user_ids.to_pylist())
    assert 80 < len(both) < 180  # a quarter of a quarter
    assert draw_users(timelines, share=1.0, draw="a") is timelines


def test_what_carries_no_wish_is_not_kept_for_the_training(make_timelines, make_vocabulary):
    timelines = make_timelines([[1, 2, 3, 4, 5]], actions=[[2, 0, 2, 1, 0]])
    assert held_out(timelines, make_vocabulary()).visible.items.tolist() == [2, 4]  # 1 and 3 were only seen


def test_dials_come_from_the_data_and_from_the_protocol(make_timelines, make_vocabulary):
    vocabulary = make_vocabulary()
    summary = summarise(make_timelines([[1, 2, 1], [3] * 30, [-1]], actions=[[0, 1, 0], [0] * 30, [0]]), vocabulary)
    assert summary.targets.tolist() == [0, 2, 0, 30, 0, 0, 0, 0, 0, 0]
    assert summary.repeats == 30
    evaluation = EvaluationConfig(protocol="temporal", test_days=14)
    spec = derive(EncoderConfig(), evaluation, vocabulary, summary, reads_time=True, seed=1)
    assert (spec.objective, spec.window_us) == ("dense_all_action", 14 * DAY * 10**6)
    assert (spec.max_length, spec.dropout) == (30, 0.5)
    assert (spec.excludes_seen, spec.recalls) == (False, True)  # nearly every event is a repeat
    assert spec.oldest_age == 5  # from 17 minutes on; the user has been there for 29
    one_out = derive(EncoderConfig(dropout=0.2, max_length=50), EvaluationConfig(protocol="leave_one_out"),
                     vocabulary, summary, reads_time=False, seed=1)  # fmt: skip
    assert (one_out.objective, one_out.window_us) == ("next_action", 0)
    assert (one_out.max_length, one_out.dropout) == (50, 0.2)
    rare = summarise(make_timelines([list(range(10)) * 2] + [list(range(10))] * 20), vocabulary)
    rarely = derive(EncoderConfig(), evaluation, vocabulary, rare, reads_time=True, seed=1)
    assert (rarely.excludes_seen, rarely.recalls) == (True, False)


def test_summaries_of_disjoint_users_add_up(make_timelines, make_vocabulary):
    timelines, vocabulary = make_timelines([[1, 2, 1], [3], [4, 4]]), make_vocabulary()
    parts = [summarise(timelines.take(np.array(rows)), vocabulary).to_vector() for rows in ([0], [1, 2])]
    np.testing.assert_array_equal(sum(parts), summarise(timelines, vocabulary).to_vector())
