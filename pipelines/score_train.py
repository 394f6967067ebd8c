"""All boosters of a configuration in one XGBoostTrainer run: starting Ray Train costs more than most heads.

Each worker reads its share of the buckets of every task; xgboost adds the histograms of all workers up. Rank 0 writes
target/<task>.xgb.json as soon as a task is trained; a task whose file exists is left out, so a killed run goes on
with the task it was at. `num_workers=0` runs the same loop in this process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray.train
import xgboost
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.xgboost import XGBoostTrainer

from pipelines.ray_runtime import ensure_ray, worker_errors
from pipelines.score_rows import TaskPlan, read_part
from sonder.core.storage import Folder
from sonder.scoring.heads import booster_file, train_booster

MOST_FAILURES = 3


def train_boosters(
    tasks: Sequence[TaskPlan],
    rows: Folder,
    target: Folder,
    buckets: Sequence[int],
    *,
    seed: int,
    num_workers: int | None = None,
) -> None:
    """Train every task that has no booster in `target` yet. `num_workers` None: one, with all cores."""
    open_tasks = [task.name for task in tasks if not booster_file(target, task.name).exists()]
    if not open_tasks:
        return
    workers = min(1 if num_workers is None else num_workers, len(buckets))
    if workers:
        ensure_ray()
    storage = rows / "train"
    storage.fs.makedirs(storage.path, exist_ok=True)
    trainer = XGBoostTrainer(
        train_loop_per_worker,
        train_loop_config={
            "tasks": open_tasks,
            "rows": rows.uri,
            "target": target.uri,
            "buckets": list(buckets),
            "seed": seed,
            "num_threads": max(_num_cores() // max(workers, 1), 1),
        },
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="scores", storage_path=storage.uri, failure_config=FailureConfig(max_failures=MOST_FAILURES)
        ),
    )
    with worker_errors():
        trainer.fit()


def train_loop_per_worker(arguments: Mapping[str, Any]) -> None:
    """One worker: its buckets of each task, the booster that all workers grow together, written by the first."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    rows, target = Folder.at(arguments["rows"]), Folder.at(arguments["target"])
    for task in arguments["tasks"]:
        if booster_file(target, task).exists():  # after a failure: written by an earlier run of this loop
            continue
        train, stop = (_matrix(rows / task / part, arguments["buckets"][rank::world]) for part in ("train", "stop"))
        booster = train_booster(train, stop, seed=arguments["seed"], num_threads=arguments["num_threads"])
        if rank == 0:
            booster_file(target, task).write_bytes(bytes(booster.save_raw("json")))
        ray.train.report({"task": task, "rounds": booster.num_boosted_rounds()})


def _matrix(folder: Folder, buckets: Sequence[int]) -> xgboost.DMatrix:
    part = read_part(folder, buckets)
    return xgboost.DMatrix(part.features, part.labels)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
