from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.evaluation.user_comparison import LEAST_VECTORS, NUM_BINS, Flow, UserComparison, compare_users

DIM = 4
SCHEMA = {
    "user_id": pl.String,
    "lifecycle": pl.String,
    "cluster_id": pl.Int64,
    "cluster": pl.String,
    "num_interests": pl.UInt32,
    "scores": pl.List(pl.Struct({"name": pl.String, "value": pl.Float32})),
    "embedding": pl.List(pl.Float32),
}


def users(*rows: dict[str, Any]) -> pl.DataFrame:
    default = {"lifecycle": "core", "cluster_id": 1, "cluster": "one", "num_interests": 2, "scores": []}
    known = [{"user_id": f"u{place}", "embedding": None, **default, **row} for place, row in enumerate(rows)]
    return pl.DataFrame(known, schema=SCHEMA)


def drawn(vectors_UD: np.ndarray[Any, Any], scores: np.ndarray[Any, Any] | None = None) -> pl.DataFrame:
    rows = [
        {"embedding": vector.tolist(), "scores": [] if scores is None else [{"name": "buy", "value": scores[place]}]}
        for place, vector in enumerate(vectors_UD)
    ]
    return users(*rows)


def unit(seed: int, num: int = 400) -> np.ndarray[Any, Any]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_users_of_one_release_only_are_counted_and_not_compared() -> None:
    before = users({"user_id": "a"}, {"user_id": "b"}, {"user_id": "c"})
    found = compare_users(before, users({"user_id": "c"}, {"user_id": "d"}))
    assert (found.only_before, found.only_after, found.users) == (2, 1, 1)


def test_nobody_in_common_is_no_error() -> None:
    found = compare_users(users({"user_id": "a"}), users({"user_id": "b"}))
    assert (found.users, found.lifecycle.stayed, found.clusters.agreement, found.scores) == (0, 0.0, 1.0, ())
    assert found.vectors.reason == "no user has a vector in both releases"


def test_a_flow_counts_users_by_where_they_were_and_are() -> None:
    before = users({"lifecycle": "new"}, {"lifecycle": "core"}, {"lifecycle": "core"}, {"lifecycle": "dormant"})
    after = users({"lifecycle": "core"}, {"lifecycle": "core"}, {"lifecycle": "casual"}, {"lifecycle": "dormant"})
    flow = compare_users(before, after).lifecycle
    assert flow == Flow(("new", "core", "dormant"), ("core", "casual", "dormant"), ((1, 0, 0), (1, 1, 0), (0, 0, 1)))
    assert flow.stayed == 0.5


def test_a_cluster_lives_on_by_its_id_under_its_new_name() -> None:
    before = users(*[{"cluster_id": 1, "cluster": "old"}] * 3, {"cluster_id": None, "cluster": None})
    after = users(*[{"cluster_id": 1, "cluster": "new"}] * 2, *[{"cluster_id": 2, "cluster": "new"}] * 2)
    flow = compare_users(before, after).clusters
    assert (flow.before, flow.after) == (("1 new", "no cluster"), ("1 new", "2 new"))
    assert flow.stayed == 0.5


def test_groups_that_only_changed_their_ids_agree_though_nobody_stayed() -> None:
    before, after = ([{"cluster_id": (row + turn) % 3} for row in range(30)] for turn in (0, 1))
    flow = compare_users(users(*before), users(*after)).clusters
    assert (flow.stayed, flow.agreement) == (0.0, pytest.approx(1.0))


def test_scores_are_compared_by_name_and_only_for_who_has_both() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(1, 5, 400)
    same = compare_users(drawn(unit(0), values), drawn(unit(0), values)).scores[0]
    assert (same.psi, same.users, same.moved_by_half) == (0, 400, 0)
    assert same.before == same.after
    assert sum(same.before) == pytest.approx(1)
    assert len(same.edges) == NUM_BINS + 1
    tripled = compare_users(drawn(unit(0), values), drawn(unit(0), values * 3)).scores[0]
    assert tripled.psi > 0.25
    assert tripled.moved_by_half == 1
    assert tripled.mean_after == pytest.approx(3 * tripled.mean_before, rel=1e-5)
    renamed = drawn(unit(0), values).with_columns(
        scores=pl.col("scores").list.eval(pl.struct(pl.lit("other").alias("name"), pl.element().struct.field("value")))
    )
    assert compare_users(drawn(unit(0), values), renamed).scores == ()


