"""The triangle of users told by hand, of calendar weeks and months, and its unfinished edge."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.cohorts import Cohorts, count_cohorts, empty_cohorts
from tests.tiny_log import Event, random_log, timelines_of

MONDAY = 4  # 1970-01-05, in days since 1970


def on(*days: float) -> list[Event]:
    return [(day, 0, "view") for day in days]


def triangle(users: dict[str, list[Event]], first_day: float, end_day: float) -> Cohorts:
    timelines = timelines_of(users)
    return count_cohorts(
        timelines.offsets, timelines.times_us, empty_cohorts(round(first_day * DAY), round(end_day * DAY))
    )


def day_of(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() / 86_400


def test_newcomers_of_a_week_are_followed_through_the_weeks_after() -> None:
    found = triangle(
        {
            "every week": on(MONDAY, MONDAY + 7, MONDAY + 14),
            "skips one": on(MONDAY + 6.9, MONDAY + 1, MONDAY + 15, MONDAY + 16),
            "second week": on(MONDAY + 8),
            "nobody": [],
        },
        MONDAY,
        MONDAY + 21,
    )
    assert found.unit == "week"
    assert (found.starts_us / DAY).tolist() == [MONDAY, MONDAY + 7, MONDAY + 14]
    assert found.active_CK.tolist() == [[2, 1, 2], [1, 0, 0], [0, 0, 0]]
    assert found.sizes_C.tolist() == [2, 1, 0]
    assert found.is_last_finished
    assert found.shares_CK[0].tolist() == [1.0, 0.5, 1.0]
    assert np.isnan(found.shares_CK[2]).all()


def test_the_running_week_is_marked_and_no_mean_reads_it() -> None:
    users = {
        "censored": on(MONDAY, MONDAY + 7),
        "a": on(MONDAY + 7, MONDAY + 14),
        "b": on(MONDAY + 14),
        "c": on(MONDAY + 14),
    }
    running, ended = (triangle(users, MONDAY, MONDAY + end) for end in (22, 28))
    assert not running.is_last_finished
    assert running.is_begun_CK.tolist() == ended.is_begun_CK.tolist()
    assert [int(row.sum()) for row in running.is_finished_CK] == [3, 2, 1, 0]
    assert [int(row.sum()) for row in ended.is_finished_CK] == [4, 3, 2, 1]
    assert running.means_K[1] == 1.0  # only `a` has a second week that has ended
    assert ended.means_K[1] == pytest.approx(1 / 3)  # now b and c have one too, and were not seen in it


def test_a_period_whose_last_day_the_log_has_reached_is_finished() -> None:
    assert triangle({"a": on(MONDAY)}, MONDAY, MONDAY + 6.01).is_last_finished
    assert not triangle({"a": on(MONDAY)}, MONDAY, MONDAY + 6).is_last_finished


def test_a_long_log_is_told_in_calendar_months() -> None:
    first, last = day_of("2024-01-31"), day_of("2024-12-15")
    found = triangle({"a": on(first, day_of("2024-02-01"), day_of("2024-12-14")), "b": on(last)}, first, last)
    starts = [str(start)[:7] for start in found.starts_us.astype("datetime64[us]")]
    assert found.unit == "month"
    assert starts == [f"2024-{month:02d}" for month in range(1, 13)]
    assert np.flatnonzero(found.active_CK[0]).tolist() == [0, 1, 11]
    assert found.active_CK.sum() == 3  # b comes at the moment asked, and does not exist yet


def test_triangles_of_disjoint_users_add_up_and_later_events_are_not_seen() -> None:
    log = random_log(6, num_users=40, num_items=2, num_days=60)
    whole = triangle(log, 0, 60)
    halves = [{user: log[user] for user in list(log)[start::2]} for start in (0, 1)]
    summed = triangle(halves[0], 0, 60) + triangle(halves[1], 0, 60)
    later = triangle({user: [*events, (60.5, 0, "buy")] for user, events in log.items()}, 0, 60)
    assert np.array_equal(summed.active_CK, whole.active_CK)
    assert np.array_equal(later.active_CK, whole.active_CK)
    assert whole.sizes_C.sum() == len(log)


def test_a_log_of_more_periods_than_are_kept_leaves_out_its_oldest_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonder.segments.cohorts.MOST_PERIODS", 2)
    found = triangle({"old": on(MONDAY, MONDAY + 8), "young": on(MONDAY + 8, MONDAY + 15)}, MONDAY, MONDAY + 21)
    assert found.active_CK.tolist() == [[1, 1], [0, 0]]
