"""Slices against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.evaluation.slices import (
    WANTED,
    by_knowledge,
    by_label,
    by_range,
    distinct_pairs,
    interest_entropy,
    pair_hits,
    pair_rates,
    times_wanted,
)

HIDE = 2


def test_cold_items_have_a_slice_of_their_own(timelines, vocabulary) -> None:
    history = timelines({"a": [(0, 1), (1, 2)], "b": [(0, 1), (2, 2, HIDE)]})
    targets = timelines({"a": [(2, 5), (2, 6), (0, 7)], "b": [(3, 5), (-1, 6), (-1, 7)]})
    rows, items = distinct_pairs(targets)
    assert list(zip(rows, items, strict=True)) == [(0, 0), (0, 2), (1, -1), (1, 3)]
    lists = np.asarray([[2, 1], [-1, 0]], dtype=np.int32)
    hits = pair_hits(lists, rows, items)
    assert hits.tolist() == [0, 1, 0, 0]  # the empty place -1 is no hit for an unknown item
    wanted = times_wanted(history, vocabulary(4))
    assert wanted.tolist() == [2, 1, 0, 0, 0]  # a hidden item was not wanted
    found = by_range(wanted[items], {"encoder": hits}, WANTED)
    assert found == [{"name": "0", "num": 3, "encoder": pytest.approx(1 / 3)}, {"name": "1-4", "num": 1, "encoder": 0}]


def test_labels_without_users_are_absent_and_the_others_keep_their_order() -> None:
    codes = np.asarray([2, 0, 2], dtype=np.int8)
    found = by_label(codes, {"encoder": np.asarray([1.0, 0.0, 0.0])}, ("cold", "new", "core"))
    assert found == [{"name": "cold", "num": 1, "encoder": 0.0}, {"name": "core", "num": 2, "encoder": 0.5}]


def test_only_the_cold_ones_of_the_others_are_a_slice_of_users() -> None:
    hits = np.asarray([1.0, 0.0, 1.0, 1.0, np.nan, 0.0])  # three scored, then a cold one, one who only hid, a cold one
    found = by_knowledge(np.asarray([True, True, False]), np.asarray([True, False, True]), {"encoder": hits})
    assert found == [
        {"name": "with a vector", "num": 2, "encoder": 0.5},
        {"name": "no vector", "num": 1, "encoder": 1.0},
        {"name": "cold", "num": 2, "encoder": 0.5},
    ]
    everybody_known = by_knowledge(np.asarray([True]), np.zeros(0, np.bool_), {"encoder": np.ones(1)})
    assert everybody_known == [{"name": "with a vector", "num": 1, "encoder": 1.0}]


def test_the_hide_lift_is_the_share_of_refused_pairs_over_that_of_wanted_ones() -> None:
    wanted, refused = np.asarray([1.0, 1.0, 0.0, 0.0]), np.asarray([1.0, 0.0, 0.0, 0.0, 0.0])
    assert pair_rates(wanted, refused) == {
        "recall_at_10": 0.5, "hide_rate_at_10": 0.2, "hide_lift_at_10": pytest.approx(0.4)
    }  # fmt: skip
    assert pair_rates(wanted, refused[:0]) == {"recall_at_10": 0.5}  # nobody refused anything
    assert pair_rates(np.zeros(2), refused) == {"recall_at_10": 0.0, "hide_rate_at_10": 0.2}  # no ratio to nothing


def test_entropy_is_that_of_each_list_and_not_of_all_together(vocabulary) -> None:
    words = vocabulary(4, ["a/x", "a/x", "b", "c"])
    one_kind_each = np.asarray([[0, 1], [2, -1], [-1, -1]], dtype=np.int32)
    assert interest_entropy(one_kind_each, words) == 0
    mixed = np.asarray([[0, 2], [0, 1]], dtype=np.int32)
    assert interest_entropy(mixed, words) == pytest.approx(0.5)
    assert interest_entropy(mixed, vocabulary(4)) is None
