from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.interests.affinity import AFFINITY_SCHEMA
from sonder.interests.ward import INTEREST_SCHEMA
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.record import PROFILE_SCHEMA, cold_profile, cut, embeddings_of, splice, to_json_records
from sonder.scoring.table import SCORE_SCHEMA
from sonder.segments.clusters import Clusters
from sonder.segments.lifecycle import LIFECYCLE_SCHEMA

AS_OF = 1_700_000_000_000_000
RATES = {"buy_30d": 0.25, "churn_60d": 0.5}


def timelines() -> Timelines:
    """ada: two events, bob: one, cyd: none."""
    return Timelines(
        user_ids=pa.array(["ada", "bob", "cyd"]),
        offsets=np.array([0, 2, 3, 3]),
        items=np.array([0, 1, 0], np.int32),
        actions=np.zeros(3, np.int16),
        surfaces=np.zeros(3, np.int16),
        times_us=np.array([AS_OF - 10 * DAY, AS_OF - 2 * DAY, AS_OF - DAY]),
        values=np.zeros(3),
    )


def interest(user_id: str, rank: int, weight: float) -> dict[str, object]:
    return {
        "user_id": user_id,
        "rank": rank,
        "name": f"name {rank}",
        "medoid_item_id": f"item-{rank}",
        "title": 'A "quoted" title\n',
        "category": None,
        "weight": weight,
        "num_events": 1,
        "events_per_week": 0.7,
        "first_at": AS_OF - 10 * DAY,
        "last_at": AS_OF - 2 * DAY,
        "age_days": 10.0,
        "recency_days": 2.0,
        "state": "stable",
        "recent_days": 5.0,
        "num_recent": 1,
        "recent_share": 0.6,
        "earlier_share": 0.5,
        "medoid_index": 0,
    }


def affinity(category: str, level: int, rank: int) -> dict[str, object]:
    numbers = dict.fromkeys(("share", "population_share", "lift", "strength", "evidence", "against"), 0.5)
    row = {"user_id": "ada", "category": category, "level": level, "rank": rank, "last_at": AS_OF - DAY}
    return row | numbers


def outputs() -> StageOutputs:
    return StageOutputs(
        vectors=pa.table(
            {"user_id": ["bob", "ada"], "vector": pa.array([[0.0, 0.0], [0.6, 0.8]], pa.list_(pa.float32()))}
        ),
        interests=pa.Table.from_pylist([interest("ada", 2, 0.3), interest("ada", 1, 0.7)], INTEREST_SCHEMA),
        affinities=pa.Table.from_pylist(
            [affinity("a/b", 2, 1), affinity("c", 1, 2), affinity("a", 1, 1)], AFFINITY_SCHEMA
        ),
        segments=pa.Table.from_pylist(
            [
                {"user_id": "ada", "lifecycle": "core", "since": AS_OF - DAY, "active_days": 2, "num_events": 2},
                {"user_id": "bob", "lifecycle": "new", "since": AS_OF - DAY, "active_days": 1, "num_events": 1},
            ],
            LIFECYCLE_SCHEMA,
        ),
        scores=pa.Table.from_pylist(
            [
                {"user_id": "ada", "name": "churn_60d", "value": 0.5, "drivers": []},
                {
                    "user_id": "ada",
                    "name": "buy_30d",
                    "value": 0.75,
                    "drivers": [{"reason": "raises: recent", "contribution": 1.5}],
                },
            ],
            SCORE_SCHEMA,
        ),
    )


def assembled(given: StageOutputs | None = None) -> list[dict[str, object]]:
    table = assemble_profiles(timelines(), given or outputs(), base_rates=RATES, as_of_us=AS_OF)
    assert table.schema.equals(PROFILE_SCHEMA)
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def test_users_keep_the_order_of_the_timelines() -> None:
    assert [row["user_id"] for row in assembled()] == ["ada", "bob", "cyd"]


def test_what_all_stages_say_of_a_user_comes_together_in_rank_and_configuration_order() -> None:
    ada = assembled()[0]
    assert not ada["is_cold"]
    assert ada["embedding"] == pytest.approx([0.6, 0.8])
    assert [interest["rank"] for interest in ada["interests"]] == [1, 2]  # type: ignore[attr-defined]
    assert [affinity["category"] for affinity in ada["affinities"]] == ["a", "c", "a/b"]  # type: ignore[attr-defined]
    assert [(score["name"], score["value"], score["base_rate"]) for score in ada["scores"]] == [  # type: ignore[attr-defined]
        ("buy_30d", 0.75, 0.25),
        ("churn_60d", 0.5, 0.5),
    ]
    assert ada["segments"]["lifecycle"] == "core"  # type: ignore[index]
    assert ada["segments"]["tenure_days"] == pytest.approx(10)  # type: ignore[index]
    assert ada["segments"]["recency_days"] == pytest.approx(2)  # type: ignore[index]


def test_a_zero_vector_makes_a_cold_profile_that_keeps_its_lifecycle() -> None:
    bob = assembled()[1]
    assert (bob["is_cold"], bob["cold_reason"], bob["embedding"]) == (True, "no_wanted_events", None)
    assert bob["segments"]["lifecycle"] == "new"  # type: ignore[index]
    assert (bob["interests"], bob["affinities"], bob["scores"], bob["num_events"]) == ([], [], [], 1)


