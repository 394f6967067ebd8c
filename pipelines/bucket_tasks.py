"""Map a task over history buckets with Ray Data: one bucket is one unit of work, of memory and of resuming.

A task is made once per worker process (it loads its models there) and called once per bucket; it writes its files
itself, whole or not at all, and returns a small JSON-able summary. What exists is not done again: that is the task's
own check.
Here stands too what all of them agree on: which buckets there are, and where the file of one lies.
`num_workers=0` runs the same task in this process, without Ray.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from pipelines.ray_runtime import ensure_ray, worker_errors
from sonder.core import telemetry
from sonder.core.storage import Folder, read_manifest

BucketTask = Callable[[int], Mapping[str, Any]]


_held: dict[str, BucketTask] = {}  # the task of this process's newest call; tasks share processes, not calls


def _run(
    batch: pa.Table,
    *,
    call: str,
    make: Callable[..., BucketTask],
    arguments: Mapping[str, Any],
    trace: Mapping[str, str],
) -> pa.Table:
    buckets = batch.column("bucket").to_pylist()
    with telemetry.worker_span(getattr(make, "__name__", "bucket task").strip("_"), trace, bucket=buckets[0]):
        return _run_here(buckets, call, make, arguments)


def _run_here(buckets: list[int], call: str, make: Callable[..., BucketTask], arguments: Mapping[str, Any]) -> pa.Table:
    if call not in _held:
        _held.clear()
        _held[call] = make(**arguments)
    summaries = [orjson.dumps(_held[call](bucket), option=orjson.OPT_SERIALIZE_NUMPY) for bucket in buckets]
    return pa.table({"bucket": buckets, "summary": pa.array(summaries, pa.binary())})


def over_buckets(
    make: Callable[..., BucketTask],
    arguments: Mapping[str, Any],
    buckets: Sequence[int],
    *,
    num_workers: int | None = None,
    on_done: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Summaries of all buckets, in their order. `num_workers` None: as many as there are CPUs, or buckets.

    `on_done` is called here, in the caller's process, with each summary soon after its bucket is done, in any order.
    """
    summaries = {}
    for bucket, summary in _summaries(make, arguments, buckets, num_workers):
        summaries[bucket] = summary
        if on_done is not None:
            on_done(summary)
    return [summaries[bucket] for bucket in sorted(summaries)]


def _summaries(
    make: Callable[..., BucketTask], arguments: Mapping[str, Any], buckets: Sequence[int], num_workers: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    if num_workers == 0 or not buckets:
        task = make(**arguments)
        yield from ((bucket, dict(task(bucket))) for bucket in buckets)
        return
    ensure_ray()
    import ray.data

    with worker_errors():
        batches = (
            ray.data.from_items([{"bucket": bucket} for bucket in buckets], override_num_blocks=len(buckets))
            .map_batches(
                _run,
                fn_kwargs={
                    "call": uuid.uuid4().hex,
                    "make": make,
                    "arguments": dict(arguments),
                    "trace": telemetry.carrier(),
                },
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(num_workers or num_cpus(), len(buckets))),
            )
            # A summary is handed out when it is there, not when the next one is.
            .iter_batches(prefetch_batches=0, batch_size=None, batch_format="pyarrow")
        )
        for batch in batches:
            for row in batch.to_pylist():
                yield row["bucket"], orjson.loads(row["summary"])


def num_cpus() -> int:
    """CPUs of the cluster; a local Ray declares more than the machine has, and each worker loads its own models."""
    import ray

    declared = int(ray.cluster_resources().get("CPU", 1))
    return min(declared, os.cpu_count() or 1) if len(ray.nodes()) == 1 else declared


def bucket_numbers(history: Folder) -> list[int]:
    """Buckets of a snapshot that hold users, in order."""
    return sorted(int(entry["bucket"]) for entry in read_manifest(history)["buckets"] if entry["users"])


def part_file(folder: Folder, bucket: int) -> Folder:
    """File of one bucket of users below a folder of a release."""
    return folder / f"bucket={bucket:03d}" / "part-0.parquet"
