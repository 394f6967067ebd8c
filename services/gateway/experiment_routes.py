"""GET /v1/experiments and a user's assignment: what this gateway follows, without an engine's help.

Where nothing follows the workspace (one release for good) no experiment runs.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from services.gateway import problems, schemas
from services.gateway.running import RunningExperiments
from services.gateway.schemas import UserId
from sonder.core.errors import NotFound, NotReady

Name = Annotated[str, Path(min_length=1, max_length=64)]
User = Annotated[UserId, Query(description="1 to 256 bytes of UTF-8")]


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_FAILED: dict[int | str, dict[str, Any]] = {
    401: _problem("No API key, or an unknown one, where keys are needed"),
    403: _problem("The key has not this scope, or may not read this"),
    422: _problem("The request is malformed"),
    429: _problem("Too many requests; Retry-After says when to come back"),
    503: _problem("No release is loaded yet"),
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: _problem("No such experiment is running")}
experiments = APIRouter(prefix="/v1", tags=["experiments"], responses=_FAILED)


@experiments.get("/experiments", response_model=schemas.ExperimentsAnswer)
async def read_experiments(request: Request) -> Response:
    """The experiments that run, with all that it takes to assign a user without asking."""
    running = _running(request)
    return _json({"experiments": [] if running is None else running.told()})


@experiments.get("/experiments/{name}/assignment", response_model=schemas.AssignmentAnswer, responses=_UNKNOWN)
async def read_assignment(request: Request, name: Name, user_id: User) -> Response:
    """Which arm a user is in. Asking exposes nobody: an answer that the arm gives does."""
    running = _running(request)
    if running is None:
        raise NotFound(f"No experiment {name!r} is running")
    return _json(running.assignment(name, user_id))


def _running(request: Request) -> RunningExperiments | None:
    state = request.app.state
    if state.engine is None:
        raise NotReady("No release is loaded yet", do="Try again shortly.")
    return None if state.serving is None else state.serving.experiments


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
