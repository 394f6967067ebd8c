"""Measure a build before it is released: retrieval and affinity beside their baselines, scores, the truth if known.

Recommendation quality is measured on the split of the configured protocol, with the encoder that never saw its test
window. Everything ends up in one flat object, `report/metrics.json`; what explains it goes into the report.
Of a log with more than MAX_USERS users or MAX_EVENTS events some whole buckets are read, which are random draws of
users: the same ones in every build, for the encoder and for its baselines. The report says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.truth import find_truth, measure_against_truth
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.evaluation.affinity import AffinityQuality, affinity_metrics, evaluate_affinity
from sonder.evaluation.evaluate import evaluate_retrieval
from sonder.history.bucket_sample import buckets_within
from sonder.history.cutoffs import Split, leave_one_out, temporal
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity_artefact import load_affinity
from sonder.segments.lifecycle import lifecycle_of
from sonder.segments.thresholds import derive_thresholds

logger = logging.getLogger("sonder")
MAX_USERS, MAX_EVENTS = 500_000, 20_000_000  # read for it: 50,000 users with targets are scored; about 2 GiB
NOT_MEASURED = ("rounds", "cutoff_us", "calibration_users", "reads_embedding")  # numbers that say how, not how good


def evaluate_build(
    config: SonderConfig,
    workspace: Workspace,
    snapshot: str,
    target: Folder,
    *,
    end_us: int,
    cutoff_us: int | None,
    score_metrics: dict[str, Any],
    step_metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Flat `metrics`, and `health`, `reason`, `affinity` for the report."""
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    history = workspace.history(snapshot)
    chosen, sampling = evaluated_buckets(history)
    timelines = read_timelines(history, vocabulary, chosen)
    split, validation = splits(timelines, vocabulary, config, end_us=end_us, cutoff_us=cutoff_us)
    encoder = load_encoder(target / "encoder")
    as_of_us = end_us if cutoff_us is None else cutoff_us
    retrieval = evaluate_retrieval(
        split,
        validation,
        vocabulary,
        embed_users(encoder, split.history, as_of_us=as_of_us),
        encoder.item_vectors,
        protocol=config.evaluation.protocol,
        item_bias_I=encoder.item_bias,
        popularity_I=encoder.popularity,
        lifecycle_U=None if cutoff_us is None else _lifecycle(split.history, config, cutoff_us),
    )
    for warning in retrieval.health["warnings"]:
        logger.warning("vectors: %s", warning)
    if sampling is not None:
        retrieval.health["sampling"] = "; ".join(filter(None, (sampling, retrieval.health.get("sampling"))))
    counts = read_manifest(history)["counts"]
    metrics: dict[str, float] = {f"data.{name}": counts[name] for name in ("events", "users", "items", "quarantined")}
    metrics |= retrieval.metrics | flat_scores(score_metrics) | dict(step_metrics)
    affinity: list[AffinityQuality] = []
    if cutoff_us is not None:  # a leave-one-out test has no period in which a share could come true
        affinity = evaluate_affinity(
            timelines,
            vocabulary,
            load_affinity(target / "affinities", vocabulary)[0],
            cutoff_us=cutoff_us,
            end_us=end_us,
            horizon_days=config.evaluation.test_days,
        )[1]
        metrics |= affinity_metrics(affinity)
    truth_folder = find_truth(config)
    if truth_folder is not None:
        everybody = timelines if sampling is None else read_timelines(history, vocabulary)
        metrics |= measure_against_truth(truth_folder, target, everybody, vocabulary, encoder, as_of_us=end_us)
    return {
        "metrics": metrics,
        "health": retrieval.health,
        "reason": retrieval.reason,
        "affinity": [quality.to_dict() for quality in affinity],
    }


def evaluated_buckets(history: Folder) -> tuple[list[int], str | None]:
    """The buckets that are measured, from the first, and a sentence about them if they are not all."""
    chosen = buckets_within(history, max_users=MAX_USERS, max_events=MAX_EVENTS)
    users = {int(entry["bucket"]): int(entry["users"]) for entry in read_manifest(history)["buckets"]}
    looked_at, everybody = sum(users[bucket] for bucket in chosen), sum(users.values())
    if looked_at == everybody:
        return chosen, None
    told = f"{looked_at:,} of {everybody:,} users were looked at, in {len(chosen)} of {len(users)} buckets"
    return chosen, f"{told} drawn by a digest of their id"


def _lifecycle(history: Timelines, config: SonderConfig, cutoff_us: int) -> NDArray[np.int8]:
    """State of each user [U] at the cutoff; a leave-one-out test has no such moment."""
    thresholds = derive_thresholds(history, end_us=cutoff_us, config=config.segments)
    return lifecycle_of(history, as_of_us=cutoff_us, thresholds=thresholds)


def splits(
    timelines: Timelines, vocabulary: Vocabulary, config: SonderConfig, *, end_us: int, cutoff_us: int | None
) -> tuple[Split, Split]:
    """The test split of the protocol, and the earlier one on which the baselines choose their settings."""
    if cutoff_us is None:
        return leave_one_out(timelines, part="test"), leave_one_out(timelines, part="validation")
    earlier_us = cutoff_us - config.evaluation.test_days * MICROSECONDS_PER_DAY
    return (
        temporal(timelines, vocabulary, cutoff_us=cutoff_us, end_us=end_us),
        temporal(timelines.before(cutoff_us), vocabulary, cutoff_us=earlier_us, end_us=cutoff_us),
    )


def flat_scores(score_metrics: dict[str, Any]) -> dict[str, float]:
    """`scores.<name>.<metric>` of the tasks that were learnt."""
    learnt = score_metrics.get("metrics", {})
    return {
        f"scores.{name}.{metric}": value
        for name, values in learnt.items()
        for metric, value in values.items()
        if isinstance(value, int | float) and metric not in NOT_MEASURED
    }
