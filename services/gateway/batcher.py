"""Requests that arrive together become one micro-batch: a hop costs milliseconds of CPU, whatever it carries.

Nobody waits for a batch to fill: an idle batcher starts at once with one request, and what arrives while
`max_running` batches are under way leaves together when one ends. So latency is least when load is low, and the batch
grows by itself with the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sonder.core.errors import StageUnavailable

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class MicroBatcher(Generic[Question, Answer]):
    """`compute(questions, waited_s)` -> one answer per question, in order."""

    def __init__(
        self,
        compute: Callable[[Sequence[Question], float], Awaitable[Sequence[Answer]]],
        *,
        max_batch: int = 256,
        max_running: int = 2,
        max_waiting: int = 2048,
    ) -> None:
        self._compute = compute
        self._max_batch, self._max_running, self._max_waiting = max_batch, max_running, max_waiting
        self._waiting: deque[tuple[Question, asyncio.Future[Answer], float]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, question: Question) -> Answer:
        """The answer to one question; StageUnavailable if too many wait already."""
        if len(self._waiting) >= self._max_waiting:
            raise StageUnavailable(f"{len(self._waiting)} requests are waiting already", do="Try again shortly.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future, loop.time()))
        self._start()
        return await future

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            num = min(self._max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(num)]
            batch = [entry for entry in batch if not entry[1].done()]  # its caller may be gone
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._running.add(task)

    async def _run(self, batch: list[tuple[Question, asyncio.Future[Answer], float]]) -> None:
        waited_s = asyncio.get_running_loop().time() - batch[0][2]
        try:
            answers = await self._compute([question for question, _, _ in batch], waited_s)
            for (_, future, _), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._start()
