"""Filters, diversity and similar items over HTTP; the same answers from an index as from an exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.retrieval.nearest import Nearest
from sonder.releases.artefacts import Release
from sonder.retrieval import approximate

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

ALL = "k=18&seen=true"


def recommended(served: Served, query: str, user: str = "user-1") -> list[dict[str, Any]]:
    answer = served.get(f"/v1/users/{user}/recommendations?{query}")
    found: list[dict[str, Any]] = answer["recommendations"]
    return found


def test_a_category_keeps_itself_and_what_is_below_it_in_the_same_order(served: Served) -> None:
    everything = recommended(served, ALL)
    assert recommended(served, f"{ALL}&category=shop") == everything
    part = recommended(served, f"{ALL}&category=shop/part-1")
    assert [item["item_id"] for item in part] == [i["item_id"] for i in everything if i["category"] == "shop/part-1"]
    assert recommended(served, f"{ALL}&category=shop/part") == []  # a path, not a prefix of letters


def test_k_items_come_back_although_nearer_ones_are_filtered(served: Served) -> None:
    last = recommended(served, ALL)[-1]["category"]
    assert len(recommended(served, f"k=3&seen=true&category={last}")) == 3


def test_a_cold_user_gets_popular_items_of_the_category_only(served: Served) -> None:
    answer = served.get("/v1/users/nobody/recommendations?k=2&category=shop/part-2")
    assert answer["fallback"] == "popular"
    assert {item["category"] for item in answer["recommendations"]} == {"shop/part-2"}
    assert served.get("/v1/users/nobody/recommendations?category=other")["fallback"] is None


def test_items_older_than_asked_for_are_left_out(served: Served) -> None:
    assert recommended(served, f"{ALL}&max_age_days=59.9") == []  # all were first seen 60 days before
    assert recommended(served, f"{ALL}&max_age_days=60.1") == recommended(served, ALL)
    assert recommended(served, "max_age_days=59.9", user="nobody") == []


def test_requests_of_one_moment_with_different_wishes_get_their_own(served: Served) -> None:
    queries = [ALL, f"{ALL}&category=shop/part-1", f"{ALL}&diversity=0.9", f"{ALL}&from=interests&diversity=0.9"]
    alone = [recommended(served, query) for query in queries]
    together = served.together([("GET", f"/v1/users/user-1/recommendations?{query}", {}) for query in queries])
    assert [answer.json()["recommendations"] for answer in together] == alone


def test_diversity_keeps_the_first_and_moves_what_is_like_it_down(served: Served) -> None:
    plain, mixed = recommended(served, ALL), recommended(served, f"{ALL}&diversity=0.8")
    assert mixed[0]["item_id"] == plain[0]["item_id"]
    assert {item["item_id"] for item in mixed} == {item["item_id"] for item in plain}
    assert [item["item_id"] for item in mixed] != [item["item_id"] for item in plain]
    assert recommended(served, f"{ALL}&diversity=0") == plain


@pytest.mark.parametrize("query", ["diversity=1.5", "max_age_days=0", "category="])
def test_a_wish_that_means_nothing_is_refused(served: Served, query: str) -> None:
    assert served.request("GET", f"/v1/users/user-1/recommendations?{query}").status_code == 422


def test_similar_items_are_the_nearest_by_cosine_without_the_item_itself(served: Served) -> None:
    answer = served.get("/v1/items/item-3/similar?k=18")
    nearest = Nearest(Release.open(served.release.workspace, served.release.release))
    cosines = nearest._items_ID @ nearest._items_ID[3]
    expected = [item for item in np.argsort(-cosines, kind="stable") if item != 3 and np.any(nearest._items_ID[item])]
    assert [item["item_id"] for item in answer["similar"]] == [f"item-{item}" for item in expected]
    assert [item["similarity"] for item in answer["similar"]] == pytest.approx(cosines[expected].tolist(), abs=1e-6)
    assert [item["rank"] for item in answer["similar"]] == list(range(1, len(expected) + 1))


def test_an_unknown_item_is_not_found_and_does_not_spoil_the_batch(served: Served) -> None:
    known, unknown = served.together([("GET", "/v1/items/item-3/similar", {}), ("GET", "/v1/items/none/similar", {})])
    assert (known.status_code, unknown.status_code) == (200, 404)
    assert "no vector" in unknown.json()["detail"]


def test_past_the_threshold_the_index_gives_the_answers_of_the_exact_search(
    tiny_release: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Release.open(tiny_release.workspace, tiny_release.release)
    exact = Nearest(opened)
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 5)
    indexed = Nearest(opened)
    assert not indexed._items.is_exact
    assert not indexed._users.is_exact
    vectors, seen = exact._users_UD[:4], [b""] * 4
    for wish in ((None, None, 0.0), ("shop/part-1", None, 0.0), (None, None, 0.5)):
        found = [one.recommend(vectors, seen, 5, [wish] * 4) for one in (exact, indexed)]
        assert [[item[0] for item in row] for row in found[0]] == [[item[0] for item in row] for row in found[1]]
    ids = exact._user_ids.to_pylist()[:4]
    assert [[u for u, _ in row] for row in exact.similar(ids, vectors, 3)] == [
        [u for u, _ in row] for row in indexed.similar(ids, vectors, 3)
    ]
