"""Affinities against what followed: small logs whose shares can be counted by hand."""

from __future__ import annotations

import pytest

from sonder.evaluation.affinity import AffinityQuality, affinity_metrics, evaluate_affinity
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.interests.taxonomy import Taxonomy
from tests.tiny_log import Event, timelines_of, vocabulary_of

VOCABULARY = vocabulary_of(["a/x", "a/y", "b/z", None])
TREE = Taxonomy.of_paths(VOCABULARY.items.column("category"))


def measured(users: dict[str, list[Event]]) -> list[AffinityQuality]:
    log = timelines_of(users)
    return evaluate_affinity(log, VOCABULARY, TREE, cutoff_us=80 * DAY, end_us=100 * DAY, horizon_days=20)[1]


ADA: list[Event] = [(1, 0, "buy"), (2, 0, "buy"), (3, 1, "buy"), (4, 2, "hide"), (90, 0, "buy"), (91, 2, "buy")]


def test_the_naive_share_is_off_by_what_can_be_counted() -> None:
    top, below = measured({"ada": [*ADA, (92, 3, "buy")]})  # an item without category counts nowhere
    assert (top.level, top.categories, top.users, top.pairs) == (1, 2, 1, 2)
    assert top.naive_ece == pytest.approx((abs(1 - 0.5) + abs(0 - 0.5)) / 2)  # all of it was a, half of it is
    assert below.naive_brier == pytest.approx(((2 / 3 - 1 / 2) ** 2 + (1 / 3 - 0) ** 2 + (0 - 1 / 2) ** 2) / 3)
    assert sum(point.users for point in below.curve) == below.pairs == 3


def test_who_does_nothing_afterwards_or_did_nothing_before_is_not_measured() -> None:
    others: dict[str, list[Event]] = {"left": [(1, 0, "buy")], "new": [(90, 0, "buy")], "refuses": [(90, 0, "hide")]}
    assert [quality.users for quality in measured({"ada": ADA, **others})] == [1, 1]
    assert measured(others) == []


def test_metrics_name_their_level() -> None:
    qualities = measured({"ada": ADA})
    assert affinity_metrics(qualities)["interests.affinity_ece_level2"] == qualities[1].ece
    assert AffinityQuality.from_dict(qualities[0].to_dict()) == qualities[0]
