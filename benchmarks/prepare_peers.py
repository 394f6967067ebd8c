"""`sonder prepare` beside one-process Polars and DuckDB on the same work: 20 million events into one row a user.

    make bench-prepare-peers
    python -m benchmarks.prepare_peers --duckdb .bench/duckdb [--events 20000000] [--turns 3] [--before CHECKOUT]
                                       [--only "Polars, the same" ...]

The least that a history is: read the Parquet files of the log, put users into buckets by a hash, order each user's
events by time, write one row a user with its events as lists, a Parquet file a bucket. That is what the first two peers
do. The same work is what the other two do as `sonder prepare` does it: every row is checked and set aside where it is
no event, ties of time keep the log's order, robots are set aside, each event has a key that a repeated row shares with
no other, items and actions are counted, files have digests. Sonder's time includes the start and end of Ray, all
others' that of Python. They take turns; medians of wall and CPU seconds, greatest memory of all processes
(benchmarks.prepare: proportional set sizes). `--before` takes the code of another checkout as one more contender,
`--only` some of the peers.

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
MOST_A_DAY = 5_000  # events of a user, as events.max_events_per_day
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
POLARS_ALL = """
import hashlib, json, sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
import polars as pl
log, out, buckets, most = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
texts = ("user_id", "item_id", "action")
latest = datetime.now(timezone.utc) + timedelta(days=1)
is_event = pl.all_horizontal(
    *(pl.col(name).str.strip_chars().str.len_bytes().is_between(1, 512).fill_null(False) for name in texts),
    pl.col("timestamp").is_between(datetime(1970, 1, 2, tzinfo=timezone.utc), latest).fill_null(False),
)
rows = pl.scan_parquet(f"{log}/*.parquet").with_row_index("log_order").with_columns(is_event=is_event).collect()
out.mkdir(parents=True)
rows.filter(~pl.col("is_event")).write_parquet(out / "quarantine.parquet")
bucket = (pl.col("user_id").hash(7) % buckets).cast(pl.Int16)
events = rows.filter("is_event").drop("is_event").with_columns(bucket=bucket)
del rows
events = events.sort("bucket", "user_id", "timestamp", "log_order")
days = events.group_by("user_id", pl.col("timestamp").dt.date()).len()
bots = days.filter(pl.col("len") > most).select(pl.col("user_id").unique())
events.join(bots, on="user_id", how="semi").write_parquet(out / "bots.parquet")
if len(bots):
    events = events.join(bots, on="user_id", how="anti", maintain_order="left")
row = pl.concat_str(*texts, pl.col("timestamp").to_physical().cast(pl.String), separator="\x1f").hash(7)
events = events.drop("log_order").with_columns(key=row).with_row_index("place")
again = events.filter(pl.col("key").is_duplicated()).with_columns(again=pl.int_range(pl.len()).over("user_id", "key"))
again = again.filter(pl.col("again") > 0).select("place", own=pl.struct("key", "again").hash(7))
if len(again):
    events = events.join(again, on="place", how="left", maintain_order="left")
    events = events.with_columns(key=pl.coalesce("own", "key")).drop("own")
events = events.drop("place")
seen = [pl.len().alias("num"), pl.col("timestamp").min().alias("first"), pl.col("timestamp").max().alias("last")]
events.group_by("item_id").agg(*seen).sort("item_id").write_parquet(out / "items.parquet")
events.group_by("action").len().sort("action").write_parquet(out / "actions.parquet")
users = events.group_by("bucket", "user_id", maintain_order=True).agg("item_id", "action", "timestamp", "key")
del events
digests = {}
for (bucket,), part in users.partition_by("bucket", as_dict=True, include_key=False).items():
    file = out / f"bucket={bucket:03d}" / "part-0.parquet"
    file.parent.mkdir(parents=True)
    part.write_parquet(file, compression="zstd")
    digests[bucket] = hashlib.blake2b(file.read_bytes()).hexdigest()
