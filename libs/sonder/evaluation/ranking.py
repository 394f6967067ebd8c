"""Full-ranking evaluation of a Split: every item of the vocabulary is a candidate for every user.

Shapes: U users, I items, k list length (10 for every published number).
Targets   the distinct items of `split.targets`. One that no list can name (outside the vocabulary, all of which count
          as a single target, or without a vector) stays a target and is a miss: dropping it would flatter the model.
HR@k      share of users with at least one target in their list.
NDCG@k    binary gains, 1 / log2(1 + place), ideal over min(targets, k) places.
_unseen   items of any event of the user's history are removed from the lists and from the targets; a user whose
          targets are all known is not counted there.
P90 coverage@k   the smallest number of items that fill 90 % of all recommended slots of the unfiltered lists, over
          the number of candidate items (PinnerFormer, section 5.1).
Limits: no sampled negatives, so no number here compares with a paper that samples them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.ids import unit_interval
from sonder.history.cutoffs import Split
from sonder.history.timelines import Timelines
from sonder.retrieval.exact import top_items

K = 10
SAMPLE_KEY = "sonder/evaluation/users/1/"


class Ranker(Protocol):
    """Anything that answers each history with k items: the encoder, a baseline, an approximate index."""

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        """item_index int32 [U, k], best first, -1 where there is nothing to recommend."""
        ...


@dataclass(frozen=True)
class EmbeddingRanker:
    """Inner product of user and item vectors, plus the item's bias. Row u of `user_vectors_UD` is user u's.

    A zero vector knows nothing: such an item is not recommended, such a user gets an empty list. What serving puts in
    its place is evaluation.fallback's.
    """

    user_vectors_UD: NDArray[np.float32]
    item_vectors_ID: NDArray[np.float32]
    item_bias_I: NDArray[np.float32] | None = None

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        if history.num_users != len(self.user_vectors_UD):
            raise ValueError(
                f"{len(self.user_vectors_UD)} user vectors for {history.num_users} users, expected one each"
            )
        trained_I = np.any(self.item_vectors_ID != 0, axis=1)
        excluded = history if exclude_seen else None
        lists, _ = top_items(
            self.user_vectors_UD,
            self.item_vectors_ID,
            k,
            bias_I=self.item_bias_I,
            allowed_I=trained_I,
            exclude=excluded,
        )
        lists[~np.any(self.user_vectors_UD != 0, axis=1)] = -1
        return lists


@dataclass(frozen=True)
class PerUser:
    """Metrics of each user [U]; NaN where the user has no target and is not counted."""

    hit_U: NDArray[np.float64]
    ndcg_U: NDArray[np.float64]

    @property
    def num_users(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.hit_U)))

    @property
    def hit_rate(self) -> float:
        return float(np.nanmean(self.hit_U)) if self.num_users else float("nan")

    @property
    def ndcg(self) -> float:
        return float(np.nanmean(self.ndcg_U)) if self.num_users else float("nan")


def scored_users(split: Split, max_users: int) -> NDArray[np.int64]:
    """Rows of the users to score, ascending: all that can be, or the `max_users` with the lowest digest of their id."""
    rows = np.flatnonzero(split.is_scored)
    if len(rows) <= max_users:
        return rows
    return np.sort(rows[np.argsort(_draw(split, rows), kind="stable")[:max_users]])


def unscored_users(split: Split, max_users: int) -> NDArray[np.int64]:
    """Rows of the users outside the headline who are measured apart, ascending: the cold ones, and those with a
    history who wanted nothing but refused something. Where `max_users` cuts the scored, these are cut by the same
    digest, so that both are the same share of their kind.
    """
    is_refusing = np.zeros(split.history.num_users, dtype=np.bool_)
    if split.unwanted is not None:
        is_refusing = (split.unwanted.lengths > 0) & (split.targets.lengths == 0) & (split.history.lengths > 0)
    rows = np.flatnonzero(split.is_cold | is_refusing)
    scored = scored_users(split, max_users)
    if len(scored) == np.count_nonzero(split.is_scored):
        return rows
    is_drawn: NDArray[np.bool_] = _draw(split, rows) <= _draw(split, scored).max(initial=-1.0)
    return rows[is_drawn]


def _draw(split: Split, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return unit_interval(pl.Series(split.history.user_ids).gather(rows), SAMPLE_KEY)


def take_users(split: Split, rows: NDArray[np.int64]) -> Split:
    unwanted = None if split.unwanted is None else split.unwanted.take(rows)
    return Split(split.history.take(rows), split.targets.take(rows), unwanted)


def score_lists(lists_UK: NDArray[np.int32], split: Split, num_items: int, *, unseen: bool) -> PerUser:
    """Compare one list per user with the user's targets."""
    num_users, k = lists_UK.shape
    stride = num_items + 1  # place 0 of each user is the unknown item
    target_keys = _distinct_keys(split.targets, stride)
    if unseen:
        seen_keys = _distinct_keys(split.history, stride)
        is_unknown = target_keys % stride == 0  # nobody can tell whether two unknown items are the same
        target_keys = target_keys[is_unknown | ~np.isin(target_keys, seen_keys, assume_unique=True)]
    num_targets = np.bincount(target_keys // stride, minlength=num_users)
    list_keys = lists_UK.astype(np.int64) + 1 + np.arange(num_users)[:, None] * stride
    is_hit = np.isin(list_keys, target_keys) & (lists_UK >= 0)
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate(([np.nan], np.cumsum(gains)))[np.minimum(num_targets, k)]
    hit = np.where(num_targets > 0, is_hit.any(axis=1).astype(np.float64), np.nan)
    return PerUser(hit_U=hit, ndcg_U=(is_hit @ gains) / ideal)


def p90_coverage(lists_UK: NDArray[np.int32], num_items: int) -> float:
    """Smallest share of the items that fills 90 % of the recommended slots; 0 if nothing was recommended."""
    slots = np.sort(np.bincount(lists_UK[lists_UK >= 0], minlength=num_items))[::-1]
    if slots.sum() == 0:
        return 0.0
    needed = np.ceil(0.9 * slots.sum() - 1e-9)  # 0.9 x 10 slots are 9 slots, not 9.000000000000002
    return float(np.searchsorted(np.cumsum(slots), needed) + 1) / num_items


def evaluate_seen(ranker: Ranker, split: Split, num_items: int) -> tuple[dict[str, float], PerUser, NDArray[np.int32]]:
    """hr_at_10, ndcg_at_10 and p90_coverage_at_10 of the lists that may repeat what the user already had, and those."""
    lists = ranker.top(split.history, K, exclude_seen=False)
    per_user = score_lists(lists, split, num_items, unseen=False)
    coverage = p90_coverage(lists, num_items)
    metrics = {"hr_at_10": per_user.hit_rate, "ndcg_at_10": per_user.ndcg, "p90_coverage_at_10": coverage}
    return metrics, per_user, lists


def evaluate_unseen(ranker: Ranker, split: Split, num_items: int) -> tuple[dict[str, float], PerUser]:
    """hr_at_10_unseen and ndcg_at_10_unseen, of the lists of new items only."""
    lists = ranker.top(split.history, K, exclude_seen=True)
    per_user = score_lists(lists, split, num_items, unseen=True)
    return {"hr_at_10_unseen": per_user.hit_rate, "ndcg_at_10_unseen": per_user.ndcg}, per_user


def evaluate_ranking(ranker: Ranker, split: Split, num_items: int) -> dict[str, float]:
    """All five metrics of one ranker over all users of a split; NaN where no user is left to be counted."""
    return {**evaluate_seen(ranker, split, num_items)[0], **evaluate_unseen(ranker, split, num_items)[0]}


def _distinct_keys(timelines: Timelines, stride: int) -> NDArray[np.int64]:
    """user * stride + item + 1, sorted, each once."""
    return np.unique(timelines.user_rows * stride + timelines.items.astype(np.int64) + 1)
