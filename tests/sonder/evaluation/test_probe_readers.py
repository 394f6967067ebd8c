"""The fixed readers and their measures beside the readable ones: scikit-learn, scipy, a plain copy of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import PoissonRegressor, Ridge
from sklearn.metrics import roc_auc_score

from sonder.evaluation.probe_metrics import macro_auc, nmae, normalised, spearman
from sonder.evaluation.probe_readers import LIGHT, STRENGTHS, Task, calibrate_mean, linear, network


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=15)
def test_resampled_measures_are_those_of_the_copied_rows(seed: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    labels = (draw.random((40, 2)) < 0.5).astype(float)
    scores = draw.integers(0, levels, (40, 2)).astype(float)  # many ties
    rows = np.concatenate([np.arange(40), draw.integers(0, 40, 30)])
    weights = np.bincount(rows, minlength=40).astype(float)
    expected = np.mean([roc_auc_score(labels[rows, place], scores[rows, place]) for place in (0, 1)])
    assert macro_auc(labels, scores)(weights) == pytest.approx(expected)
    outcomes = draw.integers(0, levels, 40).astype(float)
    expected = spearmanr(outcomes[rows], scores[rows, 0]).statistic
    assert spearman(outcomes, scores[:, 0])(weights) == pytest.approx(expected, abs=1e-9)


def test_a_constant_answer_says_nothing() -> None:
    came, weights = np.array([0.0, 1.0, 2.0]), np.ones(3)
    assert spearman(came, np.ones(3))(weights) == 0
    assert nmae(came, np.full(3, 0.7), 0.7)(weights) == 1
    assert nmae(came, came, 0.7)(weights) == 0
    assert normalised("auc", np.array(0.75)) == 0.5
    with pytest.raises(ValueError, match="no common scale"):
        normalised("nmae", np.array(1.0))


def test_the_linear_reader_is_ridge_at_the_strength_that_its_folds_choose_for_each_output() -> None:
    draw = np.random.default_rng(2)
    x, more = draw.normal(size=(300, 6)) * [1, 2, 3, 4, 5, 0], draw.normal(size=(50, 6))
    y = x[:, :2] @ draw.normal(size=(2, 3)) + [1, 5, 500] * draw.normal(size=(300, 3))
    folds = np.arange(300) % 5
    answers = linear(Task(x, y, more, folds, "count", num_plain=2))
    middle, spread = x.mean(axis=0), np.where(x.std(axis=0) > 0, x.std(axis=0), np.inf)
    widths = np.array([1, 1, 1, 1, LIGHT**-0.5, LIGHT**-0.5])
    z, z_more = (x - middle) / spread * widths, (more - middle) / spread * widths
    chosen = []
    for place in range(3):
        errors = []
        for strength in STRENGTHS:
            error = 0.0
            for held in (folds == fold for fold in range(5)):
                model = Ridge(alpha=strength * (~held).sum()).fit(z[~held], y[~held, place])
                error += float(((model.predict(z[held]) - y[held, place]) ** 2).sum())
            errors.append(error)
        chosen.append(STRENGTHS[int(np.argmin(errors))])
        expected = Ridge(alpha=chosen[-1] * 300).fit(z, y[:, place]).predict(z_more)
        np.testing.assert_allclose(answers.test_TK[:, place], expected, atol=1e-8)
    assert len(set(chosen)) > 1
    assert answers.calibration_CK.shape == (300, 3)


def test_the_network_learns_what_no_line_can_and_repeats_itself() -> None:
    draw = np.random.default_rng(4)
    x, folds = draw.normal(size=(4_000, 2)), np.arange(4_000) % 5
    y = (x[:, :1] * x[:, 1:] > 0).astype(float)
    more = draw.normal(size=(500, 2))
    came = (more[:, 0] * more[:, 1] > 0).astype(float)
    task = Task(x, y, more, folds, "binary", seed=3)
    first, again = (network(task) for _ in range(2))
    np.testing.assert_array_equal(first.test_TK, again.test_TK)
    assert roc_auc_score(came, first.test_TK[:, 0]) > 0.8
    assert roc_auc_score(came, linear(task).test_TK[:, 0]) < 0.6
    np.testing.assert_array_equal(first.calibration_C, np.flatnonzero(folds == 0))


def test_a_score_is_read_as_a_mean_by_poissons_likelihood() -> None:
    draw = np.random.default_rng(5)
    scores = draw.normal(size=500) * 7 + 100
    counts = draw.poisson(np.exp(0.1 * scores - 9.5)).astype(float)
    model = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1_000).fit((scores[:, None] - 100) / 7, counts)
    asked = np.linspace(85, 110, 9)
    expected = np.minimum(model.predict((asked[:, None] - 100) / 7), counts.max())
    np.testing.assert_allclose(calibrate_mean(scores, counts)(asked), expected, rtol=1e-3)
    constant = calibrate_mean(np.zeros(500), counts)
    np.testing.assert_allclose(constant(np.zeros(3)), counts.mean())
