from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.retrieval import approximate
from sonder.retrieval.approximate import VectorIndex, recall
from sonder.retrieval.exact import top_items

NUM, DIM = 6_000, 16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1_000)
    monkeypatch.setattr(approximate, "FEW", 200)


def clustered(num: int, seed: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((60, DIM))
    vectors = centres[draw.integers(60, size=num)] + 0.5 * draw.standard_normal((num, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def histories(items: list[list[int]]) -> Timelines:
    from sonder.profiles.packing import EVENT_DTYPE, unpack_timelines

    packed = []
    for of_user in items:
        events = np.zeros(len(of_user), dtype=EVENT_DTYPE)
        events["item"] = of_user
        packed.append(events.tobytes())
    return unpack_timelines([""] * len(items), packed)


def test_few_vectors_are_searched_exactly() -> None:
    vectors = clustered(900, 2)
    index = VectorIndex(vectors, vectors)
    assert index.is_exact
    rows, scores = index.search(vectors[:5], 10)
    expected = top_items(vectors[:5], vectors, 10)
    assert np.array_equal(rows, expected[0])
    assert np.array_equal(scores, expected[1])


def test_most_of_the_exact_hundred_nearest_are_found_for_queries_not_of_the_sample() -> None:
    vectors = clustered(NUM, 2)
    index = VectorIndex(vectors, clustered(100, 3))
    asked = clustered(200, 4)
    found, scores = index.search(asked, 100)
    wanted, _ = top_items(asked, vectors, 100)
    assert not index.is_exact
    assert index.nprobe < 60  # of 154 cells
    assert 0.95 <= recall(found, wanted) <= 1.0
    assert np.all(np.diff(scores, axis=1) <= 0)
    assert np.allclose(scores, np.einsum("qd,qkd->qk", asked, vectors[found]), atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_with_a_filter_only_allowed_ones_are_answers_and_recall_holds(share: float) -> None:
    vectors, asked = clustered(NUM, 2), clustered(50, 4)
    allowed = np.random.default_rng(5).random(NUM) < share
    index = VectorIndex(vectors, clustered(100, 3))
    found, _ = index.search(asked, 50, allowed_N=allowed)
    wanted, _ = top_items(asked, vectors, 50, allowed_I=allowed)
    assert allowed[found[found >= 0]].all()
    assert recall(found, wanted) >= 0.95


def test_k_answers_come_back_wherever_k_exist() -> None:
    vectors, asked = clustered(NUM, 2), clustered(3, 4)
    far = np.argsort(vectors @ asked[0])[:300]  # the allowed ones are in the cells that are looked at last
    allowed = np.zeros(NUM, dtype=bool)
    allowed[far] = True
    found, _ = VectorIndex(vectors, clustered(100, 3)).search(asked, 400, allowed_N=allowed)
    assert ((found >= 0).sum(axis=1) == 300).all()


def test_no_item_of_the_own_history_is_an_answer() -> None:
    vectors, asked = clustered(NUM, 2), clustered(3, 4)
    index = VectorIndex(vectors, clustered(100, 3))
    plain, _ = index.search(asked, 30)
    seen = [plain[0, :20].tolist(), [], [int(plain[2, 0]), -1]]
    found, _ = index.search(asked, 30, exclude=histories(seen))
    assert (found >= 0).all()
    for query in range(3):
        assert not set(found[query].tolist()) & set(seen[query])
    assert np.array_equal(found[1], plain[1])
    assert np.array_equal(found[2, :29], plain[2, 1:])


def test_recall_counts_what_was_found_in_any_order() -> None:
    assert recall(np.array([[3, 1, -1]], np.int32), np.array([[1, 2, 3]], np.int32)) == pytest.approx(2 / 3)


def test_a_full_disk_while_the_index_is_built_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = clustered(NUM, 2), clustered(50, 4)
    expected = VectorIndex(vectors, clustered(100, 3)).search(asked, 10)

    def full(index: object, name: str) -> None:
        raise RuntimeError("Error in faiss: could not write: No space left on device")

    monkeypatch.setattr("faiss.write_index", full)
    found = VectorIndex(vectors, clustered(100, 3)).search(asked, 10)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
