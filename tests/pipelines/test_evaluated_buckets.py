"""Which users of a large log the build measures itself on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import evaluate
from sonder.core.storage import Folder


def history_of(folder: Path, counts: Sequence[tuple[int, int]]) -> Folder:
    """A snapshot's manifest with buckets of so many users and events."""
    history = Folder.at(str(folder))
    buckets = [{"bucket": n, "users": users, "events": events} for n, (users, events) in enumerate(counts)]
    (history / "manifest.json").write_json({"buckets": buckets})
    return history


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ([(10, 50), (20, 60), (0, 0)], [0, 1]),  # everybody
        ([(60, 50), (40, 60), (1, 1)], [0, 1]),  # more than 100 users
        ([(10, 700), (20, 400), (30, 1)], [0]),  # more than 1,000 events
        ([(500, 50), (1, 1)], [0]),  # one bucket at least
        ([(60, 50), (60, 1), (10, 1)], [0]),  # a later one that would fit is not picked out: the first are the draw
        ([(0, 0), (60, 50), (60, 0)], [1]),  # one with users
    ],
)
def test_whole_buckets_from_the_first_until_users_or_events_are_too_many(
    counts: list[tuple[int, int]], chosen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MAX_USERS", 100)
    monkeypatch.setattr(evaluate, "MAX_EVENTS", 1_000)
    found, told = evaluate.evaluated_buckets(history_of(tmp_path, counts))
    assert found == chosen
    users, everybody = sum(counts[n][0] for n in chosen), sum(row[0] for row in counts)
    if users == everybody:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(f"{users:,} of {everybody:,} users were looked at, in {len(chosen)} of {len(counts)}")
