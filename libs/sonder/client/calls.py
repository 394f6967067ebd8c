"""What each route is asked and answers, without speaking HTTP: both clients send these.

Every call may be repeated: reads change nothing, an erasure erases once, and an event counts once by its id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast
from urllib.parse import quote

import orjson
import pyarrow as pa

from sonder.core.errors import InvalidRequest

MAX_BATCH = 1_000  # users or events of a request
BATCH = "/v1/users:batchGet"
ARROW = "application/vnd.apache.arrow.stream"
LOOKALIKE_TIMEOUT_S = 40.0  # the server takes up to 30 s

T = TypeVar("T")


class Answer(TypedDict):
    """What every answer about a user carries."""

    release: str
    age_ms: int
    user_id: str
    is_cold: bool
    cold_reason: str | None
    as_of: str
    computed_at: str
    degraded: NotRequired[list[dict[str, str]]]  # what is missing, why, and what stands in


class Profile(Answer, total=False):
    """Whole, or only the fields that were asked for."""

    num_events: int
    first_seen: str | None
    last_seen: str | None
    segments: dict[str, Any]
    interests: list[dict[str, Any]]
    affinities: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    audiences: list[dict[str, Any]] | None
    embedding: list[float] | None


class Profiles(TypedDict):
    release: str
    profiles: list[Profile]


class Recommendations(Answer):
    fallback: str | None
    recommendations: list[dict[str, Any]]


class SimilarUsers(Answer):
    similar: list[dict[str, Any]]


class RunningExperiment(TypedDict):
    """All that it takes to assign a user (sonder.client.assigning)."""

    name: str
    version: int
    method: str
    hypothesis: str
    arms: list[dict[str, Any]]
    share: float
    layer: str | None
    salt: str
    layer_salt: str
    lower: float
    eligibility: str | None
    started_at: str
    ends_at: str


class Experiments(TypedDict):
    experiments: list[RunningExperiment]


class Assignment(TypedDict):
    """`arm` is None where the user takes no part; `reason` says why."""

    experiment: str
    version: int
    user_id: str
    arm: str | None
    reason: str
    share: float
    exposure: bool


class Accepted(TypedDict):
    """What became of events; `rejected` names the row among all that were sent, and why."""

    accepted: int
    duplicates: int
    rejected: list[dict[str, Any]]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request; T is what its answer is."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    accept: str = "application/json"
    timeout_s: float | None = None  # None: the client's


def profile(user_id: str, fields: Sequence[str] | None, *, fresh: bool) -> Call[Profile]:
    return Call("GET", _user(user_id), ({"fresh": "true"} if fresh else {}) | _fields(fields))


def profiles(user_ids: Sequence[str], fields: Sequence[str] | None) -> Iterator[Call[Profiles]]:
    """As many calls as MAX_BATCH makes of the users."""
    for part in _batches(user_ids):
        yield Call("POST", BATCH, _fields(fields), json={"user_ids": part})


def profiles_table(user_ids: Sequence[str], fields: Sequence[str] | None) -> Iterator[Call[pa.Table]]:
    """The same, answered by Arrow IPC streams."""
    if not user_ids:
        raise InvalidRequest("A table of no users", expected="one at least: its columns are those of the release")
    for part in _batches(user_ids):
        yield Call("POST", BATCH, _fields(fields), json={"user_ids": part}, accept=ARROW)


def _batches(user_ids: Sequence[str]) -> Iterator[list[str]]:
    return (list(user_ids[start : start + MAX_BATCH]) for start in range(0, len(user_ids), MAX_BATCH))


def _fields(fields: Sequence[str] | None) -> dict[str, str]:
    return {} if fields is None else {"fields": ",".join(fields)}


def content_of(call: Call[T], content: bytes) -> T:
    """What an answer's body is."""
    if call.accept == ARROW:
        return cast(T, pa.ipc.open_stream(content).read_all())
    return cast(T, orjson.loads(content))


def recommendations(
    user_id: str, *, k: int, seen: bool, interests: bool | None, filters: Mapping[str, Any]
) -> Call[Recommendations]:
    query = {"k": str(k), "seen": str(seen).lower()}
    if interests is not None:  # a wish, which no experiment changes
        query["from"] = "interests" if interests else "vector"
    query |= {name: str(value) for name, value in filters.items() if value is not None}
    return Call("GET", f"{_user(user_id)}/recommendations", query)


def similar(user_id: str, *, k: int) -> Call[SimilarUsers]:
    return Call("GET", f"{_user(user_id)}/similar", {"k": str(k)})


def similar_items(item_id: str, *, k: int) -> Call[dict[str, Any]]:
    return Call("GET", f"/v1/items/{quote(item_id, safe='')}/similar", {"k": str(k)})


def explanation(user_id: str) -> Call[dict[str, Any]]:
    return Call("GET", f"{_user(user_id)}/explanation")


def preview_audience(rule: str, *, sample: int | None) -> Call[dict[str, Any]]:
    asked = {"rule": rule} | ({} if sample is None else {"sample": sample})
    return Call("POST", "/v1/audiences:preview", json=asked)


def lookalike(seeds: Sequence[str], *, size: int, exclude: Sequence[str]) -> Call[dict[str, Any]]:
    asked = {"seeds": list(seeds), "size": size, "exclude": list(exclude)}
    return Call("POST", "/v1/audiences:lookalike", json=asked, timeout_s=LOOKALIKE_TIMEOUT_S)


def events(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Call[Accepted]]]:
    """Place of the first row, and the call; a row without an `event_id` gets one now, so that a repetition is known."""
    start, batch = 0, list[dict[str, Any]]()
    for row in rows:
        batch.append({"event_id": str(uuid.uuid4()), **row})
        if len(batch) == MAX_BATCH:
            yield start, Call("POST", "/v1/events", json={"events": batch})
            start, batch = start + len(batch), []
    if batch:
        yield start, Call("POST", "/v1/events", json={"events": batch})


def counted(total: Accepted, answer: Accepted, start: int) -> Accepted:
    """The sum, with the places of rejected rows counted from the first row of all."""
    moved = [{**row, "row": row["row"] + start} for row in answer["rejected"]]
    return {
        "accepted": total["accepted"] + answer["accepted"],
        "duplicates": total["duplicates"] + answer["duplicates"],
        "rejected": total["rejected"] + moved,
    }


def nothing_yet() -> Accepted:
    return {"accepted": 0, "duplicates": 0, "rejected": []}


def erase(user_id: str) -> Call[dict[str, Any]]:
    return Call("DELETE", _user(user_id))


def release() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/release")


def experiments() -> Call[Experiments]:
    return Call("GET", "/v1/experiments")


def assignment(name: str, user_id: str) -> Call[Assignment]:
    return Call("GET", f"/v1/experiments/{quote(name, safe='')}/assignment", {"user_id": user_id})


def _user(user_id: str) -> str:
    return f"/v1/users/{quote(user_id, safe='')}"
