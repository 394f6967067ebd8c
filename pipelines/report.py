"""Fill the report of a build from what its steps wrote; `sonder.evaluation.report` draws it.

Reads the staged release only: the page can be made again from a release alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.lifecycle import EVENTS_IN_PROCESS, event_times, read_growth
from pipelines.report_lookalike import illustrate_reach
from pipelines.report_stories import promise_of, tell_stories
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.evaluation.affinity import AffinityQuality
from sonder.evaluation.classification import ScoreQuality
from sonder.evaluation.evaluate import RetrievalEvaluation
from sonder.evaluation.report import write_report
from sonder.evaluation.report_content import (
    AffinityFacts,
    Artefact,
    ClusterFacts,
    ClusterPortrait,
    DataFacts,
    EmbeddingSample,
    LifecycleFacts,
    ReportContent,
    RetrievalFacts,
    ScoreFacts,
    sample_of_users,
)
from sonder.evaluation.report_counts import COUNTED, Counts, counted
from sonder.events.contract import Col
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.snapshot import read_bucket
from sonder.interests.affinity_artefact import CONFIG_FILE
from sonder.scoring.heads import load_refusals
from sonder.segments.overview import LifecycleOverview

NUM_LIFTS = 4
LOOKED_AT = 200_000  # users at least, in whole buckets, of whom the map and the stories are drawn
WRITTEN = {
    "profiles": "one row per user, everything below joined",
    "encoder": "weights, and how the training went",
    "items": "the catalogue in the order of the item vectors",
    "vectors": "one vector per user",
    "interests": "one row per user and interest",
    "affinities": "one row per user and category, and the numbers that decide them",
    "segments": "one row per user: lifecycle; growth accounting, cohorts and forecast",
    "clusters": "centroids, names and portraits; one row per user: behaviour cluster",
    "scores": "heads, calibration, held-out predictions, one row per user and score",
}


def write_build_report(
    config: SonderConfig,
    workspace: Workspace,
    snapshot: str,
    target: Folder,
    *,
    release_id: str,
    results: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Write target/report/{index.html, metrics.json} -> where."""
    manifest = read_manifest(workspace.history(snapshot))
    content = _content(config, workspace, snapshot, target, release_id, results, manifest)
    write_report(target / "report", content)
    # Beside the page's own metrics the file keeps those that only a synthetic world has (`truth.*`).
    (target / "report" / "metrics.json").write_json(results["evaluate"]["metrics"])
    return {"stories": [story.user_id for story in content.stories]}


def _content(
    config: SonderConfig,
    workspace: Workspace,
    snapshot: str,
    target: Folder,
    release_id: str,
    results: Mapping[str, Mapping[str, Any]],
    manifest: dict[str, Any],
) -> ReportContent:
    evaluation = RetrievalEvaluation(**{name: results["evaluate"][name] for name in ("metrics", "health", "reason")})
    flat = {key: value for key, value in evaluation.metrics.items() if key.startswith("retrieval.")}
    history, is_ordinal = workspace.history(snapshot), bool(manifest["is_ordinal"])
    counts = _counts(history, target)
    has_interests = counts.num_interests > 0
    looked_at = [part_file(target / "profiles", bucket) for bucket in buckets_reaching(history, LOOKED_AT)]
    profiles = _profiles(looked_at)
    missing = {} if flat else {"retrieval": str(evaluation.reason)}
    growth = read_growth(target)
    if isinstance(growth, str):
        missing["growth"] = f"{growth[0].upper()}{growth[1:]}."
    if not results["cluster"]["clusters"]:
        missing["clusters"] = "too few users have a vector to be clustered"
    if not has_interests:
        missing["interests"] = "no user has an event that says what it wants of a trained item"
    stability = results["stability"]
    if stability["reason"] is not None:
        missing["stability"] = f"{stability['reason'][0].upper()}{stability['reason'][1:]}."
    reach = illustrate_reach(
        config,
        history,
        target,
        workspace.staging(f"reach-{release_id}"),
        as_of=_as_of(profiles),
        is_ordinal=is_ordinal,
    )
    if isinstance(reach, str):
        missing["lookalike"] = reach
    return ReportContent(
        title=f"Sonder: {config.events.paths[0].rsplit('/', 1)[-1]}",
        release_id=release_id,
        created_at=datetime.now(UTC).isoformat(timespec="minutes"),
        data=_data(config, manifest, counts),
        retrieval=_retrieval(config, RetrievalEvaluation(flat, evaluation.health, evaluation.reason), manifest),
        scores=_scores(config, target),
        lifecycle=_lifecycle(results["segment"], profiles, growth if isinstance(growth, LifecycleOverview) else None),
        clusters=_clusters(results["cluster"]),
        embedding=_embedding(profiles),
        interests=counts.interests() if has_interests else None,
        stories=tell_stories(config, target, history, looked_at),
        artefacts=_artefacts(target),
        limits=_limits(config, target, is_ordinal),
        missing=missing,
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        affinity=_affinity(target, results["evaluate"], counts) if has_interests else None,
        reach=None if isinstance(reach, str) else reach,
        stability=stability if stability["reason"] is None else None,
    )


