"""Names of interests: the shared category, else the words of the titles, else the medoid; readable and told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.interests.naming import Naming

AS_OF = 100 * DAY


def vocabulary(
    titles: Sequence[str | None], categories: Sequence[str | None], days: Sequence[float] = ()
) -> Vocabulary:
    num = len(titles)
    columns = {field.name: pa.nulls(num, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(range(num), pa.int32())
    columns["item_id"] = pa.array([f"i{index}" for index in range(num)])
    columns["title"], columns["category"] = pa.array(titles, pa.string()), pa.array(categories, pa.string())
    seen = pa.array([round(day * DAY) for day in days or [0.0] * num], pa.int64())
    columns["first_seen"] = seen.cast(pa.timestamp("us", tz="UTC"))
    columns["num_events"] = pa.array([1] * num, pa.int64())
    return Vocabulary(pa.table(columns, schema=ITEM_SCHEMA), ("buy",), (1.0,), ())


def names(known: Vocabulary, *clusters: list[int], users: Sequence[int] = ()) -> list[str]:
    """Name of each cluster of items; its first one is its medoid."""
    clusters_P = np.repeat(np.arange(len(clusters)), [len(items) for items in clusters])
    items_P = np.concatenate([np.array(items, dtype=np.int64) for items in clusters])
    medoids_C = np.array([items[0] for items in clusters])
    naming = Naming.of(known, as_of_us=AS_OF)
    found: list[str] = naming.names(
        clusters_P, items_P, medoids_C, np.array(users or range(len(clusters)), np.int64)
    ).to_pylist()
    return found


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (["home/garden/tools"] * 3, "garden › tools"),
        (["home/garden/tools", "home/garden/pots", "home/garden/seeds"], "home › garden"),
        (["home/garden/tools", "home/garden/tools", "books/crime"], "garden › tools"),
        (["dvd_players", "dvd_players", None], "dvd players"),
        (["home/garden", "books/crime", None], "medoid"),  # no majority on any level
        (["home/garden", "books/crime", "home/kitchen"], "home"),
    ],
)
def test_a_name_is_the_deepest_category_of_more_than_half_of_the_items(
    categories: list[str | None], expected: str
) -> None:
    assert names(vocabulary(["medoid", None, None], categories), [0, 1, 2]) == [expected]


TITLES = [
    "RED HEART T-LIGHT HOLDER", "Blue heart light holder", "heart holder, light green",
    "red spotty bag", "red lunch box", "red clock", "red alarm clock",
]  # fmt: skip


def test_without_categories_the_words_that_tell_the_titles_from_the_catalogue_are_the_name() -> None:
    known = vocabulary(TITLES, [None] * 7)
    assert names(known, [0, 1, 2], [5, 6]) == ["heart light holder", "red clock"]


def test_a_word_of_one_title_alone_names_nothing_and_the_medoid_does() -> None:
    known = vocabulary([*TITLES, None], [None] * 8)
    assert names(known, [1, 3], [4], [7]) == ["Blue heart light holder", "red lunch box", "i7"]


def test_a_word_of_every_title_tells_nothing() -> None:
    assert names(vocabulary(["the oak", "the elm"], [None, None]), [0, 1]) == ["the oak"]


def test_two_interests_of_a_user_in_one_category_are_told_apart_and_those_of_two_users_need_not_be() -> None:
    known = vocabulary(["rake one", "rake two", "spade", "other"], ["garden/tools"] * 3 + ["x"])
    assert names(known, [0, 1], [2], users=[4, 4]) == ["garden › tools · rake", "garden › tools · spade"]
    assert names(known, [0, 1], [2], users=[4, 5]) == ["garden › tools"] * 2


def test_items_that_are_first_seen_later_do_not_change_a_name() -> None:
    later = ["heart", "heart light", "heart holder", "heart of oak", "lunch clock red", "clock"]
    known = vocabulary(TITLES, [None] * 7)
    longer = vocabulary(TITLES + later, [None] * 13, days=[0.0] * 7 + [100.0] * 6)
    assert names(longer, [0, 1, 2], [5, 6]) == names(known, [0, 1, 2], [5, 6])
    assert names(vocabulary(TITLES + later, [None] * 13), [0, 1, 3]) != names(known, [0, 1, 3])


def test_the_category_is_the_most_common_one_then_the_medoids_then_the_first_by_name() -> None:
    naming = Naming.of(vocabulary([None] * 5, ["b", "a", "b", "c", None]), as_of_us=AS_OF)
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    found = naming.categories(clusters, np.array([0, 1, 2, 3, 1, 3, 1, 4, 4]), np.array([1, 3, 4, 4]))
    assert found.to_pylist() == ["b", "c", "a", None]


def test_many_users_at_once_are_named_as_each_one_alone() -> None:
    known = vocabulary([*TITLES, None], [None] * 6 + ["home/garden", None])
    clusters = [[7]] * 300 + [[0, 1, 2], [6], [5, 6]]  # most have neither words nor a category
    assert names(known, *clusters) == [names(known, cluster)[0] for cluster in clusters]
