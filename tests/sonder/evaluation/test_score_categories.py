from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sonder.evaluation.score_categories import evaluate_categories, listed

NAMES = ["garden", "books", "toys", "music"]
RNG = np.random.default_rng(3)
CHANCES = RNG.beta(1, 4, (600, 4)) * np.array([1.0, 0.8, 0.6, 0.4])
CAME = RNG.random((600, 4)) < CHANCES


def test_lists_share_places_among_equal_chances() -> None:
    chances = np.array([[0.4, 0.1, 0.3, 0.2], [0.2, 0.2, 0.1, 0.0], [0.1, 0.1, 0.1, 0.1]])
    assert listed(chances, 1).tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
    assert listed(chances, 3).tolist() == [[1, 0, 1, 1], [1, 1, 1, 0], [0.75] * 4]


def test_a_hand_computed_example() -> None:
    chances = np.array([[0.9, 0.1, 0.2, 0.0], [0.1, 0.8, 0.3, 0.2], [0.6, 0.5, 0.4, 0.3]])
    came = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    quality = evaluate_categories(came, chances, NAMES, popularity_K=np.array([1, 2, 3, 4]), num_resamples=0)
    assert quality.precision_at_1 == pytest.approx(1 / 3)
    assert quality.popular_precision_at_1 == pytest.approx(1 / 3)  # music, for the second user
    assert quality.recall_at_k == pytest.approx(1.0)  # of the two rows that have any, both within three
    assert quality.popular_recall_at_k == pytest.approx(0.5)
    assert quality.predicted_to_observed == pytest.approx(chances.sum() / 2)
    # garden: .9 above .1 and .6; music: .2 above 0 and below .3; the others have one outcome only
    assert [point.auc for point in quality.per_category] == [1.0, None, None, 0.5]
    assert quality.macro_auc == pytest.approx(0.75)


def test_aucs_are_those_of_sklearn() -> None:
    quality = evaluate_categories(CAME, CHANCES, NAMES, num_resamples=0)
    assert quality.macro_auc == pytest.approx(roc_auc_score(CAME, CHANCES, average="macro"))
    assert quality.weighted_auc == pytest.approx(roc_auc_score(CAME, CHANCES, average="weighted"))


def test_true_chances_are_calibrated_and_better_than_what_is_popular() -> None:
    quality = evaluate_categories(CAME, CHANCES, NAMES)
    assert quality.ece is not None
    assert quality.ece_by_chance_at_most is not None
    assert quality.ece <= quality.ece_by_chance_at_most
    assert quality.intervals["precision_at_1_gain"][0] > 0
    low, high = quality.intervals["macro_auc"]
    assert quality.macro_auc is not None
    assert low < quality.macro_auc < high
    assert quality.popular_precision_at_1 == pytest.approx(CAME[:, 0].mean())  # garden, by its mean chance


def test_recall_names_its_k() -> None:
    assert evaluate_categories(CAME, CHANCES, NAMES, num_resamples=0).metrics("next")["scores.next.recall_at_3"] > 0
    two = evaluate_categories(CAME[:, :2], CHANCES[:, :2], NAMES[:2], num_resamples=0)
    assert two.metrics("next")["scores.next.recall_at_2"] == 1.0


def test_nothing_came_is_a_reason() -> None:
    quality = evaluate_categories(np.zeros((2, 2)), np.full((2, 2), 0.1), NAMES[:2])
    assert quality.reason == "nothing came of 2 rows"
    assert quality.metrics("next") == {"scores.next.users": 2, "scores.next.categories": 2}
    json.dumps(quality.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "chances", "match"),
    [([[0, 1]], [[0.1]], "expected"), ([[0, 2]], [[0.1, 0.2]], "other values"), ([[0, 1]], [[0.1, 1.2]], "outside")],
)
def test_what_is_no_chance_is_refused(labels: list[list[int]], chances: list[list[float]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate_categories(np.array(labels), np.array(chances), NAMES[:2])
