"""Interests: what is found, how it is weighed and named, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from sonder.core.config import InterestsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.interests import clusters, ward
from sonder.interests.derive import derive_config, derive_half_life_days, derive_merge_distance
from sonder.interests.naming import Naming
from sonder.interests.ward import INTEREST_SCHEMA, cluster_interests
from tests.tiny_log import timelines_of, vocabulary_of

CONFIG = InterestsConfig(merge_distance=0.5, half_life_days=10.0)
CATEGORIES = ["garden/tools", "garden/pots", "garden/tools", "books/crime", "books/crime", None]


def unit(*degrees: float) -> NDArray[np.float32]:
    """Item vectors on the unit circle."""
    angles = np.radians(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


VECTORS = np.concatenate([unit(0, 5, 11, 90, 95), np.zeros((1, 2), np.float32)])
VOCABULARY = vocabulary_of(CATEGORIES)


def test_close_items_form_one_interest_named_by_its_medoid() -> None:
    users = {"ann": [(1, 0, "buy"), (2, 1, "buy"), (3, 2, "buy"), (20, 3, "view")]}
    rows = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=30 * DAY, config=CONFIG).to_pylist()
    assert [(row["rank"], row["medoid_item_id"], row["category"]) for row in rows] == [
        (1, "i3", "books/crime"),  # one event of ten days ago outweighs three of a month ago
        (2, "i1", "garden/tools"),  # the middle one of three; the most common category is not its own
    ]
    assert rows[1]["title"] == "title 1"
    assert (rows[1]["num_events"], rows[1]["age_days"], rows[1]["recency_days"]) == (3, 29.0, 27.0)
    assert [row["name"] for row in rows] == ["books › crime", "garden › tools"]


def test_frequency_is_over_the_weeks_since_the_first_event_and_over_one_week_at_least() -> None:
    users = {"ann": [(2, 0, "buy"), (3, 0, "buy"), (4, 0, "buy"), (29, 3, "buy"), (29, 3, "buy")]}
    rows = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=30 * DAY, config=CONFIG).to_pylist()
    assert {row["medoid_item_id"]: row["events_per_week"] for row in rows} == pytest.approx({"i0": 3 / 4, "i3": 2.0})


def test_a_state_comes_with_the_counts_and_shares_that_it_was_judged_by() -> None:
    users = {"ann": [(d, 3, "buy") for d in (1, 2, 3)] + [(4, 0, "buy")] + [(d, 0, "buy") for d in (95, 96, 97, 98)]}
    table = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=100 * DAY, config=CONFIG)
    evidence = ["medoid_item_id", "state", "recent_days", "num_recent", "num_events", "recent_share", "earlier_share"]
    growing, fading = (list(row.values()) for row in table.select(evidence).to_pylist())
    assert growing[:5] == ["i0", "growing", 10.0, 4, 5]
    assert growing[5:] == pytest.approx([(4 + 5 / 8) / (4 + 1), (1 + 5 / 8) / (4 + 1)])
    assert fading[:5] == ["i3", "fading", 10.0, 0, 3]
    assert fading[5:] == pytest.approx([(3 / 8) / 5, (3 + 3 / 8) / 5])


def test_interests_that_are_not_kept_still_count_in_the_shares_of_the_others() -> None:
    users = {"ann": [(1, 0, "buy"), (95, 0, "buy"), (96, 3, "buy"), (97, 3, "buy")]}
    one = InterestsConfig.model_validate(CONFIG.model_dump() | {"max_interests": 1})
    (kept,), both = (
        cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=100 * DAY, config=config).to_pylist()
        for config in (one, CONFIG)
    )
    assert (kept["weight"], kept["name"]) == (1.0, both[0]["name"])
    assert kept["recent_share"] == both[0]["recent_share"] < 1


def test_names_from_a_catalogue_read_before_are_the_names_read_here() -> None:
    users = {"ann": [(1, 0, "buy"), (2, 1, "buy"), (3, 4, "buy")]}
    arguments = (timelines_of(users), VECTORS, VOCABULARY)
    naming = Naming.of(VOCABULARY, as_of_us=30 * DAY)
    read_before = cluster_interests(*arguments, as_of_us=30 * DAY, config=CONFIG, naming=naming)
    assert read_before.equals(cluster_interests(*arguments, as_of_us=30 * DAY, config=CONFIG))


def test_long_histories_through_the_chain_get_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    timelines, vectors = crowd()
    vocabulary = vocabulary_of(["c"] * len(vectors))
    config = InterestsConfig(merge_distance=1.1, half_life_days=10.0)
    by_scipy = cluster_interests(timelines, vectors, vocabulary, as_of_us=60 * DAY, config=config)
    monkeypatch.setattr(clusters, "CHAIN_FROM", 2)
    monkeypatch.setattr(ward, "PAIRS_AT_ONCE", 7)
    assert cluster_interests(timelines, vectors, vocabulary, as_of_us=60 * DAY, config=config).equals(by_scipy)


def test_weight_is_the_sum_of_decayed_events() -> None:
    users = {"ann": [(0, 0, "buy"), (10, 0, "buy"), (20, 3, "buy")]}
    table = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=20 * DAY + 1, config=CONFIG)
    by_item = dict(zip(table["medoid_item_id"].to_pylist(), table["weight"].to_pylist(), strict=True))
    assert by_item == pytest.approx({"i3": 1 / 1.75, "i0": 0.75 / 1.75})  # half-lives of 0, 1 and 2


def test_no_weight_of_a_user_who_left_ten_thousand_days_ago_underflows() -> None:
    users = {"ann": [(0, 0, "buy"), (1, 3, "buy")]}
    table = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=60_000 * DAY, config=CONFIG)
    assert sum(table["weight"].to_pylist()) == pytest.approx(1.0)


def test_only_wanted_events_on_items_with_a_vector_count() -> None:
    users = {"ann": [(1, 0, "hide"), (2, 3, "impression"), (3, 5, "buy"), (4, -1, "buy")], "bob": []}
    table = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=30 * DAY, config=CONFIG)
    assert table.num_rows == 0
    assert table.schema == INTEREST_SCHEMA


def test_states_tell_where_an_interest_is_going() -> None:
    users = {
        "ann": [(1, 0, "buy"), (2, 0, "buy"), (3, 3, "buy"), (95, 0, "buy"), (96, 0, "buy"), (99, 3, "buy")],
        "bob": [(1, 0, "buy"), (2, 0, "buy"), (3, 0, "buy"), (95, 3, "buy")],
        "cid": [(d, 3, "buy") for d in (1, 2, 3)] + [(4, 0, "buy")] + [(d, 0, "buy") for d in (95, 96, 97, 98)],
    }
    table = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=100 * DAY, config=CONFIG)
    states = {(row["user_id"], row["medoid_item_id"]): row["state"] for row in table.to_pylist()}
    assert states == {
        ("ann", "i0"): "stable",
        ("ann", "i3"): "stable",
        ("bob", "i0"): "fading",
        ("bob", "i3"): "new",
        ("cid", "i0"): "growing",
        ("cid", "i3"): "fading",
    }


def test_evidence_reaches_back_beyond_the_events_that_are_clustered() -> None:
    users = {"ann": [(0, 0, "buy"), (1, 3, "buy"), (50, 0, "buy")]}
    config = InterestsConfig.model_validate(CONFIG.model_dump() | {"max_events": 1})
    (row,) = cluster_interests(timelines_of(users), VECTORS, VOCABULARY, as_of_us=51 * DAY, config=config).to_pylist()
    assert (row["medoid_item_id"], row["num_events"], row["age_days"]) == ("i0", 2, 51.0)


def test_at_most_max_interests_are_kept_and_weigh_one_together() -> None:
    vectors = unit(*range(0, 360, 30))
    users = {"ann": [(float(item), item, "buy") for item in range(12)]}
    config = InterestsConfig(max_interests=3, merge_distance=0.1, half_life_days=5.0)
    table = cluster_interests(timelines_of(users), vectors, vocabulary_of(["c"] * 12), as_of_us=12 * DAY, config=config)
    assert table["medoid_item_id"].to_pylist() == ["i11", "i10", "i9"]
    assert sum(table["weight"].to_pylist()) == pytest.approx(1.0)


def crowd(num_users: int = 40, num_items: int = 60) -> tuple[Timelines, NDArray[np.float32]]:
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(num_items, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    users = {
        f"u{user}": [
            (float(draw.uniform(0, 60)), int(draw.integers(0, num_items)), "buy") for _ in range(draw.integers(0, 30))
        ]
        for user in range(num_users)
    }
    return timelines_of(users), vectors


def test_the_clusters_are_those_of_scipys_fcluster() -> None:
    timelines, vectors = crowd()
    config = InterestsConfig(max_interests=1000, merge_distance=1.1, half_life_days=10.0)
    vocabulary = vocabulary_of(["c"] * len(vectors))
    table = cluster_interests(timelines, vectors, vocabulary, as_of_us=60 * DAY, config=config)
    found = dict(zip(*np.unique(table["user_id"].to_pylist(), return_counts=True), strict=True))
    for user in range(timelines.num_users):
        items = np.unique(timelines.items[timelines.offsets[user] : timelines.offsets[user + 1]])
        expected = len(items)
        if len(items) > 1:
            expected = fcluster(linkage(vectors[items].astype(float), "ward"), 1.1, "distance").max()
        assert found.get(f"u{user}", 0) == expected


def test_a_user_alone_and_users_in_another_order_get_the_same_interests() -> None:
    timelines, vectors = crowd()
    vocabulary = vocabulary_of(["c"] * len(vectors))
    config = derive_config(InterestsConfig(), vectors, vocabulary, as_of_us=60 * DAY)

    def interests(some: Timelines) -> dict[str, list[dict[str, object]]]:
        rows = cluster_interests(some, vectors, vocabulary, as_of_us=60 * DAY, config=config).to_pylist()
        return {str(user): [r for r in rows if r["user_id"] == user] for user in some.user_ids.to_pylist()}

    together = interests(timelines)
    shuffled = np.random.default_rng(1).permutation(timelines.num_users)
    assert interests(timelines.take(shuffled)) == together
    assert interests(timelines.take(np.array([7]))) == {"u7": together["u7"]}


def test_what_the_configuration_gives_is_kept_and_the_rest_is_derived() -> None:
    given = InterestsConfig(merge_distance=0.3)
    derived = derive_config(given, VECTORS, VOCABULARY, as_of_us=80 * DAY)
    assert (derived.merge_distance, derived.half_life_days) == (0.3, 10.0)
    assert derive_half_life_days(vocabulary_of(["c"], first_day=None), as_of_us=80 * DAY) == 30.0


def test_the_merge_distance_lies_between_tight_groups_and_ignores_unknown_items() -> None:
    groups = [angle + step for angle in range(0, 360, 6) for step in (0.0, 0.1)]
    with_unknown = np.concatenate([unit(*groups), np.zeros((50, 2), np.float32)])
    distance = derive_merge_distance(with_unknown)
    assert 0.1 < distance < 0.3  # 5 % of random pairs on a circle are within 9 degrees: 0.157
    assert derive_merge_distance(with_unknown[:1]) == 1.0
