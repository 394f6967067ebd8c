"""Random draws pass, others are told with their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.scoring.randomisation import Randomisation, check_randomisation, standardised_differences

COLUMNS = ("visits", "age", "days since the last event")


def features_of(num_users: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).exponential(size=(num_users, 3)).astype(np.float32)
    features[::3, 2] = np.nan  # never happened
    return features


def check(features: np.ndarray, treated: np.ndarray, share: float = 0.5) -> Randomisation:
    return check_randomisation(features, treated, share=share, columns=COLUMNS, seed=7)


def test_random_draws_are_believed() -> None:
    doubted = 0
    for seed in range(20):
        treated = np.random.default_rng(100 + seed).random(600) < 0.5
        found = check(features_of(600, seed), treated)
        assert not found.refusals
        doubted += bool(found.warnings)
    assert doubted <= 2


def test_a_treatment_of_the_busy_is_refused_with_its_numbers() -> None:
    features = features_of(2_000, 1)
    busy = features[:, 0] + np.random.default_rng(1).exponential(size=2_000)
    found = check(features, busy > np.median(busy))
    assert any("AUC 0." in reason for reason in found.refusals)
    assert any(reason.startswith("visits differs by") for reason in found.refusals)


def test_a_tenth_of_the_controls_that_went_missing_is_a_sample_ratio_mismatch() -> None:
    draw = np.random.default_rng(2)
    treated = draw.random(4_000) < 0.5
    stays = treated | (draw.random(4_000) < 0.85)
    found = check(features_of(4_000, 2)[stays], treated[stays])
    assert found.ratio_p_value < 0.001
    assert "a share of 0.5 was declared" in found.refusals[0]
    assert found.auc == pytest.approx(0.5, abs=0.04)


def test_a_declared_share_other_than_half_is_what_arms_are_held_to() -> None:
    treated = np.random.default_rng(3).random(1_000) < 0.2
    assert not check(features_of(1_000, 3), treated, share=0.2).refusals
    assert check(features_of(1_000, 3), treated, share=0.5).refusals


def test_a_difference_is_in_standard_deviations_and_leaves_missing_values_out() -> None:
    features = np.array([[1, np.nan], [3, 5], [3, np.nan], [5, 5]], dtype=np.float32)
    differences = standardised_differences(features, np.array([False, False, True, True]))
    assert differences == pytest.approx([2.0, 0.0])  # 4 - 2 over a deviation of 1; a constant column differs by nothing


def test_one_arm_is_no_experiment() -> None:
    with pytest.raises(ValueError, match="both arms"):
        check(features_of(10, 1), np.ones(10, dtype=bool))