(out / "manifest.json").write_text(json.dumps(digests))
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
DUCKDB_ALL = """
import hashlib, json, sys
from pathlib import Path
import duckdb
log, out, buckets, most = sys.argv[1:5]
duckdb.sql(f"SET memory_limit='12GB'; SET temp_directory='{out}.spill'; SET preserve_insertion_order=false")
texts = ("user_id", "item_id", "action")
is_event = " AND ".join(f"coalesce(length(trim({name})) BETWEEN 1 AND 512, false)" for name in texts)
is_event += " AND coalesce(timestamp BETWEEN TIMESTAMP '1970-01-02' AND now() + INTERVAL 1 DAY, false)"
Path(out).mkdir(parents=True)
read = f"read_parquet('{log}/*.parquet', filename=true, file_row_number=true)"
duckdb.sql(f"COPY (SELECT * FROM {read} WHERE NOT ({is_event})) TO '{out}/quarantine.parquet'")
duckdb.sql(f'''CREATE TABLE rows AS SELECT user_id, item_id, action, timestamp, filename, file_row_number,
  hash(user_id, item_id, action, timestamp) AS key FROM {read} WHERE {is_event}''')
duckdb.sql(f'''CREATE TABLE bots AS SELECT DISTINCT user_id FROM (
  SELECT user_id FROM rows GROUP BY user_id, timestamp::DATE HAVING count(*) > {most})''')
duckdb.sql(f"COPY (SELECT * FROM rows SEMI JOIN bots USING (user_id)) TO '{out}/bots.parquet'")
duckdb.sql('''CREATE TABLE again AS SELECT user_id, key FROM rows GROUP BY ALL HAVING count(*) > 1''')
duckdb.sql('''CREATE VIEW kept AS
  SELECT r.*, a.key IS NOT NULL AS is_again
  FROM rows r ANTI JOIN bots USING (user_id) LEFT JOIN again a USING (user_id, key)''')
duckdb.sql('''CREATE VIEW events AS SELECT * FROM kept WHERE NOT is_again UNION ALL BY NAME
  SELECT * REPLACE (hash(key, row_number() OVER (PARTITION BY user_id, key ORDER BY filename, file_row_number)) AS key)
  FROM kept WHERE is_again''')
duckdb.sql(f'''COPY (SELECT item_id, count(*), min(timestamp), max(timestamp) FROM rows ANTI JOIN bots USING (user_id)
  GROUP BY item_id ORDER BY item_id) TO '{out}/items.parquet' ''')
counted = "SELECT action, count(*) FROM rows ANTI JOIN bots USING (user_id) GROUP BY action"
duckdb.sql(f"COPY ({counted}) TO '{out}/actions.parquet'")
place = "ORDER BY timestamp, filename, file_row_number"
lists = ", ".join(f"list({name} {place}) AS {name}" for name in ("item_id", "action", "timestamp", "key"))
duckdb.sql(f'''COPY (SELECT hash(user_id) % {buckets} AS bucket, user_id, {lists} FROM events GROUP BY user_id)
  TO '{out}/users' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (bucket))''')
files = sorted(Path(out, "users").rglob("*.parquet"))
digests = {str(file): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}
Path(out, "manifest.json").write_text(json.dumps(digests))
"""


def run(command: list[str], environment: dict[str, str], code: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, greatest bytes; `code` is the checkout whose modules the command runs."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=sys.stderr, env=environment, cwd=code) as process:
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
    parser.add_argument("--before", type=Path, help="checkout of another state of this code")
    parser.add_argument("--only", nargs="+", help="peers to run; all if not given")
    asked = parser.parse_args()
    folder = Folder.at(str(asked.out.resolve() / f"events-{asked.events}"))
    write_log(folder, asked.events, asked.events // 20)
    root = Path(folder.path)
    plain = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with_duckdb = {**plain, "PYTHONPATH": str(asked.duckdb.resolve())}
    peer = [str(root / "events"), str(root / "peer"), str(NUM_BUCKETS), str(MOST_A_DAY)]
    sonder = [sys.executable, "-m", "pipelines.cli", "prepare", "--config", str(root / "sonder.yaml")]
    sonder += ["--set", f"prepare.num_buckets={NUM_BUCKETS}"]
    peers = {
        "Polars, the least": ([sys.executable, "-c", POLARS, *peer], plain),
        "DuckDB, the least": ([sys.executable, "-c", DUCKDB, *peer], with_duckdb),
        "Polars, the same": ([sys.executable, "-c", POLARS_ALL, *peer], plain),
        "DuckDB, the same": ([sys.executable, "-c", DUCKDB_ALL, *peer], with_duckdb),
    }
    here = Path(__file__).resolve().parents[1]
    contenders = {"sonder prepare": (sonder, plain, here)}
    if asked.before:
        code = asked.before.resolve()
        contenders["sonder prepare, before"] = (sonder, {**plain, "PYTHONPATH": f"{code}/libs:{code}"}, code)
    for name, (command, environment) in peers.items():
        if asked.only is None or name in asked.only:
            contenders[name] = (command, environment, here)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for _ in range(asked.turns):
        for name, (command, environment, code) in contenders.items():
            for made in ("workspace", "peer", "peer.spill"):
                shutil.rmtree(root / made, ignore_errors=True)
            measured[name].append(run(command, environment, code))
            print(f"{name}: {measured[name][-1][0]:.1f} s", file=sys.stderr)
    print(f"{asked.events:,} events, {asked.turns} turns:\n")
    print("| contender | seconds (least, most) | CPU s | peak GiB |\n|---|---|---|---|")
    for name, turns in measured.items():
        walls, cpus, peaks = zip(*turns, strict=True)
        spread = f"{median(walls):.1f} ({min(walls):.1f}, {max(walls):.1f})"
        print(f"| {name} | {spread} | {median(cpus):.1f} | {max(peaks):.2f} |")
    walls = {name: median(turn[0] for turn in turns) for name, turns in measured.items()}
    ours = walls.pop("sonder prepare")
    print(json.dumps({f"to {name}": round(ours / wall, 2) for name, wall in walls.items()}))


if __name__ == "__main__":
    main()
