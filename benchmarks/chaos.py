"""SIGKILL every part of the running application under load: does a read fail, is an accepted event lost, does it heal?

    make chaos
    python -m benchmarks.chaos CONFIG [--reads 200] [--events 50]

CONFIG's workspace has a promoted release; a copy of it is served with two gateways. Stored reads arrive on a Poisson
schedule from one process and events, in batches of 5 for users of this run, from another thread, which repeats a batch
that was not answered with 202: same ids, so at most once. Then one after the other is killed: a gateway replica, the
embedding, segmentation, scoring and retrieval replicas, the refresh (the store's writer), Serve's controller, and last
all stages and the refresh at once. A part is back when a new process of its name runs and the application answers
`?fresh=true` without a degraded part.
Prints a Markdown report; exit status 1 where a stored read was not 200, an accepted event is not in the stored profile
of its user in the end, one counts twice, or a part did not come back within 60 s. A broken connection of a read counts
as failed and is told apart. Then what operators do on purpose, under the same load: promote another release (a copy of
the first under another id), roll it back, and deploy the application anew with another setting, which replaces every
replica; these must not break a connection either. Last, HAProxy itself is killed: the one door of a node.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import with_descendants
from benchmarks.serving import some_users
from sonder.core.config import load
from sonder.core.storage import MANIFEST
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release, served_release
from sonder.releases.registry import Registry

KILLED = ("gateway", "embedding", "segmentation", "scoring", "retrieval", "refresh", "controller", "everything behind")
CHANGED = ("promotion", "rollback", "redeploy")
PROXY = "haproxy"  # alone may break connections and refuse new ones: it is the only door of the node
BEHIND = ("embedding", "segmentation", "scoring", "retrieval", "refresh")
NUM_USERS, PER_BATCH = 40, 5


def processes_of(part: str) -> set[int]:
    """Processes of a part below this one; a Ray worker names itself after its actor."""
    title = "ray::ServeController" if part == "controller" else f"ray::ServeReplica:sonder:{part}"
    found = set()
    for pid in with_descendants({os.getpid()}):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        is_proxy = Path(command.split("\0")[0]).name.startswith(PROXY)
        if is_proxy if part == PROXY else command.startswith(title):
            found.add(pid)
    return found


class Events(threading.Thread):
    """Sends batches until stopped; remembers how many events of each user were accepted."""

    def __init__(self, url: str, items: list[str], start: datetime, rate: float, num_users: int = NUM_USERS) -> None:
        super().__init__(daemon=True)
        self._num_users = num_users
        self.accepted: dict[str, int] = {}
        self.repeated, self._stopped = 0, threading.Event()
        self._url, self._items, self._start, self._pause_s = url, items, start, PER_BATCH / rate

    def run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=10) as http:
            number = 0
            while not self._stopped.wait(self._pause_s):
                number += 1
                user = f"chaos-{number % self._num_users}"
                rows = [
                    {
                        "event_id": f"{number}-{part}",
                        "user_id": user,
                        "item_id": self._items[(number + part) % len(self._items)],
                        "action": "click",
                        "timestamp": (self._start + timedelta(milliseconds=10 * number + part)).isoformat(),
                    }
                    for part in range(PER_BATCH)
                ]
                while not self._was_accepted(http, rows):
                    self.repeated += 1
                    time.sleep(0.1)
                self.accepted[user] = self.accepted.get(user, 0) + PER_BATCH

    @staticmethod
    def _was_accepted(http: httpx.Client, rows: list[dict[str, Any]]) -> bool:
        try:
            return http.post("/v1/events", json={"events": rows}).status_code == 202
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def kill(part: str) -> set[int]:
    """Kill one process of the part, or one of each -> those that ran before."""
    before: set[int] = set()
    for name in BEHIND if part == "everything behind" else (part,):
        running = processes_of(name)
        if not running:
            raise RuntimeError(f"no process of {name} runs")
        os.kill(min(running), signal.SIGKILL)
        before |= running
    return before


def wait_until_back(url: str, part: str, before: set[int], user: str) -> float | None:
    """Seconds until new processes stand in for the killed ones and a fresh profile is whole; None after 60 s."""
    started = time.perf_counter()
    names = BEHIND if part == "everything behind" else (part,)
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as http:
        while time.perf_counter() - started < 60:
            time.sleep(0.2)
            if any(not processes_of(name) - before for name in names):
                continue
            try:
                answer = http.get(f"/v1/users/{user}?fresh=true")
            except httpx.TransportError:
                continue
            if answer.status_code == 200 and not answer.json().get("degraded"):
                return time.perf_counter() - started
    return None


def events_in_profiles(url: str, accepted: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Users whose stored profile does not have what was accepted, 30 s after the last event: expected, found."""
    deadline = time.perf_counter() + 30
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as http:
        while True:
            found = {user: http.get(f"/v1/users/{user}").json()["num_events"] for user in accepted}
            wrong = {user: (num, found[user]) for user, num in accepted.items() if found[user] != num}
            if not wrong or time.perf_counter() > deadline:
                return wrong
            time.sleep(0.2)


