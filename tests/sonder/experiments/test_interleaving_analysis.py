"""The verdict: right about who is credited, silent without a difference, found with one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from sonder.experiments.interleaving import coins_of_request, interleave
from sonder.experiments.interleaving_analysis import compare_teams, credit_users, users_needed

WEIGHTS = {"click": 1.0, "save": 2.0, "buy": 5.0}


def shown_rows(*rows: tuple[str, str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "request_id", "item_id", "team"], orient="row")


def event_rows(*rows: tuple[str, str | None, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "request_id", "item_id", "action"], orient="row")


SHOWN = shown_rows(
    ("u1", "r1", "x", "a"), ("u1", "r1", "y", "b"), ("u1", "r2", "x", "b"), ("u1", "r2", "z", "none"),
    ("u2", "r3", "x", "a"), ("u3", "r4", "x", "a"),
)  # fmt: skip


def test_actions_are_credited_to_the_team_of_their_own_request() -> None:
    events = event_rows(
        ("u1", "r1", "x", "click"), ("u1", "r1", "x", "click"), ("u1", "r1", "y", "buy"), ("u1", "r2", "x", "save"),
        ("u1", "r2", "z", "buy"), ("u1", "r1", "x", "view"), ("u2", None, "x", "buy"), ("u2", "r3", "w", "click"),
        ("u2", "r4", "x", "click"),
    )  # fmt: skip
    users, num_unmet = credit_users(SHOWN, events, WEIGHTS)
    assert users.rows() == [("u1", 2, 1.0, 7.0), ("u2", 1, 0.0, 0.0), ("u3", 1, 0.0, 0.0)]
    assert num_unmet == 3  # without a request, not shown, another user's request


def test_an_item_shown_twice_in_a_request_is_refused() -> None:
    with pytest.raises(ValueError, match="shown twice"):
        credit_users(pl.concat([SHOWN, SHOWN]), event_rows(("u1", "r1", "x", "click")), WEIGHTS)


def users_of(credit_a: list[float], credit_b: list[float], requests: int = 1) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(len(credit_a))],
            "num_requests": [requests] * len(credit_a),
            "credit_a": credit_a,
            "credit_b": credit_b,
        }
    )


def test_the_verdict_of_ten_users_is_what_one_computes_by_hand() -> None:
    found = compare_teams(users_of([1, 0, 0, 0, 0, 0, 0, 0, 2, 0], [0, 1, 1, 1, 1, 1, 1, 1, 2, 0], requests=2))
    assert (found.num_prefer_a, found.num_prefer_b, found.num_ties) == (1, 7, 2)
    assert found.share_b == pytest.approx(7 / 8)
    assert found.share_p_value == pytest.approx(2 * (8 + 1) / 2**8)
    assert found.share_interval == pytest.approx((0.4735, 0.9968), abs=1e-4)  # Clopper-Pearson tables, 7 of 8
    assert found.difference == pytest.approx(0.3)
    assert found.difference_error == pytest.approx(np.std([-0.5, *[0.5] * 7, 0, 0], ddof=1) / 10**0.5)
    assert found.difference_interval == pytest.approx(
        tuple(0.3 + s * 2.262157 * found.difference_error for s in (-1, 1))
    )


def test_users_without_any_action_are_ties_and_prove_nothing() -> None:
    found = compare_teams(users_of([0.0] * 5, [0.0] * 5))
    assert np.isnan(found.share_b)
    assert (found.share_p_value, found.difference_p_value, found.num_ties) == (1.0, 1.0, 5)
    assert found.detectable_share == 1.0
    with pytest.raises(ValueError, match="at least two"):
        compare_teams(users_of([1.0], [0.0]))


def test_swapping_the_teams_turns_the_verdict_around() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.poisson(1.0, 200).astype(float).tolist(), rng.poisson(1.3, 200).astype(float).tolist()
    found, swapped = compare_teams(users_of(a, b)), compare_teams(users_of(b, a))
    assert found.share_b == pytest.approx(1 - swapped.share_b)
    assert found.difference == pytest.approx(-swapped.difference)
    assert found.share_p_value == pytest.approx(swapped.share_p_value)


def test_the_detectable_share_is_found_in_8_of_10_experiments_and_needs_the_users_there_are() -> None:
    found = compare_teams(users_of([1.0] * 200 + [0.0] * 200, [0.0] * 200 + [1.0] * 200))
    assert users_needed(found.detectable_share) == pytest.approx(400, abs=1)
    bound = binom.isf(0.025, 400, 0.5)  # the exact test rejects above it
    assert binom.sf(bound, 400, found.detectable_share) == pytest.approx(0.8, abs=0.03)
    with pytest.raises(ValueError, match="differ from 1/2"):
        users_needed(0.5)


def simulate(num_users: int, seed: int, *, better: float, is_equal: bool = False) -> pl.DataFrame:
    """Users with 1 to 8 requests who click an item by its own appeal, their own eagerness and the depth it is shown at.

    Ranker A orders by appeal with noise, B by the same with less of it: `better` is the share of noise that B lacks.
    """
    rng = np.random.default_rng(seed)
    coins = coins_of_request(f"experiment {seed}")
    rows, events = [], []
    for user in range(num_users):
        eager = rng.beta(1, 2)
        for request in range(rng.integers(1, 9)):
            appeal, noise = rng.random(12), rng.normal(size=(2, 12))
            ranking_a = np.argsort(-(appeal + noise[0])).astype(str).tolist()
            ranking_b = ranking_a if is_equal else np.argsort(-(appeal + (1 - better) * noise[1])).astype(str).tolist()
            shown = interleave(ranking_a, ranking_b, 5, coins(f"u{user}", f"r{request}"))
            for place, (item, team) in enumerate(zip(shown.items, shown.teams, strict=True)):
                rows.append((f"u{user}", f"r{request}", item, team))
                if rng.random() < eager * appeal[int(item)] * 0.8**place:
                    events.append((f"u{user}", f"r{request}", item, "click"))
    return credit_users(shown_rows(*rows), event_rows(*events), WEIGHTS)[0]


@pytest.mark.parametrize("is_equal", [True, False])
def test_equal_rankers_are_not_told_apart(is_equal: bool) -> None:
    """25 experiments: 6 or more false alarms of a 5 % test happen in 1 of 800 tries."""
    p_values = []
    for seed in range(25):
        found = compare_teams(simulate(40, seed, better=0.0, is_equal=is_equal))
        p_values.append([found.share_p_value, found.difference_p_value])
    assert (np.array(p_values) < 0.05).sum(axis=0).max() < 6


def test_a_better_ranker_is_preferred() -> None:
    found = compare_teams(simulate(150, 1, better=0.8))
    assert found.share_b > 0.6
    assert found.share_p_value < 0.01
    assert found.difference_interval[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("is_equal", [True, False])
def test_false_alarms_keep_their_rate(is_equal: bool) -> None:
    """400 experiments: within four binomial errors of 5 % for t, at most that for the exact (careful) test."""
    alarms = np.zeros(2)
    for seed in range(400):
        found = compare_teams(simulate(60, 1_000 + seed, better=0.0, is_equal=is_equal))
        alarms += np.array([found.share_p_value, found.difference_p_value]) < 0.05
    assert alarms[0] / 400 < 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5
    assert abs(alarms[1] / 400 - 0.05) < 4 * (0.05 * 0.95 / 400) ** 0.5
