"""User vectors: the same in batch and online, in any order, blind to the future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder
from sonder.encoder import inference
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.content import ContentShape, ItemContent
from sonder.encoder.inference import RisingVectors, embed_users
from sonder.encoder.model import UserEncoder

END = 10**12


@pytest.fixture
def encoder(spec) -> Encoder:
    torch.manual_seed(0)
    trained = np.ones(10, dtype=bool)
    trained[7] = False
    return Encoder.of(spec, UserEncoder(spec).state_dict(), trained, popularity=np.arange(10.0), half_life_us=5)


@pytest.fixture
def histories(make_timelines):
    random = np.random.default_rng(0)
    lengths = random.integers(0, 30, 40)
    return make_timelines([random.integers(0, 10, n).tolist() for n in lengths])


def test_batch_equals_online(encoder, histories):
    batch = embed_users(encoder, histories, as_of_us=END)
    for row in range(histories.num_users):
        online = embed_users(encoder, histories.take(np.array([row])), as_of_us=END)[0]
        np.testing.assert_allclose(online, batch[row], atol=1e-5)


def test_the_order_of_users_changes_nothing(encoder, histories):
    order = np.random.default_rng(1).permutation(histories.num_users)
    batch = embed_users(encoder, histories, as_of_us=END)
    np.testing.assert_allclose(embed_users(encoder, histories.take(order), as_of_us=END), batch[order], atol=1e-5)


def test_events_at_or_after_the_moment_are_not_read(encoder, make_timelines):
    short = make_timelines([[1, 2]], times_s=[[0, 60]])
    longer = make_timelines([[1, 2, 3, 4]], times_s=[[0, 60, 120, 180]])
    as_of_us = 120 * 10**6
    np.testing.assert_array_equal(
        embed_users(encoder, longer, as_of_us=as_of_us), embed_users(encoder, short, as_of_us=as_of_us)
    )
    assert not np.allclose(embed_users(encoder, longer, as_of_us=END), embed_users(encoder, short, as_of_us=END))


def test_vectors_at_rising_moments_are_those_of_each_moment(encoder, histories):
    rising = RisingVectors(encoder, histories)
    for minutes in (0, 3, 8, 8, 17, 40):
        as_of_us = minutes * 60 * 10**6
        np.testing.assert_allclose(rising.at(as_of_us), embed_users(encoder, histories, as_of_us=as_of_us), atol=1e-5)


def test_who_has_wished_for_nothing_since_is_not_embedded_again(encoder, make_timelines, monkeypatch):
    hour = 3_600
    # a wish later, an impression later, nothing later, first seen later
    timelines = make_timelines(
        [[1, 2], [3, 4], [5], [6]],
        actions=[[0, 0], [0, 2], [0], [0]],
        times_s=[[0, hour], [0, hour], [0], [hour]],
    )
    embedded = []

    def watched(encoder, timelines, *, as_of_us):
        embedded.append(timelines.user_ids.to_pylist())
        return embed_users(encoder, timelines, as_of_us=as_of_us)

    monkeypatch.setattr(inference, "embed_users", watched)
    rising = RisingVectors(encoder, timelines)
    rising.at(hour * 10**6)
    rising.at(2 * hour * 10**6)
    assert embedded == [["user-0", "user-1", "user-2"], ["user-0", "user-3"]]
    with pytest.raises(AssertionError, match="rise"):
        rising.at(hour * 10**6)


def test_only_the_newest_events_are_read(encoder, make_timelines):
    long = make_timelines([[5] * 20 + [1, 2, 3, 4, 5, 6, 8, 9]])
    other = make_timelines([[3] * 20 + [1, 2, 3, 4, 5, 6, 8, 9]])
    np.testing.assert_array_equal(embed_users(encoder, long, as_of_us=END), embed_users(encoder, other, as_of_us=END))


def test_users_without_a_known_wanted_event_get_the_zero_vector(encoder, make_timelines):
    # nothing at all; a hide; an impression; an unknown item; an item that was never trained; one real wish
    timelines = make_timelines([[], [1], [1], [-1], [7], [1]], actions=[[], [1], [2], [0], [0], [0]])
    norms = np.linalg.norm(embed_users(encoder, timelines, as_of_us=END), axis=1)
    np.testing.assert_allclose(norms, [0, 0, 0, 0, 0, 1], atol=1e-6)


def test_item_vectors_are_unit_rows_and_zero_where_never_trained(encoder):
    norms = np.linalg.norm(encoder.item_vectors, axis=1)
    np.testing.assert_allclose(norms, encoder.trained_items.astype(float), atol=1e-6)
    assert encoder.item_vectors.dtype == np.float32


def test_an_item_that_nobody_wanted_yet_stands_where_its_category_stands(spec, make_timelines):
    torch.manual_seed(0)
    spec = replace(spec, content=ContentShape(num_levels=1, num_paths=3))
    paths = np.full((11, 1), 3, dtype=np.int32)  # 3: no category
    paths[:4, 0], paths[7, 0], paths[8, 0] = 0, 0, 2
    content = replace(ItemContent.nothing(10), shape=spec.content, features_IF=paths)
    model = UserEncoder(spec, content)
    trained = np.arange(10) < 7
    encoder = Encoder.of(spec, model.state_dict(), trained, content=content)
    assert encoder.candidates.tolist() == [True] * 8 + [False] * 2  # 8 has a category that taught nothing, 9 has none
    category = model.features.weight[0].detach().numpy()
    np.testing.assert_allclose(encoder.item_vectors[7], category / np.linalg.norm(category), atol=1e-6)
    assert not encoder.item_vectors[8:].any()
    users = embed_users(encoder, make_timelines([[7], [8], [9]]), as_of_us=END)
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), [1, 0, 0], atol=1e-6)


def test_an_encoder_survives_the_disk(encoder, histories, tmp_path):
    save_encoder(encoder, Folder.at(str(tmp_path)), metrics={"epochs": 2})
    loaded = load_encoder(Folder.at(str(tmp_path)))
    assert (loaded.spec, loaded.digest) == (encoder.spec, encoder.digest)
    np.testing.assert_array_equal(loaded.item_vectors, encoder.item_vectors)
    np.testing.assert_array_equal(loaded.item_bias, encoder.item_bias)
    np.testing.assert_array_equal(
        embed_users(loaded, histories, as_of_us=END), embed_users(encoder, histories, as_of_us=END)
    )


def test_popular_items_get_more_and_newer_popularity_changes_nothing_else(encoder):
    assert (np.diff(encoder.item_bias) > 0).all()
    assert encoder.item_bias.max() == 0
    newer = encoder.with_popularity(encoder.popularity[::-1].copy())
    np.testing.assert_allclose(newer.item_bias, encoder.item_bias[::-1])
    assert (newer.digest, newer.model) == (encoder.digest, encoder.model)
    with pytest.raises(ArtefactMismatch, match="popularity of 3 items"):
        encoder.with_popularity(np.ones(3))


def test_weights_of_another_training_are_refused(encoder, spec, tmp_path):
    folder = Folder.at(str(tmp_path))
    other = Encoder.of(spec, UserEncoder(spec).state_dict(), encoder.trained_items)
    save_encoder(encoder, folder)
    content = (folder / "encoder.json").read_bytes()
    save_encoder(other, folder)
    (folder / "encoder.json").write_bytes(content)
    with pytest.raises(ArtefactMismatch, match="digest"):
        load_encoder(folder)


def test_a_specification_of_another_version_is_refused(encoder, tmp_path):
    folder = Folder.at(str(tmp_path))
    save_encoder(encoder, folder)
    content = (folder / "encoder.json").read_json()
    content["spec"]["unheard_of"] = 1
    (folder / "encoder.json").write_json(content)
    with pytest.raises(ArtefactMismatch, match="unheard_of"):
        load_encoder(folder)


def test_weights_of_another_version_are_refused_by_name(encoder, tmp_path):
    folder = Folder.at(str(tmp_path))
    save_encoder(encoder, folder)
    tensors = load((tmp_path / "weights.safetensors").read_bytes())
    lost = next(name for name in encoder.model.state_dict())
    tensors["of_old"] = tensors.pop(lost)
    (tmp_path / "weights.safetensors").write_bytes(save(tensors))
    with pytest.raises(ArtefactMismatch, match=rf"1 missing \({lost}\) and 1 unknown \(of_old\)"):
        load_encoder(folder)


def test_vectors_of_a_vocabulary_that_has_grown_are_still_computed(encoder, make_timelines):
    grown = make_timelines([[1, 2, 25]])
    unknown = make_timelines([[1, 2, -1]])
    np.testing.assert_array_equal(
        embed_users(encoder, grown, as_of_us=END), embed_users(encoder, unknown, as_of_us=END)
    )


def test_ordinal_logs_read_no_clock(spec, make_timelines):
    torch.manual_seed(0)
    spec = replace(spec, reads_time=False)
    encoder = Encoder.of(spec, UserEncoder(spec).state_dict(), np.ones(10, dtype=bool))
    slow = make_timelines([[1, 2, 3]], times_s=[[0, 5_000, 90_000]])
    quick = make_timelines([[1, 2, 3]], times_s=[[0, 1, 2]])
    np.testing.assert_array_equal(embed_users(encoder, slow, as_of_us=END), embed_users(encoder, quick, as_of_us=END))
