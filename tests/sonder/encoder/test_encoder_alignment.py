"""A retrain in its parent's space: all that is compared stays as it was, and what read old vectors reads new ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.storage import Folder
from sonder.encoder.alignment import ITEMS_PER_DIMENSION, align, mean_cosine, procrustes, shared_items
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.content import item_content
from sonder.encoder.growth import carry_over, grown
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.history.vocabulary import ITEM_SCHEMA

END = 10**12
NUM_ITEMS = 40


def rotation(seed, dim=16):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def units(seed, num, dim=16):
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_encoder(spec):
    """`make_encoder(seed)`: an encoder of 40 items, the last of which nobody wanted."""

    def make(seed, num_items=NUM_ITEMS, dim=16):
        torch.manual_seed(seed)
        own = replace(spec, num_items=num_items, dim=dim)
        trained = np.arange(num_items) != num_items - 1
        return Encoder.of(own, UserEncoder(own).state_dict(), trained, popularity=np.arange(float(num_items)))

    return make


@pytest.fixture
def histories(make_timelines):
    random = np.random.default_rng(0)
    return make_timelines([random.integers(0, NUM_ITEMS - 1, n).tolist() for n in random.integers(1, 30, 50)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(2, 24), is_reflected=st.booleans())
def test_a_rotation_is_found_again_reflected_or_not(seed, dim, is_reflected):
    turn = rotation(seed, dim)
    turn[:, 0] *= -1 if (np.linalg.det(turn) > 0) == is_reflected else 1
    vectors = units(seed + 1, 4 * dim, dim)
    found = procrustes(vectors, vectors @ turn)
    np.testing.assert_allclose(found, turn, atol=1e-4)
    np.testing.assert_allclose(found @ found.T, np.eye(dim), atol=1e-12)


def test_no_other_rotation_comes_nearer():
    vectors, onto = units(1, 100), units(2, 100)
    best = mean_cosine(vectors @ procrustes(vectors, onto), onto)
    assert all(mean_cosine(vectors @ rotation(seed), onto) < best for seed in range(50))


def test_directions_that_no_item_has_stay_and_the_same_space_is_not_turned_at_all():
    flat = units(3, 60)
    flat[:, 10:] = 0
    turn = np.eye(16)
    turn[:10, :10] = rotation(4, 10)
    np.testing.assert_allclose(procrustes(flat, flat @ turn), turn, atol=1e-5)
    np.testing.assert_allclose(procrustes(flat, flat), np.eye(16), atol=1e-12)
    np.testing.assert_array_equal(procrustes(np.zeros((5, 4)), np.zeros((5, 4))), np.eye(4))


def test_alignment_keeps_every_score_and_brings_the_spaces_together(make_encoder, make_vocabulary, histories):
    items, encoder, parent = make_vocabulary(NUM_ITEMS), make_encoder(1), make_encoder(2)
    aligned, found = align(encoder, items, parent, items)
    assert (found.shared_items, found.reason) == (NUM_ITEMS - 1, None)
    assert found.cosine > found.cosine_raw
    np.testing.assert_allclose(
        found.cosine, mean_cosine(aligned.item_vectors[:-1], parent.item_vectors[:-1]), atol=1e-6
    )
    before, after = (embed_users(each, histories, as_of_us=END) for each in (encoder, aligned))
    assert not np.allclose(before, after, atol=0.1)
    np.testing.assert_allclose(after @ aligned.item_vectors.T, before @ encoder.item_vectors.T, atol=1e-5)
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)
    scores = [users @ each.item_vectors.T + each.item_bias for users, each in ((before, encoder), (after, aligned))]
    np.testing.assert_array_equal(scores[0].argsort(axis=1, kind="stable"), scores[1].argsort(axis=1, kind="stable"))
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-6)
    assert not aligned.item_vectors[-1].any()  # nobody wanted it: no vector is no vector in any space


def test_a_space_that_was_only_turned_comes_back_exactly(make_encoder, make_vocabulary, histories):
    items, parent = make_vocabulary(NUM_ITEMS), make_encoder(2)
    turned = parent.aligned(rotation(5))
    aligned, found = align(turned, items, parent, items)
    np.testing.assert_allclose(aligned.item_vectors, parent.item_vectors, atol=1e-5)
    np.testing.assert_allclose(
        embed_users(aligned, histories, as_of_us=END), embed_users(parent, histories, as_of_us=END), atol=1e-5
    )
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.cosine_held_out == pytest.approx(1, abs=1e-6)
    assert found.turned == pytest.approx(0, abs=1e-6)  # the weights are the parent's


def test_a_chain_stays_in_the_space_of_its_first_release(make_encoder, make_vocabulary):
    items, first = make_vocabulary(NUM_ITEMS), make_encoder(2)
    chain = first
    for seed in (6, 7, 8):
        chain, _ = align(first.aligned(rotation(seed)), items, chain, items)
    np.testing.assert_allclose(chain.item_vectors, first.item_vectors, atol=1e-5)


def test_items_meet_by_name_and_only_those_that_both_have_learnt(make_encoder, make_vocabulary):
    items, encoder, parent = make_vocabulary(NUM_ITEMS), make_encoder(1), make_encoder(2)
    names = [f"item-{i}" for i in range(9, 40)] + [f"new-{i}" for i in range(9)]
    place = ITEM_SCHEMA.get_field_index("item_id")
    newer = replace(items, items=items.items.set_column(place, "item_id", pa.array(names[::-1])))
    own, of_parent = shared_items(encoder, newer, parent, items)
    assert len(own) == 29  # 31 in common; the last of our own and the last of the parent's were never wanted
    assert [names[::-1][i] for i in own] == [f"item-{i}" for i in of_parent]
    assert not {"item-9", "item-39"} & {names[::-1][i] for i in own}


@pytest.mark.parametrize(
    ("num_items", "dim", "reason"),
    [(ITEMS_PER_DIMENSION * 16, 16, "31 items in common, at least 32"), (40, 32, "32 dimensions, the parent's 16")],
)
def test_what_cannot_be_aligned_keeps_its_space_and_says_why(make_encoder, make_vocabulary, num_items, dim, reason):
    encoder, parent = make_encoder(1, num_items, dim), make_encoder(2)
    aligned, found = align(encoder, make_vocabulary(num_items), parent, make_vocabulary(NUM_ITEMS))
    assert aligned is encoder
    assert reason in found.reason
    assert found.cosine is None


def test_the_rotation_survives_the_disk_and_belongs_to_the_digest(make_encoder, histories, tmp_path):
    encoder, folder = make_encoder(1), Folder.at(str(tmp_path))
    aligned = encoder.aligned(rotation(9))
    assert aligned.digest != encoder.digest
    assert aligned.aligned(None).digest == encoder.digest
    save_encoder(aligned, folder)
    loaded = load_encoder(folder)
    assert loaded.digest == aligned.digest
    np.testing.assert_array_equal(loaded.rotation_DD, aligned.rotation_DD)
    np.testing.assert_array_equal(loaded.item_vectors, aligned.item_vectors)
    np.testing.assert_array_equal(
        embed_users(loaded, histories, as_of_us=END), embed_users(aligned, histories, as_of_us=END)
    )
    np.testing.assert_array_equal(loaded.with_popularity(loaded.popularity).item_vectors, aligned.item_vectors)


def test_a_grown_encoder_stays_in_its_space(make_encoder, make_vocabulary, histories):
    items, encoder = make_vocabulary(NUM_ITEMS), make_encoder(1).aligned(rotation(9))
    over, _ = grown(encoder, items, make_vocabulary(NUM_ITEMS + 3))
    np.testing.assert_allclose(over.item_vectors[:NUM_ITEMS], encoder.item_vectors, atol=1e-6)
    np.testing.assert_allclose(
        embed_users(over, histories, as_of_us=END), embed_users(encoder, histories, as_of_us=END), atol=1e-6
    )


def test_training_goes_on_from_an_aligned_release_as_from_the_bare_weights(
    make_encoder, make_vocabulary, histories, spec
):
    items, bare = make_vocabulary(NUM_ITEMS), make_encoder(1)
    spec, content = replace(spec, num_items=NUM_ITEMS), item_content(items)
    num = count_eligible(histories, items, cutoff_us=None, window_us=0)
    holdout = hold_out(histories, items, cutoff_us=None, window_us=0, num_eligible=num)
    trained = []
    for parent in (bare, bare.aligned(rotation(9))):
        start = carry_over(parent, items, spec, items, content)
        run = TrainingRun(spec, [holdout], summarise(holdout.visible, items).targets, content=content, start=start)
        run.fit(Limits(max_epochs=2, patience=2))
        trained.append(run.state().encoder(content))
    assert trained[0].digest == trained[1].digest
    child, found = align(trained[1], items, bare.aligned(rotation(9)), items)
    assert found.cosine > 0.9 > found.cosine_raw
    np.testing.assert_allclose(child.rotation_DD, rotation(9), atol=0.5)
