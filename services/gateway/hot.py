"""The stored read of one whole profile, past FastAPI's routing and validation: it is most of all requests.

`GET /v1/users/{id}` without a query or a named release and with an id of plain characters is answered here with the
bytes that the route would give; everything else, and every failure, goes on to the route. Routing, parameters and
response objects of the framework cost five times what the engine does (benchmarks/serving: `hot`).
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.schemas import MAX_ID_BYTES
from services.gateway.told import EXPERIMENT_HEADER, arms_of
from sonder.core.errors import SonderError

PREFIX = "/v1/users/"
RELEASE_HEADER = b"x-sonder-release"
LONGEST = len(PREFIX) + MAX_ID_BYTES


class StoredReads:
    """ASGI middleware next to the routes, inside of doors and observation, which see these requests as any other."""

    def __init__(self, app: ASGIApp, route: Any) -> None:
        self._app, self._route = app, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = self._profile(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if content is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # observation names requests by it
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        if (arms := arms_of(content)) is not None:
            headers.append((EXPERIMENT_HEADER.encode(), arms.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _profile(self, scope: Scope) -> bytes | None:
        path: str = scope["path"]
        is_plain = len(PREFIX) < len(path) <= LONGEST and path.isascii() and "%" not in path and path.isprintable()
        if not is_plain or not path.startswith(PREFIX) or "/" in path[len(PREFIX) :] or scope["query_string"]:
            return None
        for name, _ in scope["headers"]:
            if name == RELEASE_HEADER:
                return None
        engine = scope["app"].state.engine
        try:
            return None if engine is None else engine.profile(path[len(PREFIX) :])
        except SonderError:
            return None  # the route fails the same way, and its answer says how
