"""A load generator for one HTTP/1.1 server: closed (as fast as answers come) or open (on an arrival schedule).

    echo '{"port": 8000, "requests": ["GET /healthz"], "seconds": 5}' | python -m benchmarks.http_load

Reads one JSON object, writes one. `requests` are sent in turns: "GET /path" or ["POST", "/path", {body}].
closed   `connections` keep one request each in flight
open     with `rate` (per second): arrivals are a Poisson process with a fixed seed, each is sent at its time on a free
         connection (`connections` at most), and its latency counts from the scheduled time, so a server that stalls is
         charged for all who waited (no coordinated omission)
Answers: n, rate, statuses, errors (connections that broke), latency_ms with p50, p90, p99, p999, max; `late` arrivals
were still unanswered at the end. One asyncio process on uvloop: it costs about 40 us of a core a request.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from typing import Any, cast

import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load, self._received, self._wanted, self._status = load, bytearray(), -1, 0
        self.transport: asyncio.Transport | None = None
        self.scheduled: float | None = None
        self._is_chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has a class of its own
        self._load.free(self)

    def send(self, request: bytes, scheduled: float) -> None:
        assert self.transport is not None
        self.scheduled = scheduled
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._wanted < 0:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            self._status = int(head[9:12])
            place = head.find(b"content-length:")
            self._is_chunked = place < 0
            self._wanted = end + 4 + (0 if self._is_chunked else int(head[place + 15 :].split(b"\r\n", 1)[0]))
        if self._received.endswith(b"0\r\n\r\n") if self._is_chunked else len(self._received) >= self._wanted:
            scheduled, self.scheduled = self.scheduled, None
            assert scheduled is not None
            self._received.clear()
            self._wanted = -1
            self._load.answered(self._status, scheduled)
            self._load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.broken(self)


class Load:
    """What one run sends and what it got."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._host, self._port = spec.get("host", "127.0.0.1"), spec["port"]
        self._requests = [_encoded(request, self._host, spec.get("headers", {})) for request in spec["requests"]]
        self._seconds, self._rate = spec["seconds"], spec.get("rate")
        self._num_connections = spec.get("connections", 16)
        self._next = 0
        self._latencies: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._errors, self._stopped = 0, False
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        self._ends = started + self._seconds
        connections = [self._connect(loop) for _ in range(self._num_connections)]
        await asyncio.gather(*connections)
        if self._rate:
            await self._arrive(started)
        await asyncio.sleep(max(0.0, self._ends - time.perf_counter()))
        self._stopped = True
        took = time.perf_counter() - started
        quantiles = np.quantile(self._latencies, [0.5, 0.9, 0.99, 0.999, 1.0]) * 1000 if self._latencies else [None] * 5
        names = ("p50", "p90", "p99", "p999", "max")
        return {
            "n": len(self._latencies),
            "rate": round(len(self._latencies) / took, 1),
            "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
            "errors": self._errors,
            "late": len(self._due),
            "latency_ms": {
                name: None if value is None else round(float(value), 3)
                for name, value in zip(names, quantiles, strict=True)
            },
        }

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except OSError:
            self._errors += 1

    async def _arrive(self, started: float) -> None:
        draw, at = random.Random(7), started
        while (at := at + draw.expovariate(self._rate)) < self._ends:
            if (wait := at - time.perf_counter()) > 0.0005:
                await asyncio.sleep(wait)
            self._due.append(at)
            self._send_due()

    def free(self, connection: Connection) -> None:
        if self._rate:
            self._idle.append(connection)
            self._send_due()
        elif not self._stopped and time.perf_counter() < self._ends:
            connection.send(self._request(), time.perf_counter())

    def _send_due(self) -> None:
        while self._due and self._idle:
            connection = self._idle.popleft()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(self._request(), self._due.popleft())

    def answered(self, status: int, scheduled: float) -> None:
        self._statuses[status] += 1
        self._latencies.append(time.perf_counter() - scheduled)

    def broken(self, connection: Connection) -> None:
        if self._stopped:
            return
        self._errors += connection.scheduled is not None
        asyncio.get_running_loop().create_task(self._connect(asyncio.get_running_loop()))

    def _request(self) -> bytes:
        self._next += 1
        return self._requests[self._next % len(self._requests)]


def _encoded(request: str | list[Any], host: str, headers: dict[str, str]) -> bytes:
    method, path, *body = request.split(" ", 1) if isinstance(request, str) else request
    content = json.dumps(body[0]).encode() if body else b""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Load(json.load(sys.stdin)).run())))
