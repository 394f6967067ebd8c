"""The ingress deployment, one HTTP application over one engine, and the one that keeps stored profiles up to date."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from ray import serve

from services.gateway.engine import now_us
from services.gateway.fresh import FreshPath
from services.gateway.http import create_app
from services.gateway.opening import describe, open_engine, open_packer
from services.gateway.recent import RecentEvents
from services.gateway.refresh import Refresher
from services.gateway.stages import HandleStages
from services.observed import start_observing
from sonder.core.errors import NotReady, StageUnavailable
from sonder.core.workspace import Workspace
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release

BUDGET_S = 5.0  # of a micro-batch of refreshes: nobody waits for it


@serve.ingress()
class Gateway:
    """Holds the handles of the other deployments; reads stored profiles in its own process."""

    def __init__(
        self,
        workspace: str,
        release: str,
        embedding: Any,
        segmentation: Any,
        scoring: Any,
        retrieval: Any,
        refresh: Any,
        store: str | None = None,
        needs_keys: bool = False,
    ) -> None:
        start_observing("gateway")
        self._refresh = refresh  # it reads the log by itself; it is held here so that it is deployed
        stages = HandleStages(embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=retrieval)
        self._keys = Workspace.at(workspace).keys if needs_keys else None
        self._engine = open_engine(Release.open(Workspace.at(workspace), release), stages, store_url=store)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._engine, keys=self._keys)
        app.state.adds_request_id = False  # Serve does, on every answer
        return app

    def check_health(self) -> None:
        """One read of the store: where it fails, Serve replaces the replica.

        Not where the server of a networked store is away: another replica would not find it either, so reads answer
        503 until it is back. A server that came back empty is loaded again by the replica that replaces this one.
        """
        with suppress(StageUnavailable):
            self._engine.profile("")


class Refresh:
    """Follows the online log of its node; nothing calls it."""

    def __init__(
        self, workspace: str, release: str, embedding: Any, segmentation: Any, scoring: Any, store: str | None = None
    ) -> None:
        start_observing("refresh")
        stages = HandleStages(embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=None)
        opened = Release.open(Workspace.at(workspace), release)
        profiles = opened.open_store(store, writable=True)
        info = describe(opened, num_profiles=profiles.metadata().num_profiles)
        recent = RecentEvents(
            profiles,
            OnlineLog(opened.workspace.online_log),
            open_packer(opened, profiles),
            info.cold,
            release_as_of_us=info.as_of_us,
        )
        fresh = FreshPath(
            stages,
            base_rates=info.base_rates,
            max_events=profiles.metadata().max_events,
            budget_s=BUDGET_S,
            clusters=info.clusters,
        )
        self._refresher = Refresher(recent, fresh, clock_us=now_us)
        self._lock = opened.workspace.store / f"{release}.refresh.lock"
        self._running: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Starts the work at the first call, which Serve makes before the replica counts as healthy."""
        if self._running is None:
            self._running = asyncio.create_task(self._refresher.run(self._lock))
        if self._running.done():
            raise NotReady("The refresh has ended") from self._running.exception()
