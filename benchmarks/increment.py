"""What a day costs on top of a release of a million events or more: `sonder build --since` of 1 %, 10 % and 100 % new.

    make bench-increment
    python -m benchmarks.increment .bench/scale/events-1000000 [--shares 0.01 0.1 1]

The folder is what `benchmarks.scale` left: a log of 90 days and a release of it, whose cost stands beside. A delivery
goes on where the log ends, by the same law and as many events a day (1 % is 22 hours), is built onto that release, and
is taken away again. CPU seconds are those of all processes, Ray's own included; wall seconds those of this machine.

Prints a Markdown table and ends in one JSON line.

    python -m benchmarks.increment --bucket

One bucket of a history alone, in this process and without Ray: `merge_bucket` beside `assemble_bucket` of the same
events, with reading and writing its file, CPU seconds, median of three.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.prepare import GIB, Sampler
from benchmarks.scale import SECONDS_BETWEEN_SAMPLES, Used
from benchmarks.scale_log import SEED, draw_events
from sonder.core.config import load
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.contract import EVENT_SCHEMA
from sonder.events.quarantine import empty_quarantine
from sonder.history.assemble import assemble_bucket
from sonder.history.merge import merge_bucket
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry

SHARES = (0.01, 0.1, 1.0)
STEP = re.compile(r"(\w+): build=\w+ \(([\d.]+) s\)")


def build_since(folder: Path, release: str) -> dict[str, Any]:
    """Seconds, CPU seconds, peak memory and wall seconds of each step of one increment."""
    command = [sys.executable, "-m", "pipelines.cli", "build", "--config", str(folder / "sonder.yaml")]
    command += ["--since", release, "--set", "encoder.max_epochs=1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started, peak, cpu = time.perf_counter(), 0, 0.0
    with (
        (folder / "increment.log").open("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        sampler, used = Sampler(process.pid), Used()
        while process.poll() is None:
            peak = max(peak, sampler.sample().total)
            cpu, _ = used.look(sampler.known)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        log.seek(0)
        told = log.read()
    if process.returncode:
        raise SystemExit(told[-4_000:])
    steps = {name: float(seconds) for name, seconds in STEP.findall(told)}
    return {"seconds": time.perf_counter() - started, "cpu_s": cpu, "peak_gib": peak / GIB, "steps": steps}


def remove_increments(workspace: Workspace) -> None:
    """Take away the releases that carry models, and the merged snapshots under them."""
    for manifest in Registry(workspace).list():
        if Release.open(workspace, manifest.id).increment is not None:
            for folder in (workspace.history(manifest.snapshot), workspace.items(manifest.snapshot)):
                folder.remove()
            workspace.release(manifest.id).remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--bucket", action="store_true", help="measure the merge of one bucket alone")
    asked = parser.parse_args()
    if asked.bucket:
        print(json.dumps(measure_bucket()))
        return
    folder = asked.folder.resolve()
    workspace = Workspace.at(load(folder / "sonder.yaml").workspace)
    registry = Registry(workspace)
    parent = next(one.id for one in registry.list() if Release.open(workspace, one.id).increment is None)
    opened = Release.open(workspace, parent)
    num_events, num_users = (int(opened.manifest.metrics[f"data.{name}"]) for name in ("events", "users"))
    num_items = Vocabulary.load(opened.items).num_items
    rows = []
    remove_increments(workspace)  # what exists is not built again, and a killed run leaves some
    for share in asked.shares:
        size = round(num_events * share)
        new = draw_events(np.random.default_rng([SEED, 10**6, size]), size, num_users, num_items, (1.0, 1.0 + share))
        file = Folder.at(str(folder / "events")) / "z-delivery.parquet"
        file.write_table(new)
        try:
            found = build_since(folder, parent)
        finally:
            file.remove()
        (newest,) = (one for one in registry.list() if Release.open(workspace, one.id).increment is not None)
        made = Release.open(workspace, newest.id).increment
        assert made is not None
        remove_increments(workspace)
        rows.append({"share": share, "events": size, **found, "users": made["users"]})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("| new events | acted | embedded anew | interests anew | seconds | CPU s | peak GiB |\n|" + "---|" * 7)
    for row in rows:
        users = row["users"]
        told = f"{users['acted']:,} | {users['embedded']:,} | {users['interests_found']:,}"
        print(
            f"| {row['events']:,} | {told} | {row['seconds']:.0f} | {row['cpu_s']:.0f} | {row['peak_gib']:.2f} |",
            flush=True,
        )
    print(json.dumps({f"{row['share']:g}": {"cpu_s": round(row["cpu_s"], 1)} for row in rows}))


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


if __name__ == "__main__":
    main()
