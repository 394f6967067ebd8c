"""The scores table: one row for each user and task that it belongs to, for any batch of users."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from sonder.core.config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.calibration import Calibrator
from sonder.scoring.features import compute_features
from sonder.scoring.heads import ScoreHead, predict
from sonder.scoring.specification import FeatureSpec, bind
from sonder.scoring.table import SCORE_SCHEMA, Scorer
from sonder.scoring.tasks import eligible_users
from tests.tiny_log import random_log, timelines_of, vocabulary_of

AS_OF = 80 * DAY
VOCABULARY = vocabulary_of(["garden", "books"])
SPEC = FeatureSpec((7, 30), ("view", "buy"), ("books",), has_values=False, embedding_dim=2)
LOG = random_log(6, num_users=50, num_items=2, num_days=90) | {"nobody": [], "gone": [(3.0, 0, "buy")]}
TIMELINES = timelines_of(LOG)
VECTORS = np.random.default_rng(0).normal(size=(len(LOG), 2)).astype(np.float32)


def head(task: ScoreTask, spec: FeatureSpec, slope: float) -> ScoreHead:
    draw = np.random.default_rng(1)
    x: NDArray[np.float32] = draw.uniform(0, 5, (300, spec.num_features)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(x, draw.random(300) < 0.4), 5
    )
    return ScoreHead(task, booster, Calibrator("platt", slope), spec, {})


@pytest.fixture(scope="module")
def heads() -> list[ScoreHead]:
    return [
        head(ScoreTask(name="churn_20d", churn=True, within_days=20), SPEC, 1.0),
        head(ScoreTask(name="buy_20d", action="buy", within_days=20), SPEC.without_embedding(), 0.5),
    ]


def test_rows_come_by_user_then_task_and_hold_the_calibrated_probability(heads: list[ScoreHead]) -> None:
    table = Scorer.of(heads, VOCABULARY).score(TIMELINES, VECTORS, as_of_us=AS_OF)
    features = compute_features(bind(SPEC, VOCABULARY), TIMELINES, cutoff_us=AS_OF, embeddings_UD=VECTORS)
    probabilities = predict(heads, features)
    asked = [eligible_users(one.task, TIMELINES, cutoff_us=AS_OF) for one in heads]
    expected = [
        (user, one.task.name, pytest.approx(probabilities[row, column]))
        for row, user in enumerate(LOG)
        for column, one in enumerate(heads)
        if asked[column][row]
    ]
    found = list(zip(*(table[name].to_pylist() for name in ("user_id", "name", "value")), strict=True))
    assert found == expected
    assert not any(user == "nobody" for user, _, _ in found)


@pytest.mark.parametrize("user", ["nobody", "gone", "u0000", "u0007"])
def test_a_user_alone_has_the_rows_of_the_batch_even_if_there_are_none(heads: list[ScoreHead], user: str) -> None:
    scorer, row = Scorer.of(heads, VOCABULARY), list(LOG).index(user)
    batch = scorer.score(TIMELINES, VECTORS, as_of_us=AS_OF).to_pylist()
    alone = scorer.score(timelines_of({user: LOG[user]}), VECTORS[row : row + 1], as_of_us=AS_OF)
    assert alone.schema == SCORE_SCHEMA
    assert alone.to_pylist() == [scored for scored in batch if scored["user_id"] == user]


def test_events_at_the_moment_or_later_change_no_score(heads: list[ScoreHead]) -> None:
    scorer = Scorer.of(heads, VOCABULARY)
    later = timelines_of({user: [*events, (80.0, 1, "buy"), (85.0, 0, "hide")] for user, events in LOG.items()})
    before = scorer.score(TIMELINES, VECTORS, as_of_us=AS_OF)
    assert scorer.score(later, VECTORS, as_of_us=AS_OF).equals(before)


def test_heads_without_the_embedding_need_no_vectors(heads: list[ScoreHead]) -> None:
    scorer = Scorer.of(heads[1:], VOCABULARY)
    assert not scorer.needs_vectors
    assert scorer.score(TIMELINES, None, as_of_us=AS_OF).equals(scorer.score(TIMELINES, VECTORS, as_of_us=AS_OF))