def reader(port: int, users: list[str], rate: float, seconds: float) -> subprocess.Popen[str]:
    spec = {"port": port, "requests": [f"GET /v1/users/{user}" for user in users], "connections": 32}
    command = [sys.executable, "-m", "benchmarks.http_load"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**spec, "rate": rate, "seconds": seconds}))
    process.stdin.close()
    return process


def change(url: str, what: str, workspace: Workspace, first: str, second: str) -> float | None:
    """Seconds until what was changed is what answers; None after 60 s."""
    started = time.perf_counter()
    if what == "redeploy":
        from ray import serve

        from services.gateway.app import GatewayArgs, build

        args = GatewayArgs(workspace=workspace.root.uri, gateways=2, log_features=0.001)
        before = {name: processes_of(name) for name in ("gateway", *BEHIND)}
        serve.run(build(args), name="sonder", route_prefix="/")
        while any(processes_of(name) & before[name] for name in ("gateway", "refresh", "scoring")):
            if time.perf_counter() - started > 60:
                return None
            time.sleep(0.2)
        return time.perf_counter() - started
    registry = Registry(workspace)
    if what == "promotion":
        registry.promote(second, reason="chaos")
    else:
        registry.rollback(reason="chaos")
    wanted, seen = second if what == "promotion" else first, 0
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as http:
        while time.perf_counter() - started < 60:
            # Two gateways change one by one: ten answers in a row, each on a connection of its own, are both of them.
            is_there = http.get("/v1/release", headers={"connection": "close"}).json()["release"] == wanted
            seen = seen + 1 if is_there else 0
            if seen == 10:
                return time.perf_counter() - started
            time.sleep(0.1)
    return None


def attack(
    url: str, port: int, users: list[str], events: Events, reads: float, workspace: Workspace, releases: tuple[str, str]
) -> list[dict[str, Any]]:
    told = []
    for part in (*KILLED, *CHANGED, PROXY):
        load_run = reader(port, users, reads, seconds=40 if part in CHANGED else 20)
        time.sleep(3)
        if part in CHANGED:
            back_s = change(url, part, workspace, *releases)
        else:
            back_s = wait_until_back(url, part, kill(part), users[0])
        assert load_run.stdout is not None
        answers = json.loads(load_run.stdout.read())
        failed = answers["n"] - answers["statuses"].get("200", 0)
        told.append({"part": part, "back_s": back_s, "failed": failed, **answers})
        print(f"{part}: back after {back_s}, {answers['statuses']}, broken {answers['errors']}", file=sys.stderr)
    events.stop()
    return told


def add_copy(workspace: Workspace, release_id: str) -> str:
    """A second release: the same files under another id, so that what differs is who answers."""
    copied = f"{release_id[:-1]}{'0' if release_id[-1] != '0' else '1'}"
    shutil.copytree(workspace.release(release_id).path, workspace.release(copied).path)
    manifest = workspace.release(copied) / MANIFEST
    manifest.write_json({**manifest.read_json(), "id": copied})
    return copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--reads", type=float, default=200.0)
    parser.add_argument("--events", type=float, default=50.0)
    options = parser.parse_args()
    source = Workspace.at(load(options.config).workspace)
    from services.gateway.proxy import free_ports
    from services.gateway.start import started

    with tempfile.TemporaryDirectory(dir=Path(source.root.path).parent) as folder:
        shutil.copytree(source.root.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store", "log"))
        release = Release.open(Workspace.at(folder), served_release(Workspace.at(folder)))
        users, items = some_users(release), Vocabulary.load(release.items).item_ids.to_pylist()[:200]
        (port,) = free_ports(1)
        second = add_copy(Workspace.at(folder), release.id)
        with started(folder, port=port, gateways=2) as url:
            start = datetime.fromtimestamp(release.manifest.as_of_us / 1e6, tz=UTC) + timedelta(seconds=1)
            events = Events(url, items, start, options.events)
            events.start()
            told = attack(url, port, users, events, options.reads, Workspace.at(folder), (release.id, second))
            wrong = events_in_profiles(url, events.accepted)
    names = ("killed or changed", "back after s", "stored reads", "not 200", "broken connections", "p99 ms", "most ms")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in told:
        back = "not within 60" if row["back_s"] is None else f"{row['back_s']:.1f}"
        q = row["latency_ms"]
        print(
            f"| {row['part']} | {back} | {row['n']:,} | {row['failed']} | {row['errors']} | {q['p99']} | {q['max']} |"
        )
    num = sum(events.accepted.values())
    print(
        f"\n{num:,} events of {len(events.accepted)} users were accepted, {events.repeated} batches sent again;",
        end=" ",
    )
    print(f"{len(wrong)} users have another number of events in their stored profile: {wrong}")
    failed, broken = (sum(row[name] for row in told) for name in ("failed", "errors"))
    broken_on_purpose = sum(row["errors"] for row in told if row["part"] in CHANGED)
    line = {"reads": sum(row["n"] for row in told), "reads_failed": failed, "connections_broken": broken}
    line |= {"events_accepted": num, "users_with_lost_or_repeated_events": len(wrong)}
    print(json.dumps(line))
    if failed or wrong or broken_on_purpose or any(row["back_s"] is None for row in told):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
