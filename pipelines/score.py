"""All score heads of a configuration: rows per history bucket (Ray Data), one XGBoostTrainer run, calibration, test.

`train_scores` writes target/{heads.json, <task>.xgb.json, <task>.search.json}, test/<task>.parquet and
backtest/<task>.parquet: the heads, and what they and their older selves said of windows they had not seen, beside what
came true (columns: user_id, output, cutoff, label, value, lifecycle, tenure_days). `score_users` writes
target/bucket=NNN/part-0.parquet (sonder.scoring.table SCORE_SCHEMA), and beside the heads interests/bucket=NNN/…: what
they read of each user's interests (interests.summary), which an increment need not find again. What was done is not
done again; training rows live in target/training until the heads are complete. A task that cannot be learnt is refused,
and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.embed import vectors_of
from pipelines.score_finish import finish_backtest, finish_head
from pipelines.score_leaks import refuse_futures, refuse_leaks
from pipelines.score_plan import ScorePlan, learnable, num_users, plan_models
from pipelines.score_rows import ModelPlan, ScoreRowsBucket
from pipelines.score_train import train_boosters
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.summary import summary_table
from sonder.profiles.user_features import UserFeatures
from sonder.scoring.heads import ScoreHead, load_heads, save_heads
from sonder.scoring.table import Scorer

USERS, SUMMARIES = "users", "interests"  # folders beside the heads


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
    with telemetry.stage("train_scores", snapshot=snapshot, tasks=len(config.scores)) as counts:
        plan = plan_models(
            config,
            snapshot,
            end_us=end_us,
            encoder_cutoff_us=encoder_cutoff_us,
            item_vectors_ID=load_encoder(encoder_folder).item_vectors,
        )
        heads: list[ScoreHead] = []
        refusals = plan.refusals if isinstance(plan, ScorePlan) else plan
        if isinstance(plan, ScorePlan) and plan.models:
            history = Workspace.at(config.workspace).history(snapshot)
            models, too_few = _make_rows(config, snapshot, encoder_folder, target, plan, num_workers)
            models, leaks = refuse_leaks(models, target / "training", bucket_numbers(history))
            refusals = refusals + too_few + leaks
            heads = _train(config, history, target, plan, models, num_workers)
        save_heads(heads, refusals, target)
        (target / "training").remove()
        counts |= {"heads": len(heads), "refused": len(refusals)}
    return {
        "metrics": {head.task.name: head.metrics for head in heads},
        "refusals": [refusal.to_dict() for refusal in refusals],
    }


def _make_rows(
    config: SonderConfig,
    snapshot: str,
    encoder_folder: Folder,
    target: Folder,
    plan: ScorePlan,
    num_workers: int | None,
) -> tuple[list[ModelPlan], list[Any]]:
    workspace = Workspace.at(config.workspace)
    arguments = {
        "history": workspace.history(snapshot).uri,
        "items": workspace.items(snapshot).uri,
        "encoder": encoder_folder.uri,
        "target": (target / "training").uri,
        "models": [model.to_dict() for model in plan.models],
        "share": plan.share,
    }
    history = workspace.history(snapshot)
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    sample = read_timelines(history, vocabulary, bucket_numbers(history)[:1])
    models, futures = refuse_futures(plan.models, load_encoder(encoder_folder), sample, vocabulary)
    if futures:
        return models, futures
    summaries = over_buckets(ScoreRowsBucket, arguments, bucket_numbers(history), num_workers=num_workers)
    models, too_few = learnable(plan.models, summaries)
    return models, too_few


def _train(
    config: SonderConfig,
    history: Folder,
    target: Folder,
    plan: ScorePlan,
    models: Sequence[ModelPlan],
    num_workers: int | None,
) -> list[ScoreHead]:
    rows, buckets = target / "training", bucket_numbers(history)
    users = round(num_users(history) * plan.share)
    num_rows = {model.name: users * len(model.plan.train_us) for model in models}
    train_boosters(models, rows, target, buckets, config, num_rows=num_rows, num_workers=num_workers)
    for model in models:
        if model.is_backtest:
            finish_backtest(model, rows, target, buckets)
    older = {model.task.name: model for model in models if model.is_backtest}
    sensitive = config.scoring.sensitive_categories
    return [
        finish_head(model, rows, target, buckets, older=older.get(model.task.name), sensitive=sensitive)
        for model in models
        if not model.is_backtest
    ]


def score_users(
    config: SonderConfig,
    snapshot: str,
    encoder_folder: Folder,
    scores_folder: Folder,
    target: Folder,
    *,
    as_of_us: int,
    vectors: Folder | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Score everybody from the events before `as_of` with the heads of `scores_folder` -> number of scores.

    `vectors`: where everybody's at `as_of` by this encoder are already (pipelines.segment); else they are computed.
    """
    workspace = Workspace.at(config.workspace)
    history = workspace.history(snapshot)
    arguments = {
        "history": history.uri,
        "items": workspace.items(snapshot).uri,
        "encoder": encoder_folder.uri,
        "scores": scores_folder.uri,
        "target": target.uri,
        "summaries": (scores_folder / SUMMARIES).uri,
        "as_of_us": as_of_us,
        "vectors": None if vectors is None else vectors.uri,
        "sensitive": list(config.scoring.sensitive_categories),
    }
    with telemetry.stage("score_users", snapshot=snapshot) as counts:
        summaries = over_buckets(ScoreBucket, arguments, bucket_numbers(history), num_workers=num_workers)
        counts["scores"] = sum(summary["scores"] for summary in summaries)
    return {"scores": counts["scores"]}


