"""Reads and events against several doors of one application, each request written down, until standard input ends.

    python -m benchmarks.node_load < SPEC   (first line: JSON; then it runs until the input is closed)

SPEC: {"doors": {"w1": "http://…"}, "users": […], "items": […], "as_of": ISO time, "reads_per_s": of each door,
"batches_per_s": of events, "out": file}. Every door has its own reader with one connection at a time; a reader waits
for each answer, at most TIMEOUT_S. One thread sends events to the doors in turn and repeats a batch that was not
answered with 202 at the next door, with the same ids: so an accepted event counts once wherever it was taken.
The file gets JSON lines: {"t", "door", "kind": "read" or "events", "status" (0: no answer), "s"}, and as the last one
{"accepted": {user: number of events}}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count, cycle
from typing import IO, Any

import httpx

TIMEOUT_S = 10.0
NUM_USERS, PER_BATCH = 30, 5


class Journal:
    """Lines of all threads."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._lock = file, threading.Lock()

    def write(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def ask(http: httpx.Client, method: str, url: str, **options: Any) -> tuple[int, float]:
    """Status of the answer, 0 where there was none, and seconds."""
    started = time.monotonic()
    try:
        status = http.request(method, url, **options).status_code
    except httpx.TransportError:
        status = 0
    return status, time.monotonic() - started


def read(door: str, url: str, users: Sequence[str], per_s: float, journal: Journal, stopped: threading.Event) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        for user in cycle(users):
            at = time.time()
            status, seconds = ask(http, "GET", f"/v1/users/{user}")
            journal.write({"t": at, "door": door, "kind": "read", "status": status, "s": round(seconds, 4)})
            if stopped.wait(max(0.0, 1 / per_s - seconds)):
                return


def send(spec: Mapping[str, Any], journal: Journal, stopped: threading.Event) -> dict[str, int]:
    """Events of accepted batches by user."""
    accepted: dict[str, int] = {}
    start = datetime.fromisoformat(spec["as_of"]) + timedelta(seconds=1)
    doors = cycle(spec["doors"].items())
    clients = {name: httpx.Client(base_url=url, trust_env=False, timeout=3.0) for name, url in spec["doors"].items()}
    for number in count():
        user, status = f"node-kill-{number % NUM_USERS}", 0
        rows = [
            {
                "event_id": f"{number}-{part}",
                "user_id": user,
                "item_id": spec["items"][(number + part) % len(spec["items"])],
                "action": "click",
                "timestamp": (start + timedelta(milliseconds=10 * number + part)).isoformat(),
            }
            for part in range(PER_BATCH)
        ]
        while status != 202:  # also after the end: a batch that was taken and not answered for would count as too many
            name, _ = next(doors)
            at = time.time()
            status, seconds = ask(clients[name], "POST", "/v1/events", json={"events": rows})
            journal.write({"t": at, "door": name, "kind": "events", "status": status, "s": round(seconds, 4)})
        accepted[user] = accepted.get(user, 0) + PER_BATCH
        if stopped.wait(1 / spec["batches_per_s"]):
            break
    return accepted


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    stopped = threading.Event()
    with open(spec["out"], "w", encoding="utf-8") as file:
        journal = Journal(file)
        readers = [
            threading.Thread(target=read, args=(name, url, spec["users"], spec["reads_per_s"], journal, stopped))
            for name, url in spec["doors"].items()
        ]
        for reader in readers:
            reader.start()
        threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
        accepted = send(spec, journal, stopped)
        for reader in readers:
            reader.join()
        journal.write({"accepted": accepted})


if __name__ == "__main__":
    main()