class CountBucket:
    """The bucket task: what the page says of everybody (evaluation.report_counts)."""

    def __init__(self, history: str, target: str) -> None:
        self.history, self.target = Folder.at(history), Folder.at(target)

    def __call__(self, bucket: int) -> dict[str, Any]:
        _, times_us = event_times(read_bucket(self.history, bucket, [Col.TIMESTAMP]))
        interests, affinities = (
            part_file(self.target / part, bucket).read_table(columns) for part, columns in COUNTED.items()
        )
        return counted(times_us, interests, affinities)


def _counts(history: Folder, target: Folder) -> Counts:
    events, buckets = int(read_manifest(history)["counts"]["events"]), bucket_numbers(history)
    workers = 0 if events < EVENTS_IN_PROCESS else None
    return Counts.of(
        over_buckets(CountBucket, {"history": history.uri, "target": target.uri}, buckets, num_workers=workers)
    )


def _profiles(files: Sequence[Folder]) -> pl.DataFrame:
    """What the page needs of the profiles that it looks at."""
    columns = ["user_id", "as_of", "is_cold", "segments", "interests", "embedding"]
    frame = pl.from_arrow(pa.concat_tables([file.read_table(columns) for file in files]))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _as_of(profiles: pl.DataFrame) -> datetime:
    as_of = profiles["as_of"].max()
    assert isinstance(as_of, datetime)
    return as_of


def _data(config: SonderConfig, manifest: dict[str, Any], everybody: Counts) -> DataFacts:
    counts, is_ordinal = manifest["counts"], bool(manifest["is_ordinal"])
    return DataFacts(
        source=", ".join(config.events.paths),
        rows_read=counts["rows_read"],
        events=counts["events"],
        users=counts["users"],
        items=counts["items"],
        quarantined=counts["quarantined"],
        by_reason=counts["by_reason"],
        first_event=None if is_ordinal else manifest["first_event"][:10],
        last_event=None if is_ordinal else manifest["last_event"][:10],
        is_ordinal=is_ordinal,
        events_per_week=[] if is_ordinal else everybody.events_per_week(),
    )


def _retrieval(
    config: SonderConfig, evaluation: RetrievalEvaluation, manifest: dict[str, Any]
) -> RetrievalFacts | None:
    if not evaluation.metrics:
        return None
    if config.evaluation.protocol == "leave_one_out":
        return RetrievalFacts(evaluation, "leave_one_out", "each user's last event", None)
    days = config.evaluation.test_days
    cutoff = datetime.fromisoformat(manifest["last_event"]) - timedelta(days=days)
    return RetrievalFacts(evaluation, "temporal", f"{cutoff:%Y-%m-%d}", days)


def _scores(config: SonderConfig, target: Folder) -> list[ScoreFacts]:
    refusals = {refusal.task: refusal for refusal in load_refusals(target / "scores")}
    facts = []
    for task in config.scores:
        if refusal := refusals.get(task.name):
            facts.append(ScoreFacts(task.name, promise_of(task), "", None, refusal.reason))
            continue
        judged = (target / "scores" / "quality" / f"{task.name}.json").read_json()
        is_one_chance = task.kind in ("action", "churn")
        quality = ScoreQuality.from_dict(judged["quality"]) if is_one_chance else None
        facts.append(ScoreFacts(task.name, promise_of(task), judged["cutoffs"][0], quality, None, judged))
    return facts


