"""For whom, and for which items, does a model work? HR@10 and recall@10 in slices, and what else is in the lists.

knowledge        users by what the encoder has of them: HR@10, any target in the unfiltered list. "no vector" users have
                 a history without a wanted event of a known item, "cold" ones have none and are in no other number
history length   users by readable events before the cutoff: HR@10
lifecycle        users by their state at the cutoff: HR@10
item             distinct (user, target) pairs by how often the target had been wanted before the cutoff: recall@10,
                 the share of the pairs whose target is in the unfiltered list; 0 is the cold-item slice
interest entropy entropy in bits of the leaf categories of a list, mean over users with a list (after PinnerFormer,
                 2022, which takes 50 places and interests): 0 for lists of one category, log2(10) for ten different
hide rate        recall of what must not be there: share of the distinct (user, item) pairs refused in the test window
                 (action weight below 0) whose item is in the unfiltered list. Users with a history count, also those
                 who wanted nothing. Short lists have little of anything, so it is read beside recall@10, the same
                 share of the wanted pairs:
hide lift        hide rate / recall. 1: what the user will refuse is as likely in the list as what he will want, as in
                 a list drawn at random; below 1 is better. What is both wanted and refused counts in both. Limits:
                 people refuse only what they saw, and cancel only what they had chosen: where the unwanted action is a
                 cancellation, a good list has a lift above 1
Slices without users (or pairs) are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary

Slices = list[dict[str, Any]]  # name, num (users or pairs), one value for each model
Pairs = tuple[NDArray[np.int64], NDArray[np.int32]]  # user rows, items
END = np.iinfo(np.int64).max
KNOWLEDGE = ("with a vector", "no vector", "cold")
LENGTHS = (("1", 1, 1), ("2-4", 2, 4), ("5-9", 5, 9), ("10-19", 10, 19), ("20-49", 20, 49), ("50+", 50, END))
WANTED = (("0", 0, 0), ("1-4", 1, 4), ("5-19", 5, 19), ("20-99", 20, 99), ("100+", 100, END))


def by_range(
    sizes_N: NDArray[np.int64], values: Mapping[str, NDArray[np.float64]], ranges: Sequence[tuple[str, int, int]]
) -> Slices:
    """Mean of each model's values [N] where low <= size <= high."""
    return _means([(name, (sizes_N >= low) & (sizes_N <= high)) for name, low, high in ranges], values)


def by_label(codes_N: NDArray[np.int8], values: Mapping[str, NDArray[np.float64]], labels: Sequence[str]) -> Slices:
    """Mean of each model's values [N] for each label, in the order of the labels."""
    return _means([(label, codes_N == code) for code, label in enumerate(labels)], values)


def by_knowledge(
    has_vector_S: NDArray[np.bool_], is_cold_O: NDArray[np.bool_], values: Mapping[str, NDArray[np.float64]]
) -> Slices:
    """Mean of each model's values [S + O]: S scored users, then O others, of whom only the cold count."""
    codes = np.concatenate((np.where(has_vector_S, 0, 1), np.where(is_cold_O, 2, -1))).astype(np.int8)
    return by_label(codes, values, KNOWLEDGE)


def distinct_pairs(events: Timelines) -> Pairs:
    """Distinct (user row, item) pairs of the events; all unknown items of a user are one pair, item -1."""
    stride = int(events.items.max(initial=0)) + 2
    keys = np.unique(events.user_rows * stride + events.items + 1)
    return keys // stride, (keys % stride - 1).astype(np.int32)


def pair_hits(
    lists_UK: NDArray[np.int32], rows_N: NDArray[np.int64], items_N: NDArray[np.int32]
) -> NDArray[np.float64]:
    """1.0 where the pair's item is in the user's list, else 0.0 [N]."""
    is_there_NK = (lists_UK[rows_N] == items_N[:, None]) & (items_N[:, None] >= 0)
    hits: NDArray[np.float64] = is_there_NK.any(axis=1).astype(np.float64)
    return hits


def pair_rates(wanted_N: NDArray[np.float64], unwanted_M: NDArray[np.float64]) -> dict[str, float]:
    """recall_at_10, hide_rate_at_10 and hide_lift_at_10 of the hits of both kinds of pairs; absent if undefined."""
    rates: dict[str, float] = {}
    if len(wanted_N):
        rates["recall_at_10"] = float(wanted_N.mean())
    if len(unwanted_M):
        rates["hide_rate_at_10"] = float(unwanted_M.mean())
    if len(unwanted_M) and rates.get("recall_at_10"):
        rates["hide_lift_at_10"] = rates["hide_rate_at_10"] / rates["recall_at_10"]
    return rates


def times_wanted(history: Timelines, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Wanted events of each item before the cutoff, and 0 for an unknown one at the end [I + 1]."""
    is_wanted = (vocabulary.weight_of(history.actions) > 0) & (history.items >= 0)
    return np.bincount(history.items[is_wanted], minlength=vocabulary.num_items + 1)


def interest_entropy(lists_UK: NDArray[np.int32], vocabulary: Vocabulary) -> float | None:
    """Mean entropy in bits of the categories in each user's list; None if no item has a category."""
    names = pl.Series(vocabulary.items.column(Col.CATEGORY)).cast(pl.String)
    if names.null_count() == len(names):
        return None
    codes_I = names.fill_null("").rank("dense").to_numpy().astype(np.int64)
    rows, places = np.nonzero(lists_UK >= 0)
    if len(rows) == 0:
        return None
    stride = int(codes_I.max()) + 1
    keys, counts = np.unique(rows * stride + codes_I[lists_UK[rows, places]], return_counts=True)
    users = keys // stride
    sizes_U = np.bincount(rows, minlength=len(lists_UK))
    shares = counts / sizes_U[users]
    return float(-(shares * np.log2(shares)).sum() / np.count_nonzero(sizes_U))


def _means(masks: list[tuple[str, NDArray[np.bool_]]], values: Mapping[str, NDArray[np.float64]]) -> Slices:
    return [
        {"name": name, "num": int(mask.sum()), **{model: float(held[mask].mean()) for model, held in values.items()}}
        for name, mask in masks
        if mask.any()
    ]
