"""How far a release moved: cosines, neighbours, segments and scores, on literals and on spaces that are only turned."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from sonder.evaluation.stability import (
    MembershipChurn,
    churn,
    item_overlap,
    membership_churn,
    movement,
    population_stability_index,
    user_overlap,
)


def units(seed, num, dim=8):
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rotation(seed, dim=8):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype(np.float32)


def test_movement_is_the_cosine_of_those_who_have_both_vectors():
    before = np.array([[1, 0], [1, 0], [0, 2], [0, 0], [1, 0]], np.float32)
    after = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0, 0]], np.float32)
    found = movement(before, after)
    assert (found.users, found.mean, found.median) == (3, pytest.approx(2 / 3), 1)
    assert found.moved == pytest.approx(1 / 3)
    assert list(found.quantiles) == ["p01", "p05", "p25", "p50", "p75"]
    assert movement(before[3:], after[3:]) is None


def test_a_space_that_is_only_turned_keeps_all_neighbours_and_moves_everybody():
    users, items, turn = units(1, 200), units(2, 150), rotation(3)
    assert item_overlap(users, users @ turn, items, items @ turn).share == pytest.approx(1, abs=0.001)
    assert user_overlap(users, users @ turn).share == pytest.approx(1, abs=0.001)
    assert abs(movement(users, users @ turn).median) < 0.5
    stale = item_overlap(users, users @ turn, items, items)
    assert stale.share < 0.6
    assert stale.by_chance == pytest.approx(50 / 150)


def test_unrelated_spaces_share_what_chance_gives():
    found = item_overlap(units(1, 400), units(2, 400), units(3, 500), units(4, 500))
    assert found.share == pytest.approx(found.by_chance, abs=0.02)
    assert found.candidates == 500
    others = user_overlap(units(1, 400), units(2, 400))
    assert others.share == pytest.approx(others.by_chance, abs=0.02)
    assert others.candidates == 399


def test_overlap_counts_the_same_neighbours_in_any_order():
    items = np.eye(4, dtype=np.float32)
    before = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    after = np.array([[3, 4, 1, 2], [4, 3, 2, 1]], np.float32)
    assert item_overlap(before, after, items, items, k=2).share == pytest.approx(0.5)  # the first user's both, no other
    assert item_overlap(before, after, items, items, k=4) is None  # a list of everything says nothing


def test_who_has_no_vector_on_a_side_has_no_neighbours():
    users = units(1, 60)
    lost = users.copy()
    lost[:8] = 0
    assert user_overlap(users, lost, k=10).users == 52
    assert user_overlap(users, lost, k=10).share == 1
    assert user_overlap(users[:11], users[:11], k=10) is None


def test_churn_counts_whose_segment_is_another_one_and_where_they_went():
    before = pl.Series(["new", "new", "core", "core", None, "dormant"])
    after = pl.Series(["core", "core", "core", "new", "core", None])
    found = churn(before, after)
    assert (found.users, found.share) == (4, 0.75)
    assert found.moves == (("new", "core", 2), ("core", "new", 1))
    assert churn(pl.Series([None], dtype=pl.String), pl.Series(["new"])) is None
    assert churn(pl.Series([3, 4]), pl.Series([3, 5])).moves == (("4", "5", 1),)


def test_membership_churn_is_one_less_the_jaccard_index():
    found = membership_churn(np.array([True, True, True, False]), np.array([False, True, True, True]))
    assert (found.before, found.after, found.both, found.share) == (3, 3, 2, 0.5)
    assert MembershipChurn(0, 0, 0).share == 0


def test_psi_is_zero_of_the_same_and_that_of_the_formula_of_a_shift():
    scores = np.linspace(0, 1, 1000)
    assert population_stability_index(scores, scores[::-1]) == 0
    half = population_stability_index(scores, scores[scores >= 0.5])  # five bins empty, five with twice their share
    assert half == pytest.approx(5 * (0.1 * math.log(2)) + 5 * (1e-4 - 0.1) * math.log(1e-4 / 0.1), rel=0.01)
    assert population_stability_index(scores, scores + 0.01) < 0.02
    assert population_stability_index(np.zeros(50), np.zeros(50)) == 0
    assert population_stability_index(np.zeros(50), np.ones(50)) > 1
    with pytest.raises(ValueError, match="Found 0 values before"):
        population_stability_index([], [1.0])
