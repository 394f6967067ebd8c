"""Targets, negatives and the loss: the fast path is held to a readable one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sonder.encoder import objective
from sonder.encoder.batching import tokenise
from sonder.encoder.objective import (
    Negatives,
    NegativeSampler,
    Popularity,
    loses_to_unwanted,
    own_positives,
    sampled_softmax,
    set_goals,
)


def readable_loss(states, positives, negatives, log_q, cells, scale, popularity, weights):
    """-log of the positive's share, negatives weighted by 1 / P(drawn), own positives left out; a weighted mean."""
    losses = []
    for row in range(len(states)):
        liked = popularity.weight * popularity.of_negatives_PK[popularity.points_M[row]]
        wanted = scale * (states[row] @ positives[row]) + popularity.weight * popularity.of_positives_M[row]
        terms = [wanted]
        for slot in range(len(negatives)):
            if (row, slot) not in cells:
                terms.append(scale * (states[row] @ negatives[slot]) + liked[slot] - log_q[slot])
        losses.append(torch.logsumexp(torch.stack(terms), dim=0) - wanted)
    return (torch.stack(losses) * weights).sum() / weights.sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 6), st.floats(1.0, 20.0), st.integers(0, 2**31), st.data())
def test_the_loss_and_its_gradients_are_those_of_the_readable_one(num_rows, num_slots, dim, scale, seed, data):
    random = torch.Generator().manual_seed(seed)
    cells = data.draw(st.sets(st.tuples(st.integers(0, num_rows - 1), st.integers(0, num_slots - 1)), max_size=6))
    num_points = data.draw(st.integers(1, 3))
    ordered = sorted(cells)
    arrays = (np.array([r for r, _ in ordered], dtype=np.int64), np.array([s for _, s in ordered], dtype=np.int64))
    log_q = -torch.rand(num_slots, dtype=torch.float64, generator=random) * 3
    points = torch.randint(num_points, (num_rows,), generator=random)
    shares = [
        -9 * torch.rand(*n, dtype=torch.float64, generator=random) for n in ((num_rows,), (num_points, num_slots))
    ]
    weights = 0.1 + torch.rand(num_rows, dtype=torch.float64, generator=random)
    results = []
    for loss_of, own in ((sampled_softmax, arrays), (readable_loss, cells)):
        again = torch.Generator().manual_seed(seed + 1)
        raw = [
            torch.randn(n, dim, dtype=torch.float64, generator=again).requires_grad_()
            for n in (num_rows, num_rows, num_slots)
        ]
        heat, weight = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (scale, 0.7))
        unit = [functional.normalize(x, dim=-1) for x in raw]
        loss = loss_of(*unit, log_q, own, heat, Popularity(weight, points, *shares), weights)
        loss.backward()
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*raw, heat, weight)]
        results.append([loss.item(), *(gradient.numpy() for gradient in gradients)])
    for fast, readable in zip(*results, strict=True):
        np.testing.assert_allclose(fast, readable, rtol=1e-8, atol=1e-10)


def drawn_items(goals, seed=0):
    """The item that each token shall predict, -1 where there is none."""
    draws = goals.draw(np.random.default_rng(seed))
    cells, places = draws.at(np.arange(len(goals.firsts)))
    items = np.full(len(goals.firsts), -1)
    items[cells] = goals.items[places]
    return items


def test_next_action_predicts_the_next_wanted_item_and_skips_unwanted_ones(spec, make_timelines):
    tokens = tokenise(make_timelines([[1, 2, 3, 4], [5]], actions=[[0, 1, 0, 1], [0]]), spec)
    assert drawn_items(set_goals(tokens, spec)).tolist() == [3, 3, -1, -1, -1]


def test_a_goal_weighs_what_its_action_weighs(spec, make_timelines):
    weighed = replace(spec, action_weights=(5.0, -1.0, 0.5))
    tokens = tokenise(make_timelines([[1, 2, 3, 4]], actions=[[0, 2, 1, 0]]), weighed)
    goals = set_goals(tokens, weighed)
    assert (goals.items.tolist(), goals.weights.tolist()) == ([1, 2, 4], [5.0, 0.5, 5.0])


