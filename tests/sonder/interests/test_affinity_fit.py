"""What is fitted on a population whose preferences are known comes true in the period that follows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.interests.affinity import AffinityModel, evidence_of, level_shares
from sonder.interests.affinity_fit import DEFAULT_STRENGTH, fit_affinity, population_shares
from sonder.interests.taxonomy import Taxonomy
from tests.tiny_log import ACTIONS, timelines_of, vocabulary_of

NUM_CATEGORIES, CUTOFF_DAY, END_DAY = 6, 90, 120
VOCABULARY = vocabulary_of([f"c{category}" for category in range(NUM_CATEGORIES)])
TREE = Taxonomy.of_paths(VOCABULARY.items.column("category"))


def people(num_users: int = 800, seed: int = 3, hides: float = 0.3) -> Timelines:
    """Users with a taste of their own (Dirichlet), 12 actions on average, who refuse what is not to their taste."""
    draw = np.random.default_rng(seed)
    lengths = 1 + draw.poisson(12, num_users)
    tastes_UC = draw.dirichlet(3 * np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05]), num_users)
    items, actions, times = [], [], []
    for taste, length in zip(tastes_UC, lengths, strict=True):
        is_hide = draw.random(length) < hides
        distaste = np.exp(-20 * taste) / np.exp(-20 * taste).sum()
        wanted, refused = draw.choice(NUM_CATEGORIES, length, p=taste), draw.choice(NUM_CATEGORIES, length, p=distaste)
        items.append(np.where(is_hide, refused, wanted))
        actions.append(np.where(is_hide, ACTIONS.index("hide"), ACTIONS.index("buy")))
        times.append(np.sort(draw.uniform(0, END_DAY, length)))
    num = int(lengths.sum())
    return Timelines(
        user_ids=pa.array([f"u{user}" for user in range(num_users)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate(items).astype(np.int32),
        actions=np.concatenate(actions).astype(np.int16),
        surfaces=np.full(num, -1, np.int16),
        times_us=(np.concatenate(times) * DAY).astype(np.int64),
        values=np.full(num, np.nan),
    )


def fit(timelines: Timelines) -> AffinityModel:
    return fit_affinity(timelines, VOCABULARY, TREE, as_of_us=CUTOFF_DAY * DAY, horizon_days=30)


@pytest.fixture(scope="module")
def world() -> Timelines:
    return people()


def test_a_share_comes_true_in_the_next_period(world: Timelines) -> None:
    model, cutoff_us = fit(world), CUTOFF_DAY * DAY
    evidence = evidence_of(
        world.before(cutoff_us), VOCABULARY, TREE.codes_LI[0], as_of_us=cutoff_us, half_life_days=model.half_life_days
    )
    shares = level_shares(evidence, model.levels[0])
    window = world.between(cutoff_us, END_DAY * DAY)
    window = window.keep(VOCABULARY.weight_of(window.actions) > 0)
    came_UC = np.zeros((world.num_users, NUM_CATEGORIES))
    np.add.at(came_UC, (window.user_rows, window.items), 1)
    is_seen = came_UC.sum(axis=1)[evidence.users] > 0
    came = (came_UC / np.maximum(came_UC.sum(axis=1, keepdims=True), 1))[evidence.users, evidence.categories]
    bins = np.digitize(shares[is_seen], [0.1, 0.2, 0.3, 0.5])
    gaps = (np.bincount(bins, shares[is_seen]) - np.bincount(bins, came[is_seen])) / np.bincount(bins)
    assert np.bincount(bins).min() > 30
    assert np.abs(gaps).max() < 0.06
    assert shares.max() > 0.6


def test_tastes_that_last_get_a_long_half_life_and_a_prior_near_the_true_one(world: Timelines) -> None:
    model = fit(world)
    assert model.half_life_days > CUTOFF_DAY / 4
    assert 1 < model.levels[0].prior_strength < 9  # tastes were drawn with 3
    assert model.num_users > 400


def test_a_refusal_counts_where_users_refuse_what_they_do_not_want(world: Timelines) -> None:
    draw = np.random.default_rng(0)
    actions = world.actions.copy()
    is_hide = actions == ACTIONS.index("hide")
    items = world.items.copy()
    items[is_hide] = draw.integers(0, NUM_CATEGORIES, is_hide.sum())  # at random: a refusal says nothing
    noise = Timelines(world.user_ids, world.offsets, items, actions, world.surfaces, world.times_us, world.values)
    assert fit(world).levels[0].aversion > fit(noise).levels[0].aversion


def test_nothing_at_the_moment_or_later_is_read(world: Timelines) -> None:
    assert fit(world) == fit(world.before(CUTOFF_DAY * DAY))


def test_the_population_is_of_users_not_of_actions() -> None:
    log = timelines_of({"busy": [(1.0, 0, "buy")] * 1_000, **{f"u{n}": [(1.0, 1, "buy")] for n in range(9)}})
    shares = population_shares(log, VOCABULARY, TREE.codes_LI[0], as_of_us=2 * DAY, half_life_days=1e6)
    assert shares.sum() == pytest.approx(1)
    assert shares[1] > 4 * shares[0]
    assert shares[5] > 0


def test_too_few_users_get_defaults() -> None:
    model = fit(people(num_users=20))
    assert (model.num_users, model.levels[0].prior_strength, model.levels[0].curve_raw) == (0, DEFAULT_STRENGTH, ())


def test_a_model_survives_json(world: Timelines) -> None:
    model = fit(world)
    assert AffinityModel.from_dict(model.to_dict()) == model
