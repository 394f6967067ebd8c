"""The kernel density ratio against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.segments.seed_density import SeedDensity, Sphere, log_mean_kernel, picking_log_likelihood

FLAT = Sphere(np.zeros(2, np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
EAST, NORTH = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
NO_FEATURES = np.zeros((1, 0), np.float32)


def test_the_ratio_is_the_difference_of_log_mean_kernels() -> None:
    density = SeedDensity(FLAT, EAST, NORTH, 4.0)
    assert density.score(EAST, NO_FEATURES) == pytest.approx([4.0])  # k cos = 4 from the seed, 0 from the background
    assert density.score(NORTH, NO_FEATURES)[0] == pytest.approx(-4.0)


def test_a_user_is_no_evidence_about_itself() -> None:
    cosines = np.array([[1.0, 0.5, 0.0]], np.float32)
    assert log_mean_kernel(cosines, 2.0) == pytest.approx(np.log(np.mean(np.exp([0.0, -1.0, -2.0]))))
    assert log_mean_kernel(cosines, 2.0, leaves_self=True) == pytest.approx(np.log(np.mean(np.exp([-1.0, -2.0]))))


def test_far_users_do_not_underflow() -> None:
    assert log_mean_kernel(np.array([[-1.0, -1.0]], np.float32), 500.0) == pytest.approx([-1_000.0])


def test_places_are_unit_rows_whose_cosine_mixes_both_views() -> None:
    sphere = Sphere(np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32), share=0.25)
    places = sphere.place(np.concatenate([EAST, EAST]), np.array([[2, 0], [0, 3]], np.float32))
    assert np.linalg.norm(places, axis=1) == pytest.approx([1.0, 1.0])
    assert places[0] @ places[1] == pytest.approx(0.25)


def test_picking_prefers_scores_that_tell_seeds_apart() -> None:
    assert picking_log_likelihood(np.array([2.0]), np.array([0.0])) > picking_log_likelihood(
        np.array([0.0]), np.array([0.0])
    )
    assert picking_log_likelihood(np.array([0.0]), np.array([0.0])) == pytest.approx(np.log(0.5))
