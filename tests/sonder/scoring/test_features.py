"""Features: each value of a hand-counted user, parity of one user and a batch, and the specification's life as JSON."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.features import compute_features
from sonder.scoring.specification import FeatureSpec, bind, derive_spec
from tests.tiny_log import random_log, timelines_of, vocabulary_of

CATEGORIES = ["garden/tools", "garden/pots", "books/crime", None]
VOCABULARY = vocabulary_of(CATEGORIES)
SPEC = FeatureSpec(
    windows_days=(1, 7, 30), actions=("view", "buy"), categories=("garden",), has_values=True, embedding_dim=0
)


def told(features_F: NDArray[np.float32], spec: FeatureSpec = SPEC) -> dict[str, float]:
    """Values by their description."""
    names = [description for _, description in spec.columns]
    assert len(set(names)) == len(names)
    return {name: float(value) for name, value in zip(names, features_F, strict=True)}


def test_every_feature_of_a_user_counted_by_hand() -> None:
    events = [(60.25, 0, "view"), (80.5, 0, "buy"), (80.75, 2, "buy"), (98.5, 1, "view"), (99.75, 3, "hide")]
    timelines = timelines_of({"ann": events}, values=2.0)
    (row,) = compute_features(bind(SPEC, VOCABULARY), timelines, cutoff_us=100 * DAY)
    values = told(row)
    counts = {
        "": (1, 2, 4, 5),
        "'view' ": (0, 1, 1, 2),
        "'buy' ": (0, 0, 2, 2),
    }
    spans = ("in the last day", "in the last 7 days", "in the last 30 days", "ever")
    for kind, expected in counts.items():
        assert [values[f"number of {kind}events {span}"] for span in spans] == list(expected)
    assert [values[f"number of active days {span}"] for span in spans] == [1, 2, 3, 4]
    assert [values[f"sum of values {span}"] for span in spans] == [2, 4, 8, 10]
    assert values["days since the last event"] == 0.25
    assert values["days since the last 'buy' event"] == 19.25
    assert values["days since the first event"] == 39.75
    # active days back from the cutoff: 39, 19, 1, 0
    assert values["mean days between active days"] == pytest.approx(13.0)
    assert values["spread of the days between active days"] == pytest.approx(np.std([20, 18, 1]))
    assert values["most days between active days"] == 20
    assert values["days since the last event relative to the usual gap"] == pytest.approx(0.25 / 13)
    assert values["number of different items ever"] == 4
    assert values["events per different item"] == 1.25
    assert values["share of events in category 'garden'"] == pytest.approx(3 / 5)


def test_the_clock_of_the_rhythm_is_utc() -> None:
    saturday = datetime(2026, 11, 21, 19, tzinfo=UTC).timestamp() * 1e6 / DAY
    friday = datetime(2026, 11, 20, 3, tzinfo=UTC).timestamp() * 1e6 / DAY
    timelines = timelines_of({"ann": [(friday, 0, "view"), (saturday, 0, "view")]})
    values = told(compute_features(bind(SPEC, VOCABULARY), timelines, cutoff_us=round((saturday + 1) * DAY))[0])
    assert values["share of events on weekends"] == 0.5
    assert values["share of events in the night (0 to 6 UTC)"] == 0.5
    assert values["share of events in the evening (18 to 24 UTC)"] == 0.5


def test_a_user_without_history_has_counts_of_zero_and_knows_nothing_else() -> None:
    values = told(compute_features(bind(SPEC, VOCABULARY), timelines_of({"new": []}), cutoff_us=DAY)[0])
    for name, value in values.items():
        is_count = name.startswith(("number of", "sum of"))
        assert value == 0 if is_count else np.isnan(value), name


def test_a_user_alone_gets_the_same_bits_as_in_a_batch() -> None:
    timelines = timelines_of(random_log(1, num_users=60, num_items=4, num_days=90), values=1.1)
    embeddings = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    spec = derive_spec(timelines, VOCABULARY, first_us=0, cutoff_us=80 * DAY, embedding_dim=3)
    bound = bind(spec, VOCABULARY)
    batch = compute_features(bound, timelines, cutoff_us=80 * DAY, embeddings_UD=embeddings)
    for row in range(60):
        one = np.array([row])
        alone = compute_features(bound, timelines.take(one), cutoff_us=80 * DAY, embeddings_UD=embeddings[one])
        assert alone[0].tobytes() == batch[row].tobytes()


def test_the_last_bits_of_an_embedding_change_nothing() -> None:
    timelines = timelines_of(random_log(5, num_users=8, num_items=4, num_days=50))
    spec = derive_spec(timelines, VOCABULARY, first_us=0, cutoff_us=50 * DAY, embedding_dim=4)
    embeddings = np.random.default_rng(5).normal(scale=0.5, size=(8, 4)).astype(np.float32)
    nearly = embeddings + np.float32(3e-8)
    assert (nearly != embeddings).any()
    bound = bind(spec, VOCABULARY)
    exact, other = (
        compute_features(bound, timelines, cutoff_us=50 * DAY, embeddings_UD=vectors)
        for vectors in (embeddings, nearly)
    )
    assert np.array_equal(exact, other, equal_nan=True)
    assert np.allclose(exact[:, -4:], embeddings, atol=1 / 8192)


def test_a_later_vocabulary_gives_the_same_columns() -> None:
    timelines = timelines_of({"ann": [(1, 0, "view"), (2, 2, "buy")]}, values=1.0)
    grown = vocabulary_of([*CATEGORIES, "toys"])
    before, after = (compute_features(bind(SPEC, v), timelines, cutoff_us=9 * DAY) for v in (VOCABULARY, grown))
    assert before.tobytes() == after.tobytes()


def test_a_specification_is_chosen_from_the_past_and_survives_json() -> None:
    users = {"ann": [(0, 0, "view"), (1, 2, "buy"), (2, 1, "buy"), (50, 2, "hide"), (51, 2, "hide"), (52, 2, "hide")]}
    spec = derive_spec(timelines_of(users), VOCABULARY, first_us=0, cutoff_us=20 * DAY, embedding_dim=2)
    assert spec == FeatureSpec((1, 3, 7, 14), ("view", "buy"), ("garden", "books"), has_values=False, embedding_dim=2)
    assert FeatureSpec.from_dict(orjson.loads(orjson.dumps(spec.to_dict()))) == spec
    assert spec.without_embedding().num_features == spec.num_plain == spec.num_features - 2


@pytest.mark.parametrize("dim", [0, 2])
def test_embeddings_are_given_exactly_when_they_are_specified(dim: int) -> None:
    spec = FeatureSpec.from_dict(SPEC.to_dict() | {"embedding_dim": dim})
    wrong = None if dim else np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="specified width"):
        compute_features(
            bind(spec, VOCABULARY), timelines_of({"ann": [(1, 0, "view")]}), cutoff_us=DAY, embeddings_UD=wrong
        )
