"""Seeds in a corner of the space, in features, in both: what a lookalike must find, and what it may not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sonder.core.storage import Folder
from sonder.segments.lookalike import NUM_FOLDS, Lookalike, People, auc, deal_folds, few_seeds, fit_lookalike
from sonder.segments.lookalike_artefact import load_lookalike, save_lookalike


def crowd(num: int, seed: int = 0) -> People:
    """People without any pattern: unit vectors in four dimensions, three features."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(num, 4)).astype(np.float32)
    return People(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True), draw.normal(size=(num, 3)).astype(np.float32)
    )


def two_corners(people: People) -> np.ndarray:
    """Members at both ends of one axis, which no single direction separates."""
    return np.abs(people.vectors_ND[:, 0]) > 0.8


def fit_on(people: People, is_member: np.ndarray, num_seeds: int) -> tuple[Lookalike, np.ndarray, np.ndarray]:
    seeds = np.flatnonzero(is_member)[:num_seeds]
    others = np.setdiff1d(np.arange(people.num), seeds)
    return fit_lookalike(people.take(seeds), people.take(others)), seeds, others


def test_members_in_two_corners_are_found_by_the_density_and_kept_by_the_combination() -> None:
    people = crowd(1_200)
    is_member = two_corners(people)
    fitted, _, others = fit_on(people, is_member, 50)
    rest, truth = people.take(others), is_member[others]
    scores = fitted.log_ratio(rest)
    by_classifier = fitted.classifier.score(rest.columns)
    assert auc(scores[truth], scores[~truth]) > 0.9
    assert auc(by_classifier[truth], by_classifier[~truth]) < 0.75


def test_members_by_a_feature_alone_are_found() -> None:
    people = crowd(1_200)
    is_member = people.features_NF[:, 1] > 1.2
    fitted, _, others = fit_on(people, is_member, 50)
    scores = fitted.log_ratio(people.take(others))
    assert auc(scores[is_member[others]], scores[~is_member[others]]) > 0.9
    assert fitted.held_out_auc > 0.85


def test_seeds_without_a_pattern_are_said_to_have_none() -> None:
    people = crowd(800)
    fitted = fit_lookalike(people.take(np.arange(100)), people.take(np.arange(100, 800)))
    assert 0.35 < fitted.held_out_auc < 0.65
    similarity = fitted.similarity(people.take(np.arange(100, 800)))
    assert similarity.max() < 0.8
    assert similarity.min() > 0.2


def test_similarity_says_how_much_commoner_a_user_is_among_the_seeds() -> None:
    draw = np.random.default_rng(3)
    is_blue = np.concatenate([np.arange(200) < 180, np.arange(2_000) < 200])  # nine in ten seeds, one in ten others
    people = People(
        crowd(2_200, 1).vectors_ND,
        is_blue[:, None].astype(np.float32) + draw.normal(0, 0.01, (2_200, 1)).astype(np.float32),
    )
    fitted = fit_lookalike(people.take(np.arange(200)), people.take(np.arange(200, 2_200)))
    similarity = fitted.similarity(people)
    assert np.median(similarity[is_blue]) == pytest.approx(0.9, abs=0.05)
    assert np.median(similarity[~is_blue]) == pytest.approx(0.1, abs=0.05)


def test_scores_do_not_depend_on_the_batch_and_repeat_to_the_bit() -> None:
    people = crowd(400)
    fitted, _, _ = fit_on(people, two_corners(people), 40)
    again, _, _ = fit_on(people, two_corners(people), 40)
    whole = fitted.log_ratio(people)
    assert np.array_equal(whole, again.log_ratio(people))
    halves = np.concatenate(
        [fitted.log_ratio(people.take(np.arange(0, 150))), fitted.log_ratio(people.take(np.arange(150, 400)))]
    )
    assert halves == pytest.approx(whole, abs=1e-4)


def test_what_was_saved_scores_alike(tmp_path: Path) -> None:
    people = crowd(300)
    fitted, _, _ = fit_on(people, two_corners(people), 30)
    save_lookalike(fitted, Folder.at(str(tmp_path)))
    assert np.array_equal(load_lookalike(Folder.at(str(tmp_path))).similarity(people), fitted.similarity(people))


def test_users_without_features_are_ranked_by_their_vectors() -> None:
    people = crowd(600)
    bare = People(people.vectors_ND, np.zeros((600, 0), np.float32))
    is_member = two_corners(people)
    fitted, _, others = fit_on(bare, is_member, 40)
    scores = fitted.log_ratio(bare.take(others))
    assert auc(scores[is_member[others]], scores[~is_member[others]]) > 0.9
    assert fitted.density.sphere.share == 1.0


def test_too_few_are_refused_and_a_short_list_is_warned_of() -> None:
    people = crowd(20)
    with pytest.raises(ValueError, match="4 seeds and 16 others"):
        fit_lookalike(people.take(np.arange(4)), people.take(np.arange(4, 20)))
    assert "49 seeds" in few_seeds(49)[0]
    assert few_seeds(50) == []


def test_folds_are_of_equal_size() -> None:
    folds = deal_folds(52, np.random.default_rng(0))
    assert sorted(np.bincount(folds, minlength=NUM_FOLDS)) == [10, 10, 10, 11, 11]
