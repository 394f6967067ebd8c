"""Bulk embedding through Ray Data beside the bare forward pass of the same model on the same batches: one JSON line.

    make bench-embedding
    python -m benchmarks.bulk_embedding --users 200000

Histories: `--users` of log-normal length (mean about 25, at most 200), items drawn by Zipf's law from 50,000, three
actions, 90 days; written as `sonder prepare` would lay them out, once, below .bench. The encoder has the derived
default specification and random weights: its speed does not depend on them.
Forward: the batches that `sonder embed` would make of a sample of users, collated in memory beforehand, through the
model alone; once in one process with a thread per core, once in a process per core with one thread each. Both before
and after the pipeline, so that a machine that grows slower is seen; the fastest of all is the reference.
Pipeline: `embed_history`, from Parquet to Parquet, from nothing written to everything written. `ray.init` is not in it;
starting the workers, importing torch there and loading the encoder are. `ratio` is its share of the reference.
Memory: the high-water mark of the resident set of each worker process (VmHWM), pages shared with others included.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.processes import with_descendants
from pipelines.bucket_tasks import bucket_numbers
from pipelines.embed import SLICE_EVENTS, VECTORS, embed_history
from pipelines.prepare_plan import derive_num_buckets
from pipelines.ray_runtime import ensure_ray
from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST, Folder, read_manifest
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.batching import Tokens, tokenise
from sonder.encoder.inference import BATCH_TOKENS, newest_batches
from sonder.encoder.model import UserEncoder
from sonder.encoder.newest import Flat
from sonder.encoder.specification import derive, summarise
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file, iter_timelines, read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

MEAN_EVENTS, SIGMA, MOST_EVENTS = 25, 1.0, 200
NUM_ITEMS, NUM_DAYS, SEED = 50_000, 90, 7
ACTIONS, ACTION_SHARES = ("view", "cart", "purchase"), (0.85, 0.1, 0.05)
WARM_UP_BATCHES = 20
SECONDS_BETWEEN_SAMPLES = 1.0
logger = logging.getLogger("sonder")


@dataclass(frozen=True)
class World:
    """Folders of a snapshot, its items and an encoder that knows them."""

    root: Folder

    @property
    def history(self) -> Folder:
        return self.root / "history"

    @property
    def items(self) -> Folder:
        return self.root / "items"

    @property
    def encoder(self) -> Folder:
        return self.root / "encoder"

    @property
    def end_us(self) -> int:
        return int(read_manifest(self.history)["last_event_us"]) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=100_000, help="users of the bare forward pass")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)

    world = World(Folder.at(str(arguments.out.resolve() / f"bulk-embedding-{arguments.users}")))
    make_world(world, arguments.users)
    before = measure_forward(world, arguments.sample, arguments.workers)
    pipeline = measure_pipeline(world, arguments.workers)
    after = measure_forward(world, arguments.sample, arguments.workers)
    reference = max([*before.values(), *after.values()])
    spec, counts = load_encoder(world.encoder).spec, read_manifest(world.history)["counts"]
    result = {
        "users": counts["users"],
        "events": counts["events"],
        "users_per_second": round(counts["users"] / pipeline["seconds"]),
        "forward_users_per_second": round(reference),
        "ratio": round(counts["users"] / pipeline["seconds"] / reference, 3),
        **{name: round(value, 1) for name, value in pipeline.items()},
        "forward_before": {name: round(rate) for name, rate in before.items()},
        "forward_after": {name: round(rate) for name, rate in after.items()},
        "workers": arguments.workers,
        "cores": os.cpu_count(),
        "buckets": len(bucket_numbers(world.history)),
        "spec": {"dim": spec.dim, "blocks": spec.num_blocks, "max_length": spec.max_length, "recalls": spec.recalls},
        "batch_tokens": BATCH_TOKENS,
        "slice_events": SLICE_EVENTS,
    }
    print(json.dumps(result))


# -- the histories -------------------------------------------------------------------------------------------------


def make_world(world: World, num_users: int) -> None:
    """Write the world, unless it is there."""
    if (world.history / MANIFEST).exists():
        logger.info("histories: kept from an earlier run, %s", world.root)
        return
    world.root.remove()
    vocabulary = make_vocabulary()
    vocabulary.save(world.items)
    user_ids = pl.Series([f"user-{user:08d}" for user in range(num_users)])
    num_buckets = derive_num_buckets([], num_users * MEAN_EVENTS)
    buckets_U = bucket_of(user_ids, num_buckets)
    entries = []
    for bucket in range(num_buckets):
        table = make_histories(user_ids.filter(buckets_U == bucket), vocabulary, np.random.default_rng([SEED, bucket]))
        bucket_file(world.history, bucket).write_table(table)
        num_events = pc.sum(table.column("num_events")).as_py()
        entries.append({"bucket": bucket, "users": table.num_rows, "events": num_events})
        if bucket % 10 == 9:
            logger.info("histories: %d of %d buckets", bucket + 1, num_buckets)
    save_encoder(make_encoder(world.history, vocabulary, num_buckets), world.encoder)
    counts = {name: sum(entry[name] for entry in entries) for name in ("users", "events")}
    last_us = NUM_DAYS * MICROSECONDS_PER_DAY
    (world.history / MANIFEST).write_json({"buckets": entries, "counts": counts, "last_event_us": last_us})


def make_vocabulary() -> Vocabulary:
    columns = {field.name: pa.nulls(NUM_ITEMS, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(np.arange(NUM_ITEMS), pa.int32())
    columns["item_id"] = pa.array([f"item-{index:06d}" for index in range(NUM_ITEMS)])
    columns["num_events"] = pa.array(np.zeros(NUM_ITEMS), pa.int64())
    return Vocabulary(pa.table(columns, schema=ITEM_SCHEMA), ACTIONS, (1.0,) * len(ACTIONS), ())


def make_histories(user_ids: pl.Series, vocabulary: Vocabulary, random: np.random.Generator) -> pa.Table:
    """Rows of HISTORY_SCHEMA for these users, sorted as `prepare` sorts them."""
    users = user_ids.sort()
    draws = random.lognormal(np.log(MEAN_EVENTS) - SIGMA**2 / 2, SIGMA, len(users))
    lengths = np.clip(np.ceil(draws), 1, MOST_EVENTS).astype(np.int64)
    num_events = int(lengths.sum())
    shares = np.cumsum(1 / np.arange(1, NUM_ITEMS + 1))
    items = np.searchsorted(shares, random.random(num_events) * shares[-1])
    actions = random.choice(len(ACTIONS), num_events, p=ACTION_SHARES)
    times = random.integers(0, NUM_DAYS * MICROSECONDS_PER_DAY, num_events)
    times = times[np.lexsort((times, np.repeat(np.arange(len(users)), lengths)))]
    flat = [
        vocabulary.item_ids.combine_chunks().take(pa.array(items)).cast(pa.large_string()),
        pa.array(ACTIONS, pa.large_string()).take(pa.array(actions)),
        pa.array(times).cast(pa.timestamp("us", tz="UTC")),
        pa.nulls(num_events, pa.large_string()),
        pa.nulls(num_events, pa.float64()),
        pa.nulls(num_events, pa.large_string()),
        pa.array(random.integers(0, 2**64, num_events, dtype=np.uint64)),
    ]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    lists = [pa.LargeListArray.from_arrays(offsets, column) for column in flat]
    columns = [users.to_arrow().cast(pa.large_string()), *lists, pa.array(lengths, pa.int32())]
    return pa.Table.from_arrays(columns, schema=HISTORY_SCHEMA)


def make_encoder(history: Folder, vocabulary: Vocabulary, num_buckets: int) -> Encoder:
    """Random weights in the shape that the default configuration derives from the first buckets."""
    sample = read_timelines(history, vocabulary, list(range(min(num_buckets, 5))))
    spec = derive(
        EncoderConfig(), EvaluationConfig(), vocabulary, summarise(sample, vocabulary), reads_time=True, seed=SEED
    )
    torch.manual_seed(SEED)
    return Encoder.of(spec, UserEncoder(spec).state_dict(), np.ones(NUM_ITEMS, dtype=bool))


# -- the forward pass alone ----------------------------------------------------------------------------------------


def measure_forward(world: World, num_users: int, num_processes: int) -> dict[str, float]:
    """Users per second of the bare forward pass, all cores in one process and one core in each process."""
    rates = {
        f"1_process_{num_processes}_threads": forward_rate(world, num_users, num_processes=1, threads=num_processes),
        f"{num_processes}_processes_1_thread": forward_rate(world, num_users, num_processes=num_processes, threads=1),
    }
    logger.info("forward: %s users a second", {name: round(rate) for name, rate in rates.items()})
    return rates


def forward_rate(world: World, num_users: int, *, num_processes: int, threads: int) -> float:
    """All processes start together; the last to end ends the measurement."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(num_processes), spawn.Queue()
    share = num_users // num_processes
    processes = [
        spawn.Process(target=_forward, args=(world, share, rank, num_processes, threads, barrier, results))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    users, starts, ends = zip(*measured, strict=True)
    return float(sum(users) / (max(ends) - min(starts)))


def _forward(
    world: World, num_users: int, rank: int, num_processes: int, threads: int, barrier: Any, results: Any
) -> None:
    torch.set_num_threads(threads)
    encoder, users, batches = load_encoder(world.encoder), 0, []
    for tokens, flat in _batches(world, encoder, bucket_numbers(world.history)[rank::num_processes]):
        batches.append((tokens, flat))
        users += len(flat.bounds) - 1
        if users >= num_users:
            break
    batches = [batches[place] for place in np.random.default_rng(SEED).permutation(len(batches))]
    for tokens, flat in batches[:WARM_UP_BATCHES]:
        encoder.newest_states(tokens, flat)
    barrier.wait()
    started = time.monotonic()
    for tokens, flat in batches:
        encoder.newest_states(tokens, flat)
    results.put((users, started, time.monotonic()))


def _batches(world: World, encoder: Encoder, buckets: list[int]) -> Iterator[tuple[Tokens, Flat]]:
    """As `sonder embed` makes them."""
    vocabulary = Vocabulary.load(world.items)
    for bucket in buckets:
        for timelines in iter_timelines(world.history, vocabulary, bucket, slice_events=SLICE_EVENTS):
            tokens = tokenise(timelines.before(world.end_us), encoder.spec)
            for _, flat in newest_batches(tokens, encoder.spec):
                yield tokens, flat


# -- the pipeline --------------------------------------------------------------------------------------------------


def measure_pipeline(world: World, num_workers: int) -> dict[str, float]:
    """Seconds of the whole and until the first bucket was written, and the memory of the workers."""
    target = world.root / "out"
    target.remove()
    os.environ.pop("RAY_ADDRESS", None)
    ensure_ray()
    with HighWaterMarks() as marks:
        began, started = time.time(), time.perf_counter()
        embed_history(world.history, world.items, world.encoder, target, as_of_us=world.end_us, num_workers=num_workers)
        seconds = time.perf_counter() - started
    written = [Path(target.path, file).stat().st_mtime for file in target.files() if file.startswith(VECTORS)]
    return {
        "seconds": seconds,
        "seconds_to_first_bucket": min(written) - began,
        "peak_worker_mib": max(marks.workers.values()) / 1024,
        "peak_workers_mib": sum(marks.workers.values()) / 1024,
        "peak_driver_mib": _high_water_kib(os.getpid()) / 1024,
    }


@dataclass
class HighWaterMarks:
    """Most memory that each Ray worker which this process started has held, while the block runs."""

    workers: dict[int, int] = field(default_factory=dict)  # KiB by process id
    ends: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> HighWaterMarks:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ends.wait(SECONDS_BETWEEN_SAMPLES):
            self._look()
        self._look()

    def _look(self) -> None:
        for pid in with_descendants({os.getpid()}) - {os.getpid()}:
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                    self.workers[pid] = _high_water_kib(pid)
            except (OSError, StopIteration):  # it has ended
                continue


def _high_water_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
