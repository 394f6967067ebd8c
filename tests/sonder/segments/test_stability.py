"""How many clusters: the number of known groups, and an honest word where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.segments.stability import (
    CONTINUUM,
    OF_PARENT,
    STABLE,
    TOO_FEW,
    CandidateStability,
    StabilityChoice,
    choose_from,
    choose_num_clusters,
    number_after,
)
from tests.blobs import blobs

FEW = (2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("num_groups", [3, 5])
def test_the_number_of_known_groups_is_found(num_groups: int) -> None:
    vectors, _ = blobs(num_groups, 600 // num_groups)
    found = choose_num_clusters(vectors, seed=7, candidates=FEW)
    assert (found.num_clusters, found.reason) == (num_groups, STABLE)
    assert found.stability is not None
    assert found.stability > 0.9


def test_a_cloud_without_groups_is_called_a_continuum() -> None:
    vectors = np.random.default_rng(1).standard_normal((600, 16)).astype(np.float32)
    found = choose_num_clusters(vectors, seed=7, candidates=FEW)
    assert found.reason == CONTINUUM
    assert found.num_clusters == 2


def test_a_stretched_cloud_does_not_make_two_groups() -> None:
    vectors = np.random.default_rng(1).standard_normal((900, 8)).astype(np.float32)
    vectors[:, 0] *= 5
    assert choose_num_clusters(vectors, seed=7, candidates=(2, 3)).reason == CONTINUUM


def test_the_same_users_give_the_same_answer_and_those_without_a_vector_none() -> None:
    vectors, _ = blobs(3, 60)
    padded = np.concatenate([np.zeros((50, vectors.shape[1]), np.float32), vectors])
    found = choose_num_clusters(vectors, seed=7, candidates=(2, 3))
    assert found == choose_num_clusters(padded, seed=7, candidates=(2, 3))
    assert choose_num_clusters(padded[:60], seed=7).reason == TOO_FEW


def curve_of(*rows: tuple[int, float, float]) -> list[CandidateStability]:
    return [CandidateStability(k, own, cloud, own - cloud, 0.02, 0.03) for k, own, cloud in rows]


def test_the_largest_number_within_one_error_of_the_best_gain_wins() -> None:
    assert choose_from(curve_of((2, 0.99, 0.9), (4, 0.95, 0.5), (5, 0.94, 0.5), (6, 0.8, 0.4))) == (5, STABLE)


def test_a_lucky_cloud_makes_no_groups() -> None:
    assert choose_from(curve_of((4, 0.95, 0.50), (6, 0.80, 0.36))) == (4, STABLE)


def test_a_continuum_is_cut_as_often_as_the_cuts_come_back() -> None:
    assert choose_from(curve_of((2, 0.9, 0.9), (4, 0.7, 0.7), (6, 0.5, 0.6))) == (4, CONTINUUM)
    assert choose_from(curve_of((2, 0.4, 0.5), (4, 0.3, 0.4))) == (2, CONTINUUM)


def after(num_parent: int, *rows: tuple[int, float, float]) -> tuple[int, str]:
    curve = curve_of(*rows)
    found = number_after(StabilityChoice(*choose_from(curve), tuple(curve), 900, 5), num_parent)
    return found.num_clusters, found.reason


def test_a_retrain_keeps_its_parents_number_until_that_is_clearly_worse() -> None:
    assert after(6, (4, 0.95, 0.50), (6, 0.92, 0.52)) == (6, OF_PARENT)  # .05 of gain: more than one error, within two
    assert after(6, (4, 0.95, 0.50), (6, 0.92, 0.54)) == (4, STABLE)
    assert after(6, (4, 0.95, 0.50), (6, 0.90, 0.455)) == (4, STABLE)  # the gain is there, the stability is not
    assert after(4, (4, 0.95, 0.50), (6, 0.94, 0.50)) == (4, OF_PARENT)  # 6 is as good, which is no reason to go
    assert after(5, (4, 0.95, 0.50), (6, 0.80, 0.36)) == (4, STABLE)  # no candidate


def test_in_a_continuum_the_parents_number_stays_while_it_is_fair() -> None:
    assert after(6, (4, 0.7, 0.7), (6, 0.57, 0.6)) == (6, OF_PARENT)
    assert after(6, (4, 0.7, 0.7), (6, 0.55, 0.6)) == (4, CONTINUUM)
