"""Rows of a request: what is an event, and why another is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.events.online import MAX_AHEAD_US, OnlineEvent, read_events

NOW_US = 1_700_000_000_000_000
ROW = {"user_id": "u", "item_id": "i", "action": "buy"}


def read(row: Any) -> tuple[list[OnlineEvent], list[str]]:
    events, rejected = read_events([row], now_us=NOW_US)
    return events, [row.reason for row in rejected]


def test_what_is_absent_is_now_and_unknown() -> None:
    (event,), rejected = read(ROW)
    assert event[1:] == ("u", "i", "buy", NOW_US, None, None, None, NOW_US)
    assert rejected == []


def test_a_row_sent_twice_has_one_id_and_another_row_another_one() -> None:
    at = {**ROW, "timestamp": "2023-11-14T22:00:00Z"}
    ids = [read(row)[0][0].event_id for row in (at, dict(at), {**at, "value": 1}, {**at, "action": "hide"})]
    assert len(set(ids)) == 3
    assert ids[0] == ids[1]
    assert read(ROW)[0][0].event_id != read(ROW)[0][0].event_id  # two of one moment, or one sent twice: unknown


@pytest.mark.parametrize("text", ["2023-11-14T22:00:00.5Z", "2023-11-14T23:00:00.5+01:00", "2023-11-14T22:00:00.5"])
def test_a_time_is_iso_with_or_without_a_zone(text: str) -> None:
    assert read({**ROW, "timestamp": text})[0][0].time_us == 1_699_999_200_500_000


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "unparsable"),
        ({}, "anonymous"),
        ({**ROW, "user_id": ""}, "anonymous"),
        ({**ROW, "item_id": None}, "missing_id"),
        ({**ROW, "action": 3}, "unknown_type"),
        ({**ROW, "item_id": "i" * 513}, "overlong_id"),
        ({**ROW, "user_id": "\ud800"}, "unknown_type"),
        ({**ROW, "value": "3"}, "unknown_type"),
        ({**ROW, "value": True}, "unknown_type"),
        ({**ROW, "value": float("inf")}, "unknown_type"),
        ({**ROW, "timestamp": 3}, "bad_timestamp"),
        ({**ROW, "timestamp": "yesterday"}, "bad_timestamp"),
        ({**ROW, "timestamp": "1989-12-31T00:00:00Z"}, "bad_timestamp"),
        ({**ROW, "timestamp": "2024-11-14T00:00:00Z"}, "bad_timestamp"),
        ({**ROW, "timestamp": "0001-01-01T00:00:00+14:00"}, "bad_timestamp"),
        ({**ROW, "mood": "good"}, "unknown_type"),
    ],
)
def test_what_is_no_event_has_its_reason(row: Any, reason: str) -> None:
    assert read(row) == ([], [reason])


def test_good_rows_pass_beside_bad_ones() -> None:
    events, rejected = read_events([ROW, {}, ROW], now_us=NOW_US)
    assert len(events) == 2
    assert [row.row for row in rejected] == [1]


LEAVES = st.none() | st.booleans() | st.floats() | st.text()
NAMES = st.sampled_from([*ROW, "timestamp", "value", "event_id", "x"])


@given(st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner) | st.lists(inner)))
def test_nothing_else_than_an_event_or_a_reason_comes_out(row: Any) -> None:
    events, reasons = read(row)
    assert len(events) + len(reasons) == 1
    for event in events:
        assert OnlineEvent.from_bytes(event.to_bytes()) == event
        assert event.time_us <= NOW_US + MAX_AHEAD_US
