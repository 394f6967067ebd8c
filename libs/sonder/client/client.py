"""The synchronous client: one method per route, answers as typed dictionaries, retries (client.attempts)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
import pyarrow as pa

from sonder.client import calls
from sonder.client.assigning import Allocations
from sonder.client.attempts import Attempts, key_headers, request_headers
from sonder.client.calls import (
    Accepted,
    Assignment,
    Call,
    Profile,
    Recommendations,
    RunningExperiment,
    SimilarUsers,
)

T = TypeVar("T")


class Client:
    """`with Client("http://127.0.0.1:8000") as sonder: sonder.profile("user-1")`. Raises sonder.core.errors.

    `timeout_s` is of one try, `deadline_s` of all tries of a call. `api_key`: else SONDER_API_KEY.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport, headers=key_headers(api_key))
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._max_retries, self._pause = max_retries, pause
        self._allocations = Allocations()

    def profile(self, user_id: str, *, fields: Sequence[str] | None = None, fresh: bool = False) -> Profile:
        """The stored profile, or with `fresh` one computed now."""
        return self._send(calls.profile(user_id, fields, fresh=fresh))

    def batch_get(self, user_ids: Sequence[str], *, fields: Sequence[str] | None = None) -> Iterator[Profile]:
        """Stored profiles of any number of users, in their order, 1,000 a request."""
        for call in calls.profiles(user_ids, fields):
            yield from self._send(call)["profiles"]

    def batch_get_table(self, user_ids: Sequence[str], *, fields: Sequence[str] | None = None) -> pa.Table:
        """The same as one table, with the columns of a release's Parquet files and the envelope of an answer."""
        parts = [self._send(call) for call in calls.profiles_table(user_ids, fields)]
        return pa.concat_tables(parts).unify_dictionaries()

    def recommendations(
        self,
        user_id: str,
        *,
        k: int = 10,
        seen: bool = False,
        interests: bool | None = None,
        category: str | None = None,
        max_age_days: float | None = None,
        diversity: float | None = None,
    ) -> Recommendations:
        """Nearest items; with `seen`, also those of the user's history; with `interests`, theirs and the vector's.

        What is None of `interests` and `diversity` is False and 0, or what an experiment makes it.
        """
        filters = {"category": category, "max_age_days": max_age_days, "diversity": diversity}
        return self._send(calls.recommendations(user_id, k=k, seen=seen, interests=interests, filters=filters))

    def similar_items(self, item_id: str, *, k: int = 10) -> dict[str, Any]:
        """Nearest other items; NotFound for an item without a vector."""
        return self._send(calls.similar_items(item_id, k=k))

    def similar(self, user_id: str, *, k: int = 10) -> SimilarUsers:
        """Nearest other users."""
        return self._send(calls.similar(user_id, k=k))

    def explanation(self, user_id: str) -> dict[str, Any]:
        """Why the profile says what it says."""
        return self._send(calls.explanation(user_id))

    def preview_audience(self, rule: str, *, sample: int | None = None) -> dict[str, Any]:
        """Size, share, overlap and members of a rule, from a random sample of many users."""
        return self._send(calls.preview_audience(rule, sample=sample))

    def lookalike(self, seeds: Sequence[str], *, size: int, exclude: Sequence[str] = ()) -> dict[str, Any]:
        """The users most like the seeds, best first."""
        return self._send(calls.lookalike(seeds, size=size, exclude=exclude))

    def send_events(self, rows: Iterable[Mapping[str, Any]]) -> Accepted:
        """Send any number of events, 1,000 a request; what is counted as accepted is on the server's disk.

        A row is user_id, item_id, action, and where known event_id, timestamp, surface, value. Where a request fails
        for good its error is raised: what was sent before it is accepted, and sending all again counts nothing twice
        if the rows had an event_id.
        """
        total = calls.nothing_yet()
        for start, call in calls.events(rows):
            total = calls.counted(total, self._send(call), start)
        return total

    def erase(self, user_id: str) -> dict[str, Any]:
        """Erase the user everywhere -> the receipt; repeating it is harmless."""
        return self._send(calls.erase(user_id))

    def release(self) -> dict[str, Any]:
        """The release that answers come from."""
        return self._send(calls.release())

    def experiments(self) -> list[RunningExperiment]:
        """The experiments that run."""
        return (self._send(calls.experiments()))["experiments"]

    def assignment(self, name: str, user_id: str) -> Assignment:
        """Which arm a user is in, asked of the gateway; exposes nobody. NotFound where no such experiment runs."""
        return self._send(calls.assignment(name, user_id))

    def assign(self, name: str, user_id: str, *, is_eligible: bool | None = None) -> str | None:
        """The same arm computed here; what runs is asked for once in ALLOCATIONS_FOR_S. None: takes no part.

        `is_eligible`: of an experiment with an eligibility rule, which only the gateway evaluates; InvalidRequest
        where it has one and this is not said.
        """
        if self._allocations.are_old:
            self._allocations.replace(self.experiments())
        return self._allocations.assign(name, user_id, is_eligible=is_eligible)

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

    def _send(self, call: Call[T]) -> T:
        """Send, again where that may help; the last failure is raised."""
        attempts = Attempts(str(self._http.base_url), self._max_retries, self._deadline_s)
        while True:
            started = time.monotonic()
            try:
                answer: httpx.Response | httpx.TransportError = self._http.request(
                    call.method,
                    call.path,
                    params=call.query,
                    json=call.json,
                    headers=request_headers(call.accept),
                    timeout=call.timeout_s or self._timeout_s,
                )
            except httpx.TransportError as error:
                answer = error
            if isinstance(answer, httpx.Response) and answer.is_success:
                return calls.content_of(call, answer.content)
            attempts.waited_s += time.monotonic() - started
            pause_s = attempts.pause_s(answer)
            self._pause(pause_s)
            attempts.waited_s += pause_s
