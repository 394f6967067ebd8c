"""Whole buckets as a sample of users: large enough, or no more than may be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.storage import Folder
from sonder.history.bucket_sample import buckets_reaching, buckets_within


def history_of(folder: Path, counts: Sequence[tuple[int, int]]) -> Folder:
    """A snapshot's manifest with buckets of so many users and events, listed from the last."""
    history = Folder.at(str(folder))
    buckets = [{"bucket": n, "users": users, "events": events} for n, (users, events) in enumerate(counts)]
    (history / "manifest.json").write_json({"buckets": buckets[::-1]})
    return history


@pytest.mark.parametrize(
    ("num_users", "chosen"),
    [(1, [1]), (6, [1]), (7, [1, 3]), (10, [1, 3]), (11, [1, 3, 4]), (1_000, [1, 3, 4])],
)
def test_the_fewest_buckets_that_are_enough(num_users: int, chosen: list[int], tmp_path: Path) -> None:
    history = history_of(tmp_path, [(0, 0), (6, 60), (0, 0), (4, 40), (1, 10)])
    assert buckets_reaching(history, num_users) == chosen


@pytest.mark.parametrize(
    ("max_users", "max_events", "chosen"),
    [(1, None, [1]), (9, None, [1]), (10, None, [1, 3]), (11, None, [1, 3, 4]), (11, 109, [1, 3]), (11, 1, [1])],
)
def test_the_most_buckets_that_may_be_read_and_one_at_least(
    max_users: int, max_events: int | None, chosen: list[int], tmp_path: Path
) -> None:
    history = history_of(tmp_path, [(0, 0), (6, 60), (0, 0), (4, 40), (1, 10)])
    assert buckets_within(history, max_users=max_users, max_events=max_events) == chosen


def test_a_later_bucket_that_would_fit_is_not_picked_out(tmp_path: Path) -> None:
    history = history_of(tmp_path, [(6, 60), (9, 90), (1, 10)])
    assert buckets_within(history, max_users=10) == [0]


def test_nobody_is_in_an_empty_snapshot(tmp_path: Path) -> None:
    history = history_of(tmp_path, [(0, 0), (0, 0)])
    assert buckets_reaching(history, 5) == buckets_within(history, max_users=5) == []


@given(counts=st.lists(st.integers(0, 9), max_size=9), bound=st.integers(1, 40))
def test_both_take_buckets_from_the_first_and_differ_by_one_at_most(
    counts: list[int], bound: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = history_of(tmp_path_factory.mktemp("h"), [(count, count) for count in counts])
    holding = [bucket for bucket, count in enumerate(counts) if count]
    enough, within = buckets_reaching(history, bound), buckets_within(history, max_users=bound)
    assert enough == holding[: len(enough)]
    assert within == holding[: len(within)]
    assert 0 <= len(enough) - len(within) <= 1 or sum(counts[bucket] for bucket in within) == bound
