"""The gateway on Ray Serve beside an empty Serve application and beside the same code in one plain FastAPI process.

    make bench-serving
    python -m benchmarks.serving CONFIG [--seconds 5] [--turns 3]

CONFIG's workspace has a promoted release. Two applications run behind one HAProxy of one Ray: `sonder` as
`sonder serve` starts it, and `empty`, a FastAPI ingress that answers `{}` on the same path. The third contender is the
same engine and the same stages in one uvicorn process without Ray. They take turns; figures are medians over the turns.
The load comes from a process on the same machine (benchmarks.http_load), so all ratios include its cost.

hot      GET /v1/users/{id}, 16 connections, 1,000 users in turns
batch    POST /v1/users:batchGet of 256 users, 4 connections
fresh    GET /v1/users/{id}?fresh=true at 1, 16 and 64 connections
open     hot and fresh reads on an arrival schedule at 30, 60, 80 and 90 % of the closed rate (of fresh, that of 64
         connections); latency from the scheduled moment

Prints Markdown tables and ends in one JSON line: hot_read_ratio, hot_read_p99_ratio, batch_profiles_per_s, fresh_ratio
(16 connections), fresh_ratio_64, and the same against the single process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from sonder.core.config import load
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release, served_release

NUM_USERS, BATCH = 1_000, 256
PLAIN = """
import asyncio, sys
import uvicorn
from services.embedding.deployment import Embedding
from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.stages import HandleStages
from services.retrieval.deployment import Retrieval
from services.scoring.deployment import Scoring
from services.segmentation.deployment import Segmentation
from sonder.core.workspace import Workspace
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release
from pathlib import Path

class Call:
    def __init__(self, method): self.remote = method

class Local:
    def __init__(self, deployment): self._deployment = deployment
    def __getattr__(self, name): return Call(getattr(self._deployment, name))

