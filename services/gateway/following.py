"""Follows what is served: opens a new release beside the old one, changes over, and closes the old one later.

Nothing is restarted and no request fails: until the new part is ready the old one answers, and what was under way then
has GRACE_S to end. A release that cannot be opened is told in the log and tried again with a growing pause, while the
old one goes on. A switch back within the grace takes the old part again.
Releases that are served beside the current one (sonder.releases.canary) are opened in the background, so that loading
one of them keeps nobody from a promotion or a rollback; one that is wanted no more leaves at the next look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

logger = logging.getLogger("sonder")
T = TypeVar("T")
LOOK_EVERY_S = 1.0
LONGEST_PAUSE_S = 60.0
GRACE_S = 60.0  # twice the longest request, which is a lookalike


async def _nothing() -> None:
    pass


class ReleaseFollower(Generic[T]):
    """Holds what `opened` made of each release; all but `served`, `beside` and `opened` is called in the event loop.

    release, part: of the served release; beside: of each other one, by its id. `changed` is called after any of them
    did; what it assigns is what answers.
    """

    def __init__(
        self,
        release: str,
        part: T,
        *,
        served: Callable[[], str],
        opened: Callable[[str], T],
        activate: Callable[[T], Awaitable[None]],
        retire: Callable[[T], Awaitable[None]],
        wants_beside: Callable[[str], Sequence[str]] = lambda served: (),
        changed: Callable[[], Awaitable[None]] = _nothing,
        grace_s: float = GRACE_S,
    ) -> None:
        """`part`: of the first release, not active yet. `served`, `wants_beside` and `opened` run in a thread."""
        self.release, self.part = release, part
        self.beside: dict[str, T] = {}
        self._served, self._opened, self._activate, self._retire = served, opened, activate, retire
        self._wants_beside, self._changed = wants_beside, changed
        self._grace_s, self._is_active = grace_s, False
        self._retiring: dict[str, tuple[float, T]] = {}  # release -> when, part
        self._opening: dict[str, asyncio.Task[T]] = {}  # what will be beside
        self._failed: dict[str, tuple[float, float]] = {}  # release -> not before, pause

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
        """Look once -> whether the served release changed."""
        if not self._is_active:
            await self._activate(self.part)
            self._is_active = True
            await self._changed()
        await self._retire_old()
        release = await asyncio.to_thread(self._served)
        former = None
        if release != self.release:
            part, former = await self._taken(release), self.release
            self.beside[former] = self.part  # whether it stays there is decided below, before anybody sees it
            logger.info("release %s is served, %s was before", release, self.release)
            self.release, self.part = release, part
        await self._look_beside(former)
        return former is not None

    def open_parts(self) -> list[T]:
        """Everything that is open: the served part, those beside it, and those that close soon."""
        return [self.part, *self.beside.values(), *(part for _, part in self._retiring.values())]

    async def _taken(self, release: str) -> T:
        """An active part of the release, from wherever it is open already."""
        if release in self._opening:
            return await self._opening.pop(release)
        if release in self.beside:
            return self.beside.pop(release)
        _, part = self._retiring.pop(release, (0.0, None))
        return await self._activated(release) if part is None else part

    async def _activated(self, release: str) -> T:
        part = await asyncio.to_thread(self._opened, release)
        try:
            await self._activate(part)
        except BaseException:
            await self._retire(part)
            raise
        return part

    # -- beside -------------------------------------------------------------------------------------------------------

    async def _look_beside(self, former: str | None) -> None:
        """What is wanted beside and open is there at once, what is not wanted leaves, and the rest is being opened.

        `former`: the served release until now, where it is another one from here on.
        """
        try:
            wanted = await asyncio.to_thread(self._wants_beside, self.release)
        except Exception as error:  # the served release needs none of it
            logger.error("what is served beside %s is unknown: %s: %s", self.release, type(error).__name__, error)
            wanted = [release for release in self.beside if release != former]
        before = dict(self.beside)
        for release in [release for release in self.beside if release not in wanted]:
            self._put_away(release, self.beside.pop(release))
        for release in wanted:
            if release != self.release and release not in self.beside:
                await self._bring(release)
        for release in [release for release in self._opening if release not in wanted]:
            if self._opening[release].done():  # it came too late
                await self._arrived(release, is_wanted=False)
        if former is not None or before != self.beside:
            await self._changed()

    async def _bring(self, release: str) -> None:
        now = asyncio.get_running_loop().time()
        if release in self._retiring:
            self.beside[release] = self._retiring.pop(release)[1]
        elif release in self._opening:
            if self._opening[release].done():
                await self._arrived(release, is_wanted=True)
        elif now >= self._failed.get(release, (now, 0.0))[0]:
            self._opening[release] = asyncio.create_task(self._activated(release))

    async def _arrived(self, release: str, *, is_wanted: bool) -> None:
        try:
            part = await self._opening.pop(release)
        except Exception as error:
            pause = min(LONGEST_PAUSE_S, max(LOOK_EVERY_S, 2 * self._failed.get(release, (0.0, 0.0))[1]))
            self._failed[release] = (asyncio.get_running_loop().time() + pause, pause)
            logger.error("release %s cannot be served beside: %s: %s", release, type(error).__name__, error)
            return
        self._failed.pop(release, None)
        if is_wanted:
            self.beside[release] = part
            logger.info("release %s is served beside %s", release, self.release)
        else:
            await self._retire(part)

    def _put_away(self, release: str, part: T) -> None:
        self._retiring[release] = (asyncio.get_running_loop().time() + self._grace_s, part)

    async def _retire_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for release in [release for release, (ends, _) in self._retiring.items() if ends <= now]:
            await self._retire(self._retiring.pop(release)[1])
