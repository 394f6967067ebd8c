"""Intervals that hold at every look, and the level that is left for the last one.

A confidence sequence covers the truth at all times at once with probability 1 - alpha, so that whoever looks every day
and stops when it excludes zero is wrong with probability alpha at most. Time is the number of users n of both arms.

Source: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central
limit theory and asymptotic confidence sequences", Annals of Statistics 52(6), 2024 (arXiv 2103.06476), theorem 2.2,
for a difference in means as in its section 3; it is Robbins' normal mixture, so the p-value beside it is that of the
mixture sequential probability ratio test (Johari et al. 2022) and the interval is Spotify's GAVI.
The last look: recursive numerical integration (Armitage, McPherson, Rowe 1969).
Limits: asymptotic, so no interval is given for few users (`MIN_USERS`); the p-value is that of this look, valid at any.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MIN_USERS = 100  # of an arm: below, an asymptotic interval means little
_NUM_LOOKS = 500  # before the last: near to looking all the time, which is the worst case
_GRID = 0.01  # of the integration, in standard deviations at the planned size


def tuning(planned_users: float, alpha: float) -> float:
    """rho squared of the mixture [1 / users]: the interval is narrowest about the planned number of users."""
    return _fitted(alpha) / planned_users


def half_width(
    standard_error: float | NDArray[np.float64], num_users: float | NDArray[np.float64], rho2: float, alpha: float
) -> NDArray[np.float64]:
    """Of the confidence sequence, after `num_users` of both arms together; shapes broadcast."""
    n = np.asarray(num_users, dtype=np.float64)
    spread = (n * rho2 + 1) / (n * rho2)
    return np.asarray(standard_error * np.sqrt(spread * (np.log1p(n * rho2) - 2 * math.log(alpha))))


def p_value(difference: float, standard_error: float, num_users: float, rho2: float) -> float:
    """One over the mixture likelihood ratio, at most 1: below alpha exactly where the interval excludes 0."""
    information = num_users * rho2
    z = difference / standard_error
    log_ratio = 0.5 * z * z * information / (information + 1) - 0.5 * math.log1p(information)
    return float(min(1.0, math.exp(min(0.0, -log_ratio))))


@lru_cache(maxsize=64)
def last_level(alpha: float) -> float:
    """Two-sided level of the fixed test at the planned size, so that it and all looks before are wrong in alpha.

    The estimate is a Brownian motion in n / planned; before 1, leaving the confidence sequence decides; at 1, the test.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    decided, inside, x = _before_the_last(alpha)
    step = math.sqrt(1 / _NUM_LOOKS)

    def decided_by(critical: float) -> float:
        return decided + float(inside @ (ndtr((-critical - x) / step) + ndtr((x - critical) / step)))

    critical = brentq(lambda value: decided_by(value) - alpha, 1e-3, 8.0)
    return float(2 * ndtr(-critical))


def _before_the_last(alpha: float) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Chance to have decided by then without any effect; else, where the estimate is: mass [X] at points [X]."""
    rho2 = _fitted(alpha)
    num_points = int(float(_border(1.0, rho2, alpha)) / _GRID) + 1
    x: NDArray[np.float64] = np.arange(-num_points, num_points + 1, dtype=np.float64) * _GRID
    reach = int(6 * math.sqrt(1 / _NUM_LOOKS) / _GRID) + 1
    kernel = np.exp(-((np.arange(-reach, reach + 1) * _GRID) ** 2) * _NUM_LOOKS / 2)
    kernel /= kernel.sum()
    mass = np.zeros_like(x)
    mass[num_points] = 1.0
    for look in range(1, _NUM_LOOKS):
        mass = np.convolve(mass, kernel, "same")
        mass[np.abs(x) > _border(look / _NUM_LOOKS, rho2, alpha)] = 0.0
    return 1.0 - float(mass.sum()), mass, x


def _border(time: float, rho2: float, alpha: float) -> float:
    """Where a Brownian motion leaves the sequence at a time in (0, 1]: `half_width` times the information."""
    return time * float(half_width(1 / math.sqrt(time), time, rho2, alpha))


def _fitted(alpha: float) -> float:
    """rho squared times the number of users at which the interval shall be narrowest (the paper's equation 10)."""
    return -2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))
