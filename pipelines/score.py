"""All score heads of a configuration: rows per history bucket (Ray Data), one XGBoostTrainer run, calibration, test.

`train_scores` writes target/{heads.json, <task>.xgb.json, test/<task>.parquet}: the heads, and what they said of the
held-out test window beside what came true (user_id, cutoff, label, value). `score_users` writes
target/bucket=NNN/part-0.parquet (sonder.scoring.table SCORE_SCHEMA). What was done is not done again; training rows
live in target/training until the heads are complete. A task that cannot be learnt is refused, and the others go on.

A task reads the embedding only if its test window begins at or after the encoder's training cutoff: weights that have
seen the window would make the test a lie.
Limits: calibration and test rows of one task at a time are held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.score_rows import PARTS, Rows, ScoreRowsBucket, TaskPlan, read_part
from pipelines.score_train import train_boosters
from pipelines.segment import read_sample
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.evaluation.classification import evaluate_score
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.snapshot import read_timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.calibration import Calibrator, fit_calibrator
from sonder.scoring.heads import ScoreHead, load_booster, load_heads, predict, raw_margins, save_heads
from sonder.scoring.specification import derive_spec
from sonder.scoring.table import Scorer
from sonder.scoring.tasks import TaskRefusal, check_counts, check_task, plan_cutoffs


def train_scores(
    config: SonderConfig,
    snapshot: str,
    encoder_folder: Folder,
    target: Folder,
    *,
    end_us: int,
    encoder_cutoff_us: int,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Train, calibrate and test every task on the log before `end` -> {"metrics": per task, "refusals": […]}.

    `num_workers`: of Ray Data and of Ray Train; None lets each decide, 0 runs everything in this process.
    """
    workspace = Workspace.at(config.workspace)
    history, items = workspace.history(snapshot), workspace.items(snapshot)
    rows, buckets = target / "training", bucket_numbers(history)
    with telemetry.stage("train_scores", snapshot=snapshot, tasks=len(config.scores)) as counts:
        tasks, refusals = plan_tasks(
            config, snapshot, end_us, encoder_cutoff_us, embedding_dim=load_encoder(encoder_folder).spec.dim
        )
        if tasks:
            arguments = {
                "history": history.uri,
                "items": items.uri,
                "encoder": encoder_folder.uri,
                "target": rows.uri,
                "tasks": [task.to_dict() for task in tasks],
            }
            summaries = over_buckets(ScoreRowsBucket, arguments, buckets, num_workers=num_workers)
            tasks, too_few = _learnable(tasks, summaries)
            refusals += too_few
        train_boosters(tasks, rows, target, buckets, seed=config.seed, num_workers=num_workers)
        heads = [_finish(task, rows, target, buckets) for task in tasks]
        save_heads(heads, refusals, target)
        rows.remove()
        counts |= {"heads": len(heads), "refused": len(refusals)}
    return {
        "metrics": {head.task.name: head.metrics for head in heads},
        "refusals": [refusal.to_dict() for refusal in refusals],
    }


def plan_tasks(
    config: SonderConfig, snapshot: str, end_us: int, encoder_cutoff_us: int, *, embedding_dim: int
) -> tuple[list[TaskPlan], list[TaskRefusal]]:
    """Points in time and columns of each task. The columns are chosen before the first test window of all tasks."""
    workspace = Workspace.at(config.workspace)
    history = workspace.history(snapshot)
    manifest, vocabulary = read_manifest(history), Vocabulary.load(workspace.items(snapshot))
    first_us = int(manifest["first_event_us"])
    plans, refusals = [], []
    for task in config.scores:
        refusal = check_task(task, vocabulary, is_ordinal=bool(manifest["is_ordinal"]))
        plan = refusal or plan_cutoffs(task, first_us=first_us, end_us=end_us)
        if isinstance(plan, TaskRefusal):
            refusals.append(plan)
        else:
            plans.append((task, plan))
    if not plans:
        return [], refusals
    spec = derive_spec(
        read_sample(history, vocabulary),
        vocabulary,
        first_us=first_us,
        cutoff_us=min(plan.test_us for _, plan in plans),
        embedding_dim=embedding_dim,
    )
    plain = spec.without_embedding()
    return [TaskPlan(t, p, spec if p.test_us >= encoder_cutoff_us else plain) for t, p in plans], refusals


