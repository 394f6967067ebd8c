"""Rows of a shuffle are read without a look at its tasks from beside."""

from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
import pytest
import ray.data
from ray.data._internal.execution.operators.shuffle_operators.shuffle_reduce_operator import ShuffleReduceOp

from pipelines.prepare_tasks import rows_of


def slowly(table: pa.Table) -> pa.Table:
    """The partition of key 0 at once, the others while its rows are already there."""
    time.sleep(0 if 0 in table.column("key").to_pylist() else 1.0)
    return table


@pytest.mark.ray
def test_statistics_are_asked_for_when_no_task_of_the_shuffle_runs(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, beside = ShuffleReduceOp.current_logical_usage, list[int]()

    def watched(operator: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # Ray's own thread starts and ends the tasks
            beside.append(len(operator._shuffle_reduce_tasks))
        return told(operator)

    monkeypatch.setattr(ShuffleReduceOp, "current_logical_usage", watched)
    rows = ray.data.from_items([{"key": key} for key in range(8)], override_num_blocks=2)
    shuffled = rows.repartition(4, keys=["key"]).map_batches(slowly, batch_format="pyarrow", batch_size=None)
    assert sorted(row["key"] for row in rows_of(shuffled)) == list(range(8))
    assert beside
    assert max(beside) == 0
