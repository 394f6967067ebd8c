"""What is told of a log as a whole: sums over its users, the way to JSON and back, and what is missing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.lifecycle import STATES, lifecycle_of
from sonder.segments.overview import LifecycleOverview
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import random_log, timelines_of

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)


def overview_of(num_days: int, end_day: float | None = None) -> LifecycleOverview:
    timelines = timelines_of(random_log(4, num_users=60, num_items=2, num_days=num_days))
    empty = LifecycleOverview.empty(0, round((num_days if end_day is None else end_day) * DAY), THRESHOLDS)
    return empty.count(timelines.offsets, timelines.times_us)


def test_an_overview_survives_json_and_is_the_sum_of_its_parts() -> None:
    timelines = timelines_of(random_log(4, num_users=60, num_items=2, num_days=100))
    empty = LifecycleOverview.empty(0, 100 * DAY, THRESHOLDS)
    whole = empty.count(timelines.offsets, timelines.times_us)
    parts = [timelines.take(np.arange(start, 60, 3)) for start in range(3)]
    summed = sum((empty.count(part.offsets, part.times_us) for part in parts), empty)
    assert summed.to_dict() == whole.to_dict()
    assert LifecycleOverview.from_dict(json.loads(json.dumps(whole.to_dict()))).to_dict() == whole.to_dict()


def test_the_mix_is_that_of_lifecycle_of_and_the_newest_period_ends_with_it() -> None:
    timelines = timelines_of(random_log(4, num_users=60, num_items=2, num_days=100))
    found = LifecycleOverview.empty(0, 80 * DAY, THRESHOLDS).count(timelines.offsets, timelines.times_us)
    states = lifecycle_of(timelines, as_of_us=80 * DAY, thresholds=THRESHOLDS)
    assert found.mix == {state: int((states == place).sum()) for place, state in enumerate(STATES) if place}
    assert found.periods[-1].end_us == 80 * DAY
    assert found.periods[-1].active == sum(n for state, n in found.mix.items() if state != "dormant")
    assert found.transitions_SS is not None
    assert found.transitions_SS.sum() == sum(found.mix.values())


def test_metrics_say_both_errors_and_the_accounts_of_the_newest_period() -> None:
    metrics = overview_of(150).metrics()
    assert metrics["lifecycle.net_growth"] == (
        metrics["lifecycle.new"] + metrics["lifecycle.resurrected"] - metrics["lifecycle.churned"]
    )
    assert {"lifecycle.forecast_mae", "lifecycle.naive_mae", "lifecycle.cohort_share_after_1_week"} <= set(metrics)
    assert metrics["lifecycle.period_days"] == 7
    assert overview_of(300).metrics()["lifecycle.period_days"] == 28


@pytest.mark.parametrize(
    ("num_days", "missing"), [(3, {"growth", "forecast"}), (20, {"forecast"}), (40, set()), (90, set())]
)
def test_a_short_log_says_what_could_not_be_measured(num_days: int, missing: set[str]) -> None:
    found = overview_of(num_days)
    assert set(found.missing) == missing
    assert ("lifecycle.net_growth" in found.metrics()) == ("growth" not in missing)
    assert sum(found.mix.values()) > 0
    assert json.dumps(found.to_dict(), allow_nan=False)
