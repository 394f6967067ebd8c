"""A delivery of 1 %, 10 % and 100 % new events: an increment beside everything computed anew, and beside a full build.

    python -m benchmarks.increment --users 4000 --days 120

One synthetic world, cut in time: the first half of the events is the log of the parent, a full build; what follows is
the delivery. For each share, from the same parent: `increment` (build --since), `anew` (on the same merged history, by
the same carried models, nothing kept), and for the largest share `full` (a build without --since). CPU seconds are
those of this process and of all that it started, Ray's own processes included; where other jobs share the machine they
are what can be compared. Bytes are those of the files that a stage left. Ends in one JSON line.

    python -m benchmarks.increment --bucket

One bucket of a history alone, in this process and without Ray: `merge_bucket` beside `assemble_bucket` of the same
events, with reading and writing its file, CPU seconds, median of three.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

import pipelines.build
import pipelines.increment
from benchmarks.processes import with_descendants
from pipelines.build import build
from pipelines.increment import build_since
from pipelines.ray_runtime import ensure_ray
from sonder.core.config import SonderConfig, load
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.contract import EVENT_SCHEMA
from sonder.events.quarantine import empty_quarantine
from sonder.events.synthetic import WorldConfig, write_world
from sonder.history.assemble import assemble_bucket
from sonder.history.merge import merge_bucket
from sonder.releases.artefacts import Release

SHARES = (0.01, 0.1, 1.0)
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--days", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=10, help="of a training from nothing, at most")
    parser.add_argument("--skip-full", action="store_true", help="leave the full build of the whole log out")
    parser.add_argument("--bucket", action="store_true", help="measure the merge of one bucket alone")
    arguments = parser.parse_args()
    if arguments.bucket:
        print(json.dumps(measure_bucket()))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with tempfile.TemporaryDirectory(prefix="increment") as folder:
        print(json.dumps(measure(Path(folder), arguments)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    world = WorldConfig(num_users=arguments.users, num_days=arguments.days, seed=7)
    write_world(world, Folder.at(str(folder)))
    events = pl.concat([pl.read_parquet(part) for part in sorted((folder / "events").glob("*.parquet"))])
    events = events.sort("timestamp", maintain_order=True)
    shutil.rmtree(folder / "events")
    (folder / "events").mkdir()
    half = events.height // 2
    events.head(half).write_parquet(folder / "events" / "a-base.parquet")
    overrides = [f"workspace={folder / 'workspace'}", f"encoder.max_epochs={arguments.epochs}"]
    config = load(folder / "sonder.yaml", [*overrides, "evaluation.test_days=14"])
    ensure_ray()
    found: dict[str, Any] = {"users": arguments.users, "days": arguments.days, "parent_events": half}
    with measured(found, "parent"):
        parent = build(config)
    found["parent"]["bytes"] = bytes_of(config, parent)
    new = folder / "events" / "b-new.parquet"
    for share in SHARES:
        events.slice(half, round(half * share)).write_parquet(new)
        for name, everybody in (("increment", False), ("anew", True)):
            place = f"{name}_{share:g}"
            with measured(found, place):
                release = build_since(config, parent, everybody=everybody)
            found[place] |= {"bytes": bytes_of(config, release), "made": made_of(config, release)}
    if not arguments.skip_full:
        with measured(found, "full"):
            build(config)
    return found


def measure_bucket(num_events: int = 250_000, num_users: int = 2_500) -> dict[str, float]:
    """CPU seconds of a whole bucket, and of merging shares of it into the rest."""
    draw = np.random.default_rng(3)
    columns = {
        "user_id": pa.array(
            np.char.add("user-", draw.integers(0, num_users, num_events).astype(str)), pa.large_string()
        ),
        "item_id": pa.array(np.char.add("item-", draw.zipf(1.3, num_events).clip(max=20_000).astype(str))),
        "action": pa.array(draw.choice(["view", "save", "buy"], num_events)),
        "timestamp": pa.array(np.sort(draw.integers(0, 90 * 86_400, num_events)) * 1_000_000),
        "log_order": pa.array(np.arange(num_events)),
    }
    rows = [columns.get(field.name, pa.nulls(num_events, field.type)).cast(field.type) for field in EVENT_SCHEMA]
    events = pa.table(rows, schema=EVENT_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        file = Folder.at(folder) / "part-0.parquet"

        def assembled(part: pa.Table) -> None:
            file.write_table(assemble_bucket(part, max_events_per_day=5_000).history)

        found = {"assemble_all": _cpu_of(lambda: assembled(events))}
        for share in SHARES:
            new = round(num_events * share / (1 + share))
            before, after = events.slice(0, num_events - new), events.slice(num_events - new)
            assembled(before)
            kept = file.read_bytes()

            def merge(kept: bytes = kept, after: pa.Table = after) -> None:
                file.write_bytes(kept)
                merged = merge_bucket(file.read_table(), empty_quarantine(), after, max_events_per_day=5_000)
                file.write_table(merged.history)

            found[f"merge_{share:g}"] = _cpu_of(merge)
    return found


def _cpu_of(work: Callable[[], None], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return round(statistics.median(seconds), 3)


def made_of(config: SonderConfig, release: str) -> dict[str, Any]:
    made = Release.open(Workspace.at(config.workspace), release).increment
    assert made is not None
    return {"users": made["users"], "delivery": {k: v for k, v in made["delivery"].items() if isinstance(v, int)}}


def bytes_of(config: SonderConfig, release: str) -> dict[str, int]:
    """Size of what was written, by part: of the snapshot and of the release."""
    workspace = Workspace.at(config.workspace)
    opened = Release.open(workspace, release)
    sizes: dict[str, int] = {}
    for root, folder in (("", opened.folder), ("history/", workspace.history(opened.manifest.snapshot))):
        for name in folder.files():
            part = root + ("buckets" if root and name.startswith("bucket=") else name.split("/")[0])
            sizes[part] = sizes.get(part, 0) + int(folder.fs.size((folder / name).path))
    return sizes


@contextmanager
def measured(found: dict[str, Any], name: str) -> Iterator[None]:
    """Wall and CPU seconds of the block, and of each step in it."""
    steps: dict[str, dict[str, float]] = {}
    with timed_steps(pipelines.build.STEPS, steps), timed_steps(pipelines.increment.STEPS, steps):
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        total = {"seconds": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    in_steps = {kind: sum(step[kind] for step in steps.values()) for kind in total}
    steps["prepare and seal"] = {kind: total[kind] - in_steps[kind] for kind in total}
    rounded = {step: {kind: round(value, 2) for kind, value in used.items()} for step, used in steps.items()}
    found[name] = {kind: round(value, 2) for kind, value in total.items()} | {"steps": rounded}
    logging.info("%s: %.1f s, %.1f CPU s", name, total["seconds"], total["cpu"])


@contextmanager
def timed_steps(registry: dict[str, Callable[[Any], Any]], steps: dict[str, dict[str, float]]) -> Iterator[None]:
    before = dict(registry)

    def timed(name: str, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(build: Any) -> Any:
            wall, cpu = time.perf_counter(), cpu_seconds()
            result = step(build)
            steps[name] = {"seconds": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
            return result

        return run

    registry.update({name: timed(name, step) for name, step in before.items()})
    try:
        yield
    finally:
        registry.update(before)


def cpu_seconds() -> float:
    """User and system time of this process and all below it, those that have ended included."""
    total = 0
    for pid in with_descendants({os.getpid()}):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended; whoever waits for it has its time
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


if __name__ == "__main__":
    main()