workspace, release, port, log = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
kinds = {"embedding": Embedding, "segmentation": Segmentation, "scoring": Scoring, "retrieval": Retrieval}
stages = HandleStages(**{name: Local(kind(workspace, release)) for name, kind in kinds.items()})
engine = open_engine(Release.open(Workspace.at(workspace), release), stages, log=OnlineLog(log))
uvicorn.run(create_app(engine), host="127.0.0.1", port=port, log_level="warning", access_log=False)
"""


def drive(port: int, requests: list[Any], *, connections: int, seconds: float, rate: float | None = None) -> Any:
    """One run of the load generator; RuntimeError where an answer was not 200."""
    spec = {"port": port, "requests": requests, "connections": connections, "seconds": seconds, "rate": rate}
    command = [sys.executable, "-m", "benchmarks.http_load"]
    done = subprocess.run(command, input=json.dumps(spec), stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    if set(told["statuses"]) != {"200"} or told["errors"]:
        raise RuntimeError(f"{requests[0]}: {told}")
    return told


def some_users(release: Release) -> list[str]:
    """Ids of users who have a vector, from the first files."""
    ids: list[str] = []
    for name in (name for name in release.profiles.files() if name.endswith(".parquet")):
        table = (release.profiles / name).read_table(["user_id", "is_cold"])
        ids += [row["user_id"] for row in table.to_pylist() if not row["is_cold"]]
        if len(ids) >= NUM_USERS:
            break
    return ids[:NUM_USERS]


@contextmanager
def plain_process(workspace: Workspace, release: str, folder: Path) -> Iterator[int]:
    """The same engine behind uvicorn, without Ray."""
    from services.gateway.proxy import free_ports

    (port,) = free_ports(1)
    command = [sys.executable, "-c", PLAIN, workspace.root.uri, release, str(port), str(folder / "log")]
    process = subprocess.Popen(command)
    try:
        for _ in range(240):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise RuntimeError("the plain process ended")
            time.sleep(0.25)
        yield port
    finally:
        process.terminate()
        process.wait()


def start_empty() -> None:
    """An application that answers `{}`, with the options of the gateway."""
    from fastapi import FastAPI, Response
    from ray import serve

    from services.gateway.app import GATEWAY_OPTIONS

    api = FastAPI()

    @serve.deployment(name="nothing", **GATEWAY_OPTIONS)
    @serve.ingress(api)
    class Nothing:
        @api.get("/v1/users/{user_id}")
        async def read(self, user_id: str) -> Response:
            return Response(b"{}", media_type="application/json")

    serve.run(Nothing.bind(), name="empty", route_prefix="/empty")


def measure(ports: dict[str, int], users: list[str], *, seconds: float, turns: int) -> dict[str, dict[str, list[Any]]]:
    """contender -> load -> one result a turn."""
    reads = [f"GET /v1/users/{user}" for user in users]
    draw = np.random.default_rng(3)
    batches = [["POST", "/v1/users:batchGet", {"user_ids": draw.permutation(users)[:BATCH].tolist()}] for _ in range(8)]
    fresh = [f"{read}?fresh=true" for read in reads]
    loads = {"hot": (reads, 16), "batch": (batches, 4)} | {f"fresh {c}": (fresh, c) for c in (1, 16, 64)}
    results: dict[str, dict[str, list[Any]]] = {name: {} for name in ports}
    for turn in range(-1, turns):  # the first turn warms up
        for load_name, (requests, connections) in loads.items():
            for contender, port in ports.items():
                asked = requests
                if contender == "empty":
                    if load_name == "batch":
                        continue
                    asked = [request.replace(" /v1", " /empty/v1").split("?")[0] for request in requests]
                told = drive(port, asked, connections=connections, seconds=1 if turn < 0 else seconds)
                if turn >= 0:
                    results[contender].setdefault(load_name, []).append(told)
                    print(f"turn {turn} {load_name} {contender}: {told['rate']}/s", file=sys.stderr)
    return results


def open_model(port: int, reads: list[str], capacity: float, *, seconds: float) -> dict[str, Any]:
    """Share of the capacity -> one result."""
    shares = (0.3, 0.6, 0.8, 0.9)
    return {
        f"{share:.0%}": drive(port, reads, connections=256, seconds=seconds, rate=share * capacity) for share in shares
    }


def rate_of(results: Any, contender: str, name: str) -> float:
    return median(told["rate"] for told in results[contender][name])


def latency_of(results: Any, contender: str, name: str, quantile: str) -> float:
    return median(told["latency_ms"][quantile] for told in results[contender][name])


def report(results: Any, opened: dict[str, dict[str, Any]], turns: int) -> None:
    print(f"| load | contender | requests/s (least, most of {turns}) | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name in ("hot", "batch", "fresh 1", "fresh 16", "fresh 64"):
        for contender in (contender for contender in results if name in results[contender]):
            rates = [told["rate"] for told in results[contender][name]]
            p50, p99 = (latency_of(results, contender, name, quantile) for quantile in ("p50", "p99"))
            spread = f"{median(rates):.0f} ({min(rates):.0f}, {max(rates):.0f})"
            print(f"| {name} | {contender} | {spread} | {p50:.2f} | {p99:.2f} |")
    for kind, shares in opened.items():
        print(f"\n| open model, {kind} reads | offered/s | p50 ms | p90 | p99 | p99.9 | max |")
        print("|---|---|---|---|---|---|---|")
        for share, told in shares.items():
            columns = [f"{share} of the closed rate", f"{told['rate']:.0f}", *map(str, told["latency_ms"].values())]
            print(f"| {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    workspace = Workspace.at(load(options.config).workspace)
    release_id = served_release(workspace)
    users = some_users(Release.open(workspace, release_id))
    from services.gateway.proxy import free_ports
    from services.gateway.start import started

    (port,) = free_ports(1)
    scratch = Path(Folder.at(".bench/serving").path)
    served = started(workspace.root.uri, port=port, release=release_id)
    with served, plain_process(workspace, release_id, scratch) as plain:
        start_empty()
        time.sleep(3)  # the proxy learns of the new route
        ports = {"sonder": port, "empty": port, "plain": plain}
        results = measure(ports, users, seconds=options.seconds, turns=options.turns)
        reads = [f"GET /v1/users/{user}" for user in users]
        fresh = [f"{read}?fresh=true" for read in reads]
        opened = {
            "hot": open_model(port, reads, rate_of(results, "sonder", "hot"), seconds=options.seconds),
            "fresh": open_model(port, fresh, rate_of(results, "sonder", "fresh 64"), seconds=options.seconds),
        }
    report(results, opened, options.turns)
    ratios = {
        "hot_read_ratio": rate_of(results, "sonder", "hot") / rate_of(results, "empty", "hot"),
        "hot_read_p99_ratio": latency_of(results, "sonder", "hot", "p99") / latency_of(results, "empty", "hot", "p99"),
        "fresh_ratio": rate_of(results, "sonder", "fresh 16") / rate_of(results, "empty", "fresh 16"),
        "fresh_ratio_64": rate_of(results, "sonder", "fresh 64") / rate_of(results, "empty", "fresh 64"),
        "hot_read_against_plain": rate_of(results, "sonder", "hot") / rate_of(results, "plain", "hot"),
        "fresh_against_plain": rate_of(results, "sonder", "fresh 16") / rate_of(results, "plain", "fresh 16"),
    }
    line = {name: round(value, 3) for name, value in ratios.items()}
    print(json.dumps({**line, "batch_profiles_per_s": round(BATCH * rate_of(results, "sonder", "batch"))}))


if __name__ == "__main__":
    main()
