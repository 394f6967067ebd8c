"""A specification says every column once, keeps to the past, and is bound by name."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.features import compute_features
from sonder.scoring.specification import MAX_ACTIONS, TOP_CATEGORIES, WINDOWS_DAYS, FeatureSpec, bind, derive_spec
from tests.tiny_log import random_log, timelines_of, vocabulary_of

VOCABULARY = vocabulary_of(["garden/tools", "garden", "books", None])
LOG = random_log(5, num_users=60, num_items=4, num_days=90)


@pytest.mark.parametrize("embedding_dim", [0, 8])
@pytest.mark.parametrize("has_values", [True, False])
def test_every_column_is_computed_and_has_words_of_its_own(embedding_dim: int, has_values: bool) -> None:
    timelines = timelines_of(LOG, values=2.0 if has_values else float("nan"))
    spec = derive_spec(timelines, VOCABULARY, first_us=0, cutoff_us=80 * DAY, embedding_dim=embedding_dim)
    assert spec.has_values == has_values
    embeddings = np.ones((60, embedding_dim), np.float32) if embedding_dim else None
    found = compute_features(bind(spec, VOCABULARY), timelines, cutoff_us=80 * DAY, embeddings_UD=embeddings)
    assert found.shape == (60, spec.num_features)
    descriptions = [description for _, description in spec.columns]
    assert len(set(descriptions)) == spec.num_features == spec.num_plain + embedding_dim
    assert (found[:, spec.num_plain :] == 1).all()


def test_nothing_after_the_cutoff_decides_a_column() -> None:
    later = {user: [*events, (85.0, 2, "impression")] * 2 for user, events in LOG.items()}
    before, after = (
        derive_spec(timelines_of({u: [e for e in log[u] if keep or e[0] < 80] for u in log}), VOCABULARY,
                    first_us=0, cutoff_us=80 * DAY, embedding_dim=0)
        for log, keep in ((LOG, False), ({u: [*LOG[u], (85.0, 2, "impression")] for u in later}, True))
    )  # fmt: skip
    assert before == after


@pytest.mark.parametrize(("days", "longest"), [(1.5, 1), (30, 14), (30.5, 30), (366, 365), (5_000, 365)])
def test_windows_are_those_that_fit_into_the_log(days: float, longest: int) -> None:
    spec = derive_spec(timelines_of(LOG), VOCABULARY, first_us=0, cutoff_us=round(days * DAY), embedding_dim=0)
    assert spec.windows_days == tuple(window for window in WINDOWS_DAYS if window <= longest)


def test_the_most_frequent_categories_are_kept_ties_by_name() -> None:
    names = [f"c{n:02d}" for n in range(TOP_CATEGORIES + 4)]
    events = [(1.0, item, "view") for item in range(len(names))] + [(2.0, len(names) - 1, "buy")]
    spec = derive_spec(
        timelines_of({"ann": events}),
        vocabulary_of([f"{n}/x" for n in names]),
        first_us=0,
        cutoff_us=9 * DAY,
        embedding_dim=0,
    )
    assert spec.categories == (names[-1], *names[: TOP_CATEGORIES - 1])
    assert 0 < len(spec.actions) <= MAX_ACTIONS
    assert spec.actions == ("view", "buy")


def test_names_are_bound_to_a_vocabulary_in_any_order_and_the_unknown_to_nothing() -> None:
    spec = FeatureSpec((7,), ("buy", "gift"), ("books", "garden"), has_values=False, embedding_dim=0)
    bound = bind(spec, VOCABULARY)
    assert bound.action_columns.tolist() == [2, 0, 2, 2, 2]  # view, buy, hide, impression, unknown
    assert bound.item_categories.tolist() == [1, 1, 0, 2, 2]  # the last is an unknown item
