"""What a deployment holds of each release it is asked for, so that a switch of the served release needs no restart.

A gateway names its release with each call. While a switch is under way some ask for the old release and some for the
new one, and both are answered from what they ask for: an answer never mixes two releases.
Memory: KEPT releases for good, which a promotion needs, and MOST while they are asked for: a canary, and one that is
served by its name (sonder.releases.canary). Where another one is loaded, those that nobody asked for in IDLE_S beyond
KEPT make room, the oldest first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release, served_release

logger = logging.getLogger("sonder")
T = TypeVar("T")
KEPT, MOST = 2, 4  # the current one, two beside it, and the next one while it takes over
IDLE_S = 600.0


class Held(Generic[T]):
    """The loaded parts of releases; `load` makes one, off the event loop, once for however many calls wait for it."""

    def __init__(self, workspace: str, release: str | None, load: Callable[[Release], T]) -> None:
        """The first one is loaded at once: `release`, or the served one where none is named."""
        self._workspace, self._load = Workspace.at(workspace), load
        self._first = release or served_release(self._workspace)
        self._parts: OrderedDict[str, T] = OrderedDict({self._first: self._opened(self._first)})
        self._asked_s = {self._first: time.monotonic()}
        self._loading: dict[str, asyncio.Task[T]] = {}

    async def of(self, release: str | None) -> T:
        """What was loaded of a release; None: the first one. Raises what loading raises, and tries again next time."""
        wanted = release or self._first
        self._asked_s[wanted] = time.monotonic()
        part = self._parts.get(wanted)
        if part is None:
            if wanted not in self._loading:
                self._loading[wanted] = asyncio.create_task(self._loaded(wanted))
            return await asyncio.shield(self._loading[wanted])  # a caller that gave up does not stop it for others
        self._parts.move_to_end(wanted)
        return part

    def all(self) -> list[T]:
        """What is held at this moment."""
        return list(self._parts.values())

    async def _loaded(self, release: str) -> T:
        try:
            part = await asyncio.to_thread(self._opened, release)
        finally:
            del self._loading[release]
        self._parts[release] = part
        self._make_room(release)
        return part

    def _make_room(self, release: str) -> None:
        while len(self._parts) > KEPT:
            oldest = next(iter(self._parts))
            if len(self._parts) <= MOST and time.monotonic() - self._asked_s[oldest] < IDLE_S:
                return
            del self._parts[oldest], self._asked_s[oldest]
            logger.info("release %s makes room for %s", oldest, release)

    def _opened(self, release: str) -> T:
        return self._load(Release.open(self._workspace, release))
