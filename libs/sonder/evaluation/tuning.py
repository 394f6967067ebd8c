"""The best setting of each baseline, chosen by NDCG@10 on the validation split and never on the test.

A baseline gets two settings: one for the lists that may repeat what a user had, one for the lists of new items only,
so that each table is met by its strongest opponent. The validation split ends where the test begins, its model
reads only what lies before its own cutoff. At most TUNING_USERS users vote; ties go to the earlier, simpler setting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from sonder.core.config import Protocol
from sonder.core.telemetry import stage
from sonder.evaluation.baselines import WINDOWS_DAYS, Popularity
from sonder.evaluation.item_knn import ItemKnn, KnnSettings
from sonder.evaluation.ranking import Ranker, evaluate_seen, evaluate_unseen, scored_users, take_users
from sonder.history.cutoffs import Split
from sonder.history.vocabulary import Vocabulary

TUNING_USERS = 4_000

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class BaselineSettings:
    """What validation chose, for lists with (`seen`) and without (`unseen`) what the user already had."""

    popularity_seen: int | None = None  # window in days; None: all time
    popularity_unseen: int | None = None
    item_knn_seen: KnnSettings = field(default_factory=KnnSettings)
    item_knn_unseen: KnnSettings = field(default_factory=lambda: KnnSettings(keeps_self=False))
    num_validation_users: int = 0  # 0: nothing to validate on, these are the defaults

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_settings(
    validation: Split | None, vocabulary: Vocabulary, *, protocol: Protocol, max_users: int = TUNING_USERS
) -> BaselineSettings:
    """Try the whole grid of both baselines on the validation split."""
    if validation is None or not validation.is_scored.any():
        return BaselineSettings()
    with stage("evaluation.baselines.choose", protocol=protocol) as counts:
        rows = scored_users(validation, max_users)
        asked = take_users(validation, rows)
        windows = WINDOWS_DAYS if protocol == "temporal" else (None,)
        popularity = {days: Popularity.fit(validation.history, vocabulary, window_days=days) for days in windows}
        knn = ItemKnn.fit(validation.history, vocabulary)
        chosen = BaselineSettings(
            popularity_seen=_best(popularity.items(), asked, vocabulary, exclude_seen=False),
            popularity_unseen=_best(popularity.items(), asked, vocabulary, exclude_seen=True),
            item_knn_seen=_best_knn(knn, asked, vocabulary, exclude_seen=False),
            item_knn_unseen=_best_knn(knn, asked, vocabulary, exclude_seen=True),
            num_validation_users=len(rows),
        )
        counts["users"] = len(rows)
    return chosen


def _best_knn(knn: ItemKnn, split: Split, vocabulary: Vocabulary, *, exclude_seen: bool) -> KnnSettings:
    grid = KnnSettings.grid(with_self=(False,) if exclude_seen else (True, False))
    return _best(((s, knn.with_settings(s)) for s in grid), split, vocabulary, exclude_seen=exclude_seen)


def _best(
    candidates: Iterable[tuple[Setting, Ranker]], split: Split, vocabulary: Vocabulary, *, exclude_seen: bool
) -> Setting:
    def ndcg(ranker: Ranker) -> float:
        measure = evaluate_unseen if exclude_seen else evaluate_seen
        return measure(ranker, split, vocabulary.num_items)[1].ndcg

    return max(((setting, ndcg(ranker)) for setting, ranker in candidates), key=lambda tried: tried[1])[0]
