"""Which models a build trains: points in time, columns and outputs of each task, and its older self for the backtest.

A model reads the embedding only if it is first asked at or after the encoder's training cutoff: weights that have seen
the window would make the test a lie. The columns and outputs are chosen from the log before the first test window of
all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.score_rows import PARTS, ModelPlan
from pipelines.segment import read_sample
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.user_features import derive_user_spec
from sonder.scoring.cutoffs import CutoffPlan, TaskRefusal, plan_backtest, plan_cutoffs
from sonder.scoring.specification import FeatureSpec
from sonder.scoring.tasks import check_counts, check_outputs, check_task, outputs_of
from sonder.scoring.training import monotone_constraints


@dataclass(frozen=True)
class ScorePlan:
    """What is to be trained, and what was refused before any row was made."""

    models: list[ModelPlan]
    refusals: list[TaskRefusal]
    share: float  # of the users, at random, that rows are made of


def plan_models(
    config: SonderConfig, snapshot: str, *, end_us: int, encoder_cutoff_us: int, item_vectors_ID: NDArray[np.float32]
) -> ScorePlan | list[TaskRefusal]:
    """The plan, or the refusals if no task can be learnt."""
    workspace = Workspace.at(config.workspace)
    history = workspace.history(snapshot)
    manifest, vocabulary = read_manifest(history), Vocabulary.load(workspace.items(snapshot))
    first_us = int(manifest["first_event_us"])
    planned, refusals = [], []
    for task in config.scores:
        refusal = check_task(task, vocabulary, is_ordinal=bool(manifest["is_ordinal"]))
        plan = refusal or plan_cutoffs(task, first_us=first_us, end_us=end_us)
        if isinstance(plan, TaskRefusal):
            refusals.append(plan)
        else:
            planned.append((task, plan))
    if not planned:
        return refusals
    sample, settled_us = read_sample(history, vocabulary), min(plan.test_us for _, plan in planned)
    excluded = config.scoring.sensitive_categories
    spec = derive_user_spec(
        sample,
        vocabulary,
        first_us=first_us,
        cutoff_us=settled_us,
        item_vectors_ID=item_vectors_ID,
        segments=config.segments,
        interests=config.interests,
        excluded_categories=excluded,
    )
    models: list[ModelPlan] = []
    for task, plan in planned:
        outputs = outputs_of(task, sample, vocabulary, cutoff_us=settled_us, excluded_categories=excluded)
        refusal = check_outputs(task, outputs)
        if refusal is not None:
            refusals.append(refusal)
            continue
        model = ModelPlan(task, plan, _columns(spec, plan, encoder_cutoff_us), outputs)
        monotone_constraints(task, model.spec)  # a wrong name is told before the rows are made
        models.append(model)
        older = plan_backtest(task, first_us=first_us, end_us=end_us, num_cutoffs=config.scoring.backtest_cutoffs)
        if older is not None:
            models.append(replace(model, plan=older, spec=_columns(spec, older, encoder_cutoff_us), is_backtest=True))
    most_rows = num_users(history) * max((len(model.plan.train_us) for model in models), default=1)
    return ScorePlan(
        models=models,
        refusals=refusals,
        share=min(1.0, config.scoring.max_training_rows / max(most_rows, 1)),
    )


def num_users(history: Folder) -> int:
    return sum(int(entry["users"]) for entry in read_manifest(history)["buckets"])


def _columns(spec: FeatureSpec, plan: CutoffPlan, encoder_cutoff_us: int) -> FeatureSpec:
    return spec if plan.test_us >= encoder_cutoff_us else spec.without_embedding()


def learnable(
    models: Sequence[ModelPlan], summaries: Sequence[Mapping[str, Any]]
) -> tuple[list[ModelPlan], list[TaskRefusal]]:
    """Keep the models and outputs with enough of both kinds; a backtest that has too few is left out without a word."""
    kept, refusals = [], []
    for model in models:
        counts = {}
        for part in PARTS:
            users = sum(int(summary[model.name][part][0]) for summary in summaries)
            positives = np.sum([summary[model.name][part][1] for summary in summaries], axis=0)
            counts[part] = (users, positives)
        outputs, refusal = check_counts(model.task, model.outputs, counts)
        if refusal is None:
            kept.append(replace(model, outputs=outputs))
        elif not model.is_backtest:
            refusals.append(refusal)
    learnt = {model.task.name for model in kept if not model.is_backtest}
    return [model for model in kept if model.task.name in learnt], refusals
