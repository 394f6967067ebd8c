"""What the simulated arms show: lists of a known quality, from "what is popular" to "what each user likes".

A policy is a table [U, K]: the list that each user is shown at every visit (synthetic.true_effect). Two mixtures of the
same ends differ in the share of the places that hold something of the user's interests, so the true effect of one
instead of the other rises with that share, and a share can be found for every effect wanted.
Limits: a popular item may stand twice in a mixed list; nobody tires of a list that stays the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from sonder.events.synthetic.true_effect import Policy
from sonder.events.synthetic.visits import NO_ITEM, World


def popular(world: World, num_places: int) -> Policy:
    """The same list for everybody: the items that are drawn most often in the last week [U, K]."""
    drawn = np.bincount(world.catalogue.everywhere[-1], minlength=world.catalogue.num_items)
    best = np.argsort(-drawn, kind="stable")[:num_places].astype(np.int32)
    return np.tile(best, (world.people.num_users, 1))


def of_interests(world: World, num_places: int) -> Policy:
    """The most popular items of each user's interests in turn, as they are after the log's end [U, K]."""
    best_CK = _best_of_each_leaf(world, num_places)
    leaves_UJ = world.people.leaf[:, :, 1]
    order = np.argsort(leaves_UJ < 0, axis=1, kind="stable")  # empty slots last
    leaves_UJ = np.take_along_axis(leaves_UJ, order, axis=1)
    num_UJ = np.maximum(1, (leaves_UJ >= 0).sum(axis=1))[:, None]
    places = np.arange(num_places)[None, :]
    leaf = np.take_along_axis(leaves_UJ, places % num_UJ, axis=1)
    lists = np.where(leaf >= 0, best_CK[leaf, places // num_UJ], NO_ITEM)
    return np.where(lists == NO_ITEM, popular(world, num_places), lists).astype(np.int32)


def mixtures(world: World, num_places: int, *, seed: int) -> Callable[[float], Policy]:
    """Lists [U, K] with a share of their places from the user's interests; a larger share keeps the smaller's."""
    base, better = popular(world, num_places), of_interests(world, num_places)
    drawn = np.random.default_rng(seed).random(base.shape)
    return lambda share: np.where(drawn < share, better, base)


def share_for(effect: Callable[[float], float], wanted: float) -> float:
    """The share whose relative effect is the wanted one, to a ten-thousandth; ValueError where none has it."""
    return float(brentq(lambda share: effect(share) - wanted, 0.0, 1.0, xtol=1e-4))


def _best_of_each_leaf(world: World, num_places: int) -> NDArray[np.int32]:
    """Items [C, K] of each leaf, most drawn first; NO_ITEM where a leaf has fewer."""
    quantiles_CM = world.catalogue.by_leaf[-1]
    best = np.full((len(quantiles_CM), num_places), NO_ITEM, dtype=np.int32)
    for leaf, drawn in enumerate(quantiles_CM):
        items, counts = np.unique(drawn, return_counts=True)
        found = items[np.argsort(-counts, kind="stable")][:num_places]
        best[leaf, : len(found)] = found
    return best
