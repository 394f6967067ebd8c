"""From an event to the changed profile: how long, while reads go on.

    make bench-freshness
    python -m benchmarks.freshness CONFIG [--events 500] [--reads 500] [--seconds 30]

CONFIG's workspace has a promoted release; the application runs as `sonder serve` starts it, on a copy of the store and
of the online log (the workspace itself is not changed). `--events` a second arrive in requests of 5, `--reads` stored
profiles a second are read, both on Poisson schedules. An event is visible when the store's progress has passed it,
which is written in one transaction with the profiles; this process looks every 2 ms.
event to profile  from the moment the request is sent until the profile is changed
accepted          from there until the answer, when the event is on disk
Prints a Markdown table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving import some_users
from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release, served_release

PER_REQUEST = 5


class Watcher:
    """Notes when each event of the log has become part of the store."""

    def __init__(self, workspace: Workspace, release: str) -> None:
        self.visible: dict[str, float] = {}
        self._store = LmdbStore.open(workspace.store / release, release=release)
        self._log = OnlineLog(workspace.online_log)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen = 0
        while not self._stopped.wait(0.002):
            reached, now = self._store.progress().sequence, time.perf_counter()
            if reached > seen:
                rows = self._log.after(seen, reached - seen)
                self.visible.update({event.event_id: now for sequence, event in rows if sequence <= reached})
                seen = reached

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._store.close()
        self._log.close()


async def send(url: str, users: list[str], items: list[str], start: datetime, rate: float, seconds: float) -> Any:
    """Requests of events on a Poisson schedule -> event_id -> (sent, accepted)."""
    draw, times, waiting = random.Random(11), {}, set()
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=30) as http:

        async def one(number: int) -> None:
            at = (start + timedelta(milliseconds=number)).isoformat()
            rows = [
                {
                    "event_id": f"{number}-{part}",
                    "user_id": draw.choice(users),
                    "item_id": draw.choice(items),
                    "action": "click",
                    "timestamp": at,
                }
                for part in range(PER_REQUEST)
            ]
            sent = time.perf_counter()
            answer = await http.post("/v1/events", json={"events": rows})
            if answer.status_code != 202:
                raise RuntimeError(answer.text)
            times.update({row["event_id"]: (sent, time.perf_counter()) for row in rows})

        began = at = time.perf_counter()
        number = 0
        while (at := at + draw.expovariate(rate / PER_REQUEST)) < began + seconds:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            waiting.add(asyncio.create_task(one(number)))
            number += 1
        await asyncio.gather(*waiting)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--events", type=float, default=500.0)
    parser.add_argument("--reads", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    source = Workspace.at(load(options.config).workspace)
    from services.gateway.proxy import free_ports
    from services.gateway.start import started

    with tempfile.TemporaryDirectory(dir=Path(source.root.path).parent) as folder:
        shutil.copytree(source.root.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store", "log"))
        workspace = Workspace.at(folder)
        release = Release.open(workspace, served_release(workspace))
        users, items = some_users(release), Vocabulary.load(release.items).item_ids.to_pylist()[:500]
        (port,) = free_ports(1)
        with started(folder, port=port, release=release.id) as url:
            watcher = Watcher(workspace, release.id)
            reads = {
                "port": port, "requests": [f"GET /v1/users/{user}" for user in users], "connections": 64,
                "seconds": options.seconds, "rate": options.reads,
            }  # fmt: skip
            reader = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.http_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert reader.stdin is not None
            reader.stdin.write(json.dumps(reads))
            reader.stdin.close()
            start = datetime.fromtimestamp(release.manifest.as_of_us / 1e6, tz=UTC) + timedelta(seconds=1)
            sent = asyncio.run(send(url, users, items, start, options.events, options.seconds))
            assert reader.stdout is not None
            read = json.loads(reader.stdout.read())
            deadline = time.perf_counter() + 30
            while len(watcher.visible) < len(sent) and time.perf_counter() < deadline:
                time.sleep(0.1)
            watcher.close()
    report(sent, watcher.visible, read, options)


def report(sent: Any, visible: dict[str, float], read: Any, options: argparse.Namespace) -> None:
    lost = sorted(sent.keys() - visible.keys())
    lag = [visible[name] - times[0] for name, times in sent.items() if name in visible]
    accepted = [times[1] - times[0] for times in sent.values()]
    print("| ms | p50 | p90 | p99 | most |\n|---|---|---|---|---|")
    quantiles = {}
    for name, values in (("event to profile", lag), ("accepted", accepted)):
        q = [round(1000 * float(value), 1) for value in np.quantile(values, [0.5, 0.9, 0.99, 1.0])]
        quantiles[name] = q
        print(f"| {name} | {q[0]} | {q[1]} | {q[2]} | {q[3]} |")
    ms = read["latency_ms"]
    print(f"| stored reads | {ms['p50']} | {ms['p90']} | {ms['p99']} | {ms['max']} |")
    q = quantiles["event to profile"]
    line = {
        "events": len(sent), "events_per_s": round(len(sent) / options.seconds), "reads_per_s": round(read["rate"]),
        "event_to_profile_p50_ms": q[0], "event_to_profile_p99_ms": q[2], "lost": len(lost),
        "read_statuses": read["statuses"],
    }  # fmt: skip
    print(json.dumps(line))
    if lost or set(read["statuses"]) != {"200"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
