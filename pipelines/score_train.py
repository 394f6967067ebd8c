"""All boosters of a configuration in one XGBoostTrainer run: starting Ray Train costs more than most heads.

Each worker reads its share of the buckets; xgboost adds the histograms of all workers up. Rank 0 writes
target/<task>.xgb.json as soon as a task is trained, with target/<task>.search.json beside it; a task whose file exists
is left out, and within a task a killed run goes on from its last saved rounds (rows/grown). `num_workers=0` runs
the same loop in this process. The older models of the backtest are trained in the same run, into rows/backtest, with
the first setting of the search: the settings that later data chose would be news from their future.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import ray.train
import xgboost
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.xgboost import XGBoostTrainer
from threadpoolctl import threadpool_limits

from pipelines.ray_runtime import cores_of_worker, ensure_ray, train_storage, worker_errors
from pipelines.score_matrix import RowFiles, bins_of, pages_folder, quantised, set_labels, shared_rows
from pipelines.score_rows import ModelPlan
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.scoring.heads import booster_file, save_booster
from sonder.scoring.training import (
    COMMON,
    NOTHING_YET,
    TRIALS,
    Progress,
    Trial,
    best_trees,
    choose,
    grow,
    monotone_constraints,
    objective_of,
)

MOST_FAILURES = 3


def train_boosters(
    models: Sequence[ModelPlan],
    rows: Folder,
    target: Folder,
    buckets: Sequence[int],
    config: SonderConfig,
    *,
    num_rows: Mapping[str, int],
    num_workers: int | None = None,
) -> None:
    """Train every model that has no booster yet; `num_rows` of each training matrix by the model's name.

    `num_workers` None: one, with all cores.
    """
    open_models = [model for model in models if not booster_file(folder_of(model, rows, target), model.name).exists()]
    if not open_models:
        return
    workers = min(1 if num_workers is None else num_workers, len(buckets))
    if workers:
        ensure_ray()
    trainer = XGBoostTrainer(
        train_loop_per_worker,
        train_loop_config={
            "trace": telemetry.carrier(),
            "models": [model.to_dict() for model in open_models],
            "rows": rows.uri,
            "target": target.uri,
            "buckets": list(buckets),
            "num_rows": dict(num_rows),
            "max_gib": config.scoring.max_matrix_gib,
            "trials": config.scoring.trials,
            "seed": config.seed,
        },
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="scores", failure_config=FailureConfig(max_failures=MOST_FAILURES), **train_storage(rows / "train")
        ),
    )
    with worker_errors():
        trainer.fit()


def folder_of(model: ModelPlan, rows: Folder, target: Folder) -> Folder:
    """Where a model's booster is written; that of a backtest is not part of the release."""
    return rows / "backtest" if model.is_backtest else target


def train_loop_per_worker(arguments: Mapping[str, Any]) -> None:
    """One worker: its buckets of each model, the booster that all workers grow together, written by the first."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    loop = _Loop(arguments, rank=rank, world=world)
    models = [ModelPlan.from_dict(model) for model in arguments["models"]]
    # Ray sets OMP_NUM_THREADS to the CPUs that it reserves for a worker, one, and xgboost obeys that beside `nthread`.
    with (
        threadpool_limits(cores_of_worker(), user_api="openmp"),
        telemetry.worker_span("train scores worker", arguments["trace"], rank=rank, models=len(models)),
    ):
        for _, group in groupby(sorted(models, key=shared_rows), key=shared_rows):
            for name, rounds in loop.train_group(list(group)):
                ray.train.report({"model": name, "rounds": rounds})


class _Loop:
    """What all models of one worker have in common."""

    def __init__(self, arguments: Mapping[str, Any], *, rank: int, world: int) -> None:
        self.rows, self.target = Folder.at(arguments["rows"]), Folder.at(arguments["target"])
        self.arguments, self.rank = arguments, rank
        self.buckets = arguments["buckets"][rank::world]

    def train_group(self, models: Sequence[ModelPlan]) -> Iterator[tuple[str, int]]:
        """Train models that share their rows -> (name, rounds) of each as it is written."""
        models = [model for model in models if not self._file(model).exists()]  # after a failure: written before it
        if not models:
            return
        with pages_folder() as pages:
            yield from self._train_on(models, pages)

    def _train_on(self, models: Sequence[ModelPlan], pages: Path) -> Iterator[tuple[str, int]]:
        first = models[0]
        files = {part: RowFiles.of(self.rows, first, part, self.buckets) for part in ("train", "stop")}
        num_rows, max_gib = self.arguments["num_rows"][first.name], self.arguments["max_gib"]
        size: dict[str, Any] = {"num_rows": num_rows, "max_gib": max_gib, "pages": pages}
        bins = bins_of(files["train"], first.spec.num_features, num_rows=num_rows)
        train = quantised(files["train"], first.spec.num_features, ref=bins, **size)
        stop = quantised(
            files["stop"], first.spec.num_features, ref=train if bins is None else bins, part="stop", **size
        )
        for model in models:
            set_labels(train, files["train"].labels(model))
            set_labels(stop, files["stop"].labels(model))
            booster = self._search(model, train, stop)
            yield model.name, booster.num_boosted_rounds()

    def _search(self, model: ModelPlan, train: xgboost.DMatrix, stop: xgboost.DMatrix) -> xgboost.Booster:
        num_trials = 1 if model.is_backtest else self.arguments["trials"]
        trials, best = [], None
        for number, setting in enumerate(TRIALS[:num_trials]):
            grown = self._grow(model, number, self._parameters(model, setting), train, stop)
            trials.append(Trial(setting, grown.best_round + 1, grown.losses[grown.best_round]))
            if choose(trials) == number:
                best = best_trees(grown)
        assert best is not None
        if self.rank == 0:
            folder = folder_of(model, self.rows, self.target)
            search = [trial.to_dict() for trial in trials]
            (folder / f"{model.name}.search.json").write_json({"trials": search, "chosen": choose(trials)})
            save_booster(best, folder, model.name)
        return best

    def _parameters(self, model: ModelPlan, setting: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {"seed": self.arguments["seed"], "nthread": cores_of_worker()}
        constraints = monotone_constraints(model.task, model.spec)
        return {**COMMON, **setting, **objective_of(model.task).parameters(), **constraints, **chosen}

    def _grow(
        self, model: ModelPlan, number: int, parameters: dict[str, Any], train: xgboost.DMatrix, stop: xgboost.DMatrix
    ) -> Progress:
        folder = self.rows / "grown" / f"{model.name}.{number}"

        def save(progress: Progress) -> None:
            if self.rank == 0 and progress.booster is not None:
                save_booster(progress.booster, folder, str(len(progress.losses)))
                (folder / "losses.json").write_json(list(progress.losses))

        return grow(train, stop, parameters, start=_saved(folder), save=save)

    def _file(self, model: ModelPlan) -> Folder:
        return booster_file(folder_of(model, self.rows, self.target), model.name)


def _saved(folder: Folder) -> Progress:
    """What an interrupted run of a trial left; the losses are written after the trees that they speak of."""
    if not (folder / "losses.json").exists():
        return NOTHING_YET
    losses = tuple((folder / "losses.json").read_json())
    booster = xgboost.Booster(model_file=bytearray(booster_file(folder, str(len(losses))).read_bytes()))
    return Progress(booster, losses)
