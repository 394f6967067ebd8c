from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sonder.evaluation.evaluate import RetrievalEvaluation, evaluate_retrieval
from sonder.evaluation.health import embedding_health, health_warnings
from sonder.evaluation.item_knn import KnnSettings
from sonder.evaluation.tuning import choose_settings
from sonder.history.cutoffs import Split, leave_one_out, temporal
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

Make = Callable[[dict[str, list[Any]]], Timelines]
Words = Callable[..., Vocabulary]
MODELS = ("encoder", "popularity", "item_knn")
KEYS = ("hr_at_10", "ndcg_at_10", "hr_at_10_unseen", "ndcg_at_10_unseen", "p90_coverage_at_10", "recall_at_10")
DAY, HIDE = MICROSECONDS_PER_DAY, 2


def walk(timelines: Make, num_users: int = 60, num_items: int = 24) -> Timelines:
    """Each user steps through the items in order: what comes next is certain, and never a repeat."""
    return timelines({f"u{u}": [((u + step) % num_items, step) for step in range(3 + u % 9)] for u in range(num_users)})


def oracle(split: Split, num_items: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One-hot vectors that point at the last target of each user."""
    users = np.zeros((split.history.num_users, num_items), np.float32)
    users[split.targets.user_rows, split.targets.items] = 1
    return users, np.eye(num_items, dtype=np.float32)


def test_all_keys_of_all_models_are_there_and_a_perfect_encoder_is_perfect(timelines: Make, vocabulary: Words) -> None:
    log = walk(timelines)
    split, words = leave_one_out(log, part="test"), vocabulary(24)
    found = evaluate_retrieval(
        split, leave_one_out(log, part="validation"), words, *oracle(split, 24), protocol="leave_one_out"
    )
    assert set(found.metrics) == {f"retrieval.{model}.{key}" for model in MODELS for key in KEYS}
    assert found.metrics["retrieval.encoder.ndcg_at_10"] == pytest.approx(1.0)
    assert found.metrics["retrieval.encoder.hr_at_10_unseen"] == 1.0
    assert found.metrics["retrieval.item_knn.hr_at_10"] > found.metrics["retrieval.popularity.hr_at_10"]
    assert found.reason is None
    assert found.health["users_scored"] == found.health["users_with_targets"] == 60
    assert found.health["sampling"] is None
    by_length = found.health["slices"]["hr_at_10_by_history_length"]
    assert [row["name"] for row in by_length] == ["2-4", "5-9", "10-19"]
    assert sum(row["num"] for row in by_length) == 60
    assert {row["encoder"] for row in found.health["slices"]["recall_at_10_by_item"]} == {1.0}
    assert "hr_at_10_by_lifecycle" not in found.health["slices"]  # leave one out: there is no moment to ask for
    assert not found.health["settings"]["item_knn_seen"]["keeps_self"]  # nothing repeats, validation saw it


def test_validation_keeps_self_similarity_where_people_repeat(timelines: Make, vocabulary: Words) -> None:
    log = timelines({f"u{u}": [(u % 24, step) for step in range(4)] + [((u * 7 + 1) % 24, 5)] for u in range(48)})
    validation = leave_one_out(log, part="validation")
    assert choose_settings(validation, vocabulary(24), protocol="leave_one_out").item_knn_seen.keeps_self


def test_validation_chooses_the_recent_window_when_fashions_change(timelines: Make, vocabulary: Words) -> None:
    old = [(item, 0.0) for item in range(11)] * 3
    log = timelines({f"u{u}": [*old, (12 + u % 10, 50.0), (12 + (u + 1) % 10, 60.0)] for u in range(20)})
    split = temporal(log, vocabulary(40), cutoff_us=55 * MICROSECONDS_PER_DAY, end_us=61 * MICROSECONDS_PER_DAY)
    chosen = choose_settings(split, vocabulary(40), protocol="temporal")
    assert chosen.popularity_seen == 30  # 30 and 7 days are equal here: the earlier one of the grid
    assert choose_settings(split, vocabulary(40), protocol="leave_one_out").popularity_seen is None


def test_without_validation_the_defaults_stand_and_say_so(timelines: Make, vocabulary: Words) -> None:
    assert choose_settings(None, vocabulary(3), protocol="temporal").num_validation_users == 0
    assert choose_settings(None, vocabulary(3), protocol="temporal").item_knn_seen == KnnSettings()


def refusals(timelines: Make) -> Timelines:
    """Days 0 to 4 are history, 5 to 9 the test window."""
    return timelines(
        {
            "known": [(12, 0), (20, 5), (20, 6), (22, 6), (0, 7, HIDE), (0, 8, HIDE), (23, 8, HIDE)],
            "hid": [(13, 0, HIDE), (13, 5)],
            "only refused": [(12, 1), (21, 5, HIDE), (23, 6, HIDE)],
            "cold": [(12, 5), (12, 6, HIDE)],
            "cold too": [(23, 5)],
            "quiet": [],
        }
    )


def evaluate_refusals(log: Timelines, words: Vocabulary) -> RetrievalEvaluation:
    """An encoder that puts item 20 first for "known", 21 for "only refused", and then the lowest nine."""
    users = np.zeros((6, 24), np.float32)
    users[0, 20] = users[2, 21] = 1
    split = temporal(log, words, cutoff_us=5 * DAY, end_us=10 * DAY)
    return evaluate_retrieval(split, None, words, users, np.eye(24, dtype=np.float32), protocol="temporal")


def test_who_has_no_vector_is_scored_by_what_is_served_and_the_cold_stand_apart(
    timelines: Make, vocabulary: Words
) -> None:
    found = evaluate_refusals(refusals(timelines), vocabulary(24))
    # Most events before day 5: 12 and 13, then by id i0, i1, i10, i11, i14 ... Most wanted: 12, then 0 to 8.
    assert found.health["slices"]["hr_at_10_by_knowledge"] == [
        {"name": "with a vector", "num": 1, "encoder": 1.0, "popularity": 0.0, "item_knn": 0.0},
        {"name": "no vector", "num": 1, "encoder": 1.0, "popularity": 0.0, "item_knn": 0.0},
        {"name": "cold", "num": 2, "encoder": 0.5, "popularity": 0.5, "item_knn": 0.5},
    ]
    assert (found.health["users_scored"], found.health["users_cold"]) == (2, 2)
    assert found.metrics["retrieval.encoder.hr_at_10"] == 1.0  # of "known" and "hid"
    assert found.metrics["retrieval.popularity.hr_at_10"] == 0.0  # whatever it does for the cold
    assert found.health["vectors"]["users"]["num_zero_vectors"] == 1  # "hid"; who has no history is not expected to


def test_the_hide_rate_counts_each_refused_pair_of_users_with_a_history_once(
    timelines: Make, vocabulary: Words
) -> None:
    found = evaluate_refusals(refusals(timelines), vocabulary(24))
    assert (found.health["pairs_wanted"], found.health["pairs_unwanted"]) == (3, 4)
    assert found.metrics["retrieval.encoder.recall_at_10"] == pytest.approx(2 / 3)  # 20 and 13, not 22
    assert found.metrics["retrieval.encoder.hide_rate_at_10"] == 0.5  # 0 and 21, not 23 twice
    assert found.metrics["retrieval.encoder.hide_lift_at_10"] == pytest.approx(0.75)
    assert found.metrics["retrieval.popularity.hide_rate_at_10"] == 0.25  # 0
    assert "retrieval.popularity.hide_lift_at_10" not in found.metrics  # it found nothing that was wanted


def test_a_log_without_refusals_has_no_hide_rate(timelines: Make, vocabulary: Words) -> None:
    log = refusals(timelines)
    words = replace(vocabulary(24), action_weights=(1.0, 0.0, 0.0))
    found = evaluate_refusals(log, words)
    assert not [name for name in found.metrics if "hide" in name]
    assert found.health["pairs_unwanted"] == 0


def test_changing_what_is_refused_changes_nothing_else(timelines: Make, vocabulary: Words) -> None:
    log = refusals(timelines)
    calm = log.keep((log.actions != HIDE) | (log.times_us < 5 * DAY))
    with_hides, without = evaluate_refusals(log, vocabulary(24)), evaluate_refusals(calm, vocabulary(24))
    assert {k: v for k, v in with_hides.metrics.items() if "hide" not in k} == without.metrics
    assert with_hides.health["slices"] == without.health["slices"]


def test_a_catalogue_of_ten_items_is_not_ranked(timelines: Make, vocabulary: Words) -> None:
    log = walk(timelines, num_items=10)
    split = leave_one_out(log, part="test")
    found = evaluate_retrieval(split, None, vocabulary(10), *oracle(split, 10), protocol="leave_one_out")
    assert found.metrics == {}
    assert found.reason == "10 items: a list of 10 would name them all"
    assert found.health["vectors"]["items"]["num_vectors"] == 10


def test_a_split_without_targets_gives_a_reason_and_no_metrics(timelines: Make, vocabulary: Words) -> None:
    log = timelines({"a": [(1, 0)], "b": [(2, 0)]})
    split = leave_one_out(log, part="test")
    found = evaluate_retrieval(split, None, vocabulary(20), *oracle(split, 20), protocol="leave_one_out")
    assert (found.metrics, found.reason) == ({}, "no user has both a history before the cutoff and a target after it")


def test_metrics_of_new_items_are_absent_when_nobody_chose_anything_new(timelines: Make, vocabulary: Words) -> None:
    log = timelines({f"u{u}": [(u, 0), (u, 1), (u, 2)] for u in range(5)})
    split = leave_one_out(log, part="test")
    found = evaluate_retrieval(split, None, vocabulary(12), *oracle(split, 12), protocol="leave_one_out")
    assert set(found.metrics) == {f"retrieval.{m}.{k}" for m in MODELS for k in KEYS if not k.endswith("unseen")}
    assert found.reason is not None
    assert "no user has a target that is new" in found.reason


def test_a_large_audience_is_sampled_and_the_report_can_say_so(timelines: Make, vocabulary: Words) -> None:
    log = walk(timelines)
    split = leave_one_out(log, part="test")
    vectors = oracle(split, 24)
    found = evaluate_retrieval(split, None, vocabulary(24), *vectors, protocol="leave_one_out", max_users=20)
    assert found.health["users_scored"] == 20
    assert found.health["sampling"] == "20 of 60 users with targets were scored, drawn by a digest of their id"
    assert found.metrics["retrieval.encoder.hr_at_10"] == 1.0  # rows and vectors stay together


def test_two_runs_give_the_same_numbers(timelines: Make, vocabulary: Words) -> None:
    log = walk(timelines)
    split, validation = leave_one_out(log, part="test"), leave_one_out(log, part="validation")
    runs = [
        evaluate_retrieval(split, validation, vocabulary(24), *oracle(split, 24), protocol="leave_one_out")
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_vectors_must_fit_the_split_and_the_catalogue(timelines: Make, vocabulary: Words) -> None:
    split = leave_one_out(walk(timelines), part="test")
    users, items = oracle(split, 24)
    with pytest.raises(ValueError, match="user vectors"):
        evaluate_retrieval(split, None, vocabulary(24), users[1:], items, protocol="leave_one_out")
    with pytest.raises(ValueError, match="item vectors"):
        evaluate_retrieval(split, None, vocabulary(24), users, items[1:], protocol="leave_one_out")


def test_health_tells_a_space_in_use_from_a_collapsed_one() -> None:
    spread = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    good = embedding_health(spread)
    assert abs(good["mean_cosine"] or 1) < 0.02
    assert (good["effective_rank"] or 0) > 7.5
    line = embedding_health(np.outer(np.repeat([1, -1], 50), np.ones(8)).astype(np.float32))
    assert (line["first_pc_share"], line["effective_rank"]) == (pytest.approx(1.0), pytest.approx(1.0))
    same = embedding_health(np.ones((9, 4), np.float32))
    assert same["mean_cosine"] == pytest.approx(1.0)
    assert same["effective_rank"] is None


def test_health_computes_the_mean_over_all_pairs_and_leaves_zeros_out() -> None:
    vectors = np.float32([[1, 0], [0, 2], [3, 3], [0, 0]])
    health = embedding_health(vectors)
    assert (health["num_vectors"], health["num_zero_vectors"]) == (3, 1)
    assert health["mean_cosine"] == pytest.approx((0 + np.sqrt(0.5) + np.sqrt(0.5)) / 3)
    assert embedding_health(vectors[:1])["mean_cosine"] is None
    assert (health["shortest"], health["longest"]) == (1.0, pytest.approx(np.sqrt(18)))
    assert embedding_health(vectors[3:])["shortest"] is None


def test_a_space_in_use_is_no_cause_for_alarm() -> None:
    axes = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)  # mean cosine 4 / 39, effective rank 7
    health = embedding_health(axes)
    assert health["mean_cosine"] == pytest.approx(4 / 39)
    assert health["effective_rank"] == pytest.approx(7.0)
    assert health_warnings({"users": health}) == []


def test_what_is_wrong_with_the_vectors_is_said_in_words() -> None:
    same = np.tile(np.float32([0.6, 0.8]), (30, 1))
    assert health_warnings({"users": embedding_health(same)}) == ["Users: collapsed, all 30 vectors are the same."]
    # 25 on each of two rays 0.2 rad apart: half of the pairs, 25 of 49, are of cosine cos(0.2) = .980, the rest of 1
    rays = np.repeat(np.float32([[1, 0], [np.cos(0.2), np.sin(0.2)]]), 25, axis=0)
    narrow = np.pad(rays, ((0, 0), (0, 38)))
    assert health_warnings({"items": embedding_health(narrow)}) == [
        "Items: close to collapse, two vectors have a cosine of 0.99 on average: they all say the same.",
        "Items: close to collapse, the vectors vary along 1.0 of 40 directions.",
    ]
    two_long = np.eye(24, dtype=np.float32) * np.repeat([1.0, 2.0], 12)[:, None].astype(np.float32)
    assert health_warnings({"items": embedding_health(two_long)}) == [
        "Items: the vectors are 1 to 2 long and should have length 1: scores compare lengths as well as directions."
    ]
    mostly_unknown = np.pad(np.eye(3, dtype=np.float32), ((0, 4), (0, 0)))
    assert health_warnings({"users": embedding_health(mostly_unknown)}) == ["Users: 4 of 7 have no vector."]
    nobody = health_warnings({"users": embedding_health(np.zeros((5, 3), np.float32))})
    assert nobody == ["Users: none has a vector, so nothing can be said of any."]


def test_a_handful_of_vectors_is_too_few_to_speak_of_collapse() -> None:
    assert health_warnings({"users": embedding_health(np.tile(np.float32([1, 0]), (3, 1)))}) == []
    assert health_warnings({"users": embedding_health(np.zeros((0, 3), np.float32))}) == []