def _lifecycle(segment: Mapping[str, Any], profiles: pl.DataFrame, growth: LifecycleOverview | None) -> LifecycleFacts:
    thresholds = segment["thresholds"]
    new, dormant = f"{thresholds['new_days']:g}", f"{thresholds['dormant_days']:g}"
    core, casual = (f"{100 * thresholds[name]:.0f} %" for name in ("core_active_share", "casual_active_share"))
    rules = {
        "cold": "no event yet",
        "new": f"first event less than {new} days ago",
        "core": f"active on at least {core} of the last {dormant} days",
        "casual": f"active on at least {casual} of the last {dormant} days",
        "marginal": "active, but less than that",
        "dormant": f"no event for {dormant} days or more",
        "resurrected": f"came back less than {new} days ago, after {dormant} days or more",
    }
    return LifecycleFacts(as_of=f"{_as_of(profiles):%Y-%m-%d}", counts=segment["lifecycle"], rules=rules, growth=growth)


def _clusters(cluster: Mapping[str, Any]) -> ClusterFacts:
    stability, matching = cluster["stability"], cluster["matching"]
    portraits = [
        ClusterPortrait(
            cluster_id=entry["id"],
            name=entry["name"],
            users=entry["users"],
            lifecycle=entry["lifecycle"],
            lifts=[(lift["key"], lift["share"], lift["lift"]) for lift in entry["lifts"][:NUM_LIFTS]],
        )
        for entry in sorted(cluster["clusters"], key=lambda entry: (-entry["users"], entry["id"]))
    ]
    return ClusterFacts(
        portraits=portraits,
        users_without=cluster["users_without"],
        reason=stability["reason"],
        curve=[(entry["num_clusters"], entry["stability"], entry["reference"]) for entry in stability["curve"]],
        sample_users=stability["sample_users"],
        parent=matching["parent"],
        common_users=matching["common_users"],
        ari=matching["ari"],
        share_moved=matching["share_moved"],
        start=cluster["start"]["reason"],
        dropped=matching["dropped"],
    )


def _embedding(profiles: pl.DataFrame) -> EmbeddingSample | None:
    """The vectors of a sample of the users who have one; None if nobody has."""
    known = profiles.filter(~pl.col("is_cold"))
    if known.is_empty():
        return None
    sample = known[sample_of_users(known["user_id"].to_arrow())]
    return EmbeddingSample(
        vectors_SD=np.asarray(sample["embedding"].to_list(), dtype=np.float32),
        lifecycle=sample["segments"].struct.field("lifecycle").to_list(),
        categories=sample["interests"].list.first().struct.field("category").to_list(),
    )


def _affinity(target: Folder, evaluated: Mapping[str, Any], counts: Counts) -> AffinityFacts:
    content = (target / "affinities" / CONFIG_FILE).read_json()
    return counts.top_affinities(
        [AffinityQuality.from_dict(quality) for quality in evaluated["affinity"]],
        is_learned=bool(content["is_learned"]),
        horizon_days=float(content["model"]["horizon_days"]),
    )


def _artefacts(target: Folder) -> list[Artefact]:
    sizes: dict[str, int] = {}
    for name in target.files():
        top = name.split("/")[0]
        sizes[top] = sizes.get(top, 0) + int(target.fs.size((target / name).path))
    return [Artefact(name, what, sizes[name]) for name, what in WRITTEN.items() if name in sizes]


def _limits(config: SonderConfig, target: Folder, is_ordinal: bool) -> list[str]:
    limits = []
    if is_ordinal:
        limits.append("The log has an order and no dates: days, lifecycle and scores mean nothing in it.")
    if config.evaluation.protocol == "temporal":
        limits.append(
            f"The encoder was trained on what lies before the last {config.evaluation.test_days} days, so that they"
            " could test it; items that first appeared in them have no vector in this release."
        )
    return limits
