"""The coarse pass of a lookalike may leave nobody of the best out, and what is said of them is exact."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.segments import lookalike_ranking
from sonder.segments.lookalike import Lookalike, People, fit_lookalike
from sonder.segments.lookalike_ranking import CoarseDensity, most_alike
from sonder.segments.seed_density import SeedDensity

NUM, ANSWERS = 20_000, 100


@pytest.fixture(scope="module")
def crowd() -> People:
    draw = np.random.default_rng(1)
    vectors = draw.normal(size=(NUM, 8)).astype(np.float32)
    features = draw.normal(size=(NUM, 3)).astype(np.float32)
    return People(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), features)


@pytest.fixture(scope="module")
def fitted(crowd: People) -> Lookalike:
    """Seeds in three corners of the space, more of them than groups."""
    in_corner = (np.abs(crowd.vectors_ND[:, 0]) > 0.7) | (crowd.vectors_ND[:, 3] > 0.75)
    seeds, others = np.flatnonzero(in_corner)[:400], np.flatnonzero(~in_corner)[:2_000]
    return fit_lookalike(crowd.take(seeds), crowd.take(others))


def test_few_users_are_all_scored_exactly(crowd: People, fitted: Lookalike) -> None:
    is_out = np.arange(NUM) % 3 == 0
    rows, similarity = most_alike(fitted, crowd, is_out, ANSWERS)
    expected = np.where(is_out, -np.inf, fitted.similarity(crowd))
    assert rows.tolist() == np.argsort(-expected, kind="stable")[:ANSWERS].tolist()
    assert similarity == pytest.approx(expected[rows])


def test_the_coarse_pass_keeps_the_best(crowd: People, fitted: Lookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalike_ranking, "MIN_EXACT", 0)  # 800 of 20,000 are looked at
    is_out = np.arange(NUM) % 3 == 0
    rows, similarity = most_alike(fitted, crowd, is_out, ANSWERS)
    exact = np.where(is_out, -np.inf, fitted.similarity(crowd))
    best = set(np.argsort(-exact, kind="stable")[:ANSWERS].tolist())
    assert len(best & set(rows.tolist())) >= 0.99 * ANSWERS
    assert similarity == pytest.approx(exact[rows])
    assert np.all(np.diff(similarity) <= 0)
    assert not is_out[rows].any()


def test_as_many_groups_as_kernels_are_the_density_itself(crowd: People, fitted: Lookalike) -> None:
    whole = fitted.density
    few = SeedDensity(whole.sphere, whole.seeds_SM[:40], whole.background_BM[:50], whole.concentration)
    exact = few.score(crowd.vectors_ND[5_000:6_000], crowd.features_NF[5_000:6_000])
    coarse = CoarseDensity.of(few).score(crowd.vectors_ND[5_000:6_000], crowd.features_NF[5_000:6_000])
    # Exact leaves out a background kernel at a user's own place; nobody here is one of them.
    assert coarse == pytest.approx(exact, abs=1e-4)


def test_nobody_is_left(crowd: People, fitted: Lookalike) -> None:
    rows, similarity = most_alike(fitted, crowd, np.ones(NUM, dtype=bool), ANSWERS)
    assert (len(rows), len(similarity)) == (0, 0)


def test_seeds_that_stand_in_few_places_weigh_what_they_are(crowd: People, fitted: Lookalike) -> None:
    whole = fitted.density
    often = SeedDensity(
        whole.sphere, np.repeat(whole.seeds_SM[:3], [300, 90, 10], axis=0), whole.background_BM[:50], 16.0
    )
    vectors_ND, features_NF = crowd.vectors_ND[5_000:6_000], crowd.features_NF[5_000:6_000]
    coarse = CoarseDensity.of(often).score(vectors_ND, features_NF)
    assert coarse == pytest.approx(often.score(vectors_ND, features_NF), abs=1e-4)
