"""Two releases rank for the same users at the same moment: who gets better lists, who worse, and how they differ.

The moment is that of the probes (pipelines.probe.settle_moment), on the candidate's history: neither encoder was
trained on what came after, and both are read with the popularity of that moment. Each reads items by its own
vocabulary, so an item that one does not know is in none of its lists. Protocol `temporal`: targets are the wanted
items of the candidate's test window, full ranking over all items, repeats allowed, users without a vector get popular
items as in serving.
Limits: whole buckets up to `max_users` users; leave-one-out releases have no such window and are not compared here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.probe import settle_moment
from pipelines.segment import popularity_of
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.encoder.inference import embed_users
from sonder.evaluation.baselines import Popularity
from sonder.evaluation.fallback import WithFallback
from sonder.evaluation.paired import PairedDifference, paired_difference, paired_slices
from sonder.evaluation.ranking import EmbeddingRanker, K, PerUser, score_lists, scored_users, take_users
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.cutoffs import Split, temporal
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release
from sonder.retrieval.popular import popular_order
from sonder.segments.lifecycle import STATES, lifecycle_of
from sonder.segments.thresholds import derive_thresholds

MAX_USERS = 20_000


@dataclass(frozen=True)
class RankingComparison:
    """What the candidate's lists are beside the current ones', over the users with a history and a target."""

    protocol: str
    cutoff: str
    until: str
    users: int
    hr_at_10: PairedDifference | None
    ndcg_at_10: PairedDifference | None
    overlap_at_10: float  # mean share of a list that is in the other one too
    by_lifecycle: list[PairedDifference]  # NDCG@10

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("protocol", "cutoff", "until", "users", "overlap_at_10")},
            **{
                name: None if found is None else found.to_dict()
                for name, found in (("hr_at_10", self.hr_at_10), ("ndcg_at_10", self.ndcg_at_10))
            },
            "by_lifecycle": [found.to_dict() for found in self.by_lifecycle],
        }


def compare_rankings(
    config: SonderConfig, candidate: Release, current: Release, *, max_users: int = MAX_USERS
) -> RankingComparison:
    """Both releases on the window that neither was trained on; InvalidRequest where there is none."""
    moment = settle_moment(candidate, [candidate, current])
    cutoff_us, end_us = moment.cutoff_us, candidate.manifest.as_of_us
    history = candidate.workspace.history(candidate.manifest.snapshot)
    buckets = buckets_reaching(history, max_users)
    now = _Side.read(candidate, history, buckets, cutoff_us, end_us)
    rows = scored_users(now.everybody, max_users)
    was_ranked, now_ranked = _Side.read(current, history, buckets, cutoff_us, end_us).ranked(rows), now.ranked(rows)
    asked = now.everybody.history
    thresholds = derive_thresholds(asked, end_us=cutoff_us, config=config.segments)
    states_U = lifecycle_of(asked.take(rows), as_of_us=cutoff_us, thresholds=thresholds)
    ndcg = was_ranked.scored.ndcg_U, now_ranked.scored.ndcg_U
    days = (end_us - cutoff_us) / MICROSECONDS_PER_DAY
    return RankingComparison(
        protocol=f"temporal: events before the cutoff are read, the wanted items of the {days:g} days after it are "
        "the targets; full ranking over all items, k = 10, repeats allowed",
        cutoff=iso_time(cutoff_us),
        until=iso_time(end_us),
        users=len(rows),
        hr_at_10=paired_difference("HR@10", was_ranked.scored.hit_U, now_ranked.scored.hit_U),
        ndcg_at_10=paired_difference("NDCG@10", *ndcg),
        overlap_at_10=_overlap(was_ranked.lists, now_ranked.lists),
        by_lifecycle=paired_slices(*ndcg, states_U, STATES),
    )


@dataclass(frozen=True)
class _Ranked:
    scored: PerUser  # NaN for users whose targets the release does not know to be wanted
    lists: pl.DataFrame  # user (row), item_id


@dataclass(frozen=True)
class _Side:
    """The users of the buckets as one release reads them."""

    encoder: Encoder
    vocabulary: Vocabulary
    everybody: Split
    cutoff_us: int

    @classmethod
    def read(cls, release: Release, history: Folder, buckets: list[int], cutoff_us: int, end_us: int) -> _Side:
        vocabulary = Vocabulary.load(release.items)
        timelines = read_timelines(history, vocabulary, buckets)
        split = temporal(timelines, vocabulary, cutoff_us=cutoff_us, end_us=end_us)
        return cls(load_encoder(release.encoder), vocabulary, split, cutoff_us)

    def ranked(self, rows: NDArray[np.int64]) -> _Ranked:
        """Lists of these users, as they would have been served at the cutoff."""
        vocabulary, encoder = self.vocabulary, self.encoder
        popularity_I = popularity_of(self.everybody.history, vocabulary, encoder, as_of_us=self.cutoff_us)
        split = take_users(self.everybody, rows)
        ranker = WithFallback(
            EmbeddingRanker(
                embed_users(encoder, split.history, as_of_us=self.cutoff_us),
                encoder.item_vectors,
                encoder.with_popularity(popularity_I).item_bias,
            ),
            Popularity(popular_order(popularity_I, vocabulary.item_ids)),
        )
        lists_UK = ranker.top(split.history, K, exclude_seen=False)
        scored = score_lists(lists_UK, split, vocabulary.num_items, unseen=False)
        return _Ranked(scored, _named(lists_UK, vocabulary))


def _named(lists_UK: NDArray[np.int32], vocabulary: Vocabulary) -> pl.DataFrame:
    """Lists by item id, as two vocabularies number items in their own ways."""
    users, places = np.nonzero(lists_UK >= 0)
    ids = pl.Series("item_id", vocabulary.item_ids).gather(lists_UK[users, places])
    return pl.DataFrame({"user": users, "item_id": ids})


def _overlap(was: pl.DataFrame, now: pl.DataFrame) -> float:
    """Mean over users of the items in both lists, as a share of K."""
    users = max(was["user"].n_unique(), now["user"].n_unique())
    return was.join(now, on=["user", "item_id"], how="inner").height / (K * users) if users else 1.0
