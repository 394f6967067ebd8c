"""The fast path of inference says what the readable model says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.encoder import newest as newest_module
from sonder.encoder.batching import collate, newest_segments, tokenise
from sonder.encoder.content import ContentShape, ItemContent
from sonder.encoder.inference import embed_tokens
from sonder.encoder.model import UserEncoder
from sonder.encoder.newest import NewestStates, split_by_length


def _by_the_model(model, spec, tokens):
    """The newest state of each user from padded rectangles, [U, D]."""
    segments = newest_segments(tokens, spec.max_length)
    vectors = np.zeros((tokens.num_users, spec.dim), np.float32)
    if not len(segments.lengths):
        return vectors
    with torch.inference_mode():
        states = model(collate(tokens, spec, segments.starts, segments.stops))
    vectors[tokens.lengths > 0] = states[torch.arange(len(states)), torch.from_numpy(segments.lengths - 1)].numpy()
    return vectors


def _compare(model, spec, timelines):
    tokens = tokenise(timelines, spec)
    fast = embed_tokens(NewestStates(model, spec.max_length), spec, tokens)
    np.testing.assert_allclose(fast, _by_the_model(model, spec, tokens), atol=2e-6)


@pytest.fixture
def model(spec):
    torch.manual_seed(0)
    return UserEncoder(spec).eval()


histories = st.lists(st.lists(st.integers(-1, 9), max_size=12), min_size=1, max_size=9)


@pytest.fixture(params=["one group for all", "a group for each length"])
def grouping(request, monkeypatch):
    monkeypatch.setattr(newest_module, "GROUP_COST", 1 << 40 if request.param.startswith("one") else 0)


def test_it_agrees_with_the_model_on_histories_of_any_length(model, spec, make_timelines, grouping):
    @given(histories, st.integers(0, 2**16))
    @settings(deadline=None, max_examples=40)
    def compare(items, seed):
        random = np.random.default_rng(seed)
        actions = [random.integers(0, 3, len(row)).tolist() for row in items]
        times = [np.cumsum(random.integers(0, 10**6, len(row))).tolist() for row in items]
        timelines = make_timelines(items, actions, times)
        values = random.choice([np.nan, -3.0, 0.5, 900.0], timelines.num_events)
        _compare(model, spec, replace(timelines, values=values))

    compare()


def test_it_agrees_where_values_and_content_are_read_and_time_is_not(spec, make_timelines):
    torch.manual_seed(1)
    shape = ContentShape(num_levels=1, num_words=1, num_paths=2, num_word_rows=2, vector_width=3, num_id_rows=6)
    random = np.random.default_rng(0)
    content = ItemContent(
        shape,
        features_IF=np.append(random.integers(0, 4, (10, 2)), [[4, 4]], axis=0).astype(np.int32),
        vectors_IV=np.append(random.normal(size=(10, 3)), [[0, 0, 0]], axis=0).astype(np.float32),
        id_rows_IP=np.append(random.integers(0, 6, (10, 2)), [[6, 6]], axis=0).astype(np.int32),
        paths=(),
    )
    changed = replace(spec, content=shape, reads_time=False, reads_value=True, num_surfaces=0)
    model = UserEncoder(changed, content).eval()
    timelines = make_timelines([[1, 2, 3], [4], [9, -1, 3, 3, 5, 6]])
    _compare(model, changed, replace(timelines, values=np.linspace(-9, 9, timelines.num_events)))


def test_it_agrees_where_the_catalogue_is_too_large_for_a_table(model, spec, make_timelines, monkeypatch):
    monkeypatch.setattr(newest_module, "TABLE_ITEMS", 5)
    _compare(model, spec, make_timelines([[1, 2, 3], [4], [9, -1, 3, 3, 5, 6]]))


def test_weights_in_training_mode_are_read_without_dropout(spec, make_timelines):
    torch.manual_seed(2)
    model = UserEncoder(replace(spec, dropout=0.5)).train()
    tokens = tokenise(make_timelines([[1, 2, 3], [4, 5]]), spec)
    found = embed_tokens(NewestStates(model, spec.max_length), spec, tokens)
    np.testing.assert_allclose(found, _by_the_model(model.eval(), spec, tokens), atol=2e-6)


def test_half_precision_is_near_the_model(spec, make_timelines):
    torch.manual_seed(3)
    model = UserEncoder(replace(spec, precision="bfloat16")).eval()
    tokens = tokenise(make_timelines([[1, 2, 3], [4], [9, 8, 3, 3, 5, 6]]), spec)
    found = embed_tokens(NewestStates(model, spec.max_length), spec, tokens)
    np.testing.assert_allclose(found, _by_the_model(model, spec, tokens), atol=0.03)


@given(st.lists(st.integers(1, 200), max_size=300))
def test_groups_cover_all_segments_once_and_in_order(lengths):
    runs = split_by_length(np.sort(np.array(lengths, dtype=np.int64)))
    assert [place for start, stop in runs for place in range(start, stop)] == list(range(len(lengths)))


def test_a_long_segment_does_not_pad_many_short_ones():
    assert split_by_length(np.array([3] * 100 + [200])) == [(0, 100), (100, 101)]
    assert split_by_length(np.array([3, 4])) == [(0, 2)]
