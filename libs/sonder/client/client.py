"""A synchronous client: one method per route, answers as typed dictionaries, retries where repeating is safe.

Every request here only reads, so all are repeated on 429, 502, 503, 504 and on a broken connection: up to
`max_retries` times, after the server's `Retry-After` or a random part of a doubling pause (full jitter, so that clients
that failed together do not come back together).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NotRequired, TypedDict, cast
from urllib.parse import quote

import httpx

from sonder.client.problems import error_of
from sonder.core.errors import StageUnavailable

MAX_BATCH = 1_000
_TRY_AGAIN = {429, 502, 503, 504}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


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


class Recommendations(Answer):
    fallback: str | None
    recommendations: list[dict[str, Any]]


class SimilarUsers(Answer):
    similar: list[dict[str, Any]]


class Client:
    """`with Client("http://127.0.0.1:8000") as sonder: sonder.profile("user-1")`. Raises sonder.core.errors."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport)
        self._max_retries, self._pause = max_retries, pause

    def profile(self, user_id: str, *, fields: Sequence[str] | None = None, fresh: bool = False) -> Profile:
        """The stored profile, or with `fresh` one computed now."""
        query: dict[str, str] = {"fresh": "true"} if fresh else {}
        if fields is not None:
            query["fields"] = ",".join(fields)
        return cast(Profile, self._get(_user(user_id), query))

    def batch_get(self, user_ids: Sequence[str]) -> Iterator[Profile]:
        """Stored profiles of any number of users, in their order, 1,000 a request."""
        for start in range(0, len(user_ids), MAX_BATCH):
            asked = list(user_ids[start : start + MAX_BATCH])
            yield from self._send("POST", "/v1/users:batchGet", json={"user_ids": asked})["profiles"]

    def recommendations(
        self, user_id: str, *, k: int = 10, seen: bool = False, interests: bool = False
    ) -> Recommendations:
        """Nearest items; with `seen`, also those of the user's history; with `interests`, theirs and the vector's."""
        query = {"k": str(k), "seen": str(seen).lower(), "from": "interests" if interests else "vector"}
        return cast(Recommendations, self._get(f"{_user(user_id)}/recommendations", query))

    def similar(self, user_id: str, *, k: int = 10) -> SimilarUsers:
        """Nearest other users."""
        return cast(SimilarUsers, self._get(f"{_user(user_id)}/similar", {"k": str(k)}))

    def explanation(self, user_id: str) -> dict[str, Any]:
        """Why the profile says what it says."""
        return self._get(f"{_user(user_id)}/explanation", {})

    def release(self) -> dict[str, Any]:
        """The release that answers come from."""
        return self._get("/v1/release", {})

    def is_ready(self) -> bool:
        """Whether a release is loaded; asked once, without retries."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._send("GET", path, params=query)

    def _send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """Send, again where that may help; the last failure is raised."""
        for attempt in range(self._max_retries + 1):
            is_last = attempt == self._max_retries
            try:
                answer = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                if is_last:
                    raise StageUnavailable(
                        f"{self._http.base_url} does not answer: {error}", do="Start it with `sonder serve`."
                    ) from error
                self._pause(_pause_s(attempt, None))
                continue
            if answer.is_success:
                parsed: dict[str, Any] = answer.json()
                return parsed
            if is_last or answer.status_code not in _TRY_AGAIN:
                raise error_of(answer)
            self._pause(_pause_s(attempt, answer.headers.get("retry-after")))
        raise AssertionError("the last attempt returns or raises")


def _pause_s(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait: what the server asks for plus jitter, else a random part of a doubling pause."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**attempt)
    asked = min(float(retry_after), 30.0) if retry_after is not None and retry_after.isdigit() else 0.0
    return asked + random.uniform(0, longest)


def _user(user_id: str) -> str:
    return f"/v1/users/{quote(user_id, safe='')}"
