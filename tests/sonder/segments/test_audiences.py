"""Versions of definitions, and stays: who enters, stays, leaves and comes back."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.audiences import (
    MEMBERSHIP_SCHEMA,
    AudienceCatalogue,
    Definition,
    current_members,
    movement,
    update_members,
)
from sonder.segments.rules.rule import Rule


def evaluated(*evaluations: tuple[int, str], version: int = 1) -> pa.Table:
    """Stays after evaluations of (day, members as letters)."""
    table = MEMBERSHIP_SCHEMA.empty_table()
    for day, members in evaluations:
        ids = pa.array(list(members), pa.string())
        table = update_members(table, ids, as_of_us=day * DAY, definition_version=version)
    return table


def stays(table: pa.Table) -> list[tuple[str, int, int | None, int]]:
    """(user, entered, left, as_of) in days."""
    frame = pl.DataFrame(table)
    days = [frame[name].dt.epoch("us") // DAY for name in ("entered_at", "left_at", "as_of")]
    return list(zip(frame["user_id"], *days, strict=True))


def test_who_stays_keeps_its_entry_who_leaves_gets_an_end_who_returns_starts_anew() -> None:
    table = evaluated((10, "ab"), (20, "bc"), (30, "abc"))
    assert stays(table) == [("a", 10, 20, 20), ("a", 30, None, 30), ("b", 10, None, 30), ("c", 20, None, 30)]
    assert movement(table, as_of_us=30 * DAY) == {"members": 3, "entered": 1, "left": 0}
    assert movement(evaluated((10, "ab"), (20, "bc")), as_of_us=20 * DAY) == {"members": 2, "entered": 1, "left": 1}


def test_a_stay_outlives_a_new_version_and_says_which_one_confirmed_it() -> None:
    table = update_members(evaluated((10, "ab")), pa.array(["a"]), as_of_us=20 * DAY, definition_version=2)
    assert stays(table) == [("a", 10, None, 20), ("b", 10, 20, 20)]
    assert table.column("definition_version").to_pylist() == [2, 2]


def test_time_goes_forward() -> None:
    with pytest.raises(InvalidRequest, match="earlier"):
        evaluated((20, "a"), (10, "a"))


@given(st.lists(st.frozensets(st.sampled_from("abcdef")), min_size=1, max_size=6))
def test_the_open_stays_are_the_last_evaluation_and_repeating_it_changes_nothing(groups: list[frozenset[str]]) -> None:
    evaluations = [(day, "".join(sorted(group))) for day, group in enumerate(groups, 1)]
    table = evaluated(*evaluations)
    assert set(current_members(table).column("user_id").to_pylist()) == groups[-1]
    assert evaluated(*evaluations, evaluations[-1]).equals(table)
    entered = sum(len(now - before) for before, now in zip([frozenset[str](), *groups], groups, strict=False))
    assert table.num_rows == entered


@pytest.fixture
def catalogue(tmp_path: Path) -> AudienceCatalogue:
    return AudienceCatalogue(Folder.at(str(tmp_path)))


def saved(catalogue: AudienceCatalogue, text: str) -> Definition:
    return catalogue.save("lapsing", text, Rule.parse(text), release="r-1", now="2026-01-31T00:00:00+00:00")


def test_a_changed_rule_is_the_next_version_and_the_same_rule_is_none(catalogue: AudienceCatalogue) -> None:
    assert saved(catalogue, "num_events > 3").version == 1
    assert saved(catalogue, "num_events  >  3.0").version == 1
    assert saved(catalogue, "num_events > 4").version == 2
    assert saved(catalogue, "num_events > 3").version == 3
    assert catalogue.versions("lapsing") == [1, 2, 3]
    assert [(found.name, found.rule) for found in catalogue.all()] == [("lapsing", "num_events > 3")]


def test_an_audience_that_is_not_there_names_those_that_are(catalogue: AudienceCatalogue) -> None:
    saved(catalogue, "is_cold")
    with pytest.raises(NotFound, match="one of lapsing"):
        catalogue.newest("lapsed")
    with pytest.raises(InvalidRequest, match="lower-case"):
        catalogue.newest("../etc")
