from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetProfileRequest(_message.Message):
    __slots__ = ("user_id", "fields", "fresh")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    fresh: bool
    def __init__(self, user_id: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., fresh: _Optional[bool] = ...) -> None: ...

class BatchGetProfilesRequest(_message.Message):
    __slots__ = ("user_ids", "fields")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_ids: _Optional[_Iterable[str]] = ..., fields: _Optional[_Iterable[str]] = ...) -> None: ...

class GetRecommendationsRequest(_message.Message):
    __slots__ = ("user_id", "k", "seen", "from_interests", "category", "max_age_days", "diversity")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    FROM_INTERESTS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_DAYS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    k: int
    seen: bool
    from_interests: bool
    category: str
    max_age_days: float
    diversity: float
    def __init__(self, user_id: _Optional[str] = ..., k: _Optional[int] = ..., seen: _Optional[bool] = ..., from_interests: _Optional[bool] = ..., category: _Optional[str] = ..., max_age_days: _Optional[float] = ..., diversity: _Optional[float] = ...) -> None: ...

class GetSimilarUsersRequest(_message.Message):
    __slots__ = ("user_id", "k")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    k: int
    def __init__(self, user_id: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class GetSimilarItemsRequest(_message.Message):
    __slots__ = ("item_id", "k")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    k: int
    def __init__(self, item_id: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class SendEventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class GetReleaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("user_id", "item_id", "action", "event_id", "timestamp", "surface", "value", "request_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_id: str
    action: str
    event_id: str
    timestamp: str
    surface: str
    value: float
    request_id: str
    def __init__(self, user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., action: _Optional[str] = ..., event_id: _Optional[str] = ..., timestamp: _Optional[str] = ..., surface: _Optional[str] = ..., value: _Optional[float] = ..., request_id: _Optional[str] = ...) -> None: ...

class SendEventsResponse(_message.Message):
    __slots__ = ("accepted", "duplicates", "rejected")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    duplicates: int
    rejected: _containers.RepeatedCompositeFieldContainer[Rejected]
    def __init__(self, accepted: _Optional[int] = ..., duplicates: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[Rejected, _Mapping]]] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("row", "reason", "detail")
    ROW_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    row: int
    reason: str
    detail: str
    def __init__(self, row: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Degraded(_message.Message):
    __slots__ = ("stage", "reason", "instead")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    INSTEAD_FIELD_NUMBER: _ClassVar[int]
    stage: str
    reason: str
    instead: str
    def __init__(self, stage: _Optional[str] = ..., reason: _Optional[str] = ..., instead: _Optional[str] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("release", "age_ms", "degraded", "user_id", "is_cold", "cold_reason", "as_of", "computed_at", "num_events", "first_seen", "last_seen", "segments", "interests", "affinities", "scores", "signup_at", "attributes", "consent", "audiences", "embedding")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ConsentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_COLD_FIELD_NUMBER: _ClassVar[int]
    COLD_REASON_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_AT_FIELD_NUMBER: _ClassVar[int]
    NUM_EVENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    AFFINITIES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SIGNUP_AT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    release: str
    age_ms: int
    degraded: _containers.RepeatedCompositeFieldContainer[Degraded]
    user_id: str
    is_cold: bool
    cold_reason: str
    as_of: str
    computed_at: str
    num_events: int
    first_seen: str
    last_seen: str
    segments: Segments
    interests: _containers.RepeatedCompositeFieldContainer[Interest]
    affinities: _containers.RepeatedCompositeFieldContainer[Affinity]
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    signup_at: str
    attributes: _containers.ScalarMap[str, str]
    consent: _containers.ScalarMap[str, bool]
    audiences: _containers.RepeatedCompositeFieldContainer[Audience]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, release: _Optional[str] = ..., age_ms: _Optional[int] = ..., degraded: _Optional[_Iterable[_Union[Degraded, _Mapping]]] = ..., user_id: _Optional[str] = ..., is_cold: _Optional[bool] = ..., cold_reason: _Optional[str] = ..., as_of: _Optional[str] = ..., computed_at: _Optional[str] = ..., num_events: _Optional[int] = ..., first_seen: _Optional[str] = ..., last_seen: _Optional[str] = ..., segments: _Optional[_Union[Segments, _Mapping]] = ..., interests: _Optional[_Iterable[_Union[Interest, _Mapping]]] = ..., affinities: _Optional[_Iterable[_Union[Affinity, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., signup_at: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., consent: _Optional[_Mapping[str, bool]] = ..., audiences: _Optional[_Iterable[_Union[Audience, _Mapping]]] = ..., embedding: _Optional[_Iterable[float]] = ...) -> None: ...

class Profiles(_message.Message):
    __slots__ = ("release", "profiles")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    release: str
    profiles: _containers.RepeatedCompositeFieldContainer[Profile]
    def __init__(self, release: _Optional[str] = ..., profiles: _Optional[_Iterable[_Union[Profile, _Mapping]]] = ...) -> None: ...

class Segments(_message.Message):
    __slots__ = ("lifecycle", "since", "active_days", "tenure_days", "recency_days", "cluster_id", "cluster")
    LIFECYCLE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_DAYS_FIELD_NUMBER: _ClassVar[int]
    TENURE_DAYS_FIELD_NUMBER: _ClassVar[int]
    RECENCY_DAYS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    lifecycle: str
    since: str
    active_days: int
    tenure_days: float
    recency_days: float
    cluster_id: int
    cluster: str
    def __init__(self, lifecycle: _Optional[str] = ..., since: _Optional[str] = ..., active_days: _Optional[int] = ..., tenure_days: _Optional[float] = ..., recency_days: _Optional[float] = ..., cluster_id: _Optional[int] = ..., cluster: _Optional[str] = ...) -> None: ...

class Interest(_message.Message):
    __slots__ = ("rank", "name", "medoid_item_id", "title", "category", "weight", "num_events", "events_per_week", "first_at", "last_at", "recency_days", "state", "recent_days", "num_recent", "recent_share", "earlier_share")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEDOID_ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PER_WEEK_FIELD_NUMBER: _ClassVar[int]
    FIRST_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_AT_FIELD_NUMBER: _ClassVar[int]
    RECENCY_DAYS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECENT_DAYS_FIELD_NUMBER: _ClassVar[int]
    NUM_RECENT_FIELD_NUMBER: _ClassVar[int]
    RECENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    EARLIER_SHARE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    name: str
    medoid_item_id: str
    title: str
    category: str
    weight: float
    num_events: int
    events_per_week: float
    first_at: str
    last_at: str
    recency_days: float
    state: str
    recent_days: float
    num_recent: int
    recent_share: float
    earlier_share: float
    def __init__(self, rank: _Optional[int] = ..., name: _Optional[str] = ..., medoid_item_id: _Optional[str] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., weight: _Optional[float] = ..., num_events: _Optional[int] = ..., events_per_week: _Optional[float] = ..., first_at: _Optional[str] = ..., last_at: _Optional[str] = ..., recency_days: _Optional[float] = ..., state: _Optional[str] = ..., recent_days: _Optional[float] = ..., num_recent: _Optional[int] = ..., recent_share: _Optional[float] = ..., earlier_share: _Optional[float] = ...) -> None: ...

class Affinity(_message.Message):
    __slots__ = ("category", "level", "share", "lift", "strength", "evidence", "against")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LIFT_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    category: str
    level: int
    share: float
    lift: float
    strength: float
    evidence: float
    against: float
    def __init__(self, category: _Optional[str] = ..., level: _Optional[int] = ..., share: _Optional[float] = ..., lift: _Optional[float] = ..., strength: _Optional[float] = ..., evidence: _Optional[float] = ..., against: _Optional[float] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("name", "value", "base_rate", "drivers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BASE_RATE_FIELD_NUMBER: _ClassVar[int]
    DRIVERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    base_rate: float
    drivers: _containers.RepeatedCompositeFieldContainer[Driver]
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., base_rate: _Optional[float] = ..., drivers: _Optional[_Iterable[_Union[Driver, _Mapping]]] = ...) -> None: ...

class Driver(_message.Message):
    __slots__ = ("reason", "contribution")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    contribution: float
    def __init__(self, reason: _Optional[str] = ..., contribution: _Optional[float] = ...) -> None: ...

class Audience(_message.Message):
    __slots__ = ("name", "definition_version", "entered_at", "as_of", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTERED_AT_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    definition_version: int
    entered_at: str
    as_of: str
    source: str
    def __init__(self, name: _Optional[str] = ..., definition_version: _Optional[int] = ..., entered_at: _Optional[str] = ..., as_of: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class Recommendations(_message.Message):
    __slots__ = ("release", "age_ms", "degraded", "user_id", "is_cold", "cold_reason", "as_of", "computed_at", "fallback", "recommendations")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_COLD_FIELD_NUMBER: _ClassVar[int]
    COLD_REASON_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_AT_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDATIONS_FIELD_NUMBER: _ClassVar[int]
    release: str
    age_ms: int
    degraded: _containers.RepeatedCompositeFieldContainer[Degraded]
    user_id: str
    is_cold: bool
    cold_reason: str
    as_of: str
    computed_at: str
    fallback: str
    recommendations: _containers.RepeatedCompositeFieldContainer[RecommendedItem]
    def __init__(self, release: _Optional[str] = ..., age_ms: _Optional[int] = ..., degraded: _Optional[_Iterable[_Union[Degraded, _Mapping]]] = ..., user_id: _Optional[str] = ..., is_cold: _Optional[bool] = ..., cold_reason: _Optional[str] = ..., as_of: _Optional[str] = ..., computed_at: _Optional[str] = ..., fallback: _Optional[str] = ..., recommendations: _Optional[_Iterable[_Union[RecommendedItem, _Mapping]]] = ...) -> None: ...

class RecommendedItem(_message.Message):
    __slots__ = ("rank", "item_id", "title", "category", "score")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    item_id: str
    title: str
    category: str
    score: float
    def __init__(self, rank: _Optional[int] = ..., item_id: _Optional[str] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class SimilarUsers(_message.Message):
    __slots__ = ("release", "age_ms", "degraded", "user_id", "is_cold", "cold_reason", "as_of", "computed_at", "similar")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_COLD_FIELD_NUMBER: _ClassVar[int]
    COLD_REASON_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_AT_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_FIELD_NUMBER: _ClassVar[int]
    release: str
    age_ms: int
    degraded: _containers.RepeatedCompositeFieldContainer[Degraded]
    user_id: str
    is_cold: bool
    cold_reason: str
    as_of: str
    computed_at: str
    similar: _containers.RepeatedCompositeFieldContainer[SimilarUser]
    def __init__(self, release: _Optional[str] = ..., age_ms: _Optional[int] = ..., degraded: _Optional[_Iterable[_Union[Degraded, _Mapping]]] = ..., user_id: _Optional[str] = ..., is_cold: _Optional[bool] = ..., cold_reason: _Optional[str] = ..., as_of: _Optional[str] = ..., computed_at: _Optional[str] = ..., similar: _Optional[_Iterable[_Union[SimilarUser, _Mapping]]] = ...) -> None: ...

class SimilarUser(_message.Message):
    __slots__ = ("user_id", "similarity")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    similarity: float
    def __init__(self, user_id: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class SimilarItems(_message.Message):
    __slots__ = ("release", "item_id", "similar")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_FIELD_NUMBER: _ClassVar[int]
    release: str
    item_id: str
    similar: _containers.RepeatedCompositeFieldContainer[SimilarItem]
    def __init__(self, release: _Optional[str] = ..., item_id: _Optional[str] = ..., similar: _Optional[_Iterable[_Union[SimilarItem, _Mapping]]] = ...) -> None: ...

class SimilarItem(_message.Message):
    __slots__ = ("rank", "item_id", "title", "category", "similarity")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    rank: int
    item_id: str
    title: str
    category: str
    similarity: float
    def __init__(self, rank: _Optional[int] = ..., item_id: _Optional[str] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("release", "created_at", "as_of", "parent", "code_version", "snapshot", "config_digest", "num_profiles")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_PROFILES_FIELD_NUMBER: _ClassVar[int]
    release: str
    created_at: str
    as_of: str
    parent: str
    code_version: str
    snapshot: str
    config_digest: str
    num_profiles: int
    def __init__(self, release: _Optional[str] = ..., created_at: _Optional[str] = ..., as_of: _Optional[str] = ..., parent: _Optional[str] = ..., code_version: _Optional[str] = ..., snapshot: _Optional[str] = ..., config_digest: _Optional[str] = ..., num_profiles: _Optional[int] = ...) -> None: ...
