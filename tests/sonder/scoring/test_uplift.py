"""Learners on small worlds whose effect is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sonder.core.storage import Folder
from sonder.scoring.qini import Experiment, interval_of, qini_coefficient, resampled_coefficients
from sonder.scoring.uplift import BASELINE, HOUSE, LEARNERS, TreatedRows, UpliftModel, fit_learner, fit_uplift


def world(num_users: int, seed: int, *, effect: float, share: float = 0.5) -> tuple[TreatedRows, np.ndarray]:
    """Acting helps users whose first feature is above 0 and hurts nobody; the second drives the outcome itself."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(num_users, 4)).astype(np.float32)
    true = np.where(features[:, 0] > 0, effect, 0.0)
    treated = draw.random(num_users) < share
    chance = 0.15 + 0.2 * (features[:, 1] > 0) + true * treated
    return TreatedRows(features, Experiment((draw.random(num_users) < chance).astype(float), treated), share), true


@pytest.fixture(scope="module")
def fitted() -> UpliftModel:
    return fit_uplift(world(3_000, 1, effect=0.4)[0], seed=7)


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("name", [BASELINE, *LEARNERS])
def test_every_learner_tells_who_is_helped_from_who_is_not(name: str, share: float) -> None:
    rows, _ = world(2_500, 2, effect=0.4, share=share)
    fresh, true = world(1_000, 3, effect=0.4)
    predicted = fit_learner(name, rows, seed=7).predict(fresh.features)
    assert predicted[true > 0].mean() > predicted[true == 0].mean() + 0.1


def test_the_chosen_model_orders_new_users_nearly_as_well_as_the_truth(fitted: UpliftModel) -> None:
    fresh, true = world(6_000, 4, effect=0.4)
    predicted = fitted.predict(fresh.features)
    assert qini_coefficient(fresh.experiment, predicted) > 0.8 * qini_coefficient(fresh.experiment, true)


def test_predictions_have_the_size_of_the_effect(fitted: UpliftModel) -> None:
    fresh, true = world(2_000, 5, effect=0.4)
    predicted = fitted.predict(fresh.features)
    assert predicted.mean() == pytest.approx(true.mean(), abs=0.04)
    assert predicted[true > 0].mean() == pytest.approx(0.4, abs=0.1)
    assert predicted[true == 0].mean() == pytest.approx(0.0, abs=0.1)


def test_the_qini_inside_the_training_half_is_told_for_every_learner(fitted: UpliftModel) -> None:
    assert set(fitted.cross_fitted) == {BASELINE, HOUSE, *LEARNERS}
    assert fitted.cross_fitted[HOUSE] > 0


def test_without_an_effect_predictions_shrink_and_their_qini_covers_zero() -> None:
    fresh, _ = world(2_000, 7, effect=0.0)
    found = 0
    for seed in range(8):
        fitted = fit_uplift(world(1_500, 60 + seed, effect=0.0)[0], seed=7)
        predicted = fitted.predict(fresh.features)
        draws = resampled_coefficients(fresh.experiment, {"it": predicted}, seed=0, num_draws=100)["it"]
        low, high = interval_of(draws)
        found += not low <= 0 <= high
        assert predicted.mean() == pytest.approx(0, abs=0.06)
    assert found <= 1


def test_a_saved_model_predicts_the_same_bits(fitted: UpliftModel, tmp_path: Path) -> None:
    fitted.save(Folder.at(str(tmp_path / "model")))
    features = world(50, 8, effect=0.0)[0].features
    again = UpliftModel.load(Folder.at(str(tmp_path / "model")))
    assert np.array_equal(again.predict(features), fitted.predict(features))
    assert len(again.predict(features[:0])) == 0


def test_amounts_are_learnt_as_well_as_yes_and_no() -> None:
    draw = np.random.default_rng(9)
    features = draw.normal(size=(2_000, 3)).astype(np.float32)
    treated = draw.random(2_000) < 0.5
    spent = draw.gamma(2, 5, 2_000) + np.where(features[:, 0] > 0, 8.0, 0.0) * treated
    predicted = fit_uplift(TreatedRows(features, Experiment(spent, treated), 0.5), seed=7).predict(features)
    assert predicted[features[:, 0] > 0].mean() == pytest.approx(8, abs=2)
    assert predicted[features[:, 0] < 0].mean() == pytest.approx(0, abs=2)


def test_a_name_that_no_learner_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="magic"):
        fit_learner("magic", world(50, 1, effect=0.0)[0], seed=7)
