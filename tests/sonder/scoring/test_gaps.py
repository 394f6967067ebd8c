"""When a user comes back: the first events of days and sessions, and the gaps between active days."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.scoring.gaps import PAUSE_US, day_gaps, starts_day, starts_session


def test_a_day_and_a_session_begin_anew_with_every_user() -> None:
    users = np.array([0, 0, 0, 1])
    assert starts_day(users, np.array([3, 3, 0, 0])).tolist() == [True, False, True, True]
    ages = np.array([PAUSE_US * 5, PAUSE_US * 4 + 1, 7, 7])
    assert starts_session(users, ages).tolist() == [True, False, True, True]


def test_exactly_the_pause_ends_a_session() -> None:
    users, ages = np.zeros(3, dtype=np.int64), np.array([2 * PAUSE_US, PAUSE_US, 1])
    assert starts_session(users, ages).tolist() == [True, True, False]


def test_gaps_of_two_users_do_not_mix() -> None:
    users, days = np.array([0, 0, 0, 1, 2, 2]), np.array([9, 5, 4, 30, 8, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        steady, once, back = day_gaps(users, days, np.array([4.5, 30.5, 3.0]))
    assert steady == pytest.approx([2.5, 1.5, 4, 1, 4.5 / 2.5])
    assert np.isnan(once).all()
    assert back == pytest.approx([6, 0, 6, 6, 0.5])


def test_nobody_has_no_gaps() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert starts_day(nothing, nothing).tolist() == starts_session(nothing, nothing).tolist() == []
