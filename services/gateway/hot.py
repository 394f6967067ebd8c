"""The read of one whole profile, stored or `?fresh=true`, past FastAPI's routing and validation: most of all requests.

`GET /v1/users/{id}` without a query or with `fresh=true` alone, without a named release and with an id of plain
characters is answered here with the bytes that the route would give; everything else goes on to the route. Routing,
parameters and response objects of the framework cost five times what the engine does for a stored read, and as much
as a tenth of a fresh one (benchmarks/serving: `hot`; benchmarks/fresh_cost: `asgi` less `engine`).
A stored read that fails goes on to the route too. A fresh one is answered here with the route's own problem document:
asked once more it would compute, and count its failure, twice.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.problems import on_sonder_error
from services.gateway.schemas import MAX_ID_BYTES
from services.gateway.told import EXPERIMENT_HEADER, arms_of
from sonder.core.errors import SonderError

PREFIX = "/v1/users/"
FRESH = b"fresh=true"
RELEASE_HEADER = b"x-sonder-release"
LONGEST = len(PREFIX) + MAX_ID_BYTES


class HotReads:
    """ASGI middleware next to the routes, inside of doors and observation, which see these requests as any other."""

    def __init__(self, app: ASGIApp, route: Any) -> None:
        self._app, self._route = app, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user_id = _plain_id(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        engine = None if user_id is None else scope["app"].state.engine
        content: bytes | None = None
        if engine is not None and not scope["query_string"]:
            content = _stored(engine, user_id)
        elif engine is not None:
            scope["route"] = self._route  # a failure is logged by it
            try:
                content = await engine.fresh_profile(user_id)
            except SonderError as error:
                answer = await on_sonder_error(Request(scope), error)
                await answer(scope, receive, send)
                return
        if content is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # observation names requests by it
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        if (arms := arms_of(content)) is not None:
            headers.append((EXPERIMENT_HEADER.encode(), arms.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _stored(engine: Any, user_id: Any) -> bytes | None:
    try:
        content: bytes = engine.profile(user_id)
    except SonderError:
        return None  # the route fails the same way, and its answer says how
    return content


def _plain_id(scope: Scope) -> str | None:
    """Whose whole profile is asked for, and nothing beside it but that it be fresh."""
    path: str = scope["path"]
    query = scope["query_string"]
    is_plain = len(PREFIX) < len(path) <= LONGEST and path.isascii() and "%" not in path and path.isprintable()
    if not is_plain or not path.startswith(PREFIX) or "/" in path[len(PREFIX) :] or (query and query != FRESH):
        return None
    for name, _ in scope["headers"]:
        if name == RELEASE_HEADER:
            return None
    return path[len(PREFIX) :]
