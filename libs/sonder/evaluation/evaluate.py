"""Encoder, popularity and item-kNN side by side on one split.

The flat metrics are `retrieval.{encoder,popularity,item_knn}.{hr_at_10,ndcg_at_10,hr_at_10_unseen,ndcg_at_10_unseen,
p90_coverage_at_10,interest_entropy_at_10}` (evaluation.ranking and .slices define them); a metric that cannot be
measured is absent and `reason` says why. Past MAX_USERS users with targets, those with the lowest keyed digest of
their id are scored: the same ones in every run and for every model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import Protocol
from sonder.core.telemetry import stage
from sonder.evaluation.baselines import Popularity
from sonder.evaluation.health import embedding_health
from sonder.evaluation.item_knn import ItemKnn
from sonder.evaluation.ranking import (
    EmbeddingRanker,
    K,
    Ranker,
    evaluate_seen,
    evaluate_unseen,
    scored_users,
    take_users,
)
from sonder.evaluation.slices import (
    LENGTHS,
    WANTED,
    by_label,
    by_range,
    interest_entropy,
    pair_hits,
    target_pairs,
    times_wanted,
)
from sonder.evaluation.tuning import BaselineSettings, choose_settings
from sonder.history.cutoffs import Split
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.segments.lifecycle import STATES

MAX_USERS = 50_000
MODELS = ("encoder", "popularity", "item_knn")


@dataclass(frozen=True)
class RetrievalEvaluation:
    """What was measured. `metrics` is flat and goes into metrics.json; `health` is nested and explains it.

    health: users_with_targets, users_scored, users_unseen, users_cold, sampling (a sentence or None),
    settings (of the baselines, as validation chose them), vectors {users, items} (evaluation.health),
    slices {hr_at_10_by_history_length, hr_at_10_by_lifecycle (if told), recall_at_10_by_item} (evaluation.slices).
    """

    metrics: dict[str, float]
    health: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None  # why metrics are missing


def evaluate_retrieval(
    split: Split,
    validation: Split | None,
    vocabulary: Vocabulary,
    user_vectors_UD: NDArray[np.float32],
    item_vectors_ID: NDArray[np.float32],
    *,
    protocol: Protocol,
    item_bias_I: NDArray[np.float32] | None = None,
    lifecycle_U: NDArray[np.int8] | None = None,
    max_users: int = MAX_USERS,
) -> RetrievalEvaluation:
    """Measure the three on the users of `split`; row u of `user_vectors_UD` embeds `split.history`'s user u.

    `validation` is an earlier split of the same log: only the baselines' settings are chosen on it. `lifecycle_U` has
    the state of each user at the cutoff, an index into segments' STATES.
    """
    if len(user_vectors_UD) != split.history.num_users:
        raise ValueError(
            f"{len(user_vectors_UD)} user vectors, expected one for each of {split.history.num_users} users"
        )
    if len(item_vectors_ID) != vocabulary.num_items:
        raise ValueError(f"{len(item_vectors_ID)} item vectors, expected one for each of {vocabulary.num_items} items")
    health: dict[str, Any] = {
        "users_with_targets": int(split.is_scored.sum()),
        "users_cold": int(split.is_cold.sum()),
        "vectors": {"users": embedding_health(user_vectors_UD), "items": embedding_health(item_vectors_ID)},
    }
    if vocabulary.num_items <= K:
        return RetrievalEvaluation({}, health, f"{vocabulary.num_items} items: a list of {K} would name them all")
    rows = scored_users(split, max_users)
    if not len(rows):
        return RetrievalEvaluation({}, health, "no user has both a history before the cutoff and a target after it")
    settings = choose_settings(validation, vocabulary, protocol=protocol)
    encoder = EmbeddingRanker(user_vectors_UD[rows], item_vectors_ID, item_bias_I)
    states = None if lifecycle_U is None else lifecycle_U[rows]
    return _compare(encoder, take_users(split, rows), split.history, settings, vocabulary, health, states)


def _compare(
    encoder: Ranker,
    asked: Split,
    everyone: Timelines,
    settings: BaselineSettings,
    vocabulary: Vocabulary,
    health: dict[str, Any],
    lifecycle_U: NDArray[np.int8] | None,
) -> RetrievalEvaluation:
    knn = ItemKnn.fit(everyone, vocabulary)
    seen_days, unseen_days = settings.popularity_seen, settings.popularity_unseen
    contestants: dict[str, tuple[Ranker, Ranker]] = {  # for lists with, and without, what the user already had
        "encoder": (encoder, encoder),
        "popularity": (
            Popularity.fit(everyone, vocabulary, window_days=seen_days),
            Popularity.fit(everyone, vocabulary, window_days=unseen_days),
        ),
        "item_knn": (knn.with_settings(settings.item_knn_seen), knn.with_settings(settings.item_knn_unseen)),
    }
    metrics: dict[str, float] = {}
    hits: dict[str, NDArray[np.float64]] = {}
    pairs: dict[str, NDArray[np.float64]] = {}
    rows_N, items_N = target_pairs(asked)
    wanted_I = times_wanted(everyone, vocabulary)
    unseen_users = 0
    for name, (with_seen, only_new) in contestants.items():
        with stage("evaluation.rank", model=name, users=asked.history.num_users, items=vocabulary.num_items) as counts:
            seen, per_user, lists_UK = evaluate_seen(with_seen, asked, vocabulary.num_items)
            unseen, new_only = evaluate_unseen(only_new, asked, vocabulary.num_items)
            unseen_users = new_only.num_users
            measured = {key: value for key, value in {**seen, **unseen}.items() if not math.isnan(value)}
            entropy = interest_entropy(lists_UK, vocabulary)
            measured |= {} if entropy is None else {"interest_entropy_at_10": entropy}
            hits[name], pairs[name] = per_user.hit_U, pair_hits(lists_UK, rows_N, items_N)
            counts.update(measured)
        metrics |= {f"retrieval.{name}.{key}": value for key, value in measured.items()}
    health |= {
        "users_scored": asked.history.num_users,
        "users_unseen": unseen_users,
        "sampling": _sampling(asked.history.num_users, health["users_with_targets"]),
        "settings": settings.to_dict(),
        "slices": {
            "hr_at_10_by_history_length": by_range(asked.history.lengths, hits, LENGTHS),
            "recall_at_10_by_item": by_range(wanted_I[items_N], pairs, WANTED),
        },
    }
    if lifecycle_U is not None:
        health["slices"]["hr_at_10_by_lifecycle"] = by_label(lifecycle_U, hits, STATES)
    reason = None if unseen_users else "no user has a target that is new: their metrics are absent"
    return RetrievalEvaluation(metrics, health, reason)


def _sampling(scored: int, eligible: int) -> str | None:
    if scored == eligible:
        return None
    return f"{scored:,} of {eligible:,} users with targets were scored, drawn by a digest of their id"
