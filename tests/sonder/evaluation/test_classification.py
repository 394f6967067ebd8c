from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from sonder.evaluation.classification import ScoreQuality, evaluate_score, reliability_curve


def test_a_hand_computed_example() -> None:
    quality = evaluate_score(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    assert quality.auc == pytest.approx(0.75)  # three of the four pairs are in order
    assert quality.pr_auc == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert quality.base_rate == 0.5
    assert quality.brier == pytest.approx(np.mean(np.square([0.1, 0.4, -0.65, -0.2])))
    assert quality.log_loss == pytest.approx(-np.mean(np.log([0.9, 0.6, 0.35, 0.8])))
    assert quality.ece == pytest.approx((0.1 + 0.4 + 0.65 + 0.2) / 4)  # every user is a bin of its own
    assert quality.reason is None


def test_a_calibrated_score_has_little_ece_and_a_flattering_one_has_much() -> None:
    rng = np.random.default_rng(7)
    chance = rng.random(20_000)
    labels = rng.random(20_000) < chance
    honest, flattering = evaluate_score(labels, chance), evaluate_score(labels, np.sqrt(chance))
    assert honest.ece is not None and flattering.ece is not None  # noqa: PT018
    assert honest.ece < 0.02
    assert flattering.ece == pytest.approx(np.mean(np.sqrt(chance) - chance), abs=0.02)
    assert flattering.auc == pytest.approx(honest.auc)  # calibration is not ranking
    assert len(honest.curve) == 15
    assert {point.users for point in honest.curve} <= {1333, 1334}


def test_equal_predictions_share_a_bin_whatever_the_order_of_the_users() -> None:
    labels = np.array([1] * 50 + [0] * 50)
    levels = np.full(100, 0.5)
    assert evaluate_score(labels, levels).ece == 0.0
    assert [point.users for point in reliability_curve(labels, levels)] == [100]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])), min_size=1, max_size=60))
def test_bins_hold_every_user_once_and_stay_within_what_was_predicted(rows: list[tuple[bool, float]]) -> None:
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    curve = reliability_curve(labels, probabilities)
    assert sum(point.users for point in curve) == len(rows)
    assert sum(point.observed * point.users for point in curve) == pytest.approx(labels.sum())
    assert sum(point.predicted * point.users for point in curve) == pytest.approx(probabilities.sum())
    assert [point.predicted for point in curve] == sorted(point.predicted for point in curve)


def test_one_outcome_only_gives_no_auc_and_a_reason() -> None:
    never = evaluate_score(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert (never.auc, never.pr_auc, never.base_rate) == (None, None, 0.0)
    assert never.ece == pytest.approx(0.2)
    assert never.reason == "it came true for none of 3 users"
    assert evaluate_score(np.ones(2), np.array([0.9, 1.0])).reason == "it came true for all of 2 users"
    assert set(never.metrics("buy")) == {
        f"scores.buy.{key}" for key in ("ece", "ece_by_chance", "base_rate", "users", "log_loss", "brier")
    }


def test_no_user_gives_nothing_but_a_reason() -> None:
    nobody = evaluate_score(np.array([]), np.array([]))
    assert nobody.metrics("buy") == {"scores.buy.users": 0}
    assert nobody.reason == "no user to measure on"


@pytest.mark.parametrize(
    ("labels", "probabilities", "match"),
    [
        ([0, 1], [0.5], "one of each"),
        ([0, 2], [0.5, 0.5], "other values"),
        ([0, 1], [0.5, np.nan], "NaN"),
        ([1], [1.1], "outside"),
    ],
)
def test_what_is_not_a_probability_is_refused(labels: list[int], probabilities: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate_score(np.array(labels), np.array(probabilities))


def test_it_survives_a_trip_through_json() -> None:
    quality = evaluate_score(np.array([0, 1, 1]), np.array([0.2, 0.6, 0.9]))
    assert ScoreQuality.from_dict(json.loads(json.dumps(quality.to_dict()))) == quality


def test_lift_of_the_best_tenth_takes_ties_by_expectation() -> None:
    labels = np.array([1] * 2 + [0] * 18)
    perfect = evaluate_score(labels, np.linspace(0.9, 0.1, 20))
    assert perfect.top_decile_lift == pytest.approx(10.0)  # a tenth of the users holds all positives
    assert evaluate_score(labels, np.full(20, 0.1)).top_decile_lift == pytest.approx(1.0)
    halves = evaluate_score(labels, np.repeat([0.4, 0.2], 10))  # both positives among the ten best
    assert halves.top_decile_lift == pytest.approx(2.0)
    assert evaluate_score(labels[::-1], np.repeat([0.2, 0.4], 10)).top_decile_lift == pytest.approx(2.0)


def test_the_numbers_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(2)
    chances = np.round(rng.beta(1, 4, 500), 2)
    labels = rng.random(500) < chances
    quality = evaluate_score(labels, chances, num_resamples=0)
    assert quality.auc == pytest.approx(roc_auc_score(labels, chances))
    assert quality.pr_auc == pytest.approx(average_precision_score(labels, chances))
    assert quality.log_loss == pytest.approx(log_loss(labels, chances))


def test_intervals_hold_the_estimate_and_what_is_biased_lies_outside() -> None:
    rng = np.random.default_rng(4)
    chances = rng.beta(1, 4, 4000)
    labels = rng.random(4000) < chances
    honest, doubled = evaluate_score(labels, chances), evaluate_score(labels, np.minimum(1, 2 * chances))
    for name, (low, high) in honest.intervals.items():
        assert low <= getattr(honest, name) <= high, name
    assert set(honest.intervals) == {"auc", "pr_auc", "top_decile_lift", "log_loss", "predicted_to_observed", "ece"}
    assert honest.intervals["predicted_to_observed"][0] < 1 < honest.intervals["predicted_to_observed"][1]
    assert honest.intervals["ece"][0] == 0.0
    assert honest.ece_by_chance_at_most is not None
    assert honest.ece is not None
    assert honest.ece < 1.2 * honest.ece_by_chance_at_most
    assert doubled.intervals["predicted_to_observed"][0] > 1.6
    assert doubled.intervals["ece"][0] > 0.1


def test_rows_of_one_user_are_drawn_together() -> None:
    rng = np.random.default_rng(6)
    chances = np.repeat(rng.beta(1, 4, 300), 8)
    labels = np.repeat(rng.random(300) < chances[::8], 8)  # eight rows that say the same
    widths = [
        np.ptp(evaluate_score(labels, chances, user_codes_U=codes).intervals["predicted_to_observed"])
        for codes in (None, np.repeat(np.arange(300), 8))
    ]
    assert widths[1] > 2 * widths[0]


def test_what_was_written_before_there_were_intervals_can_be_read() -> None:
    old = evaluate_score(np.array([0, 1]), np.array([0.2, 0.6]), num_resamples=0).to_dict()
    for key in ("lift_curve", "intervals", "num_resamples", "top_decile_lift", "ece_by_chance"):
        del old[key]
    assert ScoreQuality.from_dict(old).auc == 1.0
