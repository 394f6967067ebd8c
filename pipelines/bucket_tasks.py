"""Map a task over history buckets with Ray Data: one bucket is one unit of work, of memory and of resuming.

A task is made once per worker process (it loads its models there) and called once per bucket; it writes its files
itself, whole or not at all, and returns a small JSON-able summary. What exists is not done again: that is the task's
own check.
`num_workers=0` runs the same task in this process, without Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from pipelines.ray_runtime import ensure_ray, worker_errors

BucketTask = Callable[[int], Mapping[str, Any]]


_held: dict[str, BucketTask] = {}  # the task of this process's newest call; tasks share processes, not calls


def _run(batch: pa.Table, *, call: str, make: Callable[..., BucketTask], arguments: Mapping[str, Any]) -> pa.Table:
    if call not in _held:
        _held.clear()
        _held[call] = make(**arguments)
    buckets = batch.column("bucket").to_pylist()
    summaries = [orjson.dumps(_held[call](bucket), option=orjson.OPT_SERIALIZE_NUMPY) for bucket in buckets]
    return pa.table({"bucket": buckets, "summary": pa.array(summaries, pa.binary())})


def over_buckets(
    make: Callable[..., BucketTask],
    arguments: Mapping[str, Any],
    buckets: Sequence[int],
    *,
    num_workers: int | None = None,
) -> list[dict[str, Any]]:
    """Summaries of all buckets, in their order. `num_workers` None: as many as the cluster has CPUs, or buckets."""
    if num_workers == 0:
        task = make(**arguments)
        return [dict(task(bucket)) for bucket in buckets]
    ensure_ray()
    import ray.data

    size = min(num_workers or int(ray.cluster_resources().get("CPU", 1)), len(buckets))
    with worker_errors():
        rows = (
            ray.data.from_items([{"bucket": bucket} for bucket in buckets], override_num_blocks=len(buckets))
            .map_batches(
                _run,
                fn_kwargs={"call": uuid.uuid4().hex, "make": make, "arguments": dict(arguments)},
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=size),
            )
            .take_all()
        )
    return [orjson.loads(row["summary"]) for row in sorted(rows, key=lambda row: row["bucket"])]
