"""Who may pass: a key or token with the right scope, the fields it is limited to, and its rate. Before any route runs.

It stands in `Authorization: Bearer ...` or `X-API-Key`; what starts like a key of ours is one, all else is a token of
the identity provider (services.gateway.tokens), if there is one. /healthz and /readyz are open. A key or token
that is limited to fields reads them by `?fields=` or their own routes; what would answer with more is refused, so a
field never leaks through a route that somebody forgot: routes that are not known to be within the fields are closed.
The file is read again every few seconds, so a key that was revoked is refused without a restart.
Limits: a rate is a token bucket in each gateway, so two gateways let twice as much pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.problems import problem
from services.gateway.tokens import Refused, Tokens
from sonder.core.errors import NotReady
from sonder.core.keys import PREFIX, Caller, find_key, read_keys
from sonder.core.storage import Folder
from sonder.core.watching import Watched

OPEN = frozenset({"/healthz", "/readyz"})
BATCH = "/v1/users:batchGet"
LOOK_EVERY_S = 2.0
MAX_BUCKETS = 100_000  # then every caller starts anew
_PARTS = {  # what a route below a user answers with
    "embedding": {"embedding"},
    "interests": {"interests"},
    "affinities": {"affinities"},
    "segments": {"segments", "audiences"},
    "scores": {"scores"},
    "explanation": {"segments", "scores", "interests"},
}


@dataclass(frozen=True)
class Refusal:
    """Why a request does not pass."""

    status: HTTPStatus
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What a request is about, in the words of HTTP whatever it came by."""

    method: str
    path: str
    fields: frozenset[str] | None = None  # named ones; None: all that the route answers with


class Doors:
    """The keys of a workspace, and the tokens of an identity provider; one of these for all that a gateway answers."""

    def __init__(self, keys: Folder, tokens: Tokens | None = None) -> None:
        self._keys = Watched(keys, lambda: read_keys(keys), every_s=LOOK_EVERY_S)
        self._tokens = tokens
        self._buckets: dict[str, tuple[float, float]] = {}  # caller id -> tokens, when

    async def refusal(self, presented: str | None, asked: Asked) -> Refusal | None:
        """None where the request may pass; it is counted then."""
        try:
            caller = await self._caller(presented)
        except NotReady as error:
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"retry-after": "1"})
        except Refused as error:
            takes = "KEY" if self._tokens is None else "KEY, or a token of the issuer"
            detail = f"{error}. Expected: Authorization: Bearer {takes}. `sonder keys create` makes a key."
            return Refusal(HTTPStatus.UNAUTHORIZED, detail, {"www-authenticate": "Bearer"})
        wanted = scope_of(asked.method, asked.path)
        if not caller.may(wanted):
            return Refusal(HTTPStatus.FORBIDDEN, f"{caller.name!r} has no scope {wanted!r}.")
        if caller.fields is not None and wanted == "read" and (detail := _beyond(caller.fields, asked)):
            return Refusal(HTTPStatus.FORBIDDEN, f"{caller.name!r} {detail}.")
        wait_s = self._wait_s(caller)
        if wait_s > 0:
            told = f"{caller.name!r} may ask {caller.rate:g} times a second."
            return Refusal(HTTPStatus.TOO_MANY_REQUESTS, told, {"retry-after": str(math.ceil(wait_s))})
        return None

    def close(self) -> None:
        """Stop looking at the file of keys."""
        self._keys.close()

    async def _caller(self, presented: str | None) -> Caller:
        if presented is None:
            raise Refused("No API key" if self._tokens is None else "No API key and no token")
        if self._tokens is not None and not presented.startswith(PREFIX):
            return await self._tokens.caller(presented)
        key = find_key(self._keys.value, presented)
        if key is None:
            raise Refused("An unknown API key")
        return key

    def _wait_s(self, caller: Caller) -> float:
        """0 and a token taken, or the seconds until there is one."""
        if caller.rate is None:
            return 0.0
        most, now = max(1.0, caller.rate), time.monotonic()
        tokens, since = self._buckets.get(caller.id, (most, now))
        tokens = min(most, tokens + (now - since) * caller.rate)
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        if tokens < 1:
            self._buckets[caller.id] = tokens, now
            return (1 - tokens) / caller.rate
        self._buckets[caller.id] = tokens - 1, now
        return 0.0


class HttpDoors:
    """ASGI middleware: what may not pass is answered with a problem document."""

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app, self._doors = app, doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            asked = Asked(scope["method"], scope["path"], _named(scope))
            refused = await self._doors.refusal(_presented(scope), asked)
            if refused is not None:
                answer = problem(refused.status, refused.detail, instance=scope["path"], headers=refused.headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def scope_of(method: str, path: str) -> str:
    """What a request needs; whatever is not known to read or to send events needs `admin`."""
    if path == "/v1/events":
        return "write"
    if method in ("GET", "HEAD") or path in (BATCH, "/v1/audiences:preview", "/v1/audiences:lookalike"):
        return "read"
    return "admin"


def _presented(scope: Scope) -> str | None:
    headers = dict(scope["headers"])
    given = headers.get(b"x-api-key")
    if given is None:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given if kind.lower() == b"bearer" else b""
    return given.decode("latin-1").strip() or None


def _beyond(fields: tuple[str, ...], asked: Asked) -> str:
    """Why a caller who is limited to fields may not ask this; empty where it may."""
    path, allowed = asked.path, ", ".join(fields) or "nothing"
    if path in ("/v1/release", "/openapi.json", "/docs"):
        return ""
    if asked.method not in ("GET", "HEAD") and path != BATCH:
        return f"reads {allowed} and nothing else"
    parts = [BATCH] if path == BATCH else path.removeprefix("/v1/users/").split("/")
    if path != BATCH and (not path.startswith("/v1/users/") or len(parts) > 2):
        return f"reads {allowed} of users and nothing else"
    answered = _PARTS.get(parts[1]) if len(parts) == 2 else asked.fields
    if answered is None:
        return f"reads {allowed} alone; name them in ?fields=" if len(parts) == 1 else f"reads {allowed} alone"
    beyond = sorted(answered - set(fields))
    return f"may not read {beyond[0]}, only {allowed}" if beyond else ""


def _named(scope: Scope) -> frozenset[str] | None:
    """The fields that a request names, None where it names none and would get all."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("fields")
    return None if not given else frozenset(name for value in given for name in value.split(","))