def score_users(
    config: SonderConfig,
    snapshot: str,
    encoder_folder: Folder,
    scores_folder: Folder,
    target: Folder,
    *,
    as_of_us: int,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Score everybody from the events before `as_of` with the heads of `scores_folder` -> number of scores."""
    workspace = Workspace.at(config.workspace)
    history = workspace.history(snapshot)
    arguments = {
        "history": history.uri,
        "items": workspace.items(snapshot).uri,
        "encoder": encoder_folder.uri,
        "scores": scores_folder.uri,
        "target": target.uri,
        "as_of_us": as_of_us,
    }
    with telemetry.stage("score_users", snapshot=snapshot) as counts:
        summaries = over_buckets(ScoreBucket, arguments, bucket_numbers(history), num_workers=num_workers)
        counts["scores"] = sum(summary["scores"] for summary in summaries)
    return {"scores": counts["scores"]}


class ScoreBucket:
    """The bucket task: heads and encoder are loaded once, then used for every bucket."""

    def __init__(self, history: str, items: str, encoder: str, scores: str, target: str, as_of_us: int) -> None:
        self.history, self.target, self.as_of_us = Folder.at(history), Folder.at(target), as_of_us
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.scorer = Scorer.of(load_heads(Folder.at(scores)), self.vocabulary)
        self.encoder = load_encoder(Folder.at(encoder)) if self.scorer.needs_vectors else None

    def __call__(self, bucket: int) -> dict[str, Any]:
        file = part_file(self.target, bucket)
        if not file.exists():
            timelines = read_timelines(self.history, self.vocabulary, [bucket])
            vectors = None
            if self.encoder is not None:
                vectors = embed_users(self.encoder, timelines, as_of_us=self.as_of_us)
            file.write_table(self.scorer.score(timelines, vectors, as_of_us=self.as_of_us))
        return {"scores": file.read_table(["name"]).num_rows}


def _learnable(
    tasks: Sequence[TaskPlan], summaries: Sequence[Mapping[str, Any]]
) -> tuple[list[TaskPlan], list[TaskRefusal]]:
    """Part the tasks with enough positives and negatives from the others."""
    kept, refusals = [], []
    for task in tasks:
        counts = {}
        for part in PARTS:
            users, positives = np.sum([summary[task.name][part] for summary in summaries], axis=0)
            counts[part] = (int(users), int(positives))
        refusal = check_counts(task.task, counts)
        if refusal is None:
            kept.append(task)
        else:
            refusals.append(refusal)
    return kept, refusals


def _finish(task: TaskPlan, rows: Folder, target: Folder, buckets: Sequence[int]) -> ScoreHead:
    """Calibrate a trained task on its held-out rows, test it, and write down what it said of the test window."""
    calibration, test = (read_part(rows / task.name / part, buckets) for part in ("calibration", "test"))
    raw = ScoreHead(task.task, load_booster(target, task.name), Calibrator("none"), task.spec, {})
    calibrator = fit_calibrator(raw_margins(raw, calibration.features), calibration.labels)
    head = ScoreHead(task.task, raw.booster, calibrator, task.spec, {})
    values = predict([head], test.features)[:, 0]
    _write_test(target / "test" / f"{task.name}.parquet", test, values)
    metrics = evaluate_score(test.labels, values).to_dict() | {
        "cutoff_us": task.plan.test_us,
        "train_cutoffs_us": list(task.plan.train_us),
        "calibrated_on": task.plan.calibrated_on,
        "calibration": calibrator.method,
        "calibration_users": len(calibration.labels),
        "rounds": head.booster.num_boosted_rounds(),
        "reads_embedding": task.spec.embedding_dim > 0,
    }
    return ScoreHead(task.task, head.booster, calibrator, task.spec, metrics)


def _write_test(file: Folder, test: Rows, values: Any) -> None:
    table = pa.table(
        {
            "user_id": test.user_ids,
            "cutoff": pa.array(test.cutoffs_us).cast(TIMESTAMP_TYPE),
            "label": pa.array(test.labels),
            "value": pa.array(values, pa.float32()),
        }
    )
    file.write_table(table)
