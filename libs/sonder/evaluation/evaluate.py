"""Encoder, popularity and item-kNN side by side on one split.

The flat metrics are `retrieval.{encoder,popularity,item_knn}.{hr_at_10,ndcg_at_10,hr_at_10_unseen,ndcg_at_10_unseen,
p90_coverage_at_10}` (evaluation.ranking defines them); a metric that cannot be measured is absent and `reason` says
why. Past MAX_USERS users with targets, those with the lowest keyed digest of their id are scored: the same ones in
every run and for every model.
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
    PerUser,
    Ranker,
    evaluate_seen,
    evaluate_unseen,
    scored_users,
    take_users,
)
from sonder.evaluation.tuning import BaselineSettings, choose_settings
from sonder.history.cutoffs import Split
from sonder.history.vocabulary import Vocabulary

MAX_USERS = 50_000
MODELS = ("encoder", "popularity", "item_knn")
LENGTH_SLICES: tuple[tuple[str, int, int], ...] = (
    ("1", 1, 1),
    ("2-4", 2, 4),
    ("5-9", 5, 9),
    ("10-19", 10, 19),
    ("20-49", 20, 49),
    ("50+", 50, np.iinfo(np.int64).max),
)


@dataclass(frozen=True)
class RetrievalEvaluation:
    """What was measured. `metrics` is flat and goes into metrics.json; `health` is nested and explains it.

    health: users_with_targets, users_scored, users_unseen, users_cold, sampling (a sentence or None),
    settings (of the baselines, as validation chose them), vectors {users, items} (evaluation.health),
    hr_at_10_by_history_length {slice: {users, encoder, popularity, item_knn}}.
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
    max_users: int = MAX_USERS,
) -> RetrievalEvaluation:
    """Measure the three on the users of `split`; row u of `user_vectors_UD` embeds `split.history`'s user u.

    `validation` is an earlier split of the same log: only the baselines' settings are chosen on it.
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
    return _compare(encoder, split, rows, settings, vocabulary, health)


def _compare(
    encoder: Ranker,
    split: Split,
    rows: NDArray[np.int64],
    settings: BaselineSettings,
    vocabulary: Vocabulary,
    health: dict[str, Any],
) -> RetrievalEvaluation:
    asked = take_users(split, rows)
    knn = ItemKnn.fit(split.history, vocabulary)
    seen_days, unseen_days = settings.popularity_seen, settings.popularity_unseen
    contestants: dict[str, tuple[Ranker, Ranker]] = {  # for lists with, and without, what the user already had
        "encoder": (encoder, encoder),
        "popularity": (
            Popularity.fit(split.history, vocabulary, window_days=seen_days),
            Popularity.fit(split.history, vocabulary, window_days=unseen_days),
        ),
        "item_knn": (knn.with_settings(settings.item_knn_seen), knn.with_settings(settings.item_knn_unseen)),
    }
    metrics: dict[str, float] = {}
    per_user: dict[str, PerUser] = {}
    unseen_users = 0
    for name, (with_seen, only_new) in contestants.items():
        with stage("evaluation.rank", model=name, users=len(rows), items=vocabulary.num_items) as counts:
            seen, per_user[name] = evaluate_seen(with_seen, asked, vocabulary.num_items)
            unseen, new_only = evaluate_unseen(only_new, asked, vocabulary.num_items)
            unseen_users = new_only.num_users
            measured = {key: value for key, value in {**seen, **unseen}.items() if not math.isnan(value)}
            counts.update(measured)
        metrics |= {f"retrieval.{name}.{key}": value for key, value in measured.items()}
    health |= {
        "users_scored": len(rows),
        "users_unseen": unseen_users,
        "sampling": _sampling(len(rows), health["users_with_targets"]),
        "settings": settings.to_dict(),
        "hr_at_10_by_history_length": _slices(per_user, asked.history.lengths),
    }
    reason = None if unseen_users else "no user has a target that is new: their metrics are absent"
    return RetrievalEvaluation(metrics, health, reason)


def _sampling(scored: int, eligible: int) -> str | None:
    if scored == eligible:
        return None
    return f"{scored:,} of {eligible:,} users with targets were scored, drawn by a digest of their id"


def _slices(per_user: dict[str, PerUser], lengths_U: NDArray[np.int64]) -> dict[str, dict[str, float | int]]:
    """HR@10 by number of readable events; slices without users are absent."""
    slices: dict[str, dict[str, float | int]] = {}
    for name, low, high in LENGTH_SLICES:
        inside = (lengths_U >= low) & (lengths_U <= high)
        if inside.any():
            rates = {model: float(users.hit_U[inside].mean()) for model, users in per_user.items()}
            slices[name] = {"users": int(inside.sum()), **rates}
    return slices
