"""`sonder prepare` beside one-process Polars and DuckDB on the same work: 20 million events into one row a user.

    make bench-prepare-peers
    python -m benchmarks.prepare_peers --duckdb .bench/duckdb [--events 20000000] [--turns 3]

The work is what a history is at least: read the Parquet files of the log, put users into buckets by a hash, order each
user's events by time, write one row a user with its events as lists, a Parquet file a bucket. `sonder prepare` also
checks every row, sets duplicates and bots aside, keys events, counts items and makes the item table and vocabulary, and
its time includes the start and end of Ray; the peers do none of that. They take turns; medians of wall and CPU seconds,
greatest memory of all processes (benchmarks.prepare: proportional set sizes).

Prints a Markdown table and ends in one JSON line: ratios of Sonder's wall seconds to those of each peer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.prepare import GIB, SECONDS_BETWEEN_SAMPLES, Sampler
from benchmarks.scale import Used
from benchmarks.scale_log import write_log
from sonder.core.storage import Folder

NUM_BUCKETS = 80
POLARS = """
import sys
from pathlib import Path
import polars as pl
log, out, buckets = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
events = pl.scan_parquet(f"{log}/*.parquet").with_columns(bucket=(pl.col("user_id").hash(7) % buckets).cast(pl.Int16))
users = (
    events.sort("bucket", "user_id", "timestamp", maintain_order=True).collect()
    .group_by("bucket", "user_id", maintain_order=True).agg("item_id", "action", "timestamp")
)
for (bucket,), part in users.partition_by("bucket", as_dict=True, include_key=False).items():
    (out / f"bucket={bucket:03d}").mkdir(parents=True)
    part.write_parquet(out / f"bucket={bucket:03d}" / "part-0.parquet", compression="zstd")
"""
DUCKDB = """
import sys
import duckdb
log, out, buckets = sys.argv[1:4]
duckdb.sql("SET memory_limit='12GB'; SET preserve_insertion_order=false")
duckdb.sql(f'''COPY (
  SELECT hash(user_id) % {buckets} AS bucket, user_id, list(item_id ORDER BY timestamp) AS item_id,
         list(action ORDER BY timestamp) AS action, list(timestamp ORDER BY timestamp) AS timestamp
  FROM read_parquet('{log}/*.parquet') GROUP BY ALL
) TO '{out}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (bucket))''')
"""


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, greatest bytes."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as process:
        sampler, used = Sampler(process.pid), Used()
        while process.poll() is None:
            peak = max(peak, sampler.sample().total)
            used.look(sampler.known)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with status {process.returncode}")
    return seconds, sum(used.cpu.values()), peak / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".bench/scale"))
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--duckdb", type=Path, required=True, help="folder that duckdb was installed into")
    asked = parser.parse_args()
    folder = Folder.at(str(asked.out.resolve() / f"events-{asked.events}"))
    write_log(folder, asked.events, asked.events // 20)
    root = Path(folder.path)
    plain = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with_duckdb = {**plain, "PYTHONPATH": str(asked.duckdb.resolve())}
    peer = [str(root / "events"), str(root / "peer"), str(NUM_BUCKETS)]
    sonder = [sys.executable, "-m", "pipelines.cli", "prepare", "--config", str(root / "sonder.yaml")]
    sonder += ["--set", f"prepare.num_buckets={NUM_BUCKETS}"]
    contenders = {
        "sonder prepare": (sonder, plain),
        "Polars": ([sys.executable, "-c", POLARS, *peer], plain),
        "DuckDB": ([sys.executable, "-c", DUCKDB, *peer], with_duckdb),
    }
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for _ in range(asked.turns):
        for name, (command, environment) in contenders.items():
            for made in ("workspace", "peer"):
                shutil.rmtree(root / made, ignore_errors=True)
            measured[name].append(run(command, environment))
            print(f"{name}: {measured[name][-1][0]:.1f} s", file=sys.stderr)
    print(f"{asked.events:,} events, {asked.turns} turns:\n")
    print("| contender | seconds (least, most) | CPU s | peak GiB |\n|---|---|---|---|")
    for name, turns in measured.items():
        walls, cpus, peaks = zip(*turns, strict=True)
        spread = f"{median(walls):.1f} ({min(walls):.1f}, {max(walls):.1f})"
        print(f"| {name} | {spread} | {median(cpus):.1f} | {max(peaks):.2f} |")
    walls = {name: median(turn[0] for turn in turns) for name, turns in measured.items()}
    ours = walls.pop("sonder prepare")
    print(json.dumps({f"to_{name.lower()}": round(ours / wall, 2) for name, wall in walls.items()}))


if __name__ == "__main__":
    main()
