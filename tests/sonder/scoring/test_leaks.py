"""Leaks: a planted column that knows the future is caught, an honest matrix is not, and so is one that is the label."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.scoring.features import compute_features
from sonder.scoring.leaks import MIN_OF_A_KIND, columns_that_see_the_future, leaking_columns, separation
from sonder.scoring.specification import FeatureSpec, bind, derive_spec
from tests.tiny_log import random_log, timelines_of, vocabulary_of

CUTOFF = 60 * DAY
VOCABULARY = vocabulary_of(["garden", "books", "toys", None])
TIMELINES = timelines_of(random_log(2, num_users=40, num_items=4, num_days=90), values=2.5)
SPEC = derive_spec(TIMELINES, VOCABULARY, first_us=0, cutoff_us=CUTOFF, embedding_dim=0)
BOUND = bind(SPEC, VOCABULARY)
NAMES = [description for _, description in SPEC.columns]


def honest(timelines: Timelines) -> NDArray[np.float32]:
    return compute_features(BOUND, timelines, cutoff_us=CUTOFF)


def test_no_column_of_the_specification_sees_the_future() -> None:
    assert columns_that_see_the_future(honest, TIMELINES, CUTOFF, names=NAMES) == ()


@pytest.mark.parametrize("seen_us", [0, DAY, 30 * DAY])
def test_a_planted_column_that_knows_the_future_is_named_and_no_other(seen_us: int) -> None:
    def planted(timelines: Timelines) -> NDArray[np.float32]:
        num_events = timelines.keep(timelines.times_us <= CUTOFF + seen_us).lengths
        return np.column_stack([honest(timelines), num_events.astype(np.float32)])

    caught = columns_that_see_the_future(planted, TIMELINES, CUTOFF, names=[*NAMES, "events until later"])
    assert caught == ("events until later",)


def test_a_column_that_looks_at_later_items_alone_is_caught() -> None:
    def planted(timelines: Timelines) -> NDArray[np.float32]:
        later = timelines.keep(timelines.times_us >= CUTOFF)
        return np.bincount(later.user_rows, later.items, minlength=timelines.num_users).astype(np.float32)[:, None]

    assert columns_that_see_the_future(planted, TIMELINES, CUTOFF, names=["later items"]) == ("later items",)


def labelled(num: int = 400) -> tuple[FeatureSpec, NDArray[np.float32], NDArray[np.bool_]]:
    spec = FeatureSpec((7,), (), (), has_values=False, embedding_dim=0)
    draw = np.random.default_rng(0)
    return spec, draw.normal(size=(num, spec.num_features)).astype(np.float32), np.arange(num) % 2 == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_column_that_alone_tells_the_labels_apart_is_reported_in_either_direction(sign: int) -> None:
    spec, features, labels = labelled()
    assert leaking_columns(features, labels, spec) == []
    features[:, 3] = sign * (labels + 0.1 * features[:, 3])
    (leak,) = leaking_columns(features, labels, spec)
    assert (leak.column, leak.num_rows) == (spec.columns[3][1], 400)
    assert leak.auc == 1


@pytest.mark.parametrize("missing", [True, False])
def test_missing_exactly_where_the_label_holds_is_a_leak(missing: bool) -> None:
    spec, features, labels = labelled()
    features[labels == missing, 2] = np.nan
    assert [leak.column for leak in leaking_columns(features, labels, spec)] == [spec.columns[2][1]]


def test_too_few_rows_of_a_label_accuse_nobody() -> None:
    spec, features, labels = labelled()
    labels[:] = np.arange(400) < MIN_OF_A_KIND - 1
    features[:, 0] = labels
    assert leaking_columns(features, labels, spec) == []


def test_separation_is_the_auc_with_ties_counted_half() -> None:
    values = np.array([1, 2, 2, 3], np.float32)
    labels = np.array([False, True, False, True])
    assert separation(values, labels) == 0.875  # 3.5 of 4 pairs
    assert separation(-values, labels) == 0.875
    assert separation(np.ones(4, np.float32), labels) == 0.5
