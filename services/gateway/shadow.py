"""Shadow answers: the candidate answers again what the served release has answered, and nobody sees it.

An answer is on its way when its shadow is computed: what is offered waits until the loop has been given back for
DELAY_S. At most MOST_RUNNING are computed at once and MOST_WAITING wait; what comes on top is dropped and counted, and
where the loop itself is late all that waits is. So shadows take what is left over, and a candidate that hangs or fails
costs the served release nothing but that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from services.gateway.arms import Arm, Recorder
from services.gateway.engine import Engine
from sonder.core import metrics

logger = logging.getLogger("sonder")
DELAY_S = 0.02
LATE_S = 0.2  # the loop comes back so much later than asked: there is no time to spare
MOST_WAITING, MOST_AT_ONCE, MOST_RUNNING = 256, 32, 4
BUDGET_S = 5.0
Ask = Callable[[Engine], bytes | Awaitable[bytes]]


class _Offered(NamedTuple):
    kind: int
    user_id: str
    answer: bytes  # of the served release
    ask: Ask


class Shadow:
    """The queue of one trial; of one event loop."""

    def __init__(self, candidate: Engine, recorder: Recorder) -> None:
        self._candidate, self._recorder = candidate, recorder
        self._arm: Arm = recorder.candidate
        self._waiting: deque[_Offered] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._working: asyncio.Task[None] | None = None

    def offer(self, kind: int, user_id: str, answer: bytes, ask: Ask) -> None:
        """Compute later what was answered just now, if there is room."""
        if len(self._waiting) >= MOST_WAITING:
            self._drop(1)
            return
        self._waiting.append(_Offered(kind, user_id, answer, ask))
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Compute nothing more; nothing of it runs when this returns."""
        self._waiting.clear()
        tasks = [task for task in (self._working, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        """Until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            asked_at = loop.time()
            await asyncio.sleep(DELAY_S)
            if loop.time() - asked_at > DELAY_S + LATE_S:
                self._drop(len(self._waiting))
                self._waiting.clear()
            for _ in range(min(MOST_AT_ONCE, len(self._waiting))):
                if len(self._running) >= MOST_RUNNING:
                    break
                self._compute(self._waiting.popleft())
        self._working = None

    def _compute(self, offered: _Offered) -> None:
        """Here where it is a stored read, as a task of its own where stages take part."""
        started = time.perf_counter()
        try:
            answer = offered.ask(self._candidate)
        except Exception as error:
            self._failed(offered, error)
            return
        if isinstance(answer, bytes):
            self._note(offered, time.perf_counter() - started, answer)
            return
        task = asyncio.get_running_loop().create_task(self._awaited(offered, answer, started))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _awaited(self, offered: _Offered, answer: Awaitable[bytes], started: float) -> None:
        try:
            async with asyncio.timeout(BUDGET_S):
                content = await answer
            self._note(offered, time.perf_counter() - started, content)
        except Exception as error:
            self._failed(offered, error)

    def _note(self, offered: _Offered, seconds: float, content: bytes) -> None:
        """Scores of both arms together, so that they are of the same users however many are dropped."""
        self._arm.note(offered.kind, seconds, offered.user_id, content)
        self._recorder.served.keep(offered.user_id, offered.answer)

    def _failed(self, offered: _Offered, error: Exception) -> None:
        if not is_own_fault(error):
            return
        logger.debug("shadow: %s: %s", type(error).__name__, error)
        self._arm.note_failure(offered.kind)

    def _drop(self, num: int) -> None:
        self._recorder.dropped += num
        metrics.CANARY_DROPPED.inc(num)


def is_own_fault(error: Exception) -> bool:
    """Whether an answer failed and its caller did nothing wrong."""
    return getattr(error, "status", 500) >= 500
