"""Who may pass: an API key with the right scope, the fields it is limited to, and its rate. Before any route runs.

The key stands in `Authorization: Bearer ...` or `X-API-Key`. /healthz and /readyz are open, all else needs a key. A key
that is limited to fields reads them by `?fields=` or their own routes; what would answer with more is refused, so a
field never leaks through a route that somebody forgot: routes that are not known to be within the fields are closed.
The file is read again every few seconds, so a key that was revoked is refused without a restart.
Limits: a rate is a token bucket in each gateway, so two gateways let twice as much pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.problems import problem
from sonder.core.keys import Key, find_key, read_keys
from sonder.core.storage import Folder

OPEN = frozenset({"/healthz", "/readyz"})
LOOK_EVERY_S = 2.0
_PARTS = {  # what a route below a user answers with
    "embedding": {"embedding"},
    "interests": {"interests"},
    "affinities": {"affinities"},
    "segments": {"segments", "audiences"},
    "scores": {"scores"},
    "explanation": {"segments", "scores", "interests"},
}


class Doors:
    """ASGI middleware over the keys of a workspace."""

    def __init__(self, app: ASGIApp, keys: Folder) -> None:
        self._app, self._file = app, keys
        self._keys: dict[str, Key] = {}
        self._looked = -math.inf
        self._buckets: dict[str, tuple[float, float]] = {}  # key id -> tokens, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, detail, headers = refused
        await problem(status, detail, instance=scope["path"], headers=headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str, Mapping[str, str]] | None:
        presented = _presented(scope)
        key = None if presented is None else find_key(self._known(), presented)
        if key is None:
            found = "No API key" if presented is None else "An unknown API key"
            detail = f"{found}. Expected: Authorization: Bearer KEY. `sonder keys create` makes one."
            return HTTPStatus.UNAUTHORIZED, detail, {"www-authenticate": "Bearer"}
        wanted = scope_of(scope["method"], scope["path"])
        if not key.may(wanted):
            return HTTPStatus.FORBIDDEN, f"The key {key.name!r} has no scope {wanted!r}.", {}
        if key.fields is not None and wanted == "read" and (detail := _beyond(key.fields, scope)):
            return HTTPStatus.FORBIDDEN, f"The key {key.name!r} {detail}.", {}
        wait_s = self._wait_s(key)
        if wait_s > 0:
            told = f"The key {key.name!r} may ask {key.rate:g} times a second."
            return HTTPStatus.TOO_MANY_REQUESTS, told, {"retry-after": str(math.ceil(wait_s))}
        return None

    def _known(self) -> dict[str, Key]:
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY_S:
            self._looked, self._keys = now, read_keys(self._file)
        return self._keys

    def _wait_s(self, key: Key) -> float:
        """0 and a token taken, or the seconds until there is one."""
        if key.rate is None:
            return 0.0
        most, now = max(1.0, key.rate), time.monotonic()
        tokens, since = self._buckets.get(key.id, (most, now))
        tokens = min(most, tokens + (now - since) * key.rate)
        if tokens < 1:
            self._buckets[key.id] = tokens, now
            return (1 - tokens) / key.rate
        self._buckets[key.id] = tokens - 1, now
        return 0.0


def scope_of(method: str, path: str) -> str:
    """What a request needs; whatever is not known to read or to send events needs `admin`."""
    if path == "/v1/events":
        return "write"
    if method in ("GET", "HEAD") or path in ("/v1/users:batchGet", "/v1/audiences:preview", "/v1/audiences:lookalike"):
        return "read"
    return "admin"


def _presented(scope: Scope) -> str | None:
    headers = dict(scope["headers"])
    given = headers.get(b"x-api-key")
    if given is None:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given if kind.lower() == b"bearer" else b""
    return given.decode("latin-1").strip() or None


def _beyond(fields: tuple[str, ...], scope: Scope) -> str:
    """Why a key that is limited to fields may not ask this; empty where it may."""
    path, allowed = scope["path"], ", ".join(fields)
    if path in ("/v1/release", "/openapi.json", "/docs"):
        return ""
    parts = path.removeprefix("/v1/users/").split("/")
    if not path.startswith("/v1/users/") or len(parts) > 2:
        return f"reads {allowed} of one user and nothing else"
    asked = _PARTS.get(parts[1]) if len(parts) == 2 else _named(scope)
    if asked is None:
        return f"reads {allowed} alone; name them in ?fields=" if len(parts) == 1 else f"reads {allowed} alone"
    beyond = sorted(asked - set(fields))
    return f"may not read {beyond[0]}, only {allowed}" if beyond else ""


def _named(scope: Scope) -> set[str] | None:
    """The fields that a request names, None where it names none and would get all."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("fields")
    return None if not given else {name for value in given for name in value.split(",")}