def test_scores_that_are_all_zero_have_a_picture() -> None:
    shift = compare_users(drawn(unit(0), np.zeros(400)), drawn(unit(0), np.zeros(400))).scores[0]
    assert (shift.psi, shift.before[0]) == (0, 1)


def test_vectors_that_stayed_have_a_cosine_of_one() -> None:
    shift = compare_users(drawn(unit(0)), drawn(unit(0))).vectors
    assert shift.movement is not None
    assert shift.movement.median == pytest.approx(1)
    assert sum(shift.histogram) == pytest.approx(1)


def test_vectors_that_were_turned_are_another_space_and_have_no_cosine() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))
    turn *= -np.sign(np.trace(turn))  # so that raw cosines are below 0 on average
    shift = compare_users(drawn(unit(0)), drawn(unit(0) @ turn)).vectors
    assert shift.is_other_space
    assert (shift.movement, shift.histogram) == (None, ())
    assert shift.mean_turned == pytest.approx(1, abs=1e-5)


def test_vectors_that_moved_a_little_are_the_same_space() -> None:
    moved = unit(0) + 0.2 * unit(1)
    shift = compare_users(drawn(unit(0)), drawn(moved)).vectors
    assert shift.movement is not None
    assert 0.9 < shift.movement.median < 1
    assert shift.mean_turned == pytest.approx(shift.mean_raw, abs=0.01)


def test_vectors_drawn_anew_are_not_called_the_same_space() -> None:
    """No rotation helps either: both cosines are about 0, and neither is told as movement of users."""
    shift = compare_users(drawn(unit(0)), drawn(unit(1))).vectors
    assert abs(shift.mean_raw or 0) < 0.1
    assert shift.movement is None or shift.movement.median < 0.2


@pytest.mark.parametrize(
    ("num", "width", "reason"),
    [(400, DIM + 1, "vectors had 4 dimensions and have 5"), (LEAST_VECTORS * DIM - 1, DIM, "at least 16 are needed")],
)
def test_vectors_that_cannot_be_compared_say_why(num: int, width: int, reason: str) -> None:
    after = np.random.default_rng(0).normal(size=(num, width))
    shift = compare_users(drawn(unit(0, num)), drawn(after)).vectors
    assert reason in str(shift.reason)
    assert not shift.is_other_space


def test_interests_are_counted_up_to_ten_or_more() -> None:
    found = compare_users(users({"num_interests": 0}, {"num_interests": 40}), users({"num_interests": 3}, {}))
    assert (found.interests[0], found.interests[2], found.interests[3], found.interests[10]) == (
        (1, 0), (0, 1), (0, 1), (1, 0),
    )  # fmt: skip


_ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from([f"u{number}" for number in range(8)]),
        "lifecycle": st.sampled_from(["new", "core", "dormant"]),
        "cluster_id": st.none() | st.integers(0, 2),
    }
)
_TABLE = st.lists(_ROW, max_size=8, unique_by=lambda row: row["user_id"])


@settings(max_examples=60, deadline=None)
@given(_TABLE, _TABLE, st.randoms())
def test_a_comparison_agrees_with_plain_counting_in_any_order(before: list[Any], after: list[Any], random: Any) -> None:
    old, new = ({row["user_id"]: row for row in rows} for rows in (before, after))
    both = old.keys() & new.keys()
    found = compare_users(users(*before), users(*after))
    assert (found.users, found.only_before, found.only_after) == (len(both), len(old) - len(both), len(new) - len(both))
    for flow, key in ((found.lifecycle, "lifecycle"), (found.clusters, "cluster_id")):
        assert flow.users == len(both)
        stayed = sum(old[user][key] == new[user][key] for user in both)
        assert flow.stayed == pytest.approx(stayed / len(both) if both else 0)
    shuffled = [random.sample(rows, len(rows)) for rows in (before, after)]
    assert compare_users(*(users(*rows) for rows in shuffled)).to_dict() == found.to_dict()


def test_the_comparison_is_plain_data() -> None:
    import orjson

    found = compare_users(drawn(unit(0), np.full(400, 0.5)), drawn(unit(0), np.full(400, 0.4)))
    content = orjson.loads(orjson.dumps(found.to_dict()))
    assert isinstance(found, UserComparison)
    assert content["vectors"]["is_other_space"] is False
    assert content["lifecycle"]["stayed"] == 1
