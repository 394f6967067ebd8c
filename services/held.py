"""What a deployment holds of each release it is asked for, so that a switch of the served release needs no restart.

A gateway names its release with each call. While a switch is under way some ask for the old release and some for the
new one, and both are answered from what they ask for: an answer never mixes two releases.
Memory: MOST releases at once; the one that nobody has asked for the longest makes room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release, served_release

logger = logging.getLogger("sonder")
T = TypeVar("T")
MOST = 2


class Held(Generic[T]):
    """The loaded parts of releases; `load` makes one, off the event loop, once for however many calls wait for it."""

    def __init__(self, workspace: str, release: str | None, load: Callable[[Release], T]) -> None:
        """The first one is loaded at once: `release`, or the served one where none is named."""
        self._workspace, self._load = Workspace.at(workspace), load
        self._first = release or served_release(self._workspace)
        self._parts: OrderedDict[str, T] = OrderedDict({self._first: self._opened(self._first)})
        self._loading: dict[str, asyncio.Task[T]] = {}

    async def of(self, release: str | None) -> T:
        """What was loaded of a release; None: the first one. Raises what loading raises, and tries again next time."""
        wanted = release or self._first
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
        while len(self._parts) > MOST:
            dropped, _ = self._parts.popitem(last=False)
            logger.info("release %s makes room for %s", dropped, release)
        return part

    def _opened(self, release: str) -> T:
        return self._load(Release.open(self._workspace, release))
