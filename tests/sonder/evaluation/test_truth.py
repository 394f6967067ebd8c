from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from sonder.evaluation.truth import (
    assign_to_medoids,
    cluster_agreement,
    interest_agreement,
    interests_between,
    lifecycle_agreement,
    score_against_best,
    true_lifecycle,
)
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary

Make = Callable[[dict[str, list[Any]]], Timelines]


def day(number: int) -> datetime:
    return datetime(2025, 3, number, tzinfo=UTC)


def test_purity_is_the_share_of_events_in_the_dominant_category() -> None:
    assignments = pl.DataFrame(
        {
            "user_id": ["a"] * 5 + ["b"],
            "rank": [1, 1, 1, 1, 2, 1],
            "category": ["x/1", "x/1", "x/1", "y/1", "y/1", "z/1"],
        }
    )
    truth = pl.DataFrame(
        {"user_id": ["a", "a", "a", "b", "c"], "category": ["x/1", "y/1", "q/1", "y/1", "x/1"], "weight": 1.0}
    )
    found = interest_agreement(assignments, truth)
    assert found["purity"] == pytest.approx(5 / 6)
    assert found["precision"] == pytest.approx(2 / 3)  # x and y of a, not z of b
    assert found["completeness"] == pytest.approx(2 / 4)  # c has no recovered interest and is not asked
    assert found["users"] == 2


def test_completeness_by_weight_and_at_a_coarser_depth() -> None:
    assignments = pl.DataFrame({"user_id": ["a", "a"], "rank": [1, 1], "category": ["x/1", "x/2"]})
    truth = pl.DataFrame({"user_id": ["a", "a"], "category": ["x/2", "y/1"], "weight": [3.0, 1.0]})
    assert interest_agreement(assignments, truth)["purity"] == 0.5
    coarse = interest_agreement(assignments, truth, depth=1)
    assert (coarse["purity"], coarse["completeness"], coarse["completeness_weighted"]) == (1.0, 0.5, 0.75)


def test_clusters_agree_with_the_heaviest_true_interest() -> None:
    truth = pl.DataFrame(
        {
            "user_id": ["a", "a", "b", "c", "d"],
            "category": ["x/1", "y/1", "x/2", "y/1", "y/2"],
            "weight": [3.0, 1, 1, 1, 1],
        }
    )
    assigned = pl.DataFrame({"user_id": ["a", "b", "c", "d", "e", "f"], "cluster_id": [4, 4, 7, 7, 7, None]})
    assert cluster_agreement(assigned, truth, depth=1) == 1
    assert cluster_agreement(assigned, truth) < 0.5
    assert np.isnan(cluster_agreement(assigned.tail(1), truth))


def test_no_recovered_interest_gives_nan_and_not_zero() -> None:
    nothing = pl.DataFrame(schema={"user_id": pl.String, "rank": pl.Int16, "category": pl.String})
    truth = pl.DataFrame({"user_id": ["a"], "category": ["x"], "weight": [1.0]})
    assert all(np.isnan(value) for key, value in interest_agreement(nothing, truth).items() if key != "users")


def test_events_go_to_the_nearest_medoid_of_their_own_user(
    timelines: Make, vocabulary: Callable[..., Vocabulary]
) -> None:
    words = vocabulary(4, categories=["north", "north", "east", "east"])
    vectors = np.float32([[0, 1], [0.1, 1], [1, 0], [0, 0]])
    log = timelines({"a": [(1, 0), (2, 1), (0, 2, 1), (3, 3), (-1, 4)], "b": [(2, 0)], "c": [(1, 0)]})
    interests = pa.table(
        {
            "user_id": ["a", "a", "b"],
            "rank": pa.array([1, 2, 1], pa.int16()),
            "medoid_index": pa.array([2, 0, 0], pa.int32()),
        }
    )
    assigned = assign_to_medoids(log, interests, vectors, words)
    # shown items, unknown items, items without a vector and users without interests are left out
    assert assigned.rows() == [("a", 2, "north"), ("a", 1, "east"), ("b", 1, "east")]


def test_an_interest_counts_if_it_held_at_some_moment_of_the_window() -> None:
    truth = pl.DataFrame(
        {
            "category": ["over", "during", "later", "always"],
            "from": [day(1), day(8), day(20), None],
            "to": [day(5), day(9), day(25), None],
        },
        schema_overrides={"from": pl.Datetime("us", "UTC"), "to": pl.Datetime("us", "UTC")},
    )
    assert interests_between(truth, day(5), day(20))["category"].to_list() == ["during", "always"]


