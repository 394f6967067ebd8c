"""Training: it learns, it is a function of its seed, and an interruption leaves no trace."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from sonder.core.errors import DataError
from sonder.core.storage import Folder
from sonder.encoder import training
from sonder.encoder.checkpoint import load_state, save_state
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.specification import summarise
from sonder.encoder.training import Limits, TrainingRun


@pytest.fixture
def start(spec, cycle_timelines, make_vocabulary):
    vocabulary = make_vocabulary()
    num = count_eligible(cycle_timelines, vocabulary, cutoff_us=None, window_us=0)
    holdout = hold_out(cycle_timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=num)
    counts = summarise(holdout.visible, vocabulary).targets

    def run(**dials) -> TrainingRun:
        return TrainingRun(replace(spec, **dials), [holdout], counts)

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


def test_a_run_resumed_in_the_middle_of_an_epoch_equals_one_that_was_never_interrupted(start, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PAUSE_STEPS", 2)
    dials = {"dropout": 0.3, "batch_tokens": 16}
    whole = start(**dials)
    whole.fit(Limits(max_epochs=3, patience=9))

    class Killed(Exception):
        pass

    def save_and_die(run):
        if run.progress.epoch == 1 and run.progress.step_of_epoch == 6:
            save_state(run.state(), Folder.at(str(tmp_path)))
        if run.progress.epoch == 1 and run.progress.step_of_epoch == 10:
            raise Killed

    with pytest.raises(Killed):
        start(**dials).fit(Limits(max_epochs=3, patience=9), on_pause=save_and_die)
    second = start(**dials)
    second.resume(load_state(Folder.at(str(tmp_path))))
    assert (second.progress.epoch, second.progress.step_of_epoch) == (1, 6)
    second.fit(Limits(max_epochs=3, patience=9))
    expected = whole.state().tensors
    for name, tensor in second.state().tensors.items():
        assert torch.equal(tensor, expected[name]), name
    assert second.progress.history[1]["loss"] == pytest.approx(whole.progress.history[1]["loss"], rel=1e-12)


def test_a_sparse_table_keeps_the_average_that_a_dense_one_keeps(start):
    """Rows that no step touched still follow: the average of a weight that stands still moves towards it."""
    run = start(is_sparse=True, num_negatives=4, batch_tokens=8)
    keeps, weights = [], [run.model.items.weight.detach().clone()]
    follow = run.average.follow

    def noted(step):
        follow(step)
        keeps.append(min(run.spec.average_decay, (1 + step) / (10 + step)))
        weights.append(run.model.items.weight.detach().clone())

    run.average.follow = noted
    run.train_epoch()
    expected = weights[0]
    for keep, weight in zip(keeps, weights[1:], strict=True):
        expected = keep * expected + (1 - keep) * weight
    assert len(keeps) > 20
    assert all((later != earlier).any(dim=1).sum() < 11 for earlier, later in itertools.pairwise(weights))
    torch.testing.assert_close(run.average.model.items.weight, expected, atol=1e-6, rtol=1e-5)


def test_a_sparse_table_learns_and_resumes_like_a_dense_one(start, tmp_path):
    run = start(is_sparse=True)
    run.fit(Limits(max_epochs=60, patience=60))
    assert run.progress.best_value > 0.95
    first = start(is_sparse=True)
    first.fit(Limits(max_epochs=2, patience=9))
    save_state(first.state(), Folder.at(str(tmp_path)))
    second = start(is_sparse=True)
    second.resume(load_state(Folder.at(str(tmp_path))))
    for unbroken in (first, second):
        unbroken.fit(Limits(max_epochs=4, patience=9))
    expected = first.state().tensors
    assert second.state().tensors.keys() == expected.keys()
    for name, tensor in second.state().tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)


def test_bfloat16_learns_the_same_walk(start):
    run = start(precision="bfloat16")
    run.fit(Limits(max_epochs=60, patience=60))
    assert run.progress.best_value > 0.95
    assert all(tensor.dtype != torch.bfloat16 for tensor in run.state().tensors.values())


def test_what_users_hide_ends_below_what_they_want(spec, make_timelines, make_vocabulary):
    """Everybody wants the next item of the circle and hides the one after it; only the loss's own term sees hides."""
    vocabulary = make_vocabulary()
    walks = [[(start + step) % 10 for step in range(6)] for start in range(60)]
    items = [[item for place in walk for item in (place, (place + 2) % 10)] for walk in walks]
    timelines = make_timelines(items, actions=[[0, 1] * 6 for _ in walks])
    holdout = hold_out(timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=60)
    counts = summarise(holdout.visible, vocabulary).targets
    refusing = replace(spec, action_weights=(1.0, -5.0, 0.0))
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for seed, has_unwanted in itertools.product((1, 2, 3), (False, True)):  # one seed alone says too little
        run = TrainingRun(replace(refusing, has_unwanted=has_unwanted, seed=seed), [holdout], counts)
        run.fit(Limits(max_epochs=12, patience=12))
        encoder = run.state().encoder()
        users = embed_users(encoder, timelines.before(6 * 60 * 1_000_000), as_of_us=10**15)
        scores = users @ encoder.item_vectors.T
        wanted, hidden = ([(walk[2] + step) % 10 for walk in walks] for step in (1, 3))
        rows = np.arange(60)
        gaps[has_unwanted].append(float((scores[rows, wanted] - scores[rows, hidden]).mean()))
    assert np.mean(gaps[True]) > np.mean(gaps[False]) + 0.1


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
        TrainingRun(spec, [holdout], np.zeros(10, dtype=np.int64))
