"""Requests that arrive together become one micro-batch: a hop costs milliseconds of CPU, whatever it carries.

Nobody waits for a batch to fill: an idle batcher starts at once with one request, and what arrives while
`max_running` batches are under way leaves together when one ends. So latency is least when load is low, and the batch
grows by itself with the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from opentelemetry.trace import SpanContext

from sonder.core import metrics, telemetry
from sonder.core.errors import StageUnavailable
from sonder.core.logs import for_requests, request_ids

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Waiting(NamedTuple, Generic[Question, Answer]):
    """One question, where its answer goes, and who asks."""

    question: Question
    future: asyncio.Future[Answer]
    since_s: float
    span: SpanContext | None
    request_ids: tuple[str, ...]


class MicroBatcher(Generic[Question, Answer]):
    """`compute(questions, waited_s)` -> one answer per question, in order."""

    def __init__(
        self,
        compute: Callable[[Sequence[Question], float], Awaitable[Sequence[Answer]]],
        *,
        name: str = "batch",
        max_batch: int = 256,
        max_running: int = 2,
        max_waiting: int = 2048,
    ) -> None:
        self._compute, self._name = compute, name
        self._max_batch, self._max_running, self._max_waiting = max_batch, max_running, max_waiting
        self._waiting: deque[Waiting[Question, Answer]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, question: Question) -> Answer:
        """The answer to one question; StageUnavailable if too many wait already."""
        if len(self._waiting) >= self._max_waiting:
            raise StageUnavailable(f"{len(self._waiting)} requests are waiting already", do="Try again shortly.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(Waiting(question, future, loop.time(), telemetry.current(), request_ids()))
        self._start()
        return await future

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            num = min(self._max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(num)]
            batch = [entry for entry in batch if not entry.future.done()]  # its caller may be gone
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._running.add(task)

    async def _run(self, batch: list[Waiting[Question, Answer]]) -> None:
        waited_s = asyncio.get_running_loop().time() - batch[0].since_s
        try:
            answers = await self._computed(batch, waited_s)
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)
        except Exception as error:
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._start()

    async def _computed(self, batch: list[Waiting[Question, Answer]], waited_s: float) -> Sequence[Answer]:
        """The answers, computed for all who wait: their ids in the log, their traces linked."""
        metrics.BATCH_USERS.labels(self._name).observe(len(batch))
        ids = (request_id for entry in batch for request_id in entry.request_ids)
        spans, waited_ms = [entry.span for entry in batch], round(waited_s * 1e3, 3)
        with for_requests(ids), telemetry.batch_span(self._name, spans, users=len(batch), waited_ms=waited_ms):
            return await self._compute([entry.question for entry in batch], waited_s)
