"""A gateway over real engines that follows its workspace in this process: for tests of what is served beside, and of
experiments."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from services.gateway.arms import Recorder
from services.gateway.engine import Engine
from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.serving import Serving
from services.gateway.stages import HandleStages
from sonder.releases.artefacts import Release
from sonder.releases.canary import Canaries, Limits, Trial

if TYPE_CHECKING:
    from conftest import LocalHandle, Served, TinyRelease

LIMITS = Limits(min_requests=50)
ARROW = {"accept": "application/vnd.apache.arrow.stream"}


class Gateway:
    """The HTTP application of one gateway that follows its workspace; each release has handles of its own."""

    def __init__(self, served: Served) -> None:
        self.served, self.workspace = served, served.release.workspace
        self.canaries = Canaries(self.workspace)
        self.handles: dict[str, dict[str, LocalHandle]] = {served.release.release: served.handles}
        self.opened = {served.release.release: served.engine}
        self.app = create_app(served.engine)
        self.serving = Serving(
            self.workspace,
            None,
            opened=self.open,
            assign=lambda engine: setattr(self.app.state, "engine", engine),
            recorder=lambda: Recorder(settling_s=0.0),
        )
        self.app.state.serving = self.serving

    def open(self, release: str) -> Engine:
        if release not in self.opened:
            handles = {name: type(one)(one.deployment) for name, one in self.served.handles.items()}
            self.handles[release] = handles
            opened = Release.open(self.workspace, release)
            self.opened[release] = open_engine(opened, HandleStages(**handles).of(release), log=self.served.log)
        return self.opened[release]

    @property
    def engine(self) -> Any:
        return self.app.state.engine

    async def settle(self) -> None:
        """What a few looks do."""
        for _ in range(3):
            await self.serving.follower.step()
            for task in list(self.serving.follower._opening.values()):
                await asyncio.wait([task])
        await self.serving.look()
        await self.serving.look_at_experiments()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://sonder") as http:
            yield http

    def close(self) -> None:
        for release, engine in self.opened.items():
            if release != self.served.release.release:
                engine.close(with_log=False)


def start(gateway: Gateway, candidate: str = "release-2", **options: Any) -> Trial:
    asked = {"share": 0.5, "limits": LIMITS, **options}
    return gateway.canaries.start(candidate, by="a test", reason="", **asked)


def release_of(trial: Trial, user_id: str) -> str:
    return trial.candidate if trial.draw()(user_id) < trial.share else trial.served


@contextmanager
def of_three_releases(served: Served, another_release: Callable[[TinyRelease, str], str]) -> Iterator[Gateway]:
    """A gateway that serves release-1 of a workspace with release-2 and release-3."""
    for name in ("release-2", "release-3"):
        another_release(served.release, name)
    made = Gateway(served)
    yield made
    made.close()


def timeless(content: bytes) -> bytes:
    """An answer without its times."""
    return re.sub(rb'"age_ms":\d+|"(computed_at|as_of)":"[^"]*"', b"", content)
