"""The scores table: one row for each user and task that it belongs to, for any batch of users."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from sonder.core.score_config import ScoreTask
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
FEATURES = compute_features(bind(SPEC, VOCABULARY), TIMELINES, cutoff_us=AS_OF, embeddings_UD=VECTORS)


def head(task: ScoreTask, spec: FeatureSpec, slope: float) -> ScoreHead:
    draw = np.random.default_rng(1)
    x: NDArray[np.float32] = draw.uniform(0, 5, (300, spec.num_features)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(x, draw.random(300) < 0.4), 5
    )
    return ScoreHead(task, (task.name,), booster, (Calibrator("platt", slope),), spec, {})


@pytest.fixture(scope="module")
def heads() -> list[ScoreHead]:
    return [
        head(ScoreTask(name="churn_20d", churn=True, within_days=20), SPEC, 1.0),
        head(ScoreTask(name="buy_20d", action="buy", within_days=20), SPEC.without_embedding(), 0.5),
    ]


def test_rows_come_by_user_then_task_and_hold_the_calibrated_probability(heads: list[ScoreHead]) -> None:
    table = Scorer.of(heads, VOCABULARY).score(TIMELINES, FEATURES, as_of_us=AS_OF)
    probabilities = predict(heads, FEATURES)
    asked = [eligible_users(one.task, TIMELINES, VOCABULARY, cutoff_us=AS_OF) for one in heads]
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
    batch = scorer.score(TIMELINES, FEATURES, as_of_us=AS_OF).to_pylist()
    alone = scorer.score(timelines_of({user: LOG[user]}), FEATURES[row : row + 1], as_of_us=AS_OF)
    assert alone.schema == SCORE_SCHEMA
    assert alone.to_pylist() == [scored for scored in batch if scored["user_id"] == user]


def test_events_at_the_moment_or_later_change_no_score(heads: list[ScoreHead]) -> None:
    scorer = Scorer.of(heads, VOCABULARY)
    later = timelines_of({user: [*events, (80.0, 1, "buy"), (85.0, 0, "hide")] for user, events in LOG.items()})
    before = scorer.score(TIMELINES, FEATURES, as_of_us=AS_OF)
    assert scorer.score(later, FEATURES, as_of_us=AS_OF).equals(before)


def test_heads_without_the_embedding_read_the_columns_before_it(heads: list[ScoreHead]) -> None:
    scorer = Scorer.of(heads[1:], VOCABULARY)
    plain = FEATURES[:, : SPEC.num_plain]
    assert scorer.score(TIMELINES, plain, as_of_us=AS_OF).equals(scorer.score(TIMELINES, FEATURES, as_of_us=AS_OF))


def test_of_several_outputs_the_leading_one_is_explained_and_all_are_told() -> None:
    draw = np.random.default_rng(1)
    x = draw.uniform(0, 5, (300, SPEC.num_features)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(x, draw.random((300, 3)) < 0.4), 5
    )
    task = ScoreTask(name="next", next_category=3, within_days=20)
    outputs = ("next/a", "next/b", "next/c")
    many = ScoreHead(task, outputs, booster, tuple(Calibrator("platt", slope) for slope in (1.0, 2.0, 0.5)), SPEC, {})
    rows = Scorer.of([many], VOCABULARY).score(TIMELINES, FEATURES, as_of_us=AS_OF).to_pylist()
    told = predict([many], FEATURES)
    for place in range(0, len(rows), 3):
        of_user = rows[place : place + 3]
        user = list(LOG).index(of_user[0]["user_id"])
        assert [row["name"] for row in of_user] == list(outputs)
        assert [row["value"] for row in of_user] == pytest.approx(told[user].tolist())
        assert [bool(row["drivers"]) for row in of_user] == (np.arange(3) == told[user].argmax()).tolist()
    silent = Scorer.of([many], VOCABULARY).score(TIMELINES, FEATURES, as_of_us=AS_OF, with_drivers=False)
    assert not any(silent.column("drivers").to_pylist())
    assert silent.select(["user_id", "name", "value"]).to_pylist() == [
        {key: row[key] for key in ("user_id", "name", "value")} for row in rows
    ]
