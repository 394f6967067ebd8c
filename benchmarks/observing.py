"""What being seen costs a hot read: microseconds of the layers around a handler that does nothing.

    PYTHONPATH=libs:. python -m benchmarks.observing
    PROMETHEUS_MULTIPROC_DIR=$(mktemp -d) PYTHONPATH=libs:. python -m benchmarks.observing

The second measures as `sonder serve` does, into mapped files. Rows: the empty application; with request id, log
context and metrics; what the seam for spans adds to that while nobody listens (its checks alone); with spans that
nobody samples; with spans that are recorded and thrown away.
Each number is the median of REPEATS runs of CALLS calls, less the empty application.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor
from starlette.datastructures import State

from services.gateway.observing import Observed
from sonder.core import telemetry

CALLS, REPEATS = 20_000, 9
UNSAMPLED = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")


async def empty(scope: Any, receive: Any, send: Any) -> None:
    """Answers like a handler of stored bytes."""
    scope["route"] = SimpleNamespace(path="/v1/users/{user_id}")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _send(message: Any) -> None: ...


async def _one_run(app: Any, headers: list[tuple[bytes, bytes]]) -> float:
    state = SimpleNamespace(state=SimpleNamespace(engine=None))
    started = time.perf_counter()
    for _ in range(CALLS):
        scope = {"type": "http", "method": "GET", "headers": [(b"host", b"x"), *headers], "app": state}
        await app(scope, None, _send)
    return (time.perf_counter() - started) / CALLS * 1e6


def median_us(app: Any, headers: list[tuple[bytes, bytes]], listening: Callable[[], Any] = nullcontext) -> float:
    """Microseconds of a call."""
    with listening():
        return statistics.median(asyncio.run(_one_run(app, headers)) for _ in range(REPEATS))


def seam_us() -> float:
    """Microseconds of all checks that a stored read makes while nobody listens: three."""
    runs = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(CALLS):
            telemetry.is_tracing()
            telemetry.is_tracing()
            telemetry.current()
        runs.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(runs)


def main() -> None:
    state = State()
    state.adds_request_id = False
    app = Observed(empty, state)
    request_id = [(b"x-request-id", b"7f3c2a")]
    base = median_us(empty, request_id)
    recorded = telemetry.listening
    rows = {
        "empty application": base,
        "+ request id, log context, metrics": median_us(app, request_id) - base,
        "  of which the seam for spans, nobody listening": seam_us(),
        "+ spans, not sampled": median_us(app, [*request_id, UNSAMPLED], lambda: recorded(SpanProcessor())) - base,
        "+ spans, recorded": median_us(app, request_id, lambda: recorded(SpanProcessor())) - base,
    }
    for name, microseconds in rows.items():
        print(f"{name:50} {microseconds:7.2f} us")


if __name__ == "__main__":
    main()
