"""Each request seen from outside: its id, its span, its latency; and the metrics at `GET /metrics`.

A span is named by the route's template and holds release, status and counts, never the path: that has user ids in it.
The proxy in front says when it took the request (x-request-start, microseconds; services/gateway/proxy.py), which is
where the span `proxy` starts; it ends with the answer, and shows what was spent before the gateway. Its parent is
the caller's `traceparent`.
Limits: a start that lies in the future or more than MOST_QUEUED_S ago is not believed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from opentelemetry.trace import Span, SpanKind
from prometheus_client import Histogram
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sonder.core import metrics, telemetry
from sonder.core.logs import for_requests, request_id_of
from sonder.core.span_files import ENTRY
from sonder.profiles.store import ProfileStore

logger = logging.getLogger("sonder")
SLOW_S = 1.0  # a request that takes longer is logged
MOST_QUEUED_S = 60.0
UNKNOWN_ROUTE = "unknown"
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}  # FastAPI's own spans hold paths: user ids

observation = APIRouter(tags=["operations"])


@observation.get("/metrics", include_in_schema=False)  # of the operator, no part of the contract
def read_metrics(request: Request) -> Response:
    """Metrics of this node's gateways and stages, as Prometheus reads them."""
    engine = request.app.state.engine
    if engine is not None and (size_bytes := engine.store_bytes()) is not None:
        metrics.STORE_BYTES.set(size_bytes)
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


def install(app: FastAPI) -> None:
    """Observe every request of the application, those included that end in a bug."""
    build = app.build_middleware_stack
    # Outside of FastAPI's own outermost layer, which answers bugs and which `add_middleware` cannot surround.
    app.build_middleware_stack = lambda: Observed(build(), app.state)  # type: ignore[method-assign]
    app.state.adds_request_id = True  # Serve adds it itself (services/gateway/deployment.py)


class Observed:
    """One request: an id in its answer and its log lines, its latency by route, a span if anybody listens."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state
        self._seconds: dict[tuple[str, str, int], Histogram] = {}  # looking a series up by its labels costs 1.5 us

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        headers = _headers(scope)
        request_id = request_id_of(headers.get(b"x-request-id"))

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._state.adds_request_id:
                    message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        spanned = _request_span(headers) if telemetry.is_tracing() else nullcontext()
        with for_requests((request_id,)), spanned as span:
            try:
                await self._app(scope, receive, observed_send)
            finally:
                if span is not None:
                    _describe(span, scope, status)
                self._count(scope, status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = _method(scope), route_of(scope)
        series = self._seconds.get((method, route, status))
        if series is None:
            series = self._seconds[method, route, status] = metrics.REQUEST_SECONDS.labels(method, route, str(status))
        series.observe(seconds)
        is_notable = status >= 500 or seconds > SLOW_S
        if is_notable or logger.isEnabledFor(logging.DEBUG):
            fields = {"method": method, "route": route, "status": status, "duration_ms": round(seconds * 1e3, 2)}
            logger.log(logging.INFO if is_notable else logging.DEBUG, "request", extra={"fields": fields})


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_READ = frozenset({b"x-request-id", b"x-request-start", b"traceparent", b"tracestate"})


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in _METHODS else "other"  # anybody can invent one, and each would be a series


def _headers(scope: Scope) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}


def route_of(scope: Scope) -> str:
    """The template of the route that answered."""
    return str(getattr(scope.get("route"), "path", UNKNOWN_ROUTE))


@contextmanager
def _request_span(headers: dict[bytes, str]) -> Iterator[Span]:
    """The span of a request in the gateway, below one of the proxy where that says when it started."""
    start_ns = _proxy_start_ns(headers.get(b"x-request-start"))
    carrier = {name.decode(): value for name, value in headers.items()}
    with telemetry.joined(carrier):
        entry = {ENTRY: True}
        if start_ns is None:
            with telemetry.span("request", entry, kind=SpanKind.SERVER) as span:
                yield span
            return
        with (
            telemetry.span("proxy", entry, kind=SpanKind.SERVER, start_ns=start_ns),
            telemetry.span("request") as span,
        ):
            yield span


def _proxy_start_ns(given: str | None) -> int | None:
    digits = (given or "").removeprefix("t=")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    start_ns, now_ns = int(digits) * 1000, time.time_ns()
    return start_ns if now_ns - MOST_QUEUED_S * 1e9 < start_ns <= now_ns else None


def _describe(span: Span, scope: Scope, status: int) -> None:
    method, route = _method(scope), route_of(scope)
    span.update_name(f"{method} {route}")
    engine = getattr(scope["app"].state, "engine", None)
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    is_one = getattr(engine, "split", None) is None and not getattr(engine, "lives", ())
    if engine is not None and is_one:  # else only the answer knows
        span.set_attribute("sonder.release", engine.release_id)


# -- the store -------------------------------------------------------------------------------------------------------


def observed_store(store: ProfileStore) -> ProfileStore:
    """Where anybody listens to spans, the store whose calls are spans."""
    if not telemetry.is_tracing():
        return store
    spanned: Any = SpannedStore(store)
    return spanned  # type: ignore[no-any-return]


class SpannedStore:
    """A store whose reads and writes are spans below a request; all else is the store's own."""

    def __init__(self, store: ProfileStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, user_id: str) -> Any:
        """As the store's, in a span."""
        if telemetry.current() is None:
            return self._store.get(user_id)
        with telemetry.span("store get", {"users": 1}, kind=SpanKind.CLIENT):
            return self._store.get(user_id)

    def batch_get(self, user_ids: Sequence[str]) -> Any:
        """As the store's, in a span."""
        with telemetry.span("store batch get", {"users": len(user_ids)}, kind=SpanKind.CLIENT):
            return self._store.batch_get(user_ids)

    def put_many(self, profiles: Any) -> int:
        """As the store's, in a span."""
        with telemetry.span("store put", kind=SpanKind.CLIENT) as span:
            num = self._store.put_many(profiles)
            span.set_attribute("users", num)
            return num

    def put_refreshed(self, profiles: Any, progress: Any, *, after: Any = None) -> None:
        """As the store's, in a span."""
        with telemetry.span("store put refreshed", kind=SpanKind.CLIENT):
            self._store.put_refreshed(profiles, progress, after=after)

    def delete(self, user_id: str) -> bool:
        """As the store's, in a span."""
        with telemetry.span("store delete", {"users": 1}, kind=SpanKind.CLIENT):
            return self._store.delete(user_id)
