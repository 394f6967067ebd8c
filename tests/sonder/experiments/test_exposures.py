"""The first exposure of a user counts; a user of two arms does not."""

from datetime import UTC, datetime, timedelta

import polars as pl

from sonder.experiments.exposures import first_exposures

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_first_exposure_counts_and_users_of_two_arms_are_left_out() -> None:
    rows = [("b", "u2", 3), ("a", "u1", 2), ("a", "u1", 1), ("a", "u3", 0), ("b", "u3", 1)]
    table = pl.DataFrame(
        {
            "arm": [arm for arm, _, _ in rows],
            "user_id": [user for _, user, _ in rows],
            "exposed_at": [DAY + timedelta(hours=hours) for _, _, hours in rows],
        }
    )
    found, num_in_several = first_exposures(table)
    assert found.select("user_id", "arm").rows() == [("u1", "a"), ("u2", "b")]
    assert found["exposed_at"][0] == DAY + timedelta(hours=1)
    assert num_in_several == 1
