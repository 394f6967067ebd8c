"""What the report says of everybody: the same, however the users lie in buckets."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.evaluation.report_counts import Counts, counted
from sonder.interests.affinity import AFFINITY_SCHEMA
from sonder.interests.ward import INTEREST_SCHEMA

DAY_US = 86_400_000_000
NO_TIMES = np.zeros(0, np.int64)
NUM_USERS, NUM_CATEGORIES = 30, 5


def affinities(*rows: tuple[str, int, int, str, float]) -> pa.Table:
    numbers = dict.fromkeys(("share", "population_share", "lift", "evidence", "against"), 0.5) | {"last_at": 0}
    columns = ("user_id", "level", "rank", "category", "strength")
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) | numbers for row in rows], AFFINITY_SCHEMA)


def interests(*rows: tuple[str, str | None, float, str]) -> pa.Table:
    columns = ("user_id", "category", "weight", "state")
    return pa.table(
        {name: [row[number] for row in rows] for number, name in enumerate(columns)},
        pa.schema([INTEREST_SCHEMA.field(name) for name in columns]),
    )


def test_weeks_without_events_are_counted_as_none() -> None:
    times = np.array([20_089, 20_090, 20_110]) * DAY_US  # 2025-01-01 was a Wednesday
    counts = Counts.of([counted(times, interests(), affinities())])
    weeks = [("2024-12-30", 2), ("2025-01-06", 0), ("2025-01-13", 0), ("2025-01-20", 1)]
    assert counts.events_per_week() == weeks
    assert Counts.of([]).events_per_week() == []


def test_a_category_is_counted_for_whom_it_comes_first_and_for_whom_it_is_less() -> None:
    table = affinities(
        ("ada", 1, 1, "a", 0.3), ("ada", 1, 2, "b", -0.1), ("ada", 2, 1, "a/c", 0.9), ("bob", 1, 1, "b", -0.2)
    )
    facts = Counts.of([counted(NO_TIMES, interests(), table)]).top_affinities([], is_learned=False, horizon_days=30)
    assert facts.top_categories == [("a", 0.5, 1, 0), ("b", 0.5, 0, 2)]


def test_interests_of_one_category_are_one_of_the_user_and_who_has_none_counts_nowhere() -> None:
    table = interests(
        ("ada", "a", 0.2, "stable"),
        ("ada", "a", 0.4, "emerging"),
        ("bob", "b", 0.9, "stable"),
        ("cy", None, 1.0, "stable"),
    )
    facts = Counts.of([counted(NO_TIMES, table, affinities())]).interests()
    assert (facts.users, facts.interests_per_user) == (3, pytest.approx(4 / 3))
    assert facts.top_categories == [("b", 1, pytest.approx(0.9)), ("a", 1, pytest.approx(0.6))]
    assert facts.states == {"emerging": 1, "stable": 3}
    assert facts.has_categories


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_users_in_any_buckets_add_up_to_the_same_page(seed: int, num_buckets: int) -> None:
    draw = np.random.default_rng(seed)
    users = draw.integers(0, NUM_USERS, 80)
    categories = [None if code == NUM_CATEGORIES else f"c{code}" for code in draw.integers(0, NUM_CATEGORIES + 1, 80)]
    weights, states = draw.integers(1, 9, 80) / 8, draw.choice(["stable", "emerging"], 80).tolist()
    wants = interests(*zip([f"u{user}" for user in users], categories, weights.tolist(), states, strict=True))
    ranks, codes = draw.integers(1, 3, 80), draw.integers(0, NUM_CATEGORIES, 80)
    strengths = draw.integers(-3, 4, 80) / 4
    leanings = affinities(
        *(
            (f"u{user}", 1, int(rank), f"c{code}", float(strength))
            for user, rank, code, strength in zip(users, ranks, codes, strengths, strict=True)
        )
    )
    times, owners = draw.integers(0, 90, 200) * DAY_US, draw.integers(0, NUM_USERS, 200)
    bucket_U = draw.integers(0, num_buckets, NUM_USERS)

    def rows_of(table: pa.Table, bucket: int) -> pa.Table:
        own = [f"u{user}" for user in np.flatnonzero(bucket_U == bucket)]
        return pl.DataFrame(table).filter(pl.col("user_id").is_in(own)).to_arrow()

    together = Counts.of([counted(times, wants, leanings)])
    parts = Counts.of(
        json.loads(json.dumps(counted(times[bucket_U[owners] == n], rows_of(wants, n), rows_of(leanings, n))))
        for n in range(num_buckets)
    )
    assert parts.events_per_week() == together.events_per_week()
    assert parts.interests() == together.interests()
    kinds = {"is_learned": True, "horizon_days": 7.0}
    assert parts.top_affinities([], **kinds) == together.top_affinities([], **kinds)
