"""What each method of sonder.proto asks of the engine, in the words of HTTP: what is asked is checked, admitted and
answered by the same code. `METHODS` is all that there is; the server adds nothing of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.message import Message
from pydantic import BaseModel, Field

from services.gateway.answers import FIELDS
from services.gateway.doors import BATCH, Asked
from services.gateway.engine import MAX_ANSWERS, Engine
from services.gateway.experimenting import learn_eligible
from services.gateway.rpc import sonder_pb2 as pb
from services.gateway.schemas import BatchGetRequest, EventsRequest, UserId
from services.gateway.split import SplitEngine
from services.gateway.stages import Wish
from sonder.core.errors import InvalidRequest

Answering = Engine | SplitEngine


@dataclass(frozen=True)
class Method:
    """One method: what it takes and gives, what it is over HTTP, and how the engine answers it."""

    request: type[Message]
    response: type[Message]
    asked: Callable[[Any], Asked]
    answer: Callable[[Answering, Any], Awaitable[bytes]]


class _User(BaseModel):
    user_id: UserId


class _Nearest(BaseModel):
    id: UserId
    k: int = Field(ge=1, le=MAX_ANSWERS)


class _Wished(_Nearest):
    category: str | None = Field(None, min_length=1, max_length=512)
    max_age_days: float | None = Field(None, gt=0, le=36_500)
    diversity: float = Field(ge=0, le=1)


async def _profile(engine: Answering, asked: pb.GetProfileRequest) -> bytes:
    user_id, fields = _User(user_id=asked.user_id).user_id, _fields(asked.fields)
    return await engine.fresh_profile(user_id, fields) if asked.fresh else engine.profile(user_id, fields)


async def _profiles(engine: Answering, asked: pb.BatchGetProfilesRequest) -> bytes:
    user_ids = BatchGetRequest(user_ids=list(asked.user_ids)).user_ids
    await learn_eligible(engine, user_ids)
    return engine.profiles(user_ids, _fields(asked.fields))


async def _recommendations(engine: Answering, asked: pb.GetRecommendationsRequest) -> bytes:
    wished = _Wished(
        id=asked.user_id,
        k=_k(asked),
        category=asked.category if asked.HasField("category") else None,
        max_age_days=asked.max_age_days if asked.HasField("max_age_days") else None,
        diversity=asked.diversity,
    )
    wish = Wish(wished.category, wished.max_age_days, wished.diversity)
    # Neither field has a presence of its own: what differs from its default was asked for.
    given = {"from": asked.from_interests, "diversity": asked.diversity > 0}
    return await engine.recommendations(
        wished.id,
        k=wished.k,
        seen=asked.seen,
        with_interests=asked.from_interests,
        wish=wish,
        explicit=frozenset(name for name, is_given in given.items() if is_given),
    )


async def _similar(engine: Answering, asked: pb.GetSimilarUsersRequest) -> bytes:
    nearest = _Nearest(id=asked.user_id, k=_k(asked))
    return await engine.similar(nearest.id, k=nearest.k)


async def _similar_items(engine: Answering, asked: pb.GetSimilarItemsRequest) -> bytes:
    nearest = _Nearest(id=asked.item_id, k=_k(asked))
    return await engine.similar_items(nearest.id, k=nearest.k)


async def _events(engine: Answering, asked: pb.SendEventsRequest) -> bytes:
    rows = [{name.name: value for name, value in event.ListFields()} for event in asked.events]
    return await engine.accept(EventsRequest(events=rows).events)


async def _release(engine: Answering, asked: pb.GetReleaseRequest) -> bytes:
    return engine.release()


def _fields(given: Any) -> list[str] | None:
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise InvalidRequest(f"Unknown field {unknown[0][:64]!r}", expected=f"some of {', '.join(FIELDS)}")
    return list(given) or None


def _k(asked: Any) -> int:
    return int(asked.k) if asked.HasField("k") else 10


def _user_path(end: str = "") -> Callable[[Any], Asked]:
    return lambda asked: Asked("GET", f"/v1/users/-{end}")  # which user it is decides nothing


def _named(fields: Any) -> frozenset[str] | None:
    return frozenset(fields) or None


METHODS = {
    "GetProfile": Method(
        pb.GetProfileRequest, pb.Profile, lambda asked: Asked("GET", "/v1/users/-", _named(asked.fields)), _profile
    ),
    "BatchGetProfiles": Method(
        pb.BatchGetProfilesRequest, pb.Profiles, lambda asked: Asked("POST", BATCH, _named(asked.fields)), _profiles
    ),
    "GetRecommendations": Method(
        pb.GetRecommendationsRequest, pb.Recommendations, _user_path("/recommendations"), _recommendations
    ),
    "GetSimilarUsers": Method(pb.GetSimilarUsersRequest, pb.SimilarUsers, _user_path("/similar"), _similar),
    "GetSimilarItems": Method(
        pb.GetSimilarItemsRequest, pb.SimilarItems, lambda _: Asked("GET", "/v1/items/-/similar"), _similar_items
    ),
    "SendEvents": Method(pb.SendEventsRequest, pb.SendEventsResponse, lambda _: Asked("POST", "/v1/events"), _events),
    "GetRelease": Method(pb.GetReleaseRequest, pb.Release, lambda _: Asked("GET", "/v1/release"), _release),
}


def to_message(kind: type[Message], answer: bytes) -> Message:
    """An answer as its message: nulls are left out, and so is what the message does not have (a release's metrics)."""
    content = orjson.loads(memoryview(answer))  # which may be an ArmAnswer (services.gateway.told)
    return kind(**{name: value for name, value in content.items() if name in kind.DESCRIPTOR.fields_by_name})
