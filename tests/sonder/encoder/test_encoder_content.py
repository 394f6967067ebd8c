"""What is known of an item besides its id, as rows of tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from sonder.core.errors import DataError
from sonder.core.storage import Folder
from sonder.encoder import content as module
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.content import ItemContent, item_content
from sonder.encoder.model import UserEncoder


@pytest.fixture
def catalogue(make_vocabulary):
    """`catalogue(category=[...], title=[...], vector=[...])`: a vocabulary of as many items."""

    def make(**columns):
        num = len(next(iter(columns.values())))
        vocabulary = make_vocabulary(num)
        items = vocabulary.items
        for name, values in columns.items():
            place = items.schema.get_field_index(name)
            items = items.set_column(place, items.schema.field(name), pa.array(values, items.schema.field(name).type))
        return replace(vocabulary, items=items)

    return make


def test_every_level_of_a_category_is_a_row_of_its_own(catalogue):
    content = item_content(catalogue(category=["a/b", "a", None, "c/b"]))
    assert content.paths == ("a", "a/b", "c", "c/b")
    assert content.features_IF.tolist() == [[0, 1], [0, 4], [4, 4], [2, 3], [4, 4]]  # the last is the unknown item
    assert content.is_known.tolist() == [True, True, False, True, False]


def test_titles_share_rows_by_word_and_words_of_one_title_have_none(catalogue):
    titles = ["Red LANTERN, big", "red mug", "lantern", "unique", None]
    content = item_content(catalogue(title=titles))
    none = content.shape.num_rows
    words = [set(row.tolist()) - {none} for row in content.features_IF]
    assert words[0] == words[1] | words[2]
    assert [len(row) for row in words] == [2, 1, 1, 0, 0, 0]


def test_an_item_keeps_its_rarest_words(catalogue):
    common = [f"w{n}" for n in range(10)]
    titles = [" ".join(common), " ".join(common), *common[5:]]
    content = item_content(catalogue(title=titles))
    alone = {int(row[0]) for row in content.features_IF[2:7]}  # w5..w9, each in three titles
    kept = set(content.features_IF[0].tolist())
    assert content.shape.num_words == module.MOST_WORDS
    assert len(kept & alone) == 3
    assert len(kept) == 8


def test_a_later_catalogue_finds_the_same_rows_and_a_new_category_has_none(catalogue):
    first = item_content(catalogue(category=["b", "b/c", "b"], title=["red mug", "red cup", "blue cup"]))
    later = item_content(catalogue(category=["a", "b"], title=["cup cup", "cup red"]), like=first)
    none = first.shape.num_rows
    assert later.shape == first.shape
    assert later.features_IF[:2, :2].tolist() == [[none, none], [0, none]]
    words = [set(row[2:].tolist()) - {none} for row in (*first.features_IF[:3], *later.features_IF[:2])]
    assert words[3] == words[1] & words[2]


def test_given_vectors_are_unit_rows(catalogue):
    content = item_content(catalogue(vector=[[3.0, 4.0], None, [0.0, 0.0]]))
    np.testing.assert_allclose(content.vectors_IV, [[0.6, 0.8], [0, 0], [0, 0], [0, 0]], atol=1e-7)
    assert content.is_known.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [([[1.0], [1.0, 2.0]], "different widths: 1, 2"), ([[1.0], [float("nan")]], "item-1.*not finite")],
)
def test_vectors_that_do_not_fit_are_refused(catalogue, vectors, message):
    with pytest.raises(DataError, match=message):
        item_content(catalogue(vector=vectors))


def test_vectors_of_another_model_are_refused(catalogue):
    first = item_content(catalogue(vector=[[3.0, 4.0]]))
    with pytest.raises(DataError, match="width 3"):
        item_content(catalogue(vector=[[3.0, 4.0, 5.0]]), like=first)


def test_past_a_size_items_are_looked_up_by_digest(spec, make_vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HASHED_PAST", 64)
    vocabulary = make_vocabulary(1000)
    content = item_content(vocabulary)
    assert (content.shape.num_id_rows, content.id_rows_IP.shape) == (64, (1001, 2))
    pairs = np.unique(np.sort(content.id_rows_IP[:-1], axis=1), axis=0)
    assert len(pairs) > 750  # of 2,080 possible ones, 1,000 drawn: 790 are expected to differ
    spec = replace(spec, num_items=1000, content=content.shape)
    torch.manual_seed(0)
    trained = np.arange(1000) < 900
    encoder = Encoder.of(spec, UserEncoder(spec, content).state_dict(), trained, content=content)
    assert encoder.model.items.num_embeddings == 65
    norms = np.linalg.norm(encoder.item_vectors, axis=1)
    np.testing.assert_allclose(norms, trained.astype(float), atol=1e-5)
    save_encoder(encoder, Folder.at(str(tmp_path)))
    np.testing.assert_array_equal(load_encoder(Folder.at(str(tmp_path))).item_vectors, encoder.item_vectors)


def test_content_reaches_the_vectors_and_survives_the_disk(spec, catalogue, tmp_path):
    num = 10
    vocabulary = catalogue(
        category=["a", "b"] * 5, title=["red mug", "red cup"] * 5, vector=[[1.0, float(n)] for n in range(num)]
    )
    content = item_content(vocabulary)
    spec = replace(spec, content=content.shape)
    torch.manual_seed(0)
    trained = np.arange(num) < 8
    encoder = Encoder.of(spec, UserEncoder(spec, content).state_dict(), trained, content=content)
    assert encoder.candidates.all()
    assert not np.allclose(encoder.item_vectors[8], encoder.item_vectors[9], atol=1e-3)
    save_encoder(encoder, Folder.at(str(tmp_path)))
    loaded = load_encoder(Folder.at(str(tmp_path)))
    np.testing.assert_array_equal(loaded.item_vectors, encoder.item_vectors)
    assert loaded.content.paths == encoder.content.paths


def test_without_content_there_are_no_tables_for_it(spec, make_vocabulary):
    content = item_content(make_vocabulary())
    assert content.shape == ItemContent.nothing(10).shape
    assert UserEncoder(spec, content).features is None
