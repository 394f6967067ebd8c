"""Training: it learns, it is a function of its seed, and an interruption leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sonder.core.errors import DataError
from sonder.core.storage import Folder
from sonder.encoder.checkpoint import load_state, save_state
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.specification import summarise
from sonder.encoder.training import Limits, TrainingRun


@pytest.fixture
def start(spec, cycle_timelines, make_vocabulary):
    vocabulary = make_vocabulary()
    num = count_eligible(cycle_timelines, vocabulary, cutoff_us=None, window_us=0)
    holdout = hold_out(cycle_timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=num)
    counts = summarise(holdout.visible, vocabulary).targets

    def run(**dials) -> TrainingRun:
        return TrainingRun(replace(spec, **dials), holdout, counts)

    return run


@pytest.mark.parametrize("objective", ["next_action", "dense_all_action"])
def test_it_learns_a_walk_whose_next_item_is_certain(start, objective):
    run = start(objective=objective, window_us=60 * 10**6)
    run.fit(Limits(max_epochs=60, patience=60))
    assert run.progress.history[0]["loss"] > 1.5
    assert run.progress.best_value > 0.95


def test_the_same_seed_gives_the_same_encoder_and_another_seed_another_one(start):
    digests = []
    for seed in (3, 3, 4):
        run = start(dropout=0.3, seed=seed)
        run.fit(Limits(max_epochs=2, patience=9))
        digests.append(run.state().encoder().digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_resumed_run_equals_one_that_was_never_interrupted(start, tmp_path):
    whole = start(dropout=0.3)
    whole.fit(Limits(max_epochs=4, patience=9))
    first = start(dropout=0.3)
    first.fit(Limits(max_epochs=2, patience=9))
    save_state(first.state(), Folder.at(str(tmp_path)))
    second = start(dropout=0.3)
    second.resume(load_state(Folder.at(str(tmp_path))))
    second.fit(Limits(max_epochs=4, patience=9))
    expected = whole.state().tensors
    assert second.state().tensors.keys() == expected.keys()
    for name, tensor in second.state().tensors.items():
        assert torch.equal(tensor, expected[name]), name
    assert [e["loss"] for e in second.progress.history] == [e["loss"] for e in whole.progress.history]


def test_it_stops_when_validation_no_longer_gets_better_and_keeps_the_best_weights(start):
    run = start(learning_rate=0.0)
    run.fit(Limits(max_epochs=50, patience=3))
    assert (run.progress.epoch, run.progress.best_epoch) == (4, 1)
    moved = start()
    moved.fit(Limits(max_epochs=3, patience=9))
    best = moved.progress.best_epoch
    again = start()
    again.fit(Limits(max_epochs=best, patience=9))
    for name, tensor in again.state().part("average.").items():
        assert torch.equal(tensor, moved.best[name])


def test_it_stops_at_the_first_epoch_after_its_minutes(start):
    run = start()
    run.fit(Limits(max_epochs=50, patience=50, max_minutes=1e-9))
    assert run.progress.epoch == 1


def test_the_caller_keeps_its_own_random_numbers(start):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start(dropout=0.3).fit(Limits(max_epochs=1, patience=1))
    assert torch.equal(torch.rand(3), expected)


def test_training_without_a_wanted_event_says_so(spec, make_timelines, make_vocabulary):
    vocabulary = make_vocabulary()
    hidden = make_timelines([[1, 2]], actions=[[1, 1]])
    holdout = hold_out(hidden, vocabulary, cutoff_us=None, window_us=0, num_eligible=0)
    with pytest.raises(DataError, match="no wanted event"):
        TrainingRun(spec, holdout, np.zeros(10, dtype=np.int64))
