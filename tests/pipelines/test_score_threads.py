"""The threads that xgboost has in a training worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from threadpoolctl import threadpool_info, threadpool_limits

from pipelines import score_train
from pipelines.score_rows import ModelPlan


def openmp_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}


def test_a_worker_grows_trees_on_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    while_training: list[set[int]] = []

    def watched(loop: Any, models: Any) -> list[Any]:
        while_training.append(openmp_threads())
        return []

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(score_train, "cores_of_worker", lambda: 3)
    monkeypatch.setattr(score_train, "shared_rows", lambda model: 0)
    monkeypatch.setattr(ModelPlan, "from_dict", lambda content: content)
    monkeypatch.setattr(score_train._Loop, "train_group", watched)
    arguments = {"rows": "/nowhere", "target": "/nowhere", "buckets": [0], "models": [{}], "trace": {}}
    with threadpool_limits(1, user_api="openmp"):  # as Ray starts a worker that reserves one CPU
        score_train.train_loop_per_worker(arguments)
        assert openmp_threads() == {1}
    assert while_training == [{3}]
