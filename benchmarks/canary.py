"""What a canary costs a stored read, and how often its rule is wrong.

    make bench-canary
    python -m benchmarks.canary CONFIG [--trials 300] [--looks 100]

CONFIG's workspace has a promoted release. It is copied into a temporary workspace under two ids, so that both arms do
the same work. Reads are counted in one process without Ray, through the engine alone and through the whole HTTP
application (an ASGI call with a `send` that keeps nothing). Contenders take turns, 200 reads each; microseconds are CPU
time of the thread: the least and the median of 100 turns, and the median of what is added within a turn, with its
quartiles. On a machine that others use, the least and the differences are what can be believed.

The rule is simulated (benchmarks.canary_traffic): trials of equal arms, looked at after each slot, for the share that
is rolled back by mistake; and worse candidates, for the slots until they are. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.canary_traffic import Traffic
from services.gateway.arms import Recorder
from services.gateway.engine import Engine
from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.split import Split, SplitEngine
from sonder.core.config import load
from sonder.core.storage import MANIFEST
from sonder.core.workspace import Workspace
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release, served_release
from sonder.releases.canary import Trial

USERS, BLOCK, REPEATS = 2_000, 200, 100
WORSE: dict[str, dict[str, float]] = {
    "latency twice": {"factor": 2.0},
    "latency three times": {"factor": 3.0},
    "5 % degraded": {"degraded": 0.05},
    "all degraded": {"degraded": 1.0},
    "3 % failed": {"errors": 0.03},
    "scores half a deviation higher": {"shift": 0.033},
    "scores a deviation higher": {"shift": 0.066},
}


def copied(workspace: Workspace, folder: Path) -> tuple[Workspace, list[str]]:
    """A workspace with the served release under two ids."""
    release = Release.open(workspace, served_release(workspace))
    target = Workspace.at(str(folder / "workspace"))
    snapshot = release.manifest.snapshot
    shutil.copytree(workspace.history(snapshot).path, target.history(snapshot).path)
    for name in ("served", "candidate"):
        shutil.copytree(release.folder.path, target.release(name).path)
        manifest = (target.release(name) / MANIFEST).read_json()
        (target.release(name) / MANIFEST).write_json({**manifest, "id": name})
    users: list[str] = []
    for file in (name for name in release.profiles.files() if name.endswith(".parquet")):
        users += (release.profiles / file).read_table(["user_id"]).column(0).to_pylist()
    return target, users[:USERS]


def trial_of(share: float, mode: str) -> Trial:
    return Trial.model_validate(
        {
            "id": "t",
            "candidate": "candidate",
            "served": "served",
            "mode": mode,
            "share": share,
            "salt": "served/candidate",
            "started_at": datetime.now(UTC),
            "started_by": "",
            "reason": "",
        }
    )


async def read_engine(engine: Any, users: list[str]) -> None:
    for user in users:
        engine.profile(user)


def reader(engine: Any) -> Callable[[list[str]], Any]:
    """Reads through the whole application."""
    app = create_app(None)
    app.state.engine = engine
    stack = app.build_middleware_stack()
    headers = [(b"host", b"sonder"), (b"accept", b"*/*"), (b"user-agent", b"benchmark"), (b"x-request-id", b"r-1")]

    async def receive() -> Any:
        raise AssertionError("a GET has no body")

    async def send(message: Any) -> None:
        pass

    async def read(users: list[str]) -> None:
        for user in users:
            path = f"/v1/users/{user}"
            scope = {
                "type": "http",
                "method": "GET",
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "headers": headers,
                "app": app,
            }
            await stack(scope, receive, send)

    return read


async def cost(served: Engine, candidate: Engine, users: list[str]) -> dict[str, list[float]]:
    """contender -> microseconds a read, of each repeat."""
    beside = {"candidate": candidate}
    recorder = Recorder(settling_s=0.0)

    def split(share: float, mode: str) -> SplitEngine:
        return SplitEngine(served, beside, Split(trial_of(share, mode), candidate, recorder))

    engines = {
        "nothing beside": served,
        "one beside, by name": SplitEngine(served, beside),
        "canary 5 %": split(0.05, "canary"),
        "canary 50 %": split(0.5, "canary"),
        "shadow 5 %": split(0.05, "shadow"),
    }
    reads: dict[str, Callable[[list[str]], Any]] = {}
    for name, engine in engines.items():
        reads[f"engine | {name}"] = lambda asked, engine=engine: read_engine(engine, asked)
        reads[f"application | {name}"] = reader(engine)
    found: dict[str, list[float]] = {name: [] for name in (*reads, "roll")}
    for repeat in range(-1, REPEATS):  # the first one warms up
        block = [users[(repeat * BLOCK + number) % len(users)] for number in range(BLOCK)]
        for name, read in reads.items():
            started = time.thread_time()
            await read(block)
            if "shadow" in name:
                await asyncio.sleep(0.05)  # its shadows are part of the cost
            taken = (time.thread_time() - started) / BLOCK * 1e6
            if repeat >= 0:
                found[name].append(taken)
        for arm in (recorder.served, recorder.candidate):
            arm._users.clear()
        started = time.thread_time()
        recorder.roll()
        found["roll"].append((time.thread_time() - started) * 1e3)
    return found


def wrongly_rolled_back(trials: int, looks: int) -> dict[str, Any]:
    """Equal arms: how many trials end by mistake, of each kind of traffic."""
    told = {}
    for share, per_slot in ((0.01, 3_000), (0.05, 600), (0.5, 100)):
        wrong = sum(
            Traffic(seed, share=share, per_slot=per_slot).slots_until_broken(looks) is not None
            for seed in range(trials)
        )
        told[f"{share:.0%} of {per_slot} a slot"] = wrong
    return told


def until_rolled_back(seeds: int = 20, most: int = 120) -> dict[str, list[int | None]]:
    return {
        name: [Traffic(seed, share=0.05, per_slot=1_000).slots_until_broken(most, **worse) for seed in range(seeds)]
        for name, worse in WORSE.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--looks", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sonder-canary-") as folder:
        workspace, users = copied(Workspace.at(load(options.config).workspace), Path(folder))
        log = OnlineLog(workspace.online_log)
        stages: Any = None  # a stored read asks none
        engines = [open_engine(Release.open(workspace, name), stages, log=log) for name in ("served", "candidate")]
        measured = asyncio.run(cost(engines[0], engines[1], users))
        for engine in engines:
            engine.close(with_log=False)
        log.close()
    rolls = measured.pop("roll")
    print("| through | beside the served release | us of CPU a read, least | median | added | quartiles |")
    print("|---|---|---|---|---|---|")
    line: dict[str, Any] = {}
    for name, values in measured.items():
        plain = measured[f"{name.split(' | ')[0]} | nothing beside"]
        low, added, high = statistics.quantiles([one - base for one, base in zip(values, plain, strict=True)], n=4)
        print(
            f"| {name} | {min(values):.1f} | {statistics.median(values):.1f} | {added:.2f} | {low:.2f} to {high:.2f} |"
        )
        line[name.replace(" | ", ": ")] = round(added, 2)
    line["roll_ms"] = round(statistics.median(rolls), 2)
    print(f"\nOnce a second, counting what was noted: {line['roll_ms']} ms.\n")
    wrong = wrongly_rolled_back(options.trials, options.looks)
    print(f"Equal arms, {options.trials} trials of {options.looks} looks each, rolled back by mistake: {wrong}\n")
    print(
        "| candidate (5 % of 1,000 answers a slot) | slots until rolled back, median (least, most) of 20 |\n|---|---|"
    )
    for name, slots in until_rolled_back().items():
        known = sorted(one for one in slots if one is not None)
        told = f"{statistics.median(known):g} ({known[0]}, {known[-1]})" if known else "never"
        print(f"| {name} | {told}{'' if len(known) == len(slots) else f', {len(slots) - len(known)} never in 120'} |")
        line[name] = statistics.median(known) if known else None
    print(json.dumps({**line, "rolled_back_by_mistake": wrong, "trials": options.trials, "looks": options.looks}))


if __name__ == "__main__":
    main()
