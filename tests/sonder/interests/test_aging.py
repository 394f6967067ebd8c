"""Interests moved on by time alone are those found at the later moment, for everybody whom no event left or came."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sonder.core.config import InterestsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.interests.aging import leave_a_window, moved_on
from sonder.interests.summary import summarise_interests, summary_at, summary_table
from sonder.interests.ward import cluster_interests
from tests.tiny_log import random_log, timelines_of, vocabulary_of

NUM_ITEMS, BEFORE_US = 24, 60 * DAY
VOCABULARY = vocabulary_of([f"c{item % 3}" for item in range(NUM_ITEMS)])
TIMELINES = timelines_of(random_log(4, num_users=300, num_items=NUM_ITEMS, num_days=60))
VECTORS = np.random.default_rng(2).normal(size=(NUM_ITEMS, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CONFIG = InterestsConfig(half_life_days=7.5, merge_distance=1.0, max_interests=4)


def found_at(as_of_us: int) -> pa.Table:
    return cluster_interests(TIMELINES, VECTORS, VOCABULARY, as_of_us=as_of_us, config=CONFIG)


@pytest.mark.parametrize("days", [0.0, 1.0, 1.37, 5.0, 40.0])
def test_who_stays_has_the_same_bits_and_who_leaves_a_window_is_told(days: float) -> None:
    as_of_us = BEFORE_US + round(days * DAY)
    leaves = leave_a_window(TIMELINES, before_us=BEFORE_US, as_of_us=as_of_us, half_life_days=7.5)
    before, after = found_at(BEFORE_US), found_at(as_of_us)
    staying = TIMELINES.user_ids.filter(pa.array(~leaves))
    kept, wanted = (table.filter(pc.is_in(table.column("user_id"), value_set=staying)) for table in (before, after))
    assert moved_on(kept, as_of_us=as_of_us).equals(wanted)
    if days == 5.0:
        assert 0 < leaves.sum() < TIMELINES.num_users
        assert not moved_on(before, as_of_us=as_of_us).equals(after)  # else nobody had to be told


@pytest.mark.parametrize("days", [0.0, 1.37, 5.0])
def test_a_summary_is_read_at_a_later_moment(days: float) -> None:
    as_of_us = BEFORE_US + round(days * DAY)
    stays = ~leave_a_window(TIMELINES, before_us=BEFORE_US, as_of_us=as_of_us, half_life_days=7.5)
    before, after = (
        summarise_interests(TIMELINES, VECTORS, VOCABULARY, as_of_us=moment, config=CONFIG)
        for moment in (BEFORE_US, as_of_us)
    )
    table = summary_table(TIMELINES.user_ids, before, as_of_us=BEFORE_US)
    assert np.array_equal(summary_at(table, as_of_us=BEFORE_US), before, equal_nan=True)
    assert np.array_equal(summary_at(table, as_of_us=as_of_us)[stays], after[stays], equal_nan=True)
