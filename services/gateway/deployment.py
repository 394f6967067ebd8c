"""The ingress deployment: one HTTP application over one engine, which is built once, when the replica starts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from ray import serve

from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.stages import HandleStages
from sonder.core.errors import StageUnavailable
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release


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
        store: str | None = None,
    ) -> None:
        stages = HandleStages(embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=retrieval)
        self._engine = open_engine(Release.open(Workspace.at(workspace), release), stages, store_url=store)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._engine)

    def check_health(self) -> None:
        """One read of the store: where it fails, Serve replaces the replica.

        Not where the server of a networked store is away: another replica would not find it either, so reads answer
        503 until it is back. A server that came back empty is loaded again by the replica that replaces this one.
        """
        with suppress(StageUnavailable):
            self._engine.profile("")