class ScoreBucket:
    """The bucket task: heads and encoder are loaded once, then used for every bucket."""

    def __init__(
        self,
        history: str,
        items: str,
        encoder: str,
        scores: str,
        target: str,
        summaries: str,
        as_of_us: int,
        vectors: str | None = None,
        sensitive: Sequence[str] = (),
    ) -> None:
        self.history, self.target, self.as_of_us = Folder.at(history), Folder.at(target), as_of_us
        self.summaries, self.vectors = Folder.at(summaries), None if vectors is None else Folder.at(vectors)
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.scorer = Scorer.of(load_heads(Folder.at(scores)), self.vocabulary, sensitive=sensitive)
        self.encoder = load_encoder(Folder.at(encoder))
        self.features = UserFeatures.of_heads(self.scorer.heads, self.vocabulary, self.encoder.item_vectors)

    def __call__(self, bucket: int) -> dict[str, Any]:
        file = part_file(self.target, bucket)
        if not file.exists():
            file.write_table(self.scorer.score(*self._read(bucket), as_of_us=self.as_of_us))
        return {"scores": file.read_table(["name"]).num_rows}

    def _read(self, bucket: int) -> tuple[Timelines, NDArray[np.float32] | None]:
        """Histories and features of the bucket's users."""
        timelines = read_timelines(self.history, self.vocabulary, [bucket])
        if self.features is None:
            return timelines, None
        vectors = self._vectors(bucket, timelines) if self.features.needs_vectors else None
        summary = self.features.summarise(timelines, as_of_us=self.as_of_us)
        if summary is not None:
            told = summary_table(timelines.user_ids, summary, as_of_us=self.as_of_us)
            part_file(self.summaries, bucket).write_table(told)
        return timelines, self.features.compute(timelines, vectors, as_of_us=self.as_of_us, interests_UI=summary)

    def _vectors(self, bucket: int, timelines: Timelines) -> NDArray[np.float32]:
        if self.vectors is None:
            return embed_users(self.encoder, timelines, as_of_us=self.as_of_us)
        return vectors_of(part_file(self.vectors, bucket).read_table(["vector"]).column("vector").combine_chunks())
