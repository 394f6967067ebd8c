"""Names by what lifts: the content first, then conduct; unique, and kept while they are true."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.segments.cluster_names import ClusterName, Lift, lifts_of, name_clusters, portrait_lifts
from sonder.segments.cluster_traits import Trait, trait_shares
from tests.tiny_log import Event, timelines_of, vocabulary_of

CATEGORIES = ("garden/tools", "garden/pots", "kitchen/pans", "kitchen/pans")


def lift(kind: str, key: str, share: float, lift: float) -> Lift:
    return Lift(kind, key, share, share / lift, lift)


def names(*clusters: list[Lift], inherited: dict[int, ClusterName] | None = None) -> list[str]:
    return [name.text for name in name_clusters(clusters, range(1, len(clusters) + 1), inherited or {})]


def shares(log: dict[str, list[Event]], states: list[str], rows: list[int], categories=CATEGORIES, **options: bool):
    found, sums, users = trait_shares(
        timelines_of(log), vocabulary_of(categories), states, np.array(rows), max(rows) + 1, **options
    )
    return {trait: (sums[:, place] / np.maximum(users, 1)).tolist() for place, trait in enumerate(found)}


LOG = {
    "ada": [(4.3, 0, "view"), (5.3, 1, "buy"), (5.9, 3, "impression")],  # 1970-01-05 was a Monday
    "bob": [(9.8, 2, "view"), (9.9, 2, "hide")],
    "cyd": [(5.1, 0, "view")],
}


def test_shares_are_means_over_users_at_every_level() -> None:
    found = shares(LOG, ["core", "new", "new"], [0, 1, 0])
    assert found[Trait("category", "garden")] == pytest.approx([1, 0, 2 / 3])
    assert found[Trait("category", "garden/tools")] == pytest.approx([0.75, 0, 0.5])
    assert found[Trait("category", "kitchen/pans")] == pytest.approx([0, 1, 1 / 3])  # shown is not wanted
    assert found[Trait("action", "view")] == pytest.approx([0.75, 0.5, 2 / 3])
    assert found[Trait("lifecycle", "new")] == pytest.approx([0.5, 1, 2 / 3])
    assert found[Trait("time", "weekend evenings")] == pytest.approx([0, 1, 1 / 3])
    assert found[Trait("time", "weekday mornings")] == pytest.approx([1 / 3, 0, 2 / 9])
    assert found[Trait("activity", "light")] == pytest.approx([0.5, 0, 1 / 3])


def test_users_in_no_cluster_change_nothing() -> None:
    without = shares({name: LOG[name] for name in ("ada", "bob")}, ["core", "new"], [0, 1])
    assert shares(LOG, ["core", "new", "new"], [0, 1, -1]) == without


def test_without_categories_the_words_of_the_titles_speak_and_without_dates_no_times() -> None:
    found = shares(LOG, ["core", "new", "new"], [0, 1, 0], (None,) * 4, has_dates=False)
    assert found[Trait("word", "title")] == [1, 1, 1]
    assert {trait.kind for trait in found} == {"word", "action", "activity"}


def test_lift_is_smoothed_and_needs_support() -> None:
    traits = [Trait("category", key) for key in ("common", "rare", "tiny", "flat")]
    sums = np.array([[50, 30, 4, 50.0], [50, 0, 0, 50], [100, 30, 4, 100]])
    found = lifts_of(traits, sums, np.array([100, 100, 200]))
    assert [(lift.key, lift.share) for lift in found[0]] == [("rare", 0.3)]
    assert found[0][0].lift == pytest.approx((30 + 20 * 0.15) / 120 / 0.15)
    assert found[1] == ()
    assert lifts_of(traits, sums / 50, np.array([2, 2, 4]))[0] == ()  # two users prove nothing


def test_a_name_is_content_then_conduct() -> None:
    garden = [
        lift("category", "garden/tools", 0.6, 4.0),
        lift("lifecycle", "core", 0.5, 2.0),
        lift("lifecycle", "new", 0.4, 1.5),
        lift("action", "buy", 0.3, 1.5),
        lift("time", "weekend evenings", 0.1, 1.5),
    ]
    assert names(garden) == ["garden/tools · core · buy-heavy"]
    assert names(garden[4:]) == ["average"]  # a tenth of the events is not worth a word


def test_two_categories_share_a_name_unless_one_holds_the_other() -> None:
    first, below = lift("category", "garden", 0.4, 4), lift("category", "garden/tools", 0.3, 5)
    beside, heavy = lift("category", "kitchen", 0.3, 3), lift("activity", "heavy", 0.5, 1.5)
    assert names([first, below, beside, heavy]) == ["garden + kitchen · heavy users"]


def test_names_are_unique() -> None:
    same = [lift("category", "garden", 0.6, 4)]
    also = [*same, lift("category", "garden/tools", 0.2, 4), lift("category", "kitchen", 0.1, 2)]
    assert names(same, also, same, [], []) == ["garden", "garden + kitchen", "garden · 3", "average", "average · 5"]


def test_a_name_is_kept_while_all_that_it_says_holds() -> None:
    old = ClusterName("kitchen · core", (Trait("category", "kitchen"), Trait("lifecycle", "core")))
    now = [lift("category", "garden", 0.6, 4), lift("category", "kitchen", 0.3, 2), lift("lifecycle", "core", 0.4, 2)]
    assert names(now, inherited={1: old}) == ["kitchen · core"]
    assert names(now[:2], inherited={1: old}) == ["garden"]
    assert names(now, now, inherited={2: old})[1] == "kitchen · core"


def test_a_portrait_leaves_room_for_conduct() -> None:
    many = [lift("category", f"c{place}", 0.5, 2) for place in range(9)] + [lift("action", "buy", 0.1, 1.5)]
    assert [lift.key for lift in portrait_lifts(many)] == ["c0", "c1", "c2", "c3", "buy"]
