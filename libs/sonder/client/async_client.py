"""The asynchronous client: the same routes, answers and retries; batches go side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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


class AsyncClient:
    """`async with AsyncClient(url) as sonder: await sonder.profile("user-1")`. Raises sonder.core.errors.

    Parameters as of Client; `max_at_once` bounds the requests of one `batch_get`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        max_retries: int = 4,
        max_at_once: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, transport=transport, headers=key_headers(api_key)
        )
        self._timeout_s, self._deadline_s, self._max_at_once = timeout_s, deadline_s, max_at_once
        self._max_retries, self._pause = max_retries, pause
        self._allocations = Allocations()

    async def profile(self, user_id: str, *, fields: Sequence[str] | None = None, fresh: bool = False) -> Profile:
        """The stored profile, or with `fresh` one computed now."""
        return await self._send(calls.profile(user_id, fields, fresh=fresh))

    async def batch_get(self, user_ids: Sequence[str], *, fields: Sequence[str] | None = None) -> list[Profile]:
        """Stored profiles of any number of users, in their order, 1,000 a request and some requests at once."""
        parts = await self._send_all(calls.profiles(user_ids, fields))
        return [profile for part in parts for profile in part["profiles"]]

    async def batch_get_table(self, user_ids: Sequence[str], *, fields: Sequence[str] | None = None) -> pa.Table:
        """The same as one table, with the columns of a release's Parquet files and the envelope of an answer."""
        return pa.concat_tables(await self._send_all(calls.profiles_table(user_ids, fields))).unify_dictionaries()

    async def recommendations(
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
        return await self._send(calls.recommendations(user_id, k=k, seen=seen, interests=interests, filters=filters))

    async def similar_items(self, item_id: str, *, k: int = 10) -> dict[str, Any]:
        """Nearest other items; NotFound for an item without a vector."""
        return await self._send(calls.similar_items(item_id, k=k))

    async def similar(self, user_id: str, *, k: int = 10) -> SimilarUsers:
        """Nearest other users."""
        return await self._send(calls.similar(user_id, k=k))

    async def explanation(self, user_id: str) -> dict[str, Any]:
        """Why the profile says what it says."""
        return await self._send(calls.explanation(user_id))

    async def preview_audience(self, rule: str, *, sample: int | None = None) -> dict[str, Any]:
        """Size, share, overlap and members of a rule, from a random sample of many users."""
        return await self._send(calls.preview_audience(rule, sample=sample))

    async def lookalike(self, seeds: Sequence[str], *, size: int, exclude: Sequence[str] = ()) -> dict[str, Any]:
        """The users most like the seeds, best first."""
        return await self._send(calls.lookalike(seeds, size=size, exclude=exclude))

    async def send_events(self, rows: Iterable[Mapping[str, Any]]) -> Accepted:
        """As Client.send_events: one request after the other, so a user's events arrive in their order."""
        total = calls.nothing_yet()
        for start, call in calls.events(rows):
            total = calls.counted(total, await self._send(call), start)
        return total

    async def erase(self, user_id: str) -> dict[str, Any]:
        """Erase the user everywhere -> the receipt; repeating it is harmless."""
        return await self._send(calls.erase(user_id))

    async def release(self) -> dict[str, Any]:
        """The release that answers come from."""
        return await self._send(calls.release())

    async def experiments(self) -> list[RunningExperiment]:
        """The experiments that run."""
        return (await self._send(calls.experiments()))["experiments"]

    async def assignment(self, name: str, user_id: str) -> Assignment:
        """Which arm a user is in, asked of the gateway; exposes nobody. NotFound where no such experiment runs."""
        return await self._send(calls.assignment(name, user_id))

    async def assign(self, name: str, user_id: str, *, is_eligible: bool | None = None) -> str | None:
        """The same arm computed here; what runs is asked for once in ALLOCATIONS_FOR_S. None: takes no part.

        `is_eligible`: of an experiment with an eligibility rule, which only the gateway evaluates; InvalidRequest
        where it has one and this is not said.
        """
        if self._allocations.are_old:
            self._allocations.replace(await self.experiments())
        return self._allocations.assign(name, user_id, is_eligible=is_eligible)

    async def is_ready(self) -> bool:
        """Whether a release is loaded; asked once, without retries."""
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_all(self, wanted: Iterable[Call[T]]) -> list[T]:
        """Answers in the order of the calls; where one fails the others are cancelled."""
        free = asyncio.Semaphore(self._max_at_once)

        async def bounded(call: Call[T]) -> T:
            async with free:
                return await self._send(call)

        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(bounded(call)) for call in wanted]
        return [one.result() for one in sent]

    async def _send(self, call: Call[T]) -> T:
        """Send, again where that may help; the last failure is raised."""
        attempts = Attempts(str(self._http.base_url), self._max_retries, self._deadline_s)
        while True:
            started = time.monotonic()
            try:
                answer: httpx.Response | httpx.TransportError = await self._http.request(
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
            await self._pause(pause_s)
            attempts.waited_s += pause_s
