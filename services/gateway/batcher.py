"""Requests that arrive together become one micro-batch: a hop costs milliseconds of CPU, whatever it carries.

An idle batcher starts at once with one request, and what arrives while `max_running` batches are under way leaves
together when one ends. So latency is least when load is low, and the batch grows by itself with the load.
Callers who ask again as soon as they are answered would find it idle, though: the first of them would leave alone and
the others wait for that batch of one, at half the price of one of all. So after a batch of several a batcher may
linger: until all who were just answered may be back beside those who waited meanwhile, and at most for LINGER of the
time that the batch took and for LINGER_MOST_S. Who comes alone never waits.
A batch is nobody's request: it runs in a context of its own, so that Ray does not take it for a part of the request
that happened to start it, and cancel what all the others wait for when that one's caller hangs up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, NamedTuple, TypeVar

from opentelemetry.trace import SpanContext

from sonder.core import metrics, telemetry
from sonder.core.errors import StageUnavailable
from sonder.core.logs import for_requests, request_ids

LINGER = 0.5  # of the last batch's time: what those who wait may lose, against a second batch that they save
LINGER_MOST_S = 0.1  # a stage that is slow today is no reason to wait longer: a full batch takes some .2 s
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
        lingers: bool = False,
    ) -> None:
        self._compute, self._name = compute, name
        self._max_batch, self._max_running, self._max_waiting = max_batch, max_running, max_waiting
        self._waiting: deque[Waiting[Question, Answer]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._lingers = lingers
        self._expected, self._until_s = 0, 0.0  # how many may come back, and until when they are waited for
        self._timer: asyncio.TimerHandle | None = None

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
        while self._waiting and len(self._running) < self._max_running and not self._is_lingering():
            num = min(self._max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(num)]
            batch = [entry for entry in batch if not entry.future.done()]  # its caller may be gone
            if batch:
                task = asyncio.create_task(self._run(batch), context=Context())
                self._running.add(task)

    def _is_lingering(self) -> bool:
        """Whether more are expected; it ends by itself."""
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= min(self._expected, self._max_batch) or loop.time() >= self._until_s:
            self._expected = 0
            return False
        if self._timer is None:
            self._timer = loop.call_at(self._until_s, self._end_lingering)
        return True

    def _end_lingering(self) -> None:
        self._timer, self._expected = None, 0
        self._start()

    def _linger(self, num_answered: int, took_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._expected = num_answered + len(self._waiting) if self._lingers and num_answered > 1 else 0
        self._until_s = asyncio.get_running_loop().time() + min(LINGER * took_s, LINGER_MOST_S)

    async def _run(self, batch: list[Waiting[Question, Answer]]) -> None:
        started_s = asyncio.get_running_loop().time()
        waited_s = started_s - batch[0].since_s
        try:
            answers = await self._computed(batch, waited_s)
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)
        except asyncio.CancelledError:  # nobody who waits may wait for ever
            _refuse(batch, StageUnavailable("The batch of this request was cancelled", do="Try again."))
            raise
        except Exception as error:
            _refuse(batch, error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._linger(len(batch), asyncio.get_running_loop().time() - started_s)
            self._start()

    async def _computed(self, batch: list[Waiting[Question, Answer]], waited_s: float) -> Sequence[Answer]:
        """The answers, computed for all who wait: their ids in the log, their traces linked."""
        metrics.BATCH_USERS.labels(self._name).observe(len(batch))
        ids = (request_id for entry in batch for request_id in entry.request_ids)
        spans, waited_ms = [entry.span for entry in batch], round(waited_s * 1e3, 3)
        with for_requests(ids), telemetry.batch_span(self._name, spans, users=len(batch), waited_ms=waited_ms):
            return await self._compute([entry.question for entry in batch], waited_s)


def _refuse(batch: Sequence[Waiting[Question, Answer]], error: Exception) -> None:
    """Tell all who still wait."""
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
