"""Drivers of a model whose reasons are known: the right columns, signs, windows and words."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from sonder.core.config import ScoreTask
from sonder.scoring.calibration import Calibrator
from sonder.scoring.drivers import DRIVERS_TYPE, by_family, contributions, drivers, families
from sonder.scoring.heads import ScoreHead
from sonder.scoring.specification import EMBEDDING_DRIVER, FeatureSpec

SPEC = FeatureSpec(windows_days=(7, 30), actions=("buy",), categories=("toys",), has_values=False, embedding_dim=3)
NAMES = [description for _, description in SPEC.columns]
BUYS_30D, SINCE, TOYS = (
    NAMES.index(name)
    for name in (
        "number of 'buy' events in the last 30 days",
        "days since the last event",
        "share of events in category 'toys'",
    )
)
EMBEDDING = SPEC.num_plain + 1
TASK = ScoreTask(name="buy_7d", action="buy", within_days=7)


def features(num: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 10, (num, SPEC.num_features)).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> ScoreHead:
    """Stumps only, so the model is a sum of functions of one column: buys raise, days since the last event lower."""
    x = features(4_000)
    logits = 1.2 * (x[:, BUYS_30D] - 5) - 0.5 * (x[:, SINCE] - 5) + 0.3 * (x[:, EMBEDDING] - 5)
    labels = logits > 0
    parameters = {"objective": "binary:logistic", "max_depth": 1, "eta": 0.3, "nthread": 1, "seed": 0}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, labels), num_boost_round=80)
    return ScoreHead(TASK, booster, Calibrator("none"), SPEC, {})


def test_contributions_of_an_additive_model_move_with_their_own_column_alone(head: ScoreHead) -> None:
    x = features(50, seed=1)
    changed = x.copy()
    changed[:, BUYS_30D] = 9.9
    before, after = contributions(head, x), contributions(head, changed)
    others = np.arange(SPEC.num_features) != BUYS_30D
    assert after[:, :-1][:, others] == pytest.approx(before[:, :-1][:, others], abs=1e-5)
    assert (after[:, BUYS_30D] >= before[:, BUYS_30D] - 1e-5).all()
    assert (after[:, -1] == before[:, -1]).all()


def test_a_reason_names_the_window_the_value_and_the_direction(head: ScoreHead) -> None:
    x = np.full((2, SPEC.num_features), 5.0, np.float32)
    x[0, BUYS_30D], x[1, BUYS_30D], x[1, SINCE] = 9.875, 0.0, np.nan
    keen, cool = drivers(head, x, num=SPEC.num_features).to_pylist()
    assert keen[0]["reason"] == "raises: number of 'buy' events in the last 30 days = 9.88"
    assert keen[0]["contribution"] > 1
    assert cool[0]["reason"] == "lowers: number of 'buy' events in the last 30 days = 0"
    assert cool[0]["contribution"] < -1
    assert any(reason["reason"].endswith(": days since the last event = none yet") for reason in cool)


def test_every_family_is_told_once_and_together_they_are_the_whole_margin(head: ScoreHead) -> None:
    x = features(20, seed=2)
    names, family_F = families(head)
    assert len(names) == len(set(names)) == family_F.max() + 1
    assert names[-1] == EMBEDDING_DRIVER
    told = drivers(head, x, num=10_000)
    assert told.type == DRIVERS_TYPE
    margins = head.booster.predict(xgboost.DMatrix(x), output_margin=True)
    bias = contributions(head, x)[:, -1]
    for row, reasons in enumerate(told.to_pylist()):
        assert len(reasons) == len(names)
        assert sum(reason["contribution"] for reason in reasons) + bias[row] == pytest.approx(margins[row], abs=1e-3)


def test_columns_of_a_family_are_summed_wherever_they_stand(head: ScoreHead) -> None:
    exact = np.random.default_rng(0).normal(size=(5, SPEC.num_features + 1)).astype(np.float32)
    names, _ = families(head)
    expected = [
        [sum(row[c] for c, (family, _) in enumerate(SPEC.columns) if family == name) for name in names] + [row[-1]]
        for row in exact
    ]
    assert by_family(head, exact) == pytest.approx(np.array(expected), abs=1e-5)


def test_no_users_have_no_drivers_and_one_user_those_of_the_batch(head: ScoreHead) -> None:
    x = features(30, seed=3)
    assert drivers(head, x[:0]).to_pylist() == []
    batch = drivers(head, x)
    assert [drivers(head, x[row : row + 1]).to_pylist()[0] for row in range(30)] == batch.to_pylist()
