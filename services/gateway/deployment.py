"""The ingress deployment: one HTTP application over one engine, which is built once, when the replica starts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.stages import HandleStages
from services.observed import start_observing
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release


@serve.ingress()
class Gateway:
    """Holds the handles of the other deployments; reads stored profiles in its own process."""

    def __init__(
        self, workspace: str, release: str, embedding: Any, segmentation: Any, scoring: Any, retrieval: Any
    ) -> None:
        start_observing("gateway")
        stages = HandleStages(embedding=embedding, segmentation=segmentation, scoring=scoring, retrieval=retrieval)
        self._engine = open_engine(Release.open(Workspace.at(workspace), release), stages)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._engine)
        app.state.adds_request_id = False  # Serve does, on every answer
        return app

    def check_health(self) -> None:
        """One read of the store: where it fails, Serve replaces the replica."""
        self._engine.profile("")
