"""A batch as an Arrow stream says the same as the batch as JSON, and the same as the release's Parquet files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from services.gateway.http import accepts
from services.gateway.tables import MEDIA_TYPE
from sonder.profiles.record import PROFILE_SCHEMA, iso_time
from sonder.releases.artefacts import Release, served_release

if TYPE_CHECKING:
    from conftest import Served

BATCH = "/v1/users:batchGet"
ENVELOPE = {"release", "age_ms", "user_id", "is_cold", "cold_reason", "as_of", "computed_at"}


def stream(served: Served, user_ids: list[str], query: str = "") -> pa.Table:
    answer = served.request("POST", BATCH + query, json={"user_ids": user_ids}, headers={"accept": MEDIA_TYPE})
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE), answer.text
    return pa.ipc.open_stream(answer.content).read_all()


def parquet(served: Served) -> pa.Table:
    folder = Release.open(served.release.workspace, served_release(served.release.workspace)).profiles
    return pa.concat_tables([pq.read_table((folder / name).path, partitioning=None) for name in folder.files()])


def as_json(value: Any) -> Any:
    """A value of a table in the form that JSON answers have."""
    if (
        isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and set(value[0]) <= {"name", "value", "granted"}
    ):
        return {row["name"]: row.get("value", row.get("granted")) for row in value}
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return iso_time(round(value.timestamp() * 1e6)) if hasattr(value, "timestamp") else value


def test_a_stream_says_what_json_says(served: Served) -> None:
    asked = [*served.release.user_ids[:8], "nobody", 'o"dd\n\u2028 user', served.release.user_ids[0]]
    table = stream(served, asked)
    assert table.column("user_id").to_pylist() == asked
    answers = served.request("POST", BATCH, json={"user_ids": asked}).json()["profiles"]
    for row, answer in zip(table.to_pylist(), answers, strict=True):
        assert row["age_ms"] <= answer["age_ms"] + 60_000
        for name in set(answer) - {"age_ms", "scores", "segments", "interests", "affinities", "attributes", "consent"}:
            assert as_json(row[name]) == answer[name], name
        for name in ("attributes", "consent"):
            got = row[name] if not row[name] else as_json(row[name])
            assert (got or None) == (answer[name] or None)
        assert row["segments"]["lifecycle"] == answer["segments"]["lifecycle"]
        assert [s["name"] for s in row["scores"]] == [s["name"] for s in answer["scores"]]
        assert [s["value"] for s in row["scores"]] == pytest.approx([s["value"] for s in answer["scores"]], rel=1e-6)
        assert [i["medoid_item_id"] for i in row["interests"]] == [i["medoid_item_id"] for i in answer["interests"]]


def test_a_stream_has_the_columns_and_values_of_the_parquet_files(served: Served) -> None:
    files = parquet(served)
    table = stream(served, files.column("user_id").to_pylist()).select(PROFILE_SCHEMA.names)
    assert table.schema.equals(PROFILE_SCHEMA)
    for name in PROFILE_SCHEMA.names:
        if name not in ("scores", "interests", "affinities"):  # their floats went through text; compared above
            assert table.column(name).to_pylist() == files.column(name).to_pylist(), name
    values = [
        pc.list_flatten(pc.struct_field(pc.list_flatten(one.column("scores")), "drivers")).to_pylist()
        for one in (table, files)
    ]
    assert [driver["reason"] for driver in values[0]] == [driver["reason"] for driver in values[1]]


def test_named_fields_are_all_that_comes(served: Served) -> None:
    asked = [*served.release.user_ids[:3], "nobody"]
    table = stream(served, asked, "?fields=embedding,audiences")
    assert set(table.column_names) == ENVELOPE | {"embedding", "audiences", "degraded"}
    vectors = table.column("embedding").to_pylist()
    assert vectors[-1] is None
    profiles = served.request("POST", BATCH + "?fields=embedding", json={"user_ids": asked}).json()["profiles"]
    assert [profile["embedding"] for profile in profiles[:3]] == [pytest.approx(vector) for vector in vectors[:3]]
    assert set(profiles[0]) == ENVELOPE | {"embedding"}


def test_an_unknown_field_of_a_batch_is_refused(served: Served) -> None:
    answer = served.request("POST", BATCH + "?fields=nothing", json={"user_ids": ["user-1"]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/fields")


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        (MEDIA_TYPE, True),
        (f"application/json;q=0.1, {MEDIA_TYPE.upper()} ; q=1", True),
        (f"{MEDIA_TYPE};q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_a_stream_is_for_who_names_it(header: str, is_accepted: bool) -> None:
    assert accepts(header, MEDIA_TYPE) == is_accepted
