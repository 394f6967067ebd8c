"""The lifecycle of each user at its own moment is the lifecycle of all users at that moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from sonder.experiments.lifecycle_cut import lifecycle_at_exposure
from sonder.experiments.metrics import TIME
from sonder.segments.lifecycle import STATES, LifecycleThresholds, lifecycle_of
from tests.tiny_log import random_log, timelines_of

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)
LOG = random_log(5, num_users=60, num_items=3, num_days=100)
TIMELINES = timelines_of(LOG)
EVENTS = pl.DataFrame(
    {
        "user_id": pl.Series(TIMELINES.user_ids.to_pylist()).gather(TIMELINES.user_rows),
        "timestamp": pl.Series(TIMELINES.times_us).cast(TIME),
    }
)


def exposed_of(moments_us: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(LOG), "exposed_at": pl.Series(moments_us).cast(TIME)})


def test_each_user_is_asked_at_its_own_moment() -> None:
    draw = np.random.default_rng(2)
    moments = draw.integers(0, 110 * 86_400_000_000, len(LOG))
    moments[:5] = TIMELINES.times_us[TIMELINES.offsets[1:6] - 1]  # some exactly at an event
    found = lifecycle_at_exposure(exposed_of(moments), EVENTS.sample(fraction=1, shuffle=True, seed=1), THRESHOLDS)
    expected = [
        STATES[lifecycle_of(TIMELINES, as_of_us=int(moment), thresholds=THRESHOLDS)[row]]
        for row, moment in enumerate(moments)
    ]
    assert found.to_list() == expected
    assert len(set(expected)) >= 5


def test_an_event_at_the_exposure_or_later_is_not_known_yet() -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    exposed = pl.DataFrame({"user_id": ["a", "b"], "exposed_at": pl.Series([start, start], dtype=TIME)})
    moments = pl.Series([start, start - timedelta(microseconds=1)], dtype=TIME)
    events = pl.DataFrame({"user_id": ["a", "b"], "timestamp": moments})
    assert lifecycle_at_exposure(exposed, events, THRESHOLDS).to_list() == ["cold", "new"]
    assert lifecycle_at_exposure(exposed, events.clear(), THRESHOLDS).to_list() == ["cold", "cold"]