def test_lifecycle_agreement_counts_rare_states_like_common_ones() -> None:
    truth = pl.DataFrame({"user_id": list("abcde"), "state": ["core", "core", "core", "core", "new"]})
    recovered = pl.DataFrame({"user_id": list("abcdex"), "state": ["core", "core", "core", "new", "core", "core"]})
    metrics, confusion = lifecycle_agreement(recovered, truth)
    assert metrics["agreement"] == pytest.approx(3 / 5)
    assert metrics["balanced_agreement"] == pytest.approx((3 / 4 + 0) / 2)
    assert metrics["kappa"] == pytest.approx((0.6 - 0.68) / (1 - 0.68))
    assert confusion.rows() == [("core", "core", 3), ("core", "new", 1), ("new", "core", 1)]


def test_the_hidden_life_is_read_in_sonders_own_states() -> None:
    rows = [
        ("steady", "core", "active", "before", day(1), day(31)),
        ("fresh", "casual", "active", "joined", day(25), day(31)),
        ("gone", "core", "active", "before", day(1), day(5)),
        ("gone", "core", "left", "left", day(5), day(31)),
        ("just left", "casual", "active", "before", day(1), day(28)),
        ("just left", "casual", "away", "lapsed", day(28), day(31)),
        ("back", "marginal", "active", "before", day(1), day(3)),
        ("back", "marginal", "away", "lapsed", day(3), day(26)),
        ("back", "marginal", "active", "returned", day(26), day(31)),
        ("short break", "marginal", "active", "before", day(1), day(22)),
        ("short break", "marginal", "away", "lapsed", day(22), day(26)),
        ("short break", "marginal", "active", "returned", day(26), day(31)),
        ("tomorrow", "core", "active", "joined", day(30), day(31)),
    ]
    periods = pl.DataFrame(rows, schema=["user_id", "tier", "state", "began", "from", "to"], orient="row")
    states = dict(true_lifecycle(periods, as_of=day(30), new_days=7, dormant_days=14).iter_rows())
    assert states == {
        "steady": "core",
        "fresh": "new",
        "gone": "dormant",
        "just left": "casual",
        "back": "resurrected",
        "short break": "marginal",
    }


def test_the_true_probability_is_the_best_a_score_can_do() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(4_000)
    labels = rng.random(4_000) < truth
    ids = [str(number) for number in range(4_000)]
    noisy = np.clip(truth + rng.normal(0, 0.3, 4_000), 0, 1)
    scored = pl.DataFrame({"user_id": ids, "label": labels, "probability": noisy})
    result = score_against_best(scored, pl.DataFrame({"user_id": ids[:-10], "probability": truth[:-10]}))
    assert result["users"] == 3_990
    assert 0.5 < result["auc"] < result["auc_of_truth"]
    assert result["share_of_best"] == pytest.approx((result["auc"] - 0.5) / (result["auc_of_truth"] - 0.5))
    one_class = pl.DataFrame({"user_id": ids, "label": [True] * 4_000, "probability": noisy})
    assert score_against_best(one_class, pl.DataFrame({"user_id": ids, "probability": truth}))["share_of_best"] is None


def test_agreement_is_the_same_to_the_last_digit_whatever_the_order_of_rows() -> None:
    draw = np.random.default_rng(5)
    users = [f"u{number}" for number in range(300) for _ in range(3)]
    categories = [f"c{place}/{number % 7}" for number in range(300) for place in range(3)]
    truth = pl.DataFrame({"user_id": users, "category": categories, "weight": draw.random(900)})
    recovered = truth.filter(pl.col("weight") > 0.3)
    assignments = recovered.select("user_id", "category", rank=1 + pl.int_range(pl.len()))
    lived = draw.choice(["new", "tier", "dormant"], 300, p=[0.1, 0.7, 0.2])
    states = pl.DataFrame({"user_id": users[::3], "state": lived})
    guessed = states.with_columns(state=pl.Series(draw.permutation(states["state"].to_numpy())))
    found = set()
    for seed in range(20):
        agreement = interest_agreement(assignments, truth.sample(fraction=1, shuffle=True, seed=seed))
        lifecycle, _ = lifecycle_agreement(guessed.sample(fraction=1, shuffle=True, seed=seed), states)
        found.add((*agreement.values(), *lifecycle.values()))
    assert len(found) == 1
