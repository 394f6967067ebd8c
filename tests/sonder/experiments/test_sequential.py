import math

import numpy as np
import pytest
from scipy.stats import norm

from sonder.experiments import sequential


def test_the_interval_is_the_papers_formula() -> None:
    # Waudby-Smith et al. 2024, theorem 2.2: sigma sqrt(2 (t r + 1) / (t^2 r) log(sqrt(t r + 1) / alpha)), r = rho^2
    t, rho2, alpha, sigma = 730.0, 0.004, 0.05, 2.5
    papers = sigma * math.sqrt(2 * (t * rho2 + 1) / (t * t * rho2) * math.log(math.sqrt(t * rho2 + 1) / alpha))
    assert float(sequential.half_width(sigma / math.sqrt(t), t, rho2, alpha)) == pytest.approx(papers, rel=1e-12)


def test_the_interval_is_narrowest_about_the_planned_size() -> None:
    def at_planned(planned: float) -> float:
        return float(sequential.half_width(0.1, 5_000, sequential.tuning(planned, 0.05), 0.05))

    assert at_planned(5_000) < min(at_planned(4_000), at_planned(6_200), at_planned(500), at_planned(50_000))


@pytest.mark.parametrize("z", [-3.5, 0.0, 1.0, 2.5, 3.034, 3.036, 5.0, 60.0])
def test_the_p_value_is_below_alpha_exactly_where_the_interval_excludes_zero(z: float) -> None:
    rho2 = sequential.tuning(4_000, 0.05)
    half = float(sequential.half_width(0.2, 4_000, rho2, 0.05))
    assert (sequential.p_value(0.2 * z, 0.2, 4_000, rho2) < 0.05) == (abs(0.2 * z) > half)


def test_looking_takes_less_than_a_sixth_of_alpha_from_the_last_test() -> None:
    for alpha in (0.01, 0.025, 0.05, 0.1):
        assert alpha * 5 / 6 < sequential.last_level(alpha) < alpha


def test_the_last_level_leaves_alpha_in_all() -> None:
    # Brownian motions, looked at 200 times: the share that leaves the sequence before or fails the last test.
    alpha, runs, looks = 0.05, 20_000, 200
    time = np.arange(1, looks + 1) / looks
    path = np.random.default_rng(5).normal(size=(runs, looks)).cumsum(1) / math.sqrt(looks)
    width = time * sequential.half_width(1 / np.sqrt(time), time, sequential.tuning(1, alpha), alpha)
    early = (np.abs(path) > width)[:, :-1].any(1)
    last = np.abs(path[:, -1]) > norm.isf(sequential.last_level(alpha) / 2)
    error = 3.3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert (early | last).mean() <= alpha + error
    assert (early | last).mean() >= 0.9 * alpha - error
    assert (early | (np.abs(path[:, -1]) > norm.isf(alpha / 2))).mean() > alpha + error / 2  # why it is needed