def test_events_that_were_only_shown_are_no_tokens(spec, make_timelines):
    tokens = tokenise(make_timelines([[1, 2, 3]], actions=[[0, 2, 0]]), spec)
    assert tokens.items.tolist() == [1, 3]


def test_an_unknown_item_is_a_token_but_never_a_target(spec, make_timelines):
    tokens = tokenise(make_timelines([[1, -1, 99, 3]]), spec)
    assert tokens.items.tolist() == [1, 10, 10, 3]
    assert drawn_items(set_goals(tokens, spec)).tolist() == [3, 3, 3, -1]


def test_dense_targets_come_from_the_window_of_the_same_user_and_change_between_draws(dense_spec, make_timelines):
    times = [[0, 40, 90, 101, 300], [0, 50, 60]]
    tokens = tokenise(make_timelines([[1, 2, 3, 4, 5], [6, 7, 8]], times_s=times), dense_spec)
    goals = set_goals(tokens, dense_spec)
    draws = np.array([drawn_items(goals, seed) for seed in range(60)])
    assert [set(column.tolist()) for column in draws.T] == [{2, 3}, {3, 4}, {4}, {-1}, {-1}, {7, 8}, {8}, {-1}]


@pytest.mark.parametrize("block_tokens", [objective._BLOCK_TOKENS, 5])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(st.lists(st.integers(0, 300), max_size=8), min_size=1, max_size=5), window_s=st.integers(1, 200))
def test_dense_targets_equal_a_search_event_by_event(
    dense_spec, make_timelines, monkeypatch, times, window_s, block_tokens
):
    monkeypatch.setattr(objective, "_BLOCK_TOKENS", block_tokens)
    times = [sorted(row) for row in times]
    timelines = make_timelines([[i % 10 for i in range(len(row))] for row in times], times_s=times)
    spec = replace(dense_spec, window_us=window_s * 1_000_000)
    goals = set_goals(tokenise(timelines, spec), spec)
    expected = [
        [i % 10 for i in range(at + 1, len(row)) if row[i] <= row[at] + window_s]
        for row in times
        for at in range(len(row))
    ]
    assert [goals.items[a:b].tolist() for a, b in zip(goals.firsts, goals.stops, strict=True)] == expected


@pytest.mark.parametrize("kind", ["next_action", "dense_all_action", "all_action"])
def test_draws_are_the_same_whatever_is_drawn_at_once(dense_spec, make_timelines, monkeypatch, kind):
    random = np.random.default_rng(3)
    times = [sorted(random.integers(0, 400, random.integers(0, 30)).tolist()) for _ in range(40)]
    timelines = make_timelines([random.integers(0, 10, len(row)).tolist() for row in times], times_s=times)
    spec = replace(dense_spec, objective=kind)
    drawn = []
    for block_tokens in (objective._BLOCK_TOKENS, 7):
        monkeypatch.setattr(objective, "_BLOCK_TOKENS", block_tokens)
        draws = set_goals(tokenise(timelines, spec), spec).draw(np.random.default_rng(1))
        drawn.append((draws.offsets.tolist(), draws.places.tolist()))
    assert drawn[0] == drawn[1]
    assert len(drawn[0][1]) > 20


def test_an_item_that_an_event_may_have_to_predict_is_not_its_negative(dense_spec, make_timelines):
    goals = set_goals(tokenise(make_timelines([[1, 2, 3], [4, 2]]), dense_spec), dense_spec)
    rows, items = goals.of(np.array([0, 2, 3]))
    assert list(zip(rows, items, strict=True)) == [(0, 2), (2, 2)]
    negatives = Negatives(items=np.array([2, 5]), log_q=np.zeros(2, dtype=np.float32))
    cell_rows, slots = own_positives(negatives, rows, items)
    assert list(zip(cell_rows, slots, strict=True)) == [(0, 0), (2, 0)]


