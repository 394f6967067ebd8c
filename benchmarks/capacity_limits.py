"""What does not grow with the number of nodes, read in the code: how much of it a number of users needs, and allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.capacity_constants import Values
from benchmarks.capacity_plan import plan, trained_events

GIB, MIB = 1 << 30, 1 << 20


class Limit(NamedTuple):
    """Something that does not grow with the number of nodes."""

    name: str
    where: str  # file of the repository
    needed: Callable[[float, Values], float]  # at a number of users
    allowed: Callable[[Values], float]
    unit: str
    change: str


def _per_worker(users: float, v: Values) -> float:
    return trained_events(users, v) * v["train_bytes_event"] / v["train_workers"] / GIB


LIMITS = (
    Limit(
        "each retrieval replica holds every user's vector",
        "services/retrieval/nearest.py",
        lambda users, v: 2 * users / 1e6 * v["index_gib_million"],
        lambda v: v["serving_gib"] - (v["node_mib"] + v["stages_mib"] + 2 * v["gateway_mib"]) / 1024,
        "GiB",
        "a sample for lookalikes; `similar` from shards by digest, or product quantisation (64 floats to 16 bytes)",
    ),
    Limit(
        "one refresh follows the log of online events",
        "services/gateway/refresh.py",
        lambda users, v: plan(users, v).events_s,
        lambda v: v["refresh_users_s"],
        "events/s at the peak",
        "one refresh for each residue of the user's digest, each with progress of its own",
    ),
    Limit(
        "buckets of 250,000 events",
        "pipelines/prepare_plan.py",
        lambda users, v: users * v["events_per_user"] / v["max_buckets"] / 1e3,
        lambda v: v["rows_per_bucket"] / 1e3,
        "thousand events a bucket",
        "MAX_BUCKETS to 9,999 (names of four digits): a task's memory grows with its bucket, here to {bucket_mib} MiB",
    ),
    Limit(
        "tasks that can run at once: one a bucket",
        "pipelines/bucket_tasks.py",
        lambda users, v: plan(users, v).work_pods * v["work_vcpu"],
        lambda v: v["max_buckets"],
        "cores",
        "more buckets, as above",
    ),
    Limit(
        "each trainer holds its share of the histories that are read",
        "pipelines/train.py",
        _per_worker,
        lambda v: v["training_gib"] * (1 - v["object_store_share"]) / v["training_vcpu"],
        "GiB a worker",
        "nothing: past `encoder.max_training_events` users are drawn, others each night",
    ),
    Limit(
        "eight workers are the most that help an epoch",
        "benchmarks/encoder-scaling_2026-11-23.md",
        lambda users, v: plan(users, v).train_h,
        lambda v: v["night_h"] / 2,
        "hours a night",
        "nothing, by the same draw; GPUs (not measured) for more events a night",
    ),
    Limit(
        "one Redis server holds two releases",
        "libs/sonder/profiles/redis_store.py",
        lambda users, v: plan(users, v).redis_gib,
        lambda v: v["redis_gib"],
        "GiB",
        "keys by digest over several servers; or histories (24 bytes an event) kept out of the record",
    ),
    Limit(
        "one process loads the store",
        "libs/sonder/profiles/loading.py",
        lambda users, v: users / v["load_users_s"] / 60,
        lambda v: v["load_min"],
        "minutes",
        "a task for each bucket against the networked store",
    ),
    Limit(
        "one process digests a release, when it is sealed and when it is promoted",
        "libs/sonder/releases/manifest.py",
        lambda users, v: users * v["release_bytes_user"] / MIB / v["digest_mib_s"] / 60,
        lambda v: v["digest_min"],
        "minutes each time",
        "digests by the tasks that write the files; promotion checks sizes and a draw of them",
    ),
    Limit(
        "the manifest has an entry for each file",
        "libs/sonder/releases/manifest.py",
        lambda users, v: (
            min(v["max_buckets"], users * v["events_per_user"] / v["rows_per_bucket"]) * v["files_per_bucket"]
        ),
        lambda v: 100_000,
        "entries",
        "nothing: it stops growing with the buckets",
    ),
    Limit(
        "the vocabulary is in every worker process",
        "libs/sonder/history/vocabulary.py",
        lambda users, v: v["items"] * (4 * v["dim"] + 200) / GIB * v["work_vcpu"],
        lambda v: v["work_gib"] / 2,
        "GiB a `work` pod",
        "grows with items, not users: Arrow memory mapped from the node's disk",
    ),
    Limit(
        "every gateway asks for CURRENT each second",
        "services/gateway/following.py",
        lambda users, v: float(plan(users, v).serving_pods * 2),
        lambda v: 1_000,
        "requests/s",
        "a longer pause, or a notice through Redis",
    ),
)


def breaks_at(limit: Limit, v: Values) -> float:
    """Users at which a limit is reached, to 1 %; infinity where it does not grow."""
    low, high = 1e5, 1e12
    if limit.needed(high, v) <= limit.allowed(v):
        return math.inf
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if limit.needed(middle, v) <= limit.allowed(v) else (low, middle)
    return low
