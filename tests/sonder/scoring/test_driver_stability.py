"""What counts as a hair, and what counts as a reason that flipped."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from sonder.scoring.driver_stability import EMBEDDING_STEP, driver_stability, nearby_features
from sonder.scoring.drivers import Explainer
from sonder.scoring.specification import FeatureSpec

SPEC = FeatureSpec(windows_days=(30,), actions=("buy",), categories=("toys",), has_values=False, embedding_dim=2)
NAMES = [description for _, description in SPEC.columns]
EVENTS, BUYS, SINCE, SINCE_BUY, USUAL_GAP, TOYS = (
    NAMES.index(name)
    for name in (
        "number of events ever",
        "number of 'buy' events ever",
        "days since the last event",
        "days since the last 'buy' event",
        "days since the last event relative to the usual gap",
        "share of events in category 'toys'",
    )
)


def features(num: int, seed: int = 0) -> NDArray[np.float32]:
    """Counts and days up to 100, so that an event or an hour more is a hair."""
    return np.random.default_rng(seed).uniform(0, 100, (num, SPEC.num_features)).astype(np.float32)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    x = features(1_500)
    labels = (x[:, SINCE] < 50) & (x[:, BUYS] > 30)
    parameters = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.2, "nthread": 1, "seed": 0}
    return Explainer.of(xgboost.train(parameters, xgboost.DMatrix(x, labels), 30), SPEC)


def test_a_hair_is_an_hour_an_old_event_and_the_last_bit_of_the_embedding() -> None:
    x = np.full((1, SPEC.num_features), 4.0, np.float32)
    x[0, BUYS], x[0, SINCE_BUY] = 0.0, np.nan
    nearby = nearby_features(SPEC, x)
    assert nearby[0, SINCE] == pytest.approx(4 + 1 / 24)
    assert np.isnan(nearby[0, SINCE_BUY])
    assert (nearby[0, EVENTS], nearby[0, BUYS]) == (5.0, 0.0)
    assert nearby[0, TOYS] == pytest.approx(4 * 4 / 5)
    assert nearby[0, USUAL_GAP] == 4.0
    assert np.abs(nearby[0, SPEC.num_plain :] - 4).tolist() == [EMBEDDING_STEP, EMBEDDING_STEP]
    assert x[0, SINCE] == 4.0


def test_the_same_users_have_the_same_drivers(explainer: Explainer) -> None:
    x = features(100, seed=1)
    same = driver_stability(explainer, x, x)
    assert (same.num_users, same.jaccard, same.same_first, same.same_column, same.contradicted) == (100, 1, 1, 1, 0)


def test_drivers_hold_still_for_nearly_everybody_when_features_move_by_a_hair(explainer: Explainer) -> None:
    x = features(400, seed=2)
    near = driver_stability(explainer, x, nearby_features(SPEC, x))
    assert near.jaccard > 0.9
    assert near.same_first > 0.95
    assert near.contradicted < 0.05


def test_a_reason_that_turns_round_is_counted(explainer: Explainer) -> None:
    x = features(50, seed=3)
    x[:, SINCE], x[:, BUYS] = 10.0, 90.0
    turned = x.copy()
    turned[:, SINCE] = 90.0
    flipped = driver_stability(explainer, x, turned)
    assert flipped.contradicted == 1.0
    assert flipped.jaccard < 0.5


def test_without_users_or_without_drivers_there_is_nothing_to_compare(explainer: Explainer) -> None:
    nobody = driver_stability(explainer, features(0), features(0))
    assert nobody.num_users == 0
    assert np.isnan(nobody.jaccard)
    assert np.isnan(nobody.contradicted)
    constant = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(features(20), np.zeros(20)), 1)
    silent = driver_stability(Explainer.of(constant, SPEC), features(5), features(5))
    assert silent.num_users == 0
