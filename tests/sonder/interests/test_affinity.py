"""Affinities of users whose events are written out, and of a population whose preferences are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.errors import ArtefactMismatch
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.interests.affinity import AffinityModel, LevelModel, affinity_table, raw_shares
from sonder.interests.taxonomy import Taxonomy
from tests.tiny_log import Event, timelines_of, vocabulary_of

PATHS = ["food/fruit", "food/fruit", "food/bread", "books/novels", "books/maps", None]
VOCABULARY = vocabulary_of(PATHS)
TREE = Taxonomy.of_paths(VOCABULARY.items.column("category"))
AS_OF_US = 100 * DAY


def level(names: tuple[str, ...], *population: float) -> LevelModel:
    return LevelModel(names, population, prior_strength=2.0, aversion=1.0)


MODEL = AffinityModel(
    half_life_days=10.0,
    population_half_life_days=10.0,
    horizon_days=30.0,
    levels=(level(("books", "food"), 0.2, 0.8), level(TREE.names[1], 0.1, 0.1, 0.4, 0.4)),
    num_users=1_000,
)


def affinities(
    users: dict[str, list[Event]], model: AffinityModel = MODEL, max_affinities: int = 20
) -> dict[str, dict[str, Any]]:
    """Rows by user and category."""
    table = affinity_table(
        timelines_of(users), VOCABULARY, TREE, model, as_of_us=AS_OF_US, max_affinities=max_affinities
    )
    found: dict[str, dict[str, Any]] = {user: {} for user in users}
    for row in table.to_pylist():
        found[row["user_id"]][row["category"]] = row
    return found


def test_a_share_is_the_evidence_and_the_prior_over_all() -> None:
    ada = affinities({"ada": [(100 - 1e-9, 0, "buy"), (100 - 1e-9, 1, "view"), (90, 3, "buy")]})["ada"]
    assert ada["food"]["share"] == pytest.approx((2 + 2 * 0.8) / (2.5 + 2))
    assert ada["books"]["share"] == pytest.approx((0.5 + 2 * 0.2) / (2.5 + 2))
    assert ada["food/fruit"]["share"] == pytest.approx((2 + 2 * 0.4) / (2.5 + 2))
    assert ada["books"]["lift"] == pytest.approx(0.2 / 0.2)
    assert (ada["books"]["evidence"], ada["books"]["against"]) == (pytest.approx(0.5), 0)


def test_what_everybody_likes_is_not_the_first_affinity() -> None:
    ada = affinities({"ada": [(99, 0, "buy"), (99, 0, "buy"), (99, 3, "buy"), (99, 4, "buy")]})["ada"]
    assert ada["food"]["share"] > ada["books"]["share"]
    assert (ada["books"]["rank"], ada["food"]["rank"]) == (1, 2)
    assert ada["food"]["strength"] < 0 < ada["books"]["strength"]


def test_a_refused_category_falls_below_the_population_and_is_negative() -> None:
    found = affinities({"ada": [(99, 0, "hide")], "bob": [(99, 3, "buy"), (99, 0, "hide"), (99, 0, "hide")]})
    for user in ("ada", "bob"):
        assert found[user]["food"]["share"] < 0.8
        assert found[user]["food"]["strength"] < 0
        assert found[user]["food"]["against"] > found[user]["food"]["evidence"] == 0


def test_more_refused_than_wanted_is_a_dislike_even_above_the_population() -> None:
    likes: list[Event] = [(99, 3, "buy")] * 8
    ada = affinities({"ada": [*likes, *[(99.0, 3, "hide")] * 9, (99, 0, "buy")]})["ada"]
    assert ada["books"]["share"] > 0.2
    assert ada["books"]["strength"] < 0


def test_an_old_liking_fades_towards_the_population() -> None:
    shares = [affinities({"ada": [(day, 3, "buy")]})["ada"]["books"]["share"] for day in (99, 80, 40, 0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.2, abs=1e-3)


def test_who_has_said_nothing_of_a_category_has_no_affinity() -> None:
    found = affinities({"cold": [], "shown": [(99, 0, "impression")], "elsewhere": [(99, 5, "buy")], "later": []})
    assert list(found.values()) == [{}, {}, {}, {}]


def test_events_at_the_moment_or_later_change_nothing() -> None:
    past: list[Event] = [(99, 0, "buy"), (98, 3, "hide")]
    assert affinities({"ada": past}) == affinities({"ada": [*past, (100, 3, "buy"), (120, 4, "buy")]})


def test_the_strongest_are_kept_dislikes_too() -> None:
    events: list[Event] = [*[(99.0, 3, "buy")] * 9, (99, 2, "buy"), *[(99.0, 0, "hide")] * 9]
    all_of = affinities({"ada": events})["ada"]
    kept = affinities({"ada": events}, max_affinities=2)["ada"]
    strongest = sorted((c for c in all_of if "/" in c), key=lambda c: -abs(all_of[c]["strength"]))[:2]
    assert {category for category in kept if "/" in category} == set(strongest)
    assert sorted(row["rank"] for category, row in kept.items() if "/" in category) == [1, 2]


def test_a_curve_corrects_the_shares() -> None:
    curved = replace(
        MODEL, levels=(replace(MODEL.levels[0], curve_raw=(0.2, 0.9), curve_share=(0.1, 0.5)), MODEL.levels[1])
    )
    plain, corrected = (affinities({"ada": [(99, 0, "buy")]}, model)["ada"]["food"] for model in (MODEL, curved))
    assert corrected["share"] == pytest.approx(0.1 + (plain["share"] - 0.2) / 0.7 * 0.4)


def test_a_model_of_other_categories_is_refused() -> None:
    other = replace(MODEL, levels=(MODEL.levels[0],))
    with pytest.raises(ArtefactMismatch, match="other categories"):
        affinities({"ada": [(99, 0, "buy")]}, other)


def test_a_log_without_any_category_has_no_affinity() -> None:
    nothing = vocabulary_of([None, None])
    tree = Taxonomy.of_paths(nothing.items.column("category"))
    model = replace(MODEL, levels=())
    table = affinity_table(
        timelines_of({"ada": [(1, 0, "buy")]}), nothing, tree, model, as_of_us=AS_OF_US, max_affinities=5
    )
    assert (tree.num_levels, table.num_rows) == (0, 0)


counts = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=3)


@given(counts, st.floats(0.1, 100), st.floats(0.25, 100))
def test_shares_of_all_categories_sum_to_one_and_a_refusal_only_lowers_its_own(
    evidence: list[tuple[float, float]], prior_strength: float, aversion: float
) -> None:
    users, population = np.zeros(3, dtype=np.int64), np.array([0.5, 0.3, 0.2])
    wanted, unwanted = np.array(evidence).T

    def shares(unwanted: Any) -> Any:
        return raw_shares(users, wanted, unwanted, population, prior_strength=prior_strength, aversion=aversion)

    before, after = shares(unwanted), shares(unwanted + np.array([1, 0, 0]))
    assert before.sum() == pytest.approx(1)
    assert np.all(before >= 0)
    assert after[0] < before[0]
    assert np.all(after[1:] >= before[1:] - 1e-12)


def test_the_tree_cuts_paths_by_level() -> None:
    tree = Taxonomy.of_paths(vocabulary_of(["a/b/c/d", "a", None, "e/f", ""]).items.column("category"))
    assert tree.names == (("a", "e"), ("a/b", "e/f"), ("a/b/c",))
    assert tree.codes_LI.tolist() == [[0, 0, -1, 1, -1], [0, -1, -1, 1, -1], [0, -1, -1, -1, -1]]


def test_users_keep_their_order() -> None:
    users: dict[str, list[Event]] = {"zoe": [(99, 0, "buy")], "ada": [(99, 3, "buy")]}
    history: Timelines = timelines_of(users)
    table = affinity_table(history, VOCABULARY, TREE, MODEL, as_of_us=AS_OF_US, max_affinities=5)
    frame = pl.DataFrame(pl.from_arrow(table)).select("user_id", "level")
    assert frame.rows() == [("zoe", 1), ("zoe", 2), ("ada", 1), ("ada", 2)]
