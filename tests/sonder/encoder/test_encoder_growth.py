"""A newer catalogue: what is still there keeps its rows, what is new starts from what is known of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from sonder.core.errors import ConfigurationError
from sonder.encoder.artefact import Encoder
from sonder.encoder.content import item_content
from sonder.encoder.growth import carry_over, grown, warm_epochs
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.history.vocabulary import ITEM_SCHEMA

END = 10**12


@pytest.fixture
def shop(make_vocabulary):
    """`shop({id: category})`: a vocabulary with these items in this order."""

    def make(categories, **others):
        vocabulary = make_vocabulary(len(categories), **others)
        items = vocabulary.items
        for name, values in (("item_id", list(categories)), ("category", list(categories.values()))):
            place = ITEM_SCHEMA.get_field_index(name)
            items = items.set_column(place, ITEM_SCHEMA.field(name), pa.array(values, pa.string()))
        return replace(vocabulary, items=items)

    return make


@pytest.fixture
def old_shop(shop):
    return shop({"a": "x", "b": "x", "c": "y", "d": None})


@pytest.fixture
def parent(spec, old_shop):
    content = item_content(old_shop)
    torch.manual_seed(0)
    spec = replace(spec, num_items=4, content=content.shape)
    trained = np.array([True, True, True, False])
    return Encoder.of(
        spec, UserEncoder(spec, content).state_dict(), trained, content=content, popularity=np.arange(4.0)
    )


def test_a_grown_encoder_knows_its_items_by_name_and_new_ones_by_their_content(parent, old_shop, shop, make_timelines):
    newer = shop({"new of y": "y", "c": "y", "stranger": "z", "b": "x", "a": "x"}, actions=("zap", "buy", "hide"))
    encoder, readable = grown(parent, old_shop, newer)
    assert (readable.actions, readable.item_ids) == (old_shop.actions, newer.item_ids)
    np.testing.assert_allclose(encoder.item_vectors[[4, 3, 1]], parent.item_vectors[:3], atol=1e-6)
    assert encoder.candidates.tolist() == [True, True, False, True, True]
    assert encoder.trained_items.tolist() == [False, True, False, True, True]
    assert encoder.popularity.tolist() == [0, 2, 0, 1, 0]
    row_of_y = parent.model.features.weight[parent.content.paths.index("y")].numpy()
    np.testing.assert_allclose(encoder.item_vectors[0], row_of_y / np.linalg.norm(row_of_y), atol=1e-6)
    before = embed_users(parent, make_timelines([[0, 2, 1]]), as_of_us=END)
    after = embed_users(encoder, make_timelines([[4, 1, 3]]), as_of_us=END)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_what_no_trained_item_taught_adds_nothing_to_a_new_item(spec, shop):
    known = shop({"a": "x", "never wanted": "x/other"})
    content = item_content(known)
    spec = replace(spec, num_items=2, content=content.shape)
    torch.manual_seed(0)
    trained = np.array([True, False])
    parent = Encoder.of(spec, UserEncoder(spec, content).state_dict(), trained, content=content)
    row_of_x = parent.model.features.weight[parent.content.paths.index("x")].numpy()
    np.testing.assert_allclose(parent.item_vectors[1], row_of_x / np.linalg.norm(row_of_x), atol=1e-6)
    encoder, _ = grown(parent, known, shop({"a": "x", "later": "x/other"}))
    np.testing.assert_allclose(encoder.item_vectors[1], parent.item_vectors[1], atol=1e-6)


def test_weights_go_on_by_name(parent, old_shop, shop, spec):
    newer = shop({"new of y": "y", "c": "y", "stranger": None, "a": "x"}, actions=("hide", "buy", "impression"))
    content = item_content(newer)
    spec = replace(spec, num_items=4, content=content.shape, action_weights=(-1.0, 1.0, 0.0))
    weights = carry_over(parent, old_shop, spec, newer, content)
    held = parent.model.state_dict()
    table = weights["items.weight"]
    assert torch.equal(table[[1, 3]], held["items.weight"][[2, 0]])
    assert not table[0].any()  # its category says all
    assert table[2].any()  # nothing does
    assert not table[4].any()
    assert torch.equal(weights["features.weight"], held["features.weight"])
    assert torch.equal(weights["actions.weight"], held["actions.weight"][[1, 0, 2, 3]])
    assert torch.equal(weights["blocks.0.qkv.weight"], held["blocks.0.qkv.weight"])
    UserEncoder(spec, content).load_state_dict(weights)


def test_words_keep_their_rows_when_their_table_grows(spec, make_vocabulary):
    def titled(titles):
        vocabulary = make_vocabulary(len(titles))
        place = ITEM_SCHEMA.get_field_index("title")
        return replace(
            vocabulary, items=vocabulary.items.set_column(place, ITEM_SCHEMA.field("title"), pa.array(titles))
        )

    few = titled(["red mug", "red mug"])
    many = titled(["red mug", "red mug", *[f"word{n} other{n}" for n in range(40) for _ in range(2)]])
    before, now = item_content(few), item_content(many)
    assert now.shape.num_word_rows > before.shape.num_word_rows
    parent = Encoder.of(
        replace(spec, num_items=2, content=before.shape),
        UserEncoder(replace(spec, num_items=2, content=before.shape), before).state_dict(),
        np.ones(2, dtype=bool),
        content=before,
    )
    new_spec = replace(spec, num_items=82, content=now.shape)
    weights = carry_over(parent, few, new_spec, many, now)
    ours = UserEncoder(new_spec, now)
    ours.load_state_dict(weights)
    np.testing.assert_allclose(ours.item_vectors(0, 2).detach().numpy(), parent.item_vectors, atol=1e-6)


def test_another_shape_is_refused_with_the_way_out(parent, old_shop, spec):
    content = item_content(old_shop)
    with pytest.raises(ConfigurationError, match=r"encoder\.dim is 32, the parent's is 16.*--set encoder\.dim=16"):
        carry_over(parent, old_shop, replace(spec, num_items=4, dim=32, content=content.shape), old_shop, content)


def test_a_warm_start_begins_where_its_parent_ended(spec, cycle_timelines, make_vocabulary):
    vocabulary = make_vocabulary()
    content = item_content(vocabulary)
    num = count_eligible(cycle_timelines, vocabulary, cutoff_us=None, window_us=0)
    holdout = hold_out(cycle_timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=num)
    counts = summarise(holdout.visible, vocabulary).targets
    cold = TrainingRun(spec, [holdout], counts)
    cold.fit(Limits(max_epochs=40, patience=40))
    weights = carry_over(cold.state().encoder(), vocabulary, spec, vocabulary, content)
    warm = TrainingRun(spec, [holdout], counts, start=weights)
    warm.fit(Limits(max_epochs=warm_epochs(40), patience=40))
    assert warm.progress.epoch == 4
    assert warm.progress.history[0]["loss"] < 0.2 * cold.progress.history[0]["loss"]
    assert warm.progress.best_value > 0.95 * cold.progress.best_value


def test_a_warm_start_takes_a_tenth_of_the_epochs():
    assert [warm_epochs(full) for full in (1, 10, 11, 60)] == [1, 1, 2, 6]
