"""Encoder, popularity and item-kNN side by side on one split.

The flat metrics are `retrieval.{encoder,popularity,item_knn}.{hr_at_10,ndcg_at_10,hr_at_10_unseen,ndcg_at_10_unseen,
p90_coverage_at_10,interest_entropy_at_10,recall_at_10,hide_rate_at_10,hide_lift_at_10}` (evaluation.ranking and
.slices define them); a metric that cannot be measured is absent and `reason` says why, the two of hides are absent
where nothing was refused. The encoder is measured as served: who has no vector gets the fallback's list.
Headline numbers are those of users with a history and a target; cold users have a slice and are in no other number.
Past MAX_USERS users with targets, those with the lowest keyed digest of their id are scored: the same ones in every
run and for every model.
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
from sonder.evaluation.fallback import WithFallback
from sonder.evaluation.health import embedding_health, health_warnings
from sonder.evaluation.item_knn import ItemKnn
from sonder.evaluation.ranking import (
    EmbeddingRanker,
    K,
    Ranker,
    evaluate_seen,
    evaluate_unseen,
    score_lists,
    scored_users,
    take_users,
    unscored_users,
)
from sonder.evaluation.slices import (
    LENGTHS,
    WANTED,
    Pairs,
    by_knowledge,
    by_label,
    by_range,
    distinct_pairs,
    interest_entropy,
    pair_hits,
    pair_rates,
    times_wanted,
)
from sonder.evaluation.tuning import BaselineSettings, choose_settings
from sonder.history.cutoffs import Split
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.retrieval.popular import popular_order
from sonder.segments.lifecycle import STATES

MAX_USERS = 50_000
Contestant = tuple[Ranker, Ranker, Ranker]  # lists that may repeat, lists of new items only, lists of the others


@dataclass(frozen=True)
class RetrievalEvaluation:
    """What was measured. `metrics` is flat and goes into metrics.json; `health` is nested and explains it.

    health: users_with_targets, users_scored, users_unseen, users_cold, pairs_wanted, pairs_unwanted, sampling (a
    sentence or None), settings (of the baselines, as validation chose them), vectors {users with a history, items} as
    `users` and `items`, warnings (what is wrong with those: evaluation.health), slices {hr_at_10_by_knowledge,
    hr_at_10_by_history_length, hr_at_10_by_lifecycle (if told), recall_at_10_by_item} (evaluation.slices).
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
    popularity_I: NDArray[np.float64] | None = None,
    lifecycle_U: NDArray[np.int8] | None = None,
    max_users: int = MAX_USERS,
) -> RetrievalEvaluation:
    """Measure the three on the users of `split`; row u of `user_vectors_UD` embeds `split.history`'s user u.

    `validation` is an earlier split of the same log: only the baselines' settings are chosen on it. `popularity_I` at
    the cutoff orders what users without a vector get (None: wanted events of the history). `lifecycle_U` has the state
    of each user at the cutoff, an index into segments' STATES.
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
        "vectors": {
            "users": embedding_health(user_vectors_UD[split.history.lengths > 0]),
            "items": embedding_health(item_vectors_ID),
        },
    }
    health["warnings"] = health_warnings(health["vectors"])
    if vocabulary.num_items <= K:
        return RetrievalEvaluation({}, health, f"{vocabulary.num_items} items: a list of {K} would name them all")
    rows, others = scored_users(split, max_users), unscored_users(split, max_users)
    if not len(rows):
        return RetrievalEvaluation({}, health, "no user has both a history before the cutoff and a target after it")
    asked = _Asked(
        scored=take_users(split, rows),
        others=take_users(split, others),
        has_vector_S=np.any(user_vectors_UD[rows] != 0, axis=1),
        lifecycle_S=None if lifecycle_U is None else lifecycle_U[rows],
    )
    on_scored, on_others = (
        EmbeddingRanker(user_vectors_UD[part], item_vectors_ID, item_bias_I) for part in (rows, others)
    )
    settings = choose_settings(validation, vocabulary, protocol=protocol)
    health["settings"] = settings.to_dict()
    wanted_I = times_wanted(split.history, vocabulary)
    popularity_I = wanted_I[:-1].astype(np.float64) if popularity_I is None else popularity_I
    fallback = Popularity(popular_order(popularity_I, vocabulary.item_ids))
    contestants = _contestants(on_scored, on_others, fallback, split.history, settings, vocabulary)
    return _compare(contestants, asked, wanted_I, vocabulary, health)


@dataclass(frozen=True)
class _Asked:
    """The S scored users of the headline, and O others: cold ones, and those who only refused something."""

    scored: Split
    others: Split
    has_vector_S: NDArray[np.bool_]
    lifecycle_S: NDArray[np.int8] | None

    @property
    def unwanted(self) -> Pairs:
        """Distinct pairs that users with a history refused; the rows of the others follow those of the scored."""
        if self.scored.unwanted is None or self.others.unwanted is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        of_others = self.others.unwanted
        rows_S, items_S = distinct_pairs(self.scored.unwanted)
        rows_O, items_O = distinct_pairs(of_others.keep(~self.others.is_cold[of_others.user_rows]))
        return np.concatenate((rows_S, rows_O + len(self.has_vector_S))), np.concatenate((items_S, items_O))


@dataclass(frozen=True)
class _Measured:
    """What one contestant did: hits NaN where a user has no target."""

    metrics: dict[str, float]
    hit_S: NDArray[np.float64]
    hit_O: NDArray[np.float64]
    is_found_N: NDArray[np.float64]  # of the wanted pairs
    num_unseen: int


def _contestants(
    on_scored: Ranker,
    on_others: Ranker,
    fallback: Popularity,
    history: Timelines,
    settings: BaselineSettings,
    vocabulary: Vocabulary,
) -> dict[str, Contestant]:
    served = WithFallback(on_scored, fallback)
    popular, popular_new = (
        Popularity.fit(history, vocabulary, window_days=days)
        for days in (settings.popularity_seen, settings.popularity_unseen)
    )
    knn = ItemKnn.fit(history, vocabulary)
    with_seen, only_new = (knn.with_settings(chosen) for chosen in (settings.item_knn_seen, settings.item_knn_unseen))
    return {
        "encoder": (served, served, WithFallback(on_others, fallback)),
        "popularity": (popular, popular_new, popular),
        "item_knn": (with_seen, only_new, with_seen),
    }


def _compare(
    contestants: dict[str, Contestant],
    asked: _Asked,
    wanted_I: NDArray[np.int64],
    vocabulary: Vocabulary,
    health: dict[str, Any],
) -> RetrievalEvaluation:
    wanted, unwanted = distinct_pairs(asked.scored.targets), asked.unwanted
    measured: dict[str, _Measured] = {}
    for name, contestant in contestants.items():
        users = asked.scored.history.num_users
        with stage("evaluation.rank", model=name, users=users, items=vocabulary.num_items) as counts:
            measured[name] = _measure(contestant, asked, wanted, unwanted, vocabulary)
            counts.update(measured[name].metrics)
    hits = {name: found.hit_S for name, found in measured.items()}
    all_hits = {name: np.concatenate((found.hit_S, found.hit_O)) for name, found in measured.items()}
    pair_hits_of = {name: found.is_found_N for name, found in measured.items()}
    health["slices"] = {
        "hr_at_10_by_knowledge": by_knowledge(asked.has_vector_S, asked.others.is_cold, all_hits),
        "hr_at_10_by_history_length": by_range(asked.scored.history.lengths, hits, LENGTHS),
        "recall_at_10_by_item": by_range(wanted_I[wanted[1]], pair_hits_of, WANTED),
    }
    if asked.lifecycle_S is not None:
        health["slices"]["hr_at_10_by_lifecycle"] = by_label(asked.lifecycle_S, hits, STATES)
    health |= {
        "users_scored": asked.scored.history.num_users,
        "users_unseen": measured["encoder"].num_unseen,
        "pairs_wanted": len(wanted[0]),
        "pairs_unwanted": len(unwanted[0]),
        "sampling": _sampling(asked.scored.history.num_users, health["users_with_targets"]),
    }
    reason = None if health["users_unseen"] else "no user has a target that is new: their metrics are absent"
    flat = {
        f"retrieval.{name}.{key}": value for name, found in measured.items() for key, value in found.metrics.items()
    }
    return RetrievalEvaluation(flat, health, reason)


def _measure(
    contestant: Contestant, asked: _Asked, wanted: Pairs, unwanted: Pairs, vocabulary: Vocabulary
) -> _Measured:
    with_seen, only_new, on_others = contestant
    num_items = vocabulary.num_items
    seen, per_user, lists_SK = evaluate_seen(with_seen, asked.scored, num_items)
    unseen, new_only = evaluate_unseen(only_new, asked.scored, num_items)
    lists_OK = on_others.top(asked.others.history, K, exclude_seen=False)
    is_found_N = pair_hits(lists_SK, *wanted)
    metrics = {key: value for key, value in {**seen, **unseen}.items() if not math.isnan(value)}
    metrics |= pair_rates(is_found_N, pair_hits(np.concatenate((lists_SK, lists_OK)), *unwanted))
    entropy = interest_entropy(lists_SK, vocabulary)
    metrics |= {} if entropy is None else {"interest_entropy_at_10": entropy}
    others = score_lists(lists_OK, asked.others, num_items, unseen=False)
    return _Measured(metrics, per_user.hit_U, others.hit_U, is_found_N, new_only.num_users)


def _sampling(scored: int, eligible: int) -> str | None:
    if scored == eligible:
        return None
    return f"{scored:,} of {eligible:,} users with targets were scored, drawn by a digest of their id"
