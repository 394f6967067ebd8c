"""The ingress deployment, one HTTP application over one engine, and the one that keeps stored profiles up to date.

Both follow the served release where none is named, and what is served beside it (services.gateway.following): a canary
or another release that callers name has its stored profiles refreshed like the current one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from ray import serve

from services.gateway.answers import now_us
from services.gateway.doors import Doors
from services.gateway.engine import Engine
from services.gateway.following import ReleaseFollower
from services.gateway.fresh import FreshPath
from services.gateway.http import create_app
from services.gateway.opening import describe, open_engine, open_packer
from services.gateway.recent import RecentEvents
from services.gateway.refresh import LOOK_EVERY_S, NETWORKED_LOOK_EVERY_S, Refresher
from services.gateway.rpc.server import RpcServer
from services.gateway.serving import Serving
from services.gateway.split import SplitEngine
from services.gateway.stages import HandleStages
from services.gateway.tokens import Tokens
from services.observed import start_observing
from sonder.core.config import TokensConfig
from sonder.core.errors import NotReady, StageUnavailable
from sonder.core.workspace import Workspace
from sonder.profiles.event_log import open_event_log
from sonder.profiles.log_shipping import LogShipper
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.store import ProfileStore
from sonder.releases.artefacts import Release, served_release
from sonder.releases.canary import served_beside

BUDGET_S = 5.0  # of a micro-batch of refreshes: nobody waits for it


@serve.ingress()
class Gateway:
    """Holds the handles of the other deployments; reads stored profiles in its own process."""

    def __init__(
        self,
        workspace: str,
        release: str | None,
        embedding: Any,
        segmentation: Any,
        scoring: Any,
        retrieval: Any,
        refresh: Any,
        store: str | None = None,
        needs_keys: bool = False,
        tokens: dict[str, Any] | None = None,
        grpc: dict[str, Any] | None = None,
        local_dir: str | None = None,
    ) -> None:
        start_observing("gateway")
        self._refresh = refresh  # it reads the log by itself; it is held here so that it is deployed
        self._workspace, self._store = Workspace.at(workspace, local_dir), store
        self._stages = HandleStages(
            embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=retrieval
        )
        self._log = open_event_log(self._workspace, store)
        self._shipper: LogShipper | None = None
        if self._workspace.is_shared and isinstance(self._log, OnlineLog):  # a server's log is everybody's already
            self._shipper = LogShipper(self._workspace, self._log)
        known = Tokens(TokensConfig.model_validate(tokens)) if tokens is not None else None
        self._doors = Doors(self._workspace.keys, known) if needs_keys else None
        self._app: FastAPI | None = None
        self._serving = Serving(self._workspace, release, opened=self._open, assign=self._assign)
        self._answering: Engine | SplitEngine = self._serving.follower.part
        self._following: asyncio.Task[None] | None = None
        self._grpc, self._rpc = grpc, RpcServer(self._engine, self._doors)
        if self._shipper is not None:
            self._shipper.start()

    def _engine(self) -> Engine | SplitEngine | None:
        return None if self._app is None else self._app.state.engine

    async def __del__(self) -> None:
        """Serve awaits this when the replica is stopped, after the HTTP requests under way."""
        await self._rpc.stop()
        await self._serving.close()
        if self._doors is not None:
            self._doors.close()
        if self._shipper is not None:
            await asyncio.to_thread(self._shipper.close)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._serving.follower.part, doors=self._doors)
        self._app.state.engine, self._app.state.serving = self._answering, self._serving
        self._app.state.adds_request_id = False  # Serve does, on every answer
        return self._app

    async def check_health(self) -> None:
        """One read of the store: where it fails, Serve replaces the replica. The first call starts following and gRPC.

        Not where the server of a networked store is away: another replica would not find it either, so reads answer
        503 until it is back. A server that came back empty is loaded again by the replica that replaces this one.
        """
        if self._following is None:
            self._following = asyncio.create_task(self._serving.run())
            if self._grpc is not None:
                await self._rpc.start(self._grpc["host"], self._grpc["port"])
        with suppress(StageUnavailable):
            self._serving.follower.part.profile("")

    def _open(self, release: str) -> Engine:
        opened = Release.open(self._workspace, release)
        return open_engine(opened, self._stages.of(release), store_url=self._store, log=self._log)

    def _assign(self, engine: Engine | SplitEngine) -> None:
        self._answering = engine
        if self._app is not None:
            self._app.state.engine = engine


class Refresh:
    """Follows the online log, of its node or of all; nothing calls it."""

    def __init__(
        self,
        workspace: str,
        release: str | None,
        embedding: Any,
        segmentation: Any,
        scoring: Any,
        store: str | None = None,
        local_dir: str | None = None,
    ) -> None:
        start_observing("refresh")
        self._workspace, self._store = Workspace.at(workspace, local_dir), store
        self._stages = HandleStages(embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=None)
        self._log = open_event_log(self._workspace, store)
        first = release or served_release(self._workspace)
        self._follower = ReleaseFollower(
            first,
            self._open(first),
            served=lambda: release or served_release(self._workspace),
            opened=self._open,
            activate=self._activate,
            retire=self._retire,
            wants_beside=lambda served: () if release else served_beside(self._workspace, served),
        )
        self._following: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Starts the work at the first call, which Serve makes before the replica counts as healthy."""
        if self._following is None:
            self._following = asyncio.create_task(self._follower.run())
        running = self._follower.part.running
        if running is not None and running.done():
            raise NotReady("The refresh has ended") from running.exception()

    def _open(self, release: str) -> _Refreshing:
        opened = Release.open(self._workspace, release)
        profiles = opened.open_store(self._store, writable=True)
        info = describe(opened, num_profiles=profiles.metadata().num_profiles)
        recent = RecentEvents(
            profiles, self._log, open_packer(opened, profiles), info.cold, release_as_of_us=info.as_of_us
        )
        fresh = FreshPath(
            self._stages.of(release),
            base_rates=info.base_rates,
            max_events=profiles.metadata().max_events,
            budget_s=BUDGET_S,
            clusters=info.clusters,
        )
        look_every_s = LOOK_EVERY_S if self._store is None else NETWORKED_LOOK_EVERY_S
        refresher = Refresher(recent, fresh, clock_us=now_us, look_every_s=look_every_s)
        return _Refreshing(release, profiles, refresher)

    async def _activate(self, part: _Refreshing) -> None:
        """The old release goes on being refreshed until it is retired: some gateways still answer from it."""
        if part.running is None:
            lock = None if self._store else self._workspace.refresh_lock(part.release)
            if lock is not None:
                lock.parent.mkdir(parents=True, exist_ok=True)
            part.running = asyncio.create_task(part.refresher.run(lock))

    async def _retire(self, part: _Refreshing) -> None:
        """Close the store only when nothing writes into it any more."""
        part.refresher.stop()
        if part.running is not None:
            await asyncio.wait([part.running])
        part.store.close()


class _Refreshing:
    """The refresh of one release."""

    def __init__(self, release: str, store: ProfileStore, refresher: Refresher) -> None:
        self.release, self.store, self.refresher = release, store, refresher
        self.running: asyncio.Task[None] | None = None
