"""Segments and batches: every event once, no padding waste, no batch too large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.encoder.batching import all_segments, collate, newest_segments, plan_batches, tokenise
from sonder.encoder.time_classes import NUM_AGES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 2**31))
def test_segments_hold_every_token_once_and_none_is_too_long(lengths, max_length, seed):
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    shifts = np.random.default_rng(seed).integers(0, max_length, len(lengths))
    segments = all_segments(offsets, offsets[1:], max_length, shifts)
    covered = [at for a, b in zip(segments.starts, segments.stops, strict=True) for at in range(a, b)]
    assert sorted(covered) == list(range(offsets[-1]))
    assert all(0 < n <= max_length for n in segments.lengths)
    users = (
        np.searchsorted(offsets, segments.starts, side="right"),
        np.searchsorted(offsets, segments.stops - 1, "right"),
    )
    np.testing.assert_array_equal(*users)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 90), st.integers(0, 2**31))
def test_a_plan_holds_every_segment_once_within_the_budget(lengths, budget, seed):
    lengths = np.array(lengths, dtype=np.int64)
    plan = plan_batches(lengths, budget, np.random.default_rng(seed).permutation(len(lengths)))
    assert sorted(np.concatenate(plan).tolist() if plan else []) == list(range(len(lengths)))
    assert all(len(batch) * lengths[batch].max() <= budget or len(batch) == 1 for batch in plan)


def test_buckets_of_like_length_leave_little_padding():
    lengths = np.random.default_rng(0).geometric(0.12, 5_000)
    plan = plan_batches(lengths, 2048, np.arange(5_000))
    padded = sum(len(batch) * lengths[batch].max() for batch in plan)
    assert padded < 1.1 * lengths.sum()


def test_the_newest_segment_ends_with_the_newest_token(spec, make_timelines):
    tokens = tokenise(make_timelines([[], list(range(10)), [3]]), spec)
    segments = newest_segments(tokens, 8)
    assert list(zip(segments.starts, segments.stops, strict=True)) == [(2, 10), (10, 11)]


def test_hours_count_from_monday_and_gaps_start_at_none(spec, make_timelines):
    monday_1am = 4 * 86_400 + 3_600
    tokens = tokenise(make_timelines([[1, 2], [3]], times_s=[[monday_1am, monday_1am + 3], [0]]), replace(spec))
    assert tokens.hours.tolist() == [1, 1, 72]
    assert tokens.gaps.tolist() == [0, 5, 0]


def test_ages_count_from_the_first_readable_event_and_survive_the_cut_to_the_newest(spec, make_timelines):
    times_s = [[10 * second for second in range(12)], [5, 5 + 86_400]]
    tokens = tokenise(make_timelines([list(range(12)), [1, 2]], times_s=times_s), spec)
    assert tokens.ages.tolist()[:3] == [0, 1, 2]  # 0, 10 and 20 seconds: a class per fourfold
    assert tokens.ages.tolist()[12:] == [0, 8]
    newest = newest_segments(tokens, 8)
    batch = collate(tokens, spec, newest.starts, newest.stops)
    assert batch.ages_BT[0].tolist() == tokens.ages[4:12].tolist()
    assert batch.ages_BT[1, 2:].tolist() == [NUM_AGES] * 6


def test_who_is_older_than_the_training_knows_is_read_as_its_oldest(spec, make_timelines):
    times_s = [[0, 10, 20, 86_400]]
    tokens = tokenise(make_timelines([[1, 2, 3, 4]], times_s=times_s), replace(spec, oldest_age=3))
    assert tokens.ages.tolist() == [0, 1, 2, 3]
