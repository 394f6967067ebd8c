"""Who is in which arm: uniform, independent, kept by a ramp, the same one by one and for many."""

import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sonder.experiments.assignment import Allocation, assign_users

USERS = [f"u{number:06d}" for number in range(40_000)]


def allocation(name: str = "ranker", layer: str = "own/ranker", **changes: object) -> Allocation:
    return Allocation(
        **{
            "experiment": name,
            "salt": name,
            "layer_salt": layer,
            "lower": 0.0,
            "arms": ("control", "treatment"),
            "weights": (1.0, 1.0),
            **changes,
        }
    )


def test_draws_hold_still() -> None:
    """Another answer here would move users of running experiments to other arms."""
    users = ("u1", "u2", "u3", "u4", "u5", "u6")
    drawn = [allocation().assign(user, 0.5) for user in users]
    assert drawn == ["control", "control", None, "control", "treatment", "control"]


def test_a_draw_is_what_any_language_can_compute() -> None:
    digest = hashlib.blake2b(b"sonder/experiments/arm/1/ranker/u1", digest_size=8).digest()
    assert allocation().arm_draw("u1") == (int.from_bytes(digest, "little") >> 11) / 2**53


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 7.0)])
def test_arms_get_their_share_of_the_users(weights: tuple[float, ...]) -> None:
    arms = ("a", "b", "c")[: len(weights)]
    assigned = assign_users(allocation(arms=arms, weights=weights), USERS, 1.0)
    found = [int((assigned == arm).sum()) for arm in arms]
    wanted = np.asarray(weights) / sum(weights) * len(USERS)
    assert stats.chisquare(found, wanted).pvalue > 1e-4


def test_experiments_are_independent_of_each_other() -> None:
    names = ("one", "two", "three", "four")
    drawn = [assign_users(allocation(name, f"own/{name}"), USERS, 1.0) for name in names]
    for first in range(len(names)):
        for second in range(first):
            table = pl.DataFrame({"a": drawn[first], "b": drawn[second]}).group_by("a", "b").len().sort("a", "b")
            counts = table["len"].to_numpy().reshape(2, 2)
            assert stats.chi2_contingency(counts, correction=False).pvalue > 1e-4


def test_taking_part_says_nothing_of_the_arm() -> None:
    one = allocation()
    in_it = assign_users(one, USERS, 0.2).drop_nulls()
    assert stats.binomtest(int((in_it == "treatment").sum()), len(in_it), 0.5).pvalue > 1e-4


def test_a_ramp_adds_users_and_moves_none() -> None:
    one = allocation(lower=0.3)
    small, large = (assign_users(one, USERS, share) for share in (0.05, 0.4))
    was_in = small.is_not_null()
    assert small.filter(was_in).equals(large.filter(was_in))
    assert large.is_not_null().sum() > 7 * was_in.sum()


def test_two_experiments_of_one_layer_share_no_user() -> None:
    first, second = allocation("a", "layer/feed"), allocation("b", "layer/feed", lower=0.4)
    both = assign_users(first, USERS, 0.4).is_not_null() & assign_users(second, USERS, 0.6).is_not_null()
    assert both.sum() == 0


@given(st.text(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_one_by_one_is_as_for_many(user_id: str, lower: float, share: float) -> None:
    one = allocation(lower=lower, arms=("a", "b", "c"), weights=(0.2, 1.0, 3.0))
    assert assign_users(one, [user_id], share).to_list() == [one.assign(user_id, share)]
