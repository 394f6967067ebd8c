"""Slices against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.evaluation.slices import (
    WANTED,
    by_label,
    by_range,
    interest_entropy,
    pair_hits,
    target_pairs,
    times_wanted,
)
from sonder.history.cutoffs import Split

HIDE = 2


def test_cold_items_have_a_slice_of_their_own(timelines, vocabulary) -> None:
    history = timelines({"a": [(0, 1), (1, 2)], "b": [(0, 1), (2, 2, HIDE)]})
    split = Split(history, timelines({"a": [(2, 5), (2, 6), (0, 7)], "b": [(3, 5), (-1, 6), (-1, 7)]}))
    rows, items = target_pairs(split)
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


def test_entropy_is_that_of_each_list_and_not_of_all_together(vocabulary) -> None:
    words = vocabulary(4, ["a/x", "a/x", "b", "c"])
    one_kind_each = np.asarray([[0, 1], [2, -1], [-1, -1]], dtype=np.int32)
    assert interest_entropy(one_kind_each, words) == 0
    mixed = np.asarray([[0, 2], [0, 1]], dtype=np.int32)
    assert interest_entropy(mixed, words) == pytest.approx(0.5)
    assert interest_entropy(mixed, vocabulary(4)) is None
