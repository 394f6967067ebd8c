"""All that a report shows, as plain frozen data: whoever ran the steps fills it, `report.write_report` only draws.

Nothing here has a default that could pass for a measurement. What a build did not make is None, and `missing` says
why under the section's name (`retrieval`, `lifecycle`, `growth`, `clusters`, `stability`, `lookalike`, `embedding`,
`interests`, `stories`); a score says it itself. Dates are strings as they shall be read (`2011-12-09`), shares lie in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.config import Protocol
from sonder.core.ids import unit_interval
from sonder.evaluation.affinity import AffinityQuality
from sonder.evaluation.classification import ScoreQuality
from sonder.evaluation.evaluate import RetrievalEvaluation
from sonder.evaluation.reach_chart import ReachFacts
from sonder.segments.overview import LifecycleOverview

MAP_USERS = 2_000
SAMPLE_KEY = "sonder/report/map/1/"


@dataclass(frozen=True)
class DataFacts:
    """From the manifest of `prepare`: its `counts`, first and last event."""

    source: str
    rows_read: int
    events: int
    users: int
    items: int
    quarantined: int
    by_reason: Mapping[str, int]  # events.contract.Reason -> rows
    first_event: str | None
    last_event: str | None
    is_ordinal: bool  # the log has an order but no dates
    events_per_week: Sequence[tuple[str, int]]  # (Monday, events); empty for an ordinal log


@dataclass(frozen=True)
class RetrievalFacts:
    """What evaluation.evaluate measured, and under which protocol."""

    evaluation: RetrievalEvaluation
    protocol: Protocol
    cutoff: str  # "2011-11-09", or "each user's last event"
    test_days: int | None  # None under leave_one_out


@dataclass(frozen=True)
class ScoreFacts:
    """One score task; `quality` is None when the head was not trained, and `reason` says why."""

    name: str
    promise: str  # "buys within 30 days": completes the sentence "the chance that a user ..."
    cutoff: str  # day at which the held-out probabilities were made
    quality: ScoreQuality | None
    reason: str | None = None
    judged: Mapping[str, Any] | None = None  # of score_judgement.judge_score, with the global `drivers`


@dataclass(frozen=True)
class LifecycleFacts:
    """Users by state at `as_of`, with the rule of each state in plain words."""

    as_of: str
    counts: Mapping[str, int]
    rules: Mapping[str, str]
    growth: LifecycleOverview | None  # None for a log without dates; `missing["growth"]` says why


@dataclass(frozen=True)
class EmbeddingSample:
    """S users' vectors with what is known about each; see `sample_of_users`."""

    vectors_SD: NDArray[np.float32]
    lifecycle: Sequence[str]
    categories: Sequence[str | None]  # of the strongest interest


@dataclass(frozen=True)
class InterestFacts:
    """Summary of an interests table; see report_counts."""

    users: int
    interests_per_user: float
    top_categories: Sequence[tuple[str, int, float]]  # (category, users with it, mean weight among them)
    states: Mapping[str, int]  # new, growing, stable, fading -> interests
    has_categories: bool


@dataclass(frozen=True)
class ClusterPortrait:
    """One behaviour cluster, by what is more common in it than among all users."""

    cluster_id: int
    name: str
    users: int
    lifecycle: Mapping[str, int]
    lifts: Sequence[tuple[str, float, float]]  # (trait, share inside, lift), strongest first


@dataclass(frozen=True)
class ClusterFacts:
    """The behaviour clusters of a release, why as many, and what became of the parent's."""

    portraits: Sequence[ClusterPortrait]
    users_without: int
    reason: str  # of segments.stability, or `configured`
    curve: Sequence[tuple[int, float, float]]  # (number of clusters, stability, that of a cloud without groups)
    sample_users: int
    parent: str | None
    common_users: int
    ari: float | None
    share_moved: float | None
    start: str = ""  # why they started where they did, of segments.cluster_start
    dropped: Sequence[int] = ()  # ids of the parent that no cluster has any more


@dataclass(frozen=True)
class StoryEvent:
    when: str
    action: str
    title: str
    category: str | None = None


@dataclass(frozen=True)
class StoryInterest:
    title: str
    category: str | None
    weight: float
    state: str
    num_events: int


@dataclass(frozen=True)
class StoryScore:
    name: str
    promise: str  # "chance that the user buys within 30 days", or the amount that is expected
    told: str  # "12 %", or the amount
    drivers: Sequence[str]  # in words, strongest first


@dataclass(frozen=True)
class StoryLeaning:
    """A category that a user wants more, or less, than others do."""

    category: str
    share: float  # of the user's next wanted actions
    lift: float  # over the population's share
    is_refused: bool  # more was refused than wanted


@dataclass(frozen=True)
class Story:
    """One user, told from the profile."""

    user_id: str
    lifecycle: str
    num_events: int
    first_event: str
    last_event: str
    events: Sequence[StoryEvent]  # the newest few, newest first
    interests: Sequence[StoryInterest]
    scores: Sequence[StoryScore]
    cluster: str | None  # its name
    likes: Sequence[StoryLeaning]  # strongest first
    dislikes: Sequence[StoryLeaning]
    attributes: Sequence[tuple[str, str]]  # as they may be shown: nothing sensitive
    consent: Sequence[tuple[str, bool]]
    recommendations: Sequence[str]  # titles, best first


@dataclass(frozen=True)
class Artefact:
    path: str  # relative to the workspace
    what: str
    size_bytes: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class AffinityFacts:
    """The top level of the affinities; see report_counts."""

    top_categories: Sequence[tuple[str, float, int, int]]  # category, population's share, users who like it most, less
    qualities: Sequence[AffinityQuality]  # by level; none where there was no test window
    is_learned: bool  # groups of items in place of categories
    horizon_days: float


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page. `config` is the resolved configuration as plain JSON values."""

    title: str
    release_id: str
    created_at: str
    data: DataFacts
    retrieval: RetrievalFacts | None
    scores: Sequence[ScoreFacts]
    lifecycle: LifecycleFacts | None
    clusters: ClusterFacts | None
    embedding: EmbeddingSample | None
    interests: InterestFacts | None
    stories: Sequence[Story]
    artefacts: Sequence[Artefact]
    limits: Sequence[str]  # of this build; those of the methods are added
    missing: Mapping[str, str]
    config: Mapping[str, Any]
    config_digest: str
    affinity: AffinityFacts | None = None
    reach: ReachFacts | None = None
    stability: Mapping[str, Any] | None = None  # report/stability.json of a build that has a parent

    @property
    def metrics(self) -> dict[str, float]:
        """The flat object of metrics.json: `data.*`, `retrieval.*`, `scores.<name>.*`; unmeasured keys are absent."""
        flat: dict[str, float] = {
            "data.events": self.data.events,
            "data.users": self.data.users,
            "data.items": self.data.items,
            "data.quarantined": self.data.quarantined,
        }
        if self.retrieval is not None:
            flat |= self.retrieval.evaluation.metrics
        for score in self.scores:
            if score.judged is not None:
                flat |= score.judged["metrics"]
        return flat


def sample_of_users(user_ids: pa.Array, num: int = MAP_USERS) -> NDArray[np.int64]:
    """Rows of the `num` users with the lowest digest of their id, ascending: the same users in every build."""
    draw = unit_interval(pl.Series(user_ids), SAMPLE_KEY)
    return np.sort(np.argsort(draw, kind="stable")[:num])
