"""The numbers of the capacity model, each with its source; `benchmarks.capacity` computes with them.

A source is a committed benchmark file, a file of the code or of the manifests, or "assumed". A new measurement goes
here, and `python -m benchmarks.capacity --write` carries it into docs/capacity.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Values = Mapping[str, float]


class Constant(NamedTuple):
    """One number of the model."""

    name: str
    value: float
    unit: str
    source: str  # a file of the repository, or "assumed"
    how: str


ASSUMED = "assumed"
_SCALE, _STORE = "benchmarks/scale_2026-11-30.md", "benchmarks/store-load_2026-11-24.md"
_TRAINING, _SERVING = "benchmarks/encoder-scaling_2026-11-23.md", "benchmarks/serving_2026-11-24.md"
_SOAK = "benchmarks/soak_2026-11-24.md"
_SLOPE = "the slope from one million events to a hundred, without Ray's start"
_HERE = "docs/capacity.md"

CONSTANTS = (
    # what is served
    Constant(
        "events_per_user",
        25,
        "events",
        ASSUMED,
        "kept history of a user, as in the synthetic histories of the benchmarks",
    ),
    Constant("history_days", 90, "days", ASSUMED, "the time over which these events came"),
    Constant("reads_per_user_day", 5, "reads", ASSUMED, "stored profiles read for each user of the log a day"),
    Constant("peak", 3, "times", ASSUMED, "the busiest minute over the mean"),
    Constant("items", 1e6, "items", ASSUMED, "of the catalogue"),
    Constant("tasks", 3, "tasks", ASSUMED, "scores that are trained"),
    Constant("warm_epochs", 2, "epochs", ASSUMED, "of the nightly training, which goes on from the release before"),
    Constant("night_h", 5, "hours", ASSUMED, "in which a build is to end"),
    Constant("use", 0.6, "share", ASSUMED, "of a core's time that is planned with"),
    Constant("kept_releases", 3, "releases", ASSUMED, "on the object store, with two snapshots"),
    # machines and prices
    Constant("work_vcpu", 4, "vCPU", "infra/kubernetes/base/nightly.yaml", "of a `work` pod"),
    Constant("work_gib", 16, "GiB", "infra/kubernetes/base/nightly.yaml", "of a `work` pod"),
    Constant("training_vcpu", 8, "vCPU", "infra/kubernetes/base/nightly.yaml", "of a `training` pod"),
    Constant("training_gib", 32, "GiB", "infra/kubernetes/base/nightly.yaml", "of a `training` pod"),
    Constant("serving_vcpu", 4, "vCPU", "infra/kubernetes/base/service.yaml", "of a serving pod"),
    Constant("serving_gib", 16, "GiB", "infra/kubernetes/base/service.yaml", "of a serving pod"),
    Constant("head_vcpu", 2, "vCPU", "infra/kubernetes/base/service.yaml", "of a head"),
    Constant("head_gib", 8, "GiB", "infra/kubernetes/base/service.yaml", "of a head"),
    Constant("vcpu_hour", 0.04, "money", ASSUMED, "price parameter, of no provider"),
    Constant("gib_hour", 0.005, "money", ASSUMED, "price parameter, of memory"),
    Constant("gib_month", 0.02, "money", ASSUMED, "price parameter, of the object store"),
    Constant("object_store_share", 0.3, "share", "docs/capacity.md", "of a node's memory, which Ray takes by default"),
    # stages of a build
    Constant("prepare_us_event", 5.1, "core µs", _SCALE, f"(543 - 34 CPU s) / 99 M events: {_SLOPE}"),
    Constant("segment_us_event", 6.2, "core µs", _SCALE, f"(641 - 23) / 99 M events, 20 a user: {_SLOPE}"),
    Constant("cluster_us_user", 21, "core µs", _SCALE, f"(128 - 24) / 4.95 M users, the number chosen: {_SLOPE}"),
    Constant("growth_us_user", 7.9, "core µs", _SCALE, f"39 / 4.95 M users: {_SLOPE}"),
    Constant(
        "score_us_user",
        177,
        "core µs",
        _SCALE,
        "44.3 s x 2 / 500,000 users, ten million events: two heads of 99 and 172 trees, exact drivers",
    ),
    Constant("score_rows_core_s", 1_400, "core s", _SCALE, "1,400 s x 2 / 2 tasks at 20 M rows; more rows are sampled"),
    Constant(
        "score_trees_core_s",
        2_700,
        "core s",
        _SCALE,
        "(900 + 3,200) s / 2 tasks, most of it on one core, from 15 M rows to 20 M; more are sampled",
    ),
    Constant("profiles_us_user", 33, "core µs", _SCALE, f"(168 - 2) / 4.95 M users: {_SLOPE}"),
    Constant("judge_us_user", 63, "core µs", _SCALE, f"evaluate and report, (390 - 79) / 4.95 M users: {_SLOPE}"),
    Constant("train_fixed_ms", 11, "ms", _TRAINING, "of a step, whatever the number of workers"),
    Constant("train_step_ms", 242, "ms", _TRAINING, "of a step of 8,192 positions, divided by the workers"),
    Constant(
        "train_exchange_ms",
        39,
        "ms",
        _TRAINING,
        "80 a step with 8 workers, a sparse table and 10 Gbit/s, less the 41 of computing",
    ),
    Constant("train_positions", 8_192, "positions", _TRAINING, "of a step, the most that is derived"),
    Constant(
        "train_max_events",
        250_000_000,
        "events",
        "docs/configuration.md",
        "`encoder.max_training_events`: of a larger log users are drawn, others for each snapshot",
    ),
    Constant("train_workers", 8, "workers", _TRAINING, "past which a sparse table scales no more"),
    Constant("load_us_user", 19, "core µs", _STORE, "18.3 to 20.2 s of CPU for a million, one process"),
    Constant("load_users_s", 58_000, "users/s", _STORE, "from Parquet to Redis, one process, the better of two runs"),
    Constant("digest_mib_s", 560, "MiB/s", _HERE, "blake2b of one core: the page's own measurement"),
    # bytes
    Constant(
        "train_bytes_event",
        32,
        "bytes",
        "benchmarks/trainer-memory_2026-11-30.md",
        "one trainer while it lays 100 M events out, 43 % of them with a wish",
    ),
    Constant("dim", 64, "floats", "docs/configuration.md", "width of a vector"),
    Constant("redis_mib_million", 3_366, "MiB", _STORE, "of a million profiles with 25 events"),
    Constant("lmdb_mib_million", 4_310, "MiB", _STORE, "the same on the disk of a node"),
    Constant(
        "index_gib_million",
        0.88,
        "GiB",
        "benchmarks/retrieval-memory_2026-11-30.md",
        "most memory of a replica while it loads a million users of width 64 and 16 traits",
    ),
    Constant("gateway_mib", 374, "MiB", _SOAK, "748 for two, after an hour"),
    Constant("stages_mib", 1_765, "MiB", _SOAK, "embedding, segmentation, scoring, retrieval of 5,000 users, refresh"),
    Constant("node_mib", 710, "MiB", _SOAK, "Ray's and HAProxy's own processes of a node"),
    Constant("history_bytes_event", 17.4, "bytes", _HERE, "Parquet of a snapshot: the page's own measurement"),
    Constant("release_bytes_user", 2_012, "bytes", _HERE, "Parquet of a release: the page's own measurement"),
    Constant(
        "bucket_bytes_event",
        100,
        "bytes",
        "pipelines/prepare_plan.py",
        "25 MB for 250,000 rows while a bucket is assembled",
    ),
    Constant("rows_per_bucket", 250_000, "events", "pipelines/prepare_plan.py", "ROWS_PER_BUCKET"),
    Constant("max_buckets", 999, "buckets", "pipelines/prepare_plan.py", "MAX_BUCKETS"),
    Constant("redis_gib", 256, "GiB", ASSUMED, "the largest server that is at hand"),
    Constant("load_min", 60, "minutes", ASSUMED, "that a release may take to be loaded"),
    Constant("digest_min", 30, "minutes", ASSUMED, "that a release may take to be sealed or promoted"),
    Constant(
        "files_per_bucket",
        7,
        "files",
        "pipelines/profiles.py",
        "vectors, interests, affinities, segments, clusters, scores, profiles",
    ),
    # serving
    Constant("reads_core", 2_095, "reads/s", _SERVING, "4,191/s on 2 cores, which the load generator used too"),
    Constant("fresh_s", 487, "users/s", _SERVING, "fresh profiles at 64 connections on 2 cores, the lower of two runs"),
    Constant(
        "refresh_users_s",
        806,
        "users/s",
        _SERVING,
        "fresh profiles at 64 connections, the higher: one micro-batch at a time",
    ),
)


def values(**changed: float) -> dict[str, float]:
    """Every constant by name; `changed` takes the place of some."""
    known = {one.name: float(one.value) for one in CONSTANTS}
    if unknown := changed.keys() - known.keys():
        raise SystemExit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    return known | changed
