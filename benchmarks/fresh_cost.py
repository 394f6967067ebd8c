"""CPU time of one fresh profile by part, in one process: what `?fresh=true` costs, whatever else the machine does.

    python -m benchmarks.fresh_cost CONFIG [--turns 15]

CONFIG's workspace has a promoted release. The models run here, without Ray and on one thread; the clock is the CPU
time of this process, so other processes change it by what they take of the caches alone.

embed, segment, score, assemble   one call each for a micro-batch, as the deployments make them
engine                            `Engine.fresh_profile` of as many users at once: the parts, and the batcher
asgi                              the same asked through the whole application, without a socket

Prints microseconds a user at 1, 16 and 64 users at once: median (least, most) over the turns, each of other users.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.serving import some_users
from services.embedding.deployment import Embedding
from services.gateway.engine import Engine
from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.stages import HandleStages, HistoryBatch
from services.retrieval.deployment import Retrieval
from services.scoring.deployment import Scoring
from services.segmentation.deployment import Segmentation
from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release, served_release

SIZES = (1, 16, 64)
PARTS = ("embed", "segment", "score", "assemble", "engine", "asgi")


class _Call:
    def __init__(self, method: Any) -> None:
        self.remote = method


class _Local:
    """A deployment in this process, asked like a handle."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self._deployment, name))


class Costs:
    """The release of a workspace in this process, and what each part of an answer takes of the CPU."""

    def __init__(self, workspace: Workspace, scratch: Path) -> None:
        opened = served_release(workspace)
        release = Release.open(workspace, opened)
        kinds = {"embedding": Embedding, "segmentation": Segmentation, "scoring": Scoring, "retrieval": Retrieval}
        parts: dict[str, Any] = {name: _Local(kind(workspace.root.uri, opened)) for name, kind in kinds.items()}
        self.stages = HandleStages(**parts)
        self.engine: Engine = open_engine(release, self.stages, log=OnlineLog(scratch / "log"))
        self.engine._fresh_path._budget_s = 60.0  # a busy machine must not make an answer cheaper
        self.app = create_app(self.engine)
        self.users = some_users(release)

    async def of(self, user_ids: list[str]) -> dict[str, float]:
        """part -> seconds of CPU for these users."""
        engine, took = self.engine, {}
        current = {user_id: engine._recent.current(user_id) for user_id in user_ids}
        stored = {user_id: one.profile for user_id, one in current.items()}
        as_of_us = max(one.as_of_us for one in current.values())
        batch = HistoryBatch(user_ids, [profile.timeline for profile in stored.values()], as_of_us)
        deadline = asyncio.get_running_loop().time() + 60

        async def timed(part: str, call: Any) -> Any:
            started = time.process_time()
            answer = await call
            took[part] = time.process_time() - started
            return answer

        vectors = await timed("embed", self.stages.embed(batch, deadline=deadline))
        segmented = await timed("segment", self.stages.segment(batch, deadline=deadline))
        scoring = self.stages.score(batch, vectors, segmented.summary, with_drivers=False, deadline=deadline)
        await timed("score", scoring)
        composed = await engine._fresh_path._compose(batch, deadline, False)
        work = asyncio.to_thread(engine._fresh_path._assemble, stored, batch, composed, as_of_us)
        await timed("assemble", work)
        await timed("engine", asyncio.gather(*(engine.fresh_profile(user_id) for user_id in user_ids)))
        await timed("asgi", asyncio.gather(*(self.asked(user_id) for user_id in user_ids)))
        return took

    async def asked(self, user_id: str) -> bytes:
        """The answer of the application to one request."""
        pieces: list[bytes] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/v1/users/{user_id}",
            "raw_path": f"/v1/users/{user_id}".encode(),
            "root_path": "",
            "query_string": b"fresh=true",
            "headers": [(b"host", b"sonder")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200, message
            pieces.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return b"".join(pieces)


def batches(users: list[str], size: int, turns: int) -> Iterator[list[str]]:
    for turn in range(turns):
        yield [users[(turn * size + place) % len(users)] for place in range(size)]


async def measure(costs: Costs, turns: int) -> dict[int, dict[str, list[float]]]:
    """size -> part -> microseconds a user, of each turn."""
    found: dict[int, dict[str, list[float]]] = {size: {part: [] for part in PARTS} for size in SIZES}
    gc.freeze()  # what was loaded is no garbage: as it is after the first minutes of a replica
    for size in SIZES:
        for place, user_ids in enumerate(batches(costs.users, size, turns + 2)):
            took = await costs.of(user_ids)
            for part, seconds in took.items() if place >= 2 else ():  # the first two warm up
                found[size][part].append(seconds / size * 1e6)
    return found


def main(told: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a replica
    with tempfile.TemporaryDirectory() as scratch:
        costs = Costs(Workspace.at(load(options.config).workspace), Path(scratch))
        found = asyncio.run(measure(costs, options.turns))
        costs.engine.close()
    told(f"| part | {' | '.join(f'{size} at once' for size in SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for part in PARTS:
        cells = [found[size][part] for size in SIZES]
        spreads = [f"{median(cell):.0f} ({min(cell):.0f}, {max(cell):.0f})" for cell in cells]
        told(f"| {part} | {' | '.join(spreads)} |")
    medians = {part: {size: round(median(found[size][part]), 1) for size in SIZES} for part in PARTS}
    told(json.dumps({"microseconds_a_user": medians}))


if __name__ == "__main__":
    main()
