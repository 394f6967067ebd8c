"""The model: what a state may depend on, and what must stay zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sonder.encoder.batching import collate, tokenise
from sonder.encoder.model import UserEncoder, drop
from sonder.encoder.specification import EncoderSpec


@pytest.fixture
def model(spec: EncoderSpec) -> UserEncoder:
    torch.manual_seed(0)
    return UserEncoder(spec).eval()


def states(model, spec, timelines, start, stop):
    tokens = tokenise(timelines, spec)
    with torch.no_grad():
        return model(collate(tokens, spec, np.array([start]), np.array([stop])))[0].numpy()


def test_a_later_event_changes_no_earlier_state(model, spec, make_timelines):
    one = states(model, spec, make_timelines([[1, 2, 3, 4, 5]]), 0, 5)
    other = states(model, spec, make_timelines([[1, 2, 3, 9, 8]], actions=[[0, 0, 0, 1, 0]]), 0, 5)
    np.testing.assert_array_equal(one[:3], other[:3])
    assert not np.allclose(one[3:], other[3:])


def test_every_earlier_event_changes_the_last_state(model, spec, make_timelines):
    last = states(model, spec, make_timelines([[1, 2, 3, 4]]), 0, 4)[-1]
    for changed in ([9, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 9]):
        assert not np.allclose(states(model, spec, make_timelines([changed]), 0, 4)[-1], last, atol=1e-4)


def test_padding_changes_no_state(model, spec, make_timelines):
    tokens = tokenise(make_timelines([[1, 2, 3], [4, 5, 6, 7, 8, 9, 1]]), spec)
    with torch.no_grad():
        alone = model(collate(tokens, spec, np.array([0]), np.array([3])))[0]
        padded = model(collate(tokens, spec, np.array([0, 3]), np.array([3, 10])))[0, :3]
    np.testing.assert_allclose(padded.numpy(), alone.numpy(), atol=1e-6)


def test_a_click_and_a_hide_of_the_same_item_differ(model, spec, make_timelines):
    wanted = states(model, spec, make_timelines([[1, 2]], actions=[[0, 0]]), 0, 2)
    hidden = states(model, spec, make_timelines([[1, 2]], actions=[[0, 1]]), 0, 2)
    assert not np.allclose(wanted[1], hidden[1], atol=1e-3)


def test_the_gap_between_events_matters_only_when_the_log_has_real_time(spec, make_timelines):
    for reads_time in (True, False):
        torch.manual_seed(0)
        model = UserEncoder(replace(spec, reads_time=reads_time)).eval()
        quick = states(model, spec, make_timelines([[1, 2]], times_s=[[0, 10]]), 0, 2)
        slow = states(model, spec, make_timelines([[1, 2]], times_s=[[0, 86_400 * 9]]), 0, 2)
        assert np.allclose(quick, slow, atol=1e-5) is not reads_time


def test_padding_and_unknown_items_receive_no_gradient(model, spec, make_timelines):
    tokens = tokenise(make_timelines([[1, 2, -1], [4, 5, 6, 7, 8]]), spec)
    states_BTD = model.train()(collate(tokens, spec, np.array([0, 3]), np.array([3, 8])))
    states_BTD.square().sum().backward()
    states_BTD = model(collate(tokens, spec, np.array([0, 3]), np.array([3, 8])))
    (states_BTD[:, :, 0].sum()).backward()
    for table in (model.items, model.actions, model.surfaces, model.gaps, model.hours, model.ages):
        assert table.weight.grad[-1].abs().sum() == 0
        assert table.weight[-1].abs().sum() == 0
    assert model.items.weight.grad[4].abs().sum() > 0


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(0)
    dropped = drop(torch.ones(200_000), 0.3, True)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(drop(torch.ones(9), 0.3, False), torch.ones(9))