def test_log_q_is_the_logarithm_of_how_often_an_item_is_drawn():
    counts = np.array([500, 100, 50, 20, 5, 1, 0, 1, 1, 1])
    drawn_from = np.repeat(np.arange(10), counts).astype(np.int32)
    sampler = NegativeSampler(counts, drawn_from, num=6)
    random, seen = np.random.default_rng(1), np.zeros(10)
    for _ in range(4000):
        seen[sampler.draw(random).items] += 1
    assert seen[6] == 0
    drawn = np.flatnonzero(counts)
    np.testing.assert_allclose(np.exp(sampler.log_q[drawn]), seen[drawn] / 4000, atol=0.03)


def test_without_the_correction_every_negative_counts_once():
    counts = np.array([500, 3, 1])
    drawn_from = np.repeat(np.arange(3), counts).astype(np.int32)
    assert NegativeSampler(counts, drawn_from, num=2, corrects=False).log_q.tolist() == [0, 0, 0]
    assert NegativeSampler(counts, drawn_from, num=2).log_q[1] < NegativeSampler(counts, drawn_from, num=2).log_q[0]


def test_all_action_predicts_from_the_one_event_that_a_whole_window_follows(dense_spec, make_timelines):
    spec = replace(dense_spec, objective="all_action")  # a window of 100 s; the log ends at 300 s
    timelines = make_timelines([[1, 2, 3, 4, 5], [6, 7], [8]], times_s=[[0, 150, 190, 250, 300], [260, 280], [10]])
    goals = set_goals(tokenise(timelines, spec), spec)
    runs = [goals.items[a:b].tolist() for a, b in zip(goals.firsts, goals.stops, strict=True)]
    # user 0 from 190 s; user 1 has no event that early, so his newest with goals; user 2 wants nothing more
    assert runs == [[], [], [4], [], [], [7], [], []]
    within = replace(spec, window_us=160 * 1_000_000)
    goals = set_goals(tokenise(timelines, within), within)
    assert goals.items[goals.firsts[0] : goals.stops[0]].tolist() == [2]
    cells, _ = goals.draw(np.random.default_rng(0)).at(np.arange(len(goals.firsts)))
    assert cells.tolist() == [0, 5]
    later = replace(spec, window_us=120 * 1_000_000)
    goals = set_goals(tokenise(timelines, later), later)
    draws = goals.draw(np.random.default_rng(0))
    cells, places = draws.at(np.array([-1, 1, 0, 5]))
    assert (cells.tolist(), goals.items[places].size) == ([1, 1, 3], 3)


def test_what_a_user_hides_next_is_what_its_event_shall_not_predict(spec, make_timelines):
    spec = replace(spec, action_weights=(1.0, -2.0, 0.0))
    tokens = tokenise(make_timelines([[1, 2, 3, 4], [5, 6]], actions=[[0, 1, 0, 1], [0, 2]]), spec)
    unwanted = set_goals(tokens, spec, unwanted=True)
    assert (unwanted.items.tolist(), unwanted.weights.tolist()) == ([2, 4], [2.0, 2.0])
    assert drawn_items(unwanted).tolist() == [2, 4, 4, -1, -1]


def test_losing_to_the_unwanted_item_costs_the_logistic_of_the_lead():
    states, wanted, unwanted = (torch.tensor([row]) for row in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    lost = loses_to_unwanted(states, wanted, unwanted, torch.tensor(3.0), torch.tensor([2.0]))
    assert lost.item() == pytest.approx(2 * np.log1p(np.exp(-3.0)), rel=1e-6)


def test_with_as_many_negatives_as_items_the_softmax_is_full():
    sampler = NegativeSampler(np.array([3, 0, 1]), np.array([0, 0, 0, 2], dtype=np.int32), num=2)
    negatives = sampler.draw(np.random.default_rng(0))
    assert negatives.items.tolist() == [0, 2]
    assert negatives.log_q.tolist() == [0.0, 0.0]
