from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.profiles.record import PROFILE_SCHEMA
from sonder.releases.artefacts import Release
from sonder.releases.facts import _read_footers, promise_of, read_facts
from tests.sealed import DIM, TASK, draw_profiles, seal_release


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(str(tmp_path))


def test_coverage_is_the_share_of_users_of_whom_a_field_is_known(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", profiles=draw_profiles(users=200, num_cold=30))
    facts = read_facts(Release.open(workspace, "r-1"))
    for field in ("embedding", "segments.cluster_id", "interests"):
        assert facts.metrics[f"coverage.{field}"] == pytest.approx(170 / 200)
    assert facts.metrics["coverage.scores"] == 1
    assert facts.metrics["coverage.affinities"] == 0
    assert facts.metrics["coverage.signup_at"] == 0
    assert (facts.metrics["rows.profiles"], facts.metrics["rows.cold"]) == (200, 30)
    assert facts.metrics["scores.buy_7d.auc"] == 0.75
    assert "rows.seconds" not in facts.metrics


_LISTS = st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3)
_ROWS = st.lists(st.tuples(_LISTS, st.none() | st.integers(0, 9)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(_ROWS)
def test_footers_tell_what_the_rows_say(rows: list[tuple[list[int | None] | None, int | None]]) -> None:
    kind = pa.list_(pa.struct([("always", pa.int8()), ("maybe", pa.int8())]))
    lists = [None if row is None else [{"always": 1, "maybe": value} for value in row] for row, _ in rows]
    objects = [{"field": value} for _, value in rows]
    table = pa.table({"entries": pa.array(lists, kind), "object": pa.array(objects, pa.struct([("field", pa.int8())]))})
    file = Folder.at("memory://footers.parquet")
    file.write_table(table)
    found, _ = _read_footers([file, file])
    assert found["coverage.entries"] == pytest.approx(sum(bool(row) for row in lists) / len(rows))
    assert found["coverage.object.field"] == pytest.approx(sum(value is not None for _, value in rows) / len(rows))


def test_fields_are_those_of_the_files_with_their_types(workspace: Workspace) -> None:
    profiles = draw_profiles().drop_columns(["signup_at"])
    seal_release(workspace, "r-1", profiles=profiles)
    fields = read_facts(Release.open(workspace, "r-1")).fields
    assert fields["embedding"] == f"list of float of {DIM}"
    assert fields["segments.cluster_id"] == "int16"
    assert fields["interests.name"] == "string"
    assert fields["scores.buy_7d"] == "action of buy within 7 days"
    assert "signup_at" not in fields
    assert "scores.value" not in fields  # of whichever score: a consumer reads one by its name
    assert "attributes.name" not in fields
    assert set(fields) >= set(profiles.column_names)


def test_attributes_and_consent_go_by_the_names_of_the_user_table(workspace: Workspace) -> None:
    columns = {"attributes": ["country"], "consent": {"ads": "ads_ok"}}
    seal_release(workspace, "r-1", users={"path": "users.csv", "columns": columns})
    fields = read_facts(Release.open(workspace, "r-1")).fields
    assert (fields["attributes.country"], fields["consent.ads"]) == ("string", "bool")


def test_a_release_without_a_task_has_no_score_of_that_name(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", tasks=())
    assert "scores.buy_7d" not in read_facts(Release.open(workspace, "r-1")).fields


@pytest.mark.parametrize(
    "change",
    [
        {"within_days": 30},
        {"action": "view"},
        {"action": None, "churn": True},
        {"eligible": {"min_events": 5}},
        {"count": True},
    ],
)
def test_a_promise_reads_differently_when_it_is_another(change: dict[str, object]) -> None:
    assert promise_of({**TASK, **change}) != promise_of(TASK)
    assert promise_of({**TASK, "monotone": {"recency": "decreasing"}}) == promise_of(TASK)  # how, not what


def test_intervals_come_from_the_quality_of_the_scores(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", intervals={"auc": (0.7, 0.8)})
    assert read_facts(Release.open(workspace, "r-1")).intervals == {"scores.buy_7d.auc": (0.7, 0.8)}


def test_what_is_no_finite_number_is_not_measured(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", metrics={"a.nan": float("nan"), "a.flag": True, "a.text": "x", "a.whole": 3})
    metrics = read_facts(Release.open(workspace, "r-1")).metrics
    assert {name for name in metrics if name.startswith("a.")} == {"a.whole"}


def test_profiles_of_no_user_are_no_error(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", profiles=PROFILE_SCHEMA.empty_table())
    facts = read_facts(Release.open(workspace, "r-1"))
    assert not [name for name in facts.metrics if name.startswith("coverage.")]
    assert "embedding" in facts.fields


def test_sizes_are_those_of_the_manifest(workspace: Workspace) -> None:
    manifest = seal_release(workspace, "r-1")
    metrics = read_facts(Release.open(workspace, "r-1")).metrics
    told = sum(value for name, value in metrics.items() if name.startswith("size_bytes."))
    assert told == sum(entry.size_bytes for entry in manifest.files.values())
    assert metrics["rows.files"] == len(manifest.files)
