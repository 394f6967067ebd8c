"""Follows the served release: opens the new one beside the old one, changes over, and closes the old one later.

Nothing is restarted and no request fails: until the new part is ready the old one answers, and what was under way then
has GRACE_S to end. A release that cannot be opened is told in the log and tried again with a growing pause, while the
old one goes on. A switch back within the grace takes the old part again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

logger = logging.getLogger("sonder")
T = TypeVar("T")
LOOK_EVERY_S = 1.0
LONGEST_PAUSE_S = 60.0
GRACE_S = 60.0  # twice the longest request, which is a lookalike


class ReleaseFollower(Generic[T]):
    """Holds what `opened` made of the served release; `activate` and `retire` are called in the event loop."""

    def __init__(
        self,
        release: str,
        part: T,
        *,
        served: Callable[[], str],
        opened: Callable[[str], T],
        activate: Callable[[T], Awaitable[None]],
        retire: Callable[[T], Awaitable[None]],
        grace_s: float = GRACE_S,
    ) -> None:
        """`part`: of the first release, not active yet. `served` and `opened` run in a thread."""
        self.release, self.part = release, part
        self._served, self._opened, self._activate, self._retire = served, opened, activate, retire
        self._grace_s, self._is_active = grace_s, False
        self._retiring: dict[str, tuple[float, T]] = {}  # release -> when, part

    async def run(self) -> None:
        """Follow until cancelled."""
        pause = LOOK_EVERY_S
        while True:
            try:
                await self.step()
                pause = LOOK_EVERY_S
            except Exception as error:  # the old one goes on
                logger.error("still on release %s: %s: %s", self.release, type(error).__name__, error)
                pause = min(LONGEST_PAUSE_S, 2 * pause)
            await asyncio.sleep(pause)

    async def step(self) -> bool:
        """Look once -> whether the release changed."""
        if not self._is_active:
            await self._activate(self.part)
            self._is_active = True
        await self._retire_old()
        release = await asyncio.to_thread(self._served)
        if release == self.release:
            return False
        _, part = self._retiring.pop(release, (0.0, None))
        if part is None:
            part = await asyncio.to_thread(self._opened, release)
        try:
            await self._activate(part)
        except BaseException:
            await self._retire(part)
            raise
        ends = asyncio.get_running_loop().time() + self._grace_s
        self._retiring[self.release] = (ends, self.part)
        logger.info("release %s is served, %s was before", release, self.release)
        self.release, self.part = release, part
        return True

    async def _retire_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for release in [release for release, (ends, _) in self._retiring.items() if ends <= now]:
            await self._retire(self._retiring.pop(release)[1])
