"""The same small build on a local disk and on S3, step by step: CPU seconds, wall seconds, requests, bytes.

    python -m benchmarks.uri --users 800 --repeats 2

The server is SeaweedFS on this machine, which counts requests and bytes itself; its own CPU is told apart. A build and
its Ray run in a process of their own. CPU is that of the process and all that it started, the server left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import with_descendants

_TICKS = os.sysconf("SC_CLK_TCK")
_KINDS = ("GET", "PUT", "LIST", "DELETE", "COPY", "HEAD", "POST")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--build", nargs=3, metavar=("CONFIG", "WORKSPACE", "METRICS"), help="used by this command")
    options = parser.parse_args()
    if options.build:
        print(json.dumps(measured_build(*options.build)))
        return
    from tests.s3_server import running_s3

    with tempfile.TemporaryDirectory(prefix="uri-") as folder, running_s3() as server:
        config = world(Path(folder), options.users, options.days)
        runs = []
        for turn in range(options.repeats):
            places = {"local": f"{folder}/ws-{turn}", "s3": server.uri(f"ws-{turn}")}
            for place, workspace in places.items():
                before = _cpu_s({server.process.pid})
                told = run(config, workspace, server.metrics if place == "s3" else "", server.environment)
                server_cpu_s = round(_cpu_s({server.process.pid}) - before, 1)
                runs.append({"place": place, "turn": turn, "server_cpu_s": server_cpu_s, **told})
                print(f"{place} {turn}: {told['total']}", file=sys.stderr)
    print(json.dumps({"users": options.users, "days": options.days, "runs": runs}))


def world(folder: Path, num_users: int, num_days: int) -> Path:
    from sonder.core.storage import Folder
    from sonder.events.synthetic import WorldConfig, write_world

    write_world(WorldConfig(num_users=num_users, num_days=num_days, seed=11), Folder.at(str(folder)))
    return folder / "sonder.yaml"


def run(config: Path, workspace: str, metrics: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.uri", "--build", str(config), workspace, metrics]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def measured_build(config: str, workspace: str, metrics: str) -> dict[str, Any]:
    """Build, promote and open the store, each step measured."""
    import pipelines.build as building
    from sonder.core.config import load
    from sonder.core.workspace import Workspace
    from sonder.releases.artefacts import Release
    from sonder.releases.registry import Registry
    from tests.built import OVERRIDES

    steps: dict[str, dict[str, float]] = {}

    def measured(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **options: Any) -> Any:
            before, started, counted = _cpu_s({os.getpid()}), time.perf_counter(), counts(metrics)
            result = step(*arguments, **options)
            after = counts(metrics)
            steps[name] = {
                "cpu_s": round(_cpu_s({os.getpid()}) - before, 1),
                "wall_s": round(time.perf_counter() - started, 1),
                **{kind: int(after[kind] - counted[kind]) for kind in after},
            }
            return result

        return inner

    for name, step in list(building.STEPS.items()):
        building.STEPS[name] = measured(name, step)
    building.open_build = measured("prepare", building.open_build)
    building.seal = measured("seal", building.seal)
    resolved = load(config, (*OVERRIDES, f"workspace={workspace}"))
    release = measured("total", building.build)(resolved)
    with tempfile.TemporaryDirectory(prefix="node-") as node:
        opened = Workspace.at(resolved.workspace, node)
        measured("promote", Registry(opened).promote)(release, reason="measured")
        measured("store load", lambda: Release.open(opened, release).open_store().close())()
    return steps


def counts(metrics: str) -> dict[str, float]:
    """Requests by kind and bytes both ways since the server started; nothing without a server."""
    if not metrics:
        return {}
    found = dict.fromkeys((*_KINDS, "in_mb", "out_mb"), 0.0)
    for line in httpx.get(metrics, trust_env=False, timeout=30).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("SeaweedFS_s3_request_total{"):
            kind = name.partition('type="')[2].partition('"')[0]
            found[kind] = found.get(kind, 0.0) + float(value)
        elif name.startswith("SeaweedFS_s3_bucket_traffic_received_bytes_total"):
            found["in_mb"] += float(value) / 1e6
        elif name.startswith("SeaweedFS_s3_bucket_traffic_sent_bytes_total"):
            found["out_mb"] += float(value) / 1e6
    return found


def _cpu_s(roots: set[int]) -> float:
    """CPU seconds of processes and of all that they started, those that have ended and were waited for included."""
    ticks = 0
    for pid in with_descendants(roots):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


if __name__ == "__main__":
    main()