def test_a_user_without_events_has_no_dates() -> None:
    cyd = assembled()[2]
    assert (cyd["num_events"], cyd["first_seen"], cyd["last_seen"]) == (0, None, None)
    assert cyd["segments"] == {
        "lifecycle": "cold",
        "since": None,
        "active_days": None,
        "tenure_days": None,
        "recency_days": None,
        "cluster_id": None,
        "cluster": None,
    }


def test_the_cluster_is_that_of_the_vector_and_nobody_else_has_one() -> None:
    clusters = Clusters(np.eye(2, dtype=np.float32), (3, 7), ("garden", "kitchen"))
    table = assemble_profiles(timelines(), outputs(), base_rates=RATES, as_of_us=AS_OF, clusters=clusters)
    found = [(row["segments"]["cluster_id"], row["segments"]["cluster"]) for row in table.to_pylist()]
    assert found == [(7, "kitchen"), (None, None), (None, None)]


def test_failed_stages_leave_their_parts_empty() -> None:
    ada = assembled(
        StageOutputs(vectors=outputs().vectors, interests=None, affinities=None, segments=None, scores=None)
    )[0]
    assert (ada["interests"], ada["affinities"], ada["scores"]) == ([], [], [])
    assert not ada["is_cold"]


def test_the_json_record_is_the_row_without_its_embedding() -> None:
    table = assemble_profiles(timelines(), outputs(), base_rates=RATES, as_of_us=AS_OF)
    record = orjson.loads(to_json_records(table, computed_at_us=AS_OF + 5)[0])
    assert set(record) == (set(PROFILE_SCHEMA.names) - {"embedding"}) | {"computed_at"}
    assert record["as_of"] == "2023-11-14T22:13:20+00:00"
    assert record["computed_at"] == "2023-11-14T22:13:20.000005+00:00"
    assert record["interests"][0]["title"] == 'A "quoted" title\n'
    assert record["scores"][0]["drivers"] == [{"reason": "raises: recent", "contribution": 1.5}]


def test_embeddings_are_packed_float32_and_empty_for_cold_users() -> None:
    packed = embeddings_of(assemble_profiles(timelines(), outputs(), base_rates=RATES, as_of_us=AS_OF))
    assert [len(embedding) for embedding in packed] == [8, 0, 0]
    assert np.frombuffer(packed[0], "<f4").tolist() == pytest.approx([0.6, 0.8])


def test_the_cold_profile_answers_with_base_rates_and_its_reason() -> None:
    record = orjson.loads(
        to_json_records(cold_profile("né", base_rates=RATES, as_of_us=AS_OF), computed_at_us=AS_OF)[0]
    )
    assert (record["user_id"], record["is_cold"], record["cold_reason"]) == ("né", True, "unknown_user")
    assert {score["name"]: score["value"] for score in record["scores"]} == RATES
    assert record["segments"]["lifecycle"] == "cold"


def test_reading_adds_release_and_age_in_front() -> None:
    answer = orjson.loads(
        b"".join(splice(b'{"user_id":"a"}', release=b"r-1", computed_at_us=1_000_000, now_us=3_500_000))
    )
    assert answer == {"release": "r-1", "age_ms": 2500, "user_id": "a"}


def test_an_age_is_never_negative() -> None:
    assert (
        orjson.loads(b"".join(splice(b'{"user_id":"a"}', release=b"r", computed_at_us=2_000_000, now_us=0)))["age_ms"]
        == 0
    )


TEXTS = st.text(max_size=12) | st.sampled_from(
    ['","scores":[', ',"num_events":1,"first_seen":', "consent", '\\",', "{}"]
)
FACTS_OF_ONE = st.dictionaries(
    st.sampled_from(["consent", "scores", "signup_at", "embedding"]) | TEXTS, TEXTS, max_size=3
)


@given(
    user_id=TEXTS,
    title=TEXTS,
    attributes=st.none() | FACTS_OF_ONE,
    wanted=st.sets(st.sampled_from([name for name in PROFILE_SCHEMA.names if name != "embedding"])),
)
def test_a_record_cut_to_columns_is_the_record_without_the_others(
    user_id: str, title: str, attributes: dict[str, str] | None, wanted: set[str]
) -> None:
    (row,) = cold_profile(user_id, base_rates=RATES, as_of_us=AS_OF).to_pylist()
    row["interests"] = [{"rank": 1, "name": title, "title": title, "category": title, "num_events": 3}]
    row["scores"] = [
        {"name": title, "value": 0.5, "base_rate": 0.5, "drivers": [{"reason": title, "contribution": 1.0}]}
    ]
    if attributes is not None:
        row["attributes"] = [{"name": name, "value": value} for name, value in attributes.items()]
        row["consent"] = [{"name": name, "granted": True} for name in attributes]
    (record,) = to_json_records(pa.Table.from_pylist([row], schema=PROFILE_SCHEMA), computed_at_us=AS_OF)
    envelope = {"user_id", "is_cold", "cold_reason", "as_of", "computed_at"}
    whole = orjson.loads(record)
    expected = {name: value for name, value in whole.items() if name in envelope | wanted}
    assert list(orjson.loads(cut(record, wanted)).items()) == list(expected.items())
    assert cut(record, PROFILE_SCHEMA.names) == record
