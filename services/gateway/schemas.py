"""What requests and answers look like: the request is validated by these, answers are ready bytes and only described.

A test holds the described fields to the ones that profiles.record renders.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_BATCH = 1_000
MAX_ID_BYTES = 256
MAX_SEEDS, MAX_EXCLUDED, MAX_AUDIENCE = 5_000, 10_000, 10_000


def _check_id(user_id: str) -> str:
    try:
        size = len(user_id.encode())
    except UnicodeEncodeError as error:
        raise ValueError("an id that is not UTF-8") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise ValueError(f"an id of {size} bytes, expected 1 to {MAX_ID_BYTES}")
    return user_id


def _decode(user_id: str) -> str:
    # Bytes that are not UTF-8 become lone surrogates here, which _check_id refuses.
    return unquote(user_id, errors="surrogateescape")


UserId = Annotated[str, AfterValidator(_check_id), Field(description="1 to 256 bytes of UTF-8")]
PathUserId = Annotated[
    str,
    BeforeValidator(_decode),
    AfterValidator(_check_id),
    Field(description="1 to 256 bytes of UTF-8, percent-encoded; a slash as %2F"),
]

PathItemId = Annotated[
    str,
    BeforeValidator(_decode),
    AfterValidator(_check_id),
    Field(description="1 to 256 bytes of UTF-8, percent-encoded; a slash as %2F"),
]


class BatchGetRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_ids: list[UserId] = Field(min_length=1, max_length=MAX_BATCH)


class EventsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    events: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        description="objects with user_id, item_id, action and optionally timestamp (ISO 8601; now if absent), "
        "event_id (if absent, the digest of a row with a timestamp), surface, value, request_id",
        examples=[[{"user_id": "u1", "item_id": "i7", "action": "click", "event_id": "e-1"}]],
    )


class ErasureAnswer(BaseModel):
    erased_at: datetime
    release: str
    profile_removed: bool = Field(description="whether the store had a profile of the user")
    events_removed: int = Field(description="of the online log")
    exposures_removed: int = Field(description="rows of experiments: who was exposed to what, and shown what")
    refresh_awaited: bool = Field(description="false: a refresh was late; erase again to be sure")
    remaining: str = Field(description="which copies there may still be, and until when")


class RejectedRow(BaseModel):
    row: int = Field(description="place in the request, from 0")
    reason: str = Field(description="as in the quarantine: missing_id, bad_timestamp, ...")
    detail: str


class EventsAnswer(BaseModel):
    accepted: int = Field(description="events that were new; they are on disk")
    duplicates: int = Field(description="events whose id was known already")
    rejected: list[RejectedRow]


class LookalikeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seeds: list[UserId] = Field(min_length=1, max_length=MAX_SEEDS, description="members whom others shall be like")
    exclude: list[UserId] = Field([], max_length=MAX_EXCLUDED, description="users who may not be in the audience")
    size: int = Field(1_000, ge=1, le=MAX_AUDIENCE, description="users of the audience")


class Degraded(BaseModel):
    stage: str = Field(description="which part of the path failed")
    reason: str
    instead: str = Field(description="what the answer holds in its place")


class Envelope(BaseModel):
    """What every answer about a user carries."""

    release: str
    age_ms: int = Field(description="milliseconds since computed_at")
    degraded: list[Degraded] | None = Field(None, description="present only when something is missing")
    user_id: str
    is_cold: bool
    cold_reason: Literal["unknown_user", "no_wanted_events"] | None
    as_of: datetime = Field(description="events before this were known")
    computed_at: datetime


class Segments(BaseModel):
    lifecycle: Literal["cold", "new", "core", "casual", "marginal", "dormant", "resurrected"]
    since: datetime | None
    active_days: int | None
    tenure_days: float | None
    recency_days: float | None
    cluster_id: int | None = Field(description="behaviour cluster, the same id across retrains; null without a vector")
    cluster: str | None = Field(description="its name in this release: what is more common in it than among all")


class AudienceMembership(BaseModel):
    name: str
    definition_version: int = Field(description="of the rule that was evaluated")
    entered_at: datetime = Field(description="as_of of the first evaluation of this stay that found the user in")
    as_of: datetime = Field(description="of the evaluation: events before this were known to it")
    source: Literal["refresh", "fresh"] = Field(
        description="refresh: as the last `sonder audience refresh` counted; fresh: by the rule on this profile"
    )


class Interest(BaseModel):
    rank: int
    name: str = Field(description="to be read: a category, words of the titles or the medoid's title")
    medoid_item_id: str
    title: str | None
    category: str | None
    weight: float = Field(description="all weights of a user sum to 1")
    num_events: int
    events_per_week: float = Field(description="since the first event, over a week at least")
    first_at: datetime
    last_at: datetime
    recency_days: float
    state: Literal["new", "growing", "stable", "fading"]
    recent_days: float = Field(description="before as_of; what the state calls recent")
    num_recent: int = Field(description="of num_events")
    recent_share: float = Field(description="of the user's recent wanted events, smoothed by one event")
    earlier_share: float = Field(description="of the user's earlier wanted events, smoothed by one event")


class Affinity(BaseModel):
    """Leaning towards a category; of each level the strongest liking first, dislikes last."""

    category: str = Field(description="path in the catalogue, or the name of a learned group of items")
    level: int = Field(description="1 is the top of the tree")
    share: float = Field(description="calibrated: expected part of the user's next wanted actions at this level")
    lift: float = Field(description="share over the population's share")
    strength: float = Field(description="signed, 0 as everybody; below it less wanted than by others, or refused")
    evidence: float = Field(description="decayed weight of wanted actions")
    against: float = Field(description="decayed weight of unwanted actions")


class Driver(BaseModel):
    reason: str
    contribution: float = Field(description="to the log-odds of the score, before calibration")


class Score(BaseModel):
    name: str = Field(description="of the task; TASK/CATEGORY where a task has a score for each category")
    value: float = Field(description="calibrated probability; expected amount of a value, count of a count task")
    base_rate: float | None = Field(description="mean over all users; what a cold user gets")
    drivers: list[Driver] | None = Field(
        description="heaviest first; null in a fresh or refreshed profile, where /explanation computes them"
    )


class Profile(Envelope):
    """A whole profile. With `?fields=` the envelope and the named fields only."""

    num_events: int | None = None
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    segments: Segments | None = None
    interests: list[Interest] | None = None
    affinities: list[Affinity] | None = None
    scores: list[Score] | None = None
    signup_at: datetime | None = Field(None, description="from the user table, if before as_of")
    attributes: dict[str, str] | None = Field(None, description="from the user table; null without a row in it")
    consent: dict[str, bool] | None = Field(None, description="purposes on which the user decided; null without a row")
    audiences: list[AudienceMembership] | None = Field(
        None, description="the saved audiences that the user is in, by name; null where none could be read"
    )
    embedding: list[float] | None = Field(None, description="only on request: ?fields=embedding")


class Profiles(BaseModel):
    release: str = Field(description="the current one; each profile says its own, which differs while a canary runs")
    profiles: list[Profile] = Field(description="in the order asked for")


class EmbeddingAnswer(Envelope):
    embedding: list[float] | None


class InterestsAnswer(Envelope):
    interests: list[Interest]


class AffinitiesAnswer(Envelope):
    affinities: list[Affinity]


class SegmentsAnswer(Envelope):
    segments: Segments
    audiences: list[AudienceMembership] | None = Field(
        description="the saved audiences that the user is in, by name; null where none could be read"
    )


class ScoresAnswer(Envelope):
    scores: list[Score]


class ExplanationAnswer(Envelope):
    segments: Segments
    scores: list[Score]
    interests: list[Interest]
    reasons: list[str] = Field(description="the same in sentences")


class Recommendation(BaseModel):
    rank: int
    item_id: str
    title: str | None
    category: str | None
    score: float | None = Field(
        description="cosine of the user's and the item's vector plus the item's popularity term; null without; "
        "falls with the rank, but for ?from=interests"
    )


class RecommendationsAnswer(Envelope):
    fallback: Literal["popular"] | None
    recommendations: list[Recommendation]


class SimilarUser(BaseModel):
    user_id: str
    similarity: float = Field(description="cosine of the two users' vectors")


class SimilarAnswer(Envelope):
    similar: list[SimilarUser]


class SimilarItem(BaseModel):
    rank: int
    item_id: str
    title: str | None
    category: str | None
    similarity: float = Field(description="cosine of the two items' vectors")


class SimilarItemsAnswer(BaseModel):
    release: str
    item_id: str
    similar: list[SimilarItem]


class AudiencePreviewRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rule: str = Field(
        min_length=1,
        max_length=10_000,
        examples=["lifecycle in ('core', 'casual') and recency_days < 28"],
        description="true or not for each user; a mistake is answered with its line, its column and a caret",
    )
    sample: int = Field(10, ge=0, le=100, description="members to show")


class AudienceOverlap(BaseModel):
    audience: str = Field(description="a saved audience, by its rule on the same users")
    size: int
    shared: int = Field(description="users in both")
    share_of_this: float
    share_of_that: float


class AudiencePreview(BaseModel):
    release: str
    as_of: datetime = Field(description="events before this were known")
    rule: str = Field(description="in its canonical writing")
    num_profiles: int
    num_evaluated: int = Field(description="users that were counted: a random sample, the same for every rule")
    is_exact: bool = Field(description="everybody was counted")
    size: int = Field(description="estimated number of users in the audience")
    size_low: int = Field(description="of Wilson's 95 % interval of the size")
    size_high: int
    share: float
    num_unknown: int = Field(description="users left out because a value that the rule reads is unknown")
    overlap: list[AudienceOverlap]
    sample: list[str] = Field(description="user ids of some members, by digest")


class SeedCounts(BaseModel):
    given: int = Field(description="distinct ids")
    used: int
    unknown: int = Field(description="the release has never seen them")
    cold: int = Field(description="known, without a vector")


class AudienceMember(BaseModel):
    user_id: str
    rank: int
    similarity: float = Field(
        description="chance to be a seed if seeds and others were drawn equally often: 0.5 is as common among the "
        "seeds as among everybody, 0.9 nine times as common"
    )
    percentile: float = Field(description="share of the ranked users at this rank or below, in percent")


class LookalikeAnswer(BaseModel):
    release: str
    as_of: datetime = Field(description="events before this were known")
    seeds: SeedCounts
    excluded: int = Field(description="distinct ids that may not be in the audience")
    warnings: list[str]
    ranked_users: int = Field(description="everybody with a vector who is neither a seed nor excluded")
    held_out_auc: float = Field(
        description="chance that a seed is above a random other user, each seed scored by what the others "
        "taught; weight and calibration have seen all of them"
    )
    audience: list[AudienceMember] = Field(description="best first; no seed and no excluded user is among them")


class ReleaseAnswer(BaseModel):
    release: str
    also: list[str] = Field([], description="other releases that are served and may be named, with `release`")
    created_at: datetime
    as_of: datetime
    parent: str | None
    code_version: str
    snapshot: str
    config_digest: str
    num_profiles: int
    metrics: dict[str, float | int | str | None]


class ExperimentArm(BaseModel):
    name: str
    weight: float = Field(description="share of the experiment's users, relative to the other arms")


class RunningExperiment(BaseModel):
    """All that it takes to assign a user without asking; docs/experimentation.md says how."""

    name: str
    version: int
    method: Literal["split", "interleave"]
    hypothesis: str
    arms: list[ExperimentArm] = Field(description="control first; of an interleaved one the one list of both")
    share: float = Field(description="of all users, now")
    layer: str | None = Field(description="experiments of one layer never share a user")
    salt: str
    layer_salt: str
    lower: float = Field(description="users whose draw in the layer is in [lower, lower + share) take part")
    eligibility: str | None = Field(description="the audience rule for those who take part; null: everybody")
    started_at: datetime
    ends_at: datetime


class ExperimentsAnswer(BaseModel):
    experiments: list[RunningExperiment]


class AssignmentAnswer(BaseModel):
    experiment: str
    version: int
    user_id: str
    arm: str | None
    reason: Literal["assigned", "not in share", "not eligible", "not served here yet"]
    share: float = Field(description="of all users, now")
    exposure: Literal[False] = Field(description="asking exposes nobody")


class Health(BaseModel):
    status: Literal["ok"]


class ProblemPlace(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    in_: Literal["path", "query", "body", "header"] = Field(alias="in")
    pointer: str = Field(description="JSON pointer into it")
    detail: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ProblemPlace] | None = None
