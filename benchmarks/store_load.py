"""Loading the online store of a release, embedded and networked, and reading from it: one JSON line.

    make bench-store
    python -m benchmarks.store_load --users 200000

The release: `--users` profiles with 2 interests, 3 affinities, 2 scores of 3 drivers and a vector of width 64, drawn
from 1,000 different ones, and histories of 25 events on average (benchmarks.bulk_embedding); Parquet in buckets as a
build writes it, once, below .bench.
`bare`: ready records of 1 kB in as many parts, through `put_part` and `finish`; what LMDB and the packing cost.
`lmdb`, `redis`: what serving does when it starts, `ensure_store` and `ensure_networked_store`, from Parquet to an open
store; the Parquet is in the page cache after the first. The Redis server is started for it on port 16399 of this
machine, without persistence, and shares the cores with its client.
Reads and writes: one client, users drawn at random: a `get`, a `batch_get` of 256, a `put_many` of 128.
`cpu_seconds` are those of this process, both cores together: on a shared machine they say more than the clock.
Linux only: the peak of resident memory is VmHWM.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.bulk_embedding import MEAN_EVENTS, NUM_DAYS, SEED, make_histories, make_vocabulary
from pipelines.prepare_plan import derive_num_buckets
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST, Folder
from sonder.history.snapshot import bucket_file
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.loading import MAX_EVENTS, StoreSource, ensure_networked_store, ensure_store
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.profiles.redis_store import RedisStore
from sonder.profiles.store import ProfileStore, StoredProfile, StoreMetadata

DIM, RELEASE, NUM_TEMPLATES = 64, "r-bench", 1_000
END_US = NUM_DAYS * MICROSECONDS_PER_DAY
BARE_BYTES = 1_000 - 28  # with the header 1 kB
READS, BATCHES, BATCH, WRITES = 20_000, 400, 256, 128
logger = logging.getLogger("sonder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    parser.add_argument("--stores", nargs="+", default=["bare", "lmdb", "redis"], choices=["bare", "lmdb", "redis"])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)

    root = Folder.at(str(arguments.out.resolve() / f"store-load-{arguments.users}"))
    source = make_source(root, arguments.users)
    scratch = arguments.out.resolve() / "store-load-stores"
    shutil.rmtree(scratch, ignore_errors=True)
    result: dict[str, Any] = {"users": arguments.users, "cores": os.cpu_count()}
    if "bare" in arguments.stores:
        result["bare"] = measure_bare(scratch / "bare", arguments.users)
    if "lmdb" in arguments.stores:
        result["lmdb"] = measure(lambda: ensure_store(scratch / RELEASE, source, writable=True), arguments.users)
    if "redis" in arguments.stores:
        with redis_server() as url:
            result["redis"] = measure(lambda: ensure_networked_store(url, source), arguments.users)
    result["peak_mib"] = peak_mib()
    shutil.rmtree(scratch)
    print(json.dumps(result))


# -- the release ---------------------------------------------------------------------------------------------------


def make_source(root: Folder, num_users: int) -> StoreSource:
    """Write profiles and histories, unless they are there."""
    vocabulary = make_vocabulary()
    source = StoreSource(RELEASE, root / "profiles", root / "history", vocabulary, END_US, END_US, DIM)
    if (source.snapshot / MANIFEST).exists():
        return source
    root.remove()
    user_ids = pl.Series([f"user-{user:08d}" for user in range(num_users)])
    num_buckets = derive_num_buckets([], num_users * MEAN_EVENTS)
    buckets_U = bucket_of(user_ids, num_buckets)
    templates = make_templates(np.random.default_rng(SEED))
    for bucket in range(num_buckets):
        random, users = np.random.default_rng([SEED, bucket]), user_ids.filter(buckets_U == bucket).sort()
        bucket_file(source.snapshot, bucket).write_table(make_histories(users, vocabulary, random))
        profile_file(source.profiles, bucket).write_table(make_profiles(users, templates, random))
        if bucket % 10 == 9:
            logger.info("release: %d of %d buckets", bucket + 1, num_buckets)
    (source.snapshot / MANIFEST).write_json({"buckets": [{"bucket": bucket} for bucket in range(num_buckets)]})
    return source


def make_templates(random: np.random.Generator) -> pa.Table:
    """NUM_TEMPLATES rows of PROFILE_SCHEMA that differ in every number."""
    return pa.Table.from_pylist([_template(random) for _ in range(NUM_TEMPLATES)], schema=PROFILE_SCHEMA)


def _template(random: np.random.Generator) -> dict[str, Any]:
    def draw() -> float:
        return float(np.float32(random.random()))

    def moment() -> int:
        return int(random.integers(0, END_US))

    interest = ("weight", "events_per_week", "recency_days", "recent_days", "recent_share", "earlier_share")
    affinity = ("share", "lift", "strength", "evidence", "against")
    return {
        "user_id": "",
        "as_of": END_US,
        "is_cold": False,
        "num_events": int(random.integers(1, 100)),
        "first_seen": moment(),
        "last_seen": moment(),
        "segments": {"lifecycle": "casual", "since": moment(), "active_days": 9, "tenure_days": draw()},
        "interests": [
            {
                **{name: draw() for name in interest},
                "rank": rank,
                "name": "tools",
                "medoid_item_id": "item-000001",
                "title": "A tool",
                "num_events": 7,
                "category": "garden/tools",
                "first_at": moment(),
                "last_at": moment(),
                "state": "stable",
            }
            for rank in range(1, 3)
        ],
        "affinities": [
            {"category": f"garden/part-{n}", "level": 2, **{name: draw() for name in affinity}} for n in range(3)
        ],
        "scores": [
            {
                "name": name,
                "value": draw(),
                "base_rate": 0.25,
                "drivers": [{"reason": f"days since the last event: {n}", "contribution": draw()} for n in range(3)],
            }
            for name in ("buy_7d", "churn_14d")
        ],
    }


def make_profiles(users: pl.Series, templates: pa.Table, random: np.random.Generator) -> pa.Table:
    """Rows of PROFILE_SCHEMA for these users, each a template with a vector of its own."""
    table = templates.take(pa.array(random.integers(0, NUM_TEMPLATES, len(users))))
    vectors = pa.array(random.normal(size=len(users) * DIM).astype(np.float32))
    offsets = pa.array(np.arange(len(users) + 1, dtype=np.int32) * DIM)
    columns = {name: table.column(name) for name in PROFILE_SCHEMA.names}
    columns |= {"user_id": users.to_arrow().cast(pa.string())}
    columns |= {"embedding": pa.ListArray.from_arrays(offsets, vectors)}
    return pa.table(columns, schema=PROFILE_SCHEMA)


# -- measurements --------------------------------------------------------------------------------------------------


def measure_bare(path: Path, num_users: int) -> dict[str, float]:
    """Ready records into LMDB."""
    metadata = StoreMetadata(RELEASE, END_US, DIM, MAX_EVENTS, num_profiles=0)
    content, num_parts = os.urandom(BARE_BYTES - 256), derive_num_buckets([], num_users * MEAN_EVENTS)

    def part(number: int) -> Iterator[tuple[str, StoredProfile]]:
        for user in range(number, num_users, num_parts):
            yield f"user-{user:08d}", StoredProfile(END_US, content, b"\0" * 256, b"")

    started, cpu = time.perf_counter(), time.process_time()
    with LmdbStore.create(path, metadata) as store:
        for number in range(num_parts):
            store.put_part(str(number), part(number))
        store.finish(replace(metadata, num_profiles=num_users))
        return load_result(time.perf_counter() - started, time.process_time() - cpu, num_users, store)


def measure(ensure: Callable[[], LmdbStore | RedisStore], num_users: int) -> dict[str, float]:
    """Load through what serving calls, then read and write."""
    started, cpu = time.perf_counter(), time.process_time()
    with ensure() as store:
        loaded = load_result(time.perf_counter() - started, time.process_time() - cpu, num_users, store)
        assert store.num_profiles() == num_users
        return loaded | measure_use(store, num_users)


def load_result(seconds: float, cpu_seconds: float, num_users: int, store: ProfileStore) -> dict[str, float]:
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "profiles_per_second": round(num_users / seconds),
        "mib_per_million": round(store.size_bytes() / num_users * 1e6 / 2**20),
    }


def measure_use(store: ProfileStore, num_users: int) -> dict[str, float]:
    random = np.random.default_rng(SEED)
    one = [f"user-{user:08d}" for user in random.integers(0, num_users, READS)]
    many = [[f"user-{user:08d}" for user in random.integers(0, num_users, BATCH)] for _ in range(BATCHES)]
    gets_us = [_timed_us(lambda user=user: store.get(user)) for user in one]
    batches_us = [_timed_us(lambda users=users: store.batch_get(users)) for users in many]
    found = [profile for profile in store.batch_get(one[:WRITES]) if profile is not None]
    assert len(found) == WRITES
    writes_us = [_timed_us(lambda: store.put_many(zip(one, found, strict=False))) for _ in range(50)]
    kept = store.batch_get(one[:2_000])
    return {
        "mean_record_bytes": round(float(np.mean([28 + sum(map(len, stored[1:])) for stored in kept if stored]))),
        "get_p50_us": round(float(np.median(gets_us)), 1),
        "get_p99_us": round(float(np.quantile(gets_us, 0.99)), 1),
        "batch_profiles_per_second": round(BATCH / float(np.median(batches_us)) * 1e6),
        "write_128_p50_ms": round(float(np.median(writes_us)) / 1e3, 2),
    }


def _timed_us(call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


@contextmanager
def redis_server(port: int = 16399) -> Iterator[str]:
    """A server of its own, gone afterwards with what it held."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        server = subprocess.Popen([*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


def peak_mib() -> int:
    """High-water mark of this process's resident set; pages of the mapped store count too."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


if __name__ == "__main__":
    main()
