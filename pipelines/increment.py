"""`sonder build --since auto`: the next release from the served one and what is new in the log.

merge -> models -> users -> clusters -> growth -> stability -> evaluate -> report -> release

The new events are merged into the parent's history (pipelines.increment_prepare). Then either the parent's models are
carried on (increment_models) and what changed is computed by them (increment_users), or with `retrain` all steps of a
build run on the merged history, the encoder warm from the parent's weights. `increment.json` in a release says that it
was carried, and from where; docs/decisions/0007 says why the two exclude each other.
Steps leave markers and buckets leave files as in a build: the same command after a kill goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import sonder
from pipelines.bucket_tasks import bucket_numbers, over_buckets
from pipelines.build import Build, only_build, open_build, result_of, run_step, with_parent
from pipelines.build import build as build_all
from pipelines.increment_evaluate import evaluate_forward
from pipelines.increment_models import Carried, add_cluster_counts, carry_models
from pipelines.increment_plan import WHOLE, Delivery, plan_delivery
from pipelines.increment_prepare import merge_delivery
from pipelines.increment_report import write_increment_report
from pipelines.increment_users import GROWTH, POPULARITY, IncrementBucket
from pipelines.lifecycle import write_growth
from pipelines.prepare_plan import archive_online
from pipelines.stability import measure_stability
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError
from sonder.core.ids import digest_json
from sonder.core.storage import Folder, read_manifest
from sonder.core.telemetry import logger
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import save_popularity
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import INCREMENT_FILE, Release, served_release
from sonder.releases.registry import seal

MODEL_SECTIONS = ("evaluation", "encoder", "interests", "segments", "scores", "scoring", "seed")
OF_NO_MODEL = {
    "encoder": {"parent", "num_workers", "max_minutes", "max_training_events", "worker_resources"}
}  # how it was trained, not what it is
MEASURED_ANEW = (
    *("data.", "lifecycle.", "stability.", "forward.", "truth."),
    *("segments.cluster_share_moved", "segments.cluster_ari"),
)


@dataclass(frozen=True)
class Increment(Build):
    """A build that carries the models of a parent."""

    parent: Release
    everybody: bool  # compute everything anew with the carried models: what an increment is held against

    @property
    def build_id(self) -> str:
        about = [self.snapshot, self.parent.id, self.config.digest(), sonder.__version__, self.everybody]
        return digest_json(["increment", *about])

    @property
    def history(self) -> Folder:
        return self.workspace.history(self.snapshot)

    @property
    def scratch(self) -> Folder:
        return self.staging / "scratch"

    @cached_property
    def carried(self) -> Carried:
        told = {name: value for name, value in result_of(self, "models").items() if name != "seconds"}
        return Carried(**told | {"unknown_actions": tuple(told["unknown_actions"])})


def build_since(config: SonderConfig, since: str, *, retrain: bool = False, everybody: bool = False) -> str:
    """Build on top of a release (`auto`: the served one) -> release id; the parent's where nothing is new."""
    workspace = Workspace.at(config.workspace)
    parent = Release.open(workspace, served_release(workspace) if since in ("auto", "current") else since)
    with telemetry.stage("build", since=parent.id) as counts:
        if not retrain:
            _require_same_models(config, parent)
        delivery = _delivery(config, parent, retrain)
        if delivery.is_empty and not retrain:
            logger.info("increment: nothing is new since %s", parent.id)
            return parent.id
        snapshot = parent.manifest.snapshot if delivery.is_empty else merge_delivery(config, delivery)
        if retrain:
            return build_all(with_parent(config, parent.id), snapshot)
        increment = open_increment(config, snapshot, parent, everybody=everybody)
        counts["release"] = increment.release_id
        return _build_release(increment)


def _delivery(config: SonderConfig, parent: Release, retrain: bool) -> Delivery:
    """What is new; with `events.online` up to now, unless what was archived before is being built on."""
    delivery = plan_delivery(config, parent.manifest.snapshot)
    if config.events.online and not _is_under_way(config, delivery, parent, retrain) and archive_online(config):
        return plan_delivery(config, parent.manifest.snapshot)
    return delivery


def _is_under_way(config: SonderConfig, delivery: Delivery, parent: Release, retrain: bool) -> bool:
    """Whether a build of this delivery was begun and not ended."""
    workspace, snapshot = Workspace.at(config.workspace), delivery.plan.snapshot
    if delivery.is_empty:
        return False
    if not workspace.history(snapshot).is_published():
        is_begun = workspace.staging(f"merge-{snapshot}").exists()
    elif retrain:
        is_begun = open_build(with_parent(config, parent.id), snapshot).staging.exists()
    else:
        is_begun = open_increment(config, snapshot, parent).staging.exists()
    if is_begun:
        logger.info("increment: %s goes on; what arrived online since it began is for the next one", snapshot)
    return is_begun


def open_increment(config: SonderConfig, snapshot: str, parent: Release, *, everybody: bool = False) -> Increment:
    """Settle the points in time."""
    workspace = Workspace.at(config.workspace)
    manifest = read_manifest(workspace.history(snapshot))
    assert manifest["parent"] == parent.manifest.snapshot, "who is touched is said against the parent's snapshot"
    end_us = int(manifest["last_event_us"]) + 1
    # Where the newest events turned out to be a bot's, time went back, and windows do not roll backwards.
    everybody = everybody or end_us < parent.manifest.as_of_us
    return Increment(
        config=config,
        workspace=workspace,
        snapshot=snapshot,
        first_us=int(manifest["first_event_us"]),
        end_us=end_us,
        cutoff_us=None,
        parent=parent,
        everybody=everybody,
    )


def _require_same_models(config: SonderConfig, parent: Release) -> None:
    """Carried models were fitted by the parent's configuration; ConfigurationError names what was changed."""
    now, then = config.model_dump(mode="json"), parent.manifest.config
    for name in MODEL_SECTIONS:
        left, right = now[name], then[name]
        for key in OF_NO_MODEL.get(name, ()):
            left, right = ({k: v for k, v in section.items() if k != key} for section in (left, right))
        if left != right:
            raise ConfigurationError(
                f"The section {name} was changed since {parent.id}",
                expected="the configuration that the models of the parent were fitted by",
                do=f"Pass --retrain, which fits them again on the merged history. {WHOLE}",
            )


def _build_release(build: Increment) -> str:
    released = build.workspace.release(build.release_id)
    with only_build(build) as held:
        if released.is_published():
            return build.release_id
        for name, step in STEPS.items():
            held.check()
            run_step(build, name, step)
        held.check()
        users = result_of(build, "users")
        seal(
            build.target,
            build.workspace,
            release_id=build.release_id,
            parent=build.parent.id,
            snapshot=build.snapshot,
            config=build.config,
            metrics=result_of(build, "evaluate")["metrics"],
            row_counts={name: users[name] for name in ("profiles", "cold", "interests", "affinities")},
            as_of_us=build.end_us,
        )
        build.staging.remove()
    _advise(build)
    return build.release_id


def _models(build: Increment) -> dict[str, Any]:
    carried = carry_models(build.parent, build.workspace.items(build.snapshot), build.target)
    return carried.to_dict()


def _users(build: Increment) -> dict[str, Any]:
    arguments = {
        "history": build.history.uri,
        "target": build.target.uri,
        "parent": build.parent.folder.uri,
        "scratch": build.scratch.uri,
        "first_us": build.first_us,
        "before_us": build.parent.manifest.as_of_us,
        "as_of_us": build.end_us,
        "named_as_of_us": build.carried.named_as_of_us,
        "is_ordinal": bool(read_manifest(build.history)["is_ordinal"]),
        "keeps_interests": build.carried.keeps_interests,
        "everybody": build.everybody,
        "sensitive": list(build.config.scoring.sensitive_categories),
    }
    with telemetry.stage("increment.users", snapshot=build.snapshot) as counts:
        summaries = over_buckets(IncrementBucket, arguments, bucket_numbers(build.history))
        names = ("profiles", "cold", "acted", "embedded", "interests_found", "interests_summarised", "interests")
        totals: dict[str, Any] = {
            name: sum(int(summary[name]) for summary in summaries) for name in (*names, "affinities")
        }
        counts |= totals
    save_popularity(_popularity(build), build.target / "items")
    return {**totals, "summaries": summaries}


def _popularity(build: Increment) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Decayed counts [I] of all buckets, added in their order."""
    counts_I = np.zeros(Vocabulary.load(build.target / "items").num_items)
    for file in (build.scratch / POPULARITY).children():
        table = file.read_table()
        counts_I[table.column("item").to_numpy()] += table.column("count").to_numpy()
    return counts_I


def _clusters(build: Increment) -> dict[str, Any]:
    return add_cluster_counts(build.parent, build.target, result_of(build, "users")["summaries"])


def _growth(build: Increment) -> dict[str, Any]:
    """Every bucket is counted already; this adds up."""
    return write_growth(build.history, build.target, build.scratch / GROWTH, as_of_us=build.end_us, num_workers=0)


def _stability(build: Increment) -> dict[str, Any]:
    """What moved, by the new events alone: the models are the parent's."""
    return measure_stability(
        build.workspace, build.snapshot, build.target, parent=build.parent.id, as_of_us=build.end_us
    )


def _evaluate(build: Increment) -> dict[str, Any]:
    """What can be measured of carried models: their parent's tests hold, and the new events are one of their own."""
    counts = read_manifest(build.history)["counts"]
    data = {f"data.{name}": counts[name] for name in ("events", "users", "items", "quarantined")}
    carried = {
        name: value for name, value in build.parent.manifest.metrics.items() if not name.startswith(MEASURED_ANEW)
    }
    forward = evaluate_forward(
        build.history, build.target, build.parent, since_us=build.parent.manifest.as_of_us, as_of_us=build.end_us
    )
    metrics = data | carried
    for step in ("growth", "clusters", "stability"):
        metrics |= result_of(build, step)["metrics"]
    metrics |= forward["metrics"]
    return {"metrics": metrics, "carried_metrics": sorted(carried), "forward": forward["about"]}


def _report(build: Increment) -> dict[str, Any]:
    """Write increment.json, the page and metrics.json."""
    manifest, evaluated, users = read_manifest(build.history), result_of(build, "evaluate"), result_of(build, "users")
    before = build.parent.increment or {
        "root": build.parent.id,
        "fitted_as_of_us": build.parent.manifest.as_of_us,
    }
    made = {
        "models": "carried",
        "parent": build.parent.id,
        "root": before["root"],
        "fitted_as_of_us": before["fitted_as_of_us"],
        "as_of_us": build.end_us,
        **build.carried.to_dict(),
        "parent_snapshot": manifest.get("parent"),
        "delivery": manifest.get("delivery"),
        "users": {name: value for name, value in users.items() if name not in ("summaries", "seconds")},
        "everybody": build.everybody,
        "carried_metrics": evaluated["carried_metrics"],
        "forward": evaluated["forward"],
    }
    (build.target / INCREMENT_FILE).write_json(made)
    write_increment_report(build.target / "report", build.release_id, made, evaluated["metrics"])
    return {}


def _advise(build: Increment) -> None:
    """Say when models have served for longer than the window that they were tested on."""
    made = Release.open(build.workspace, build.release_id).increment
    assert made is not None
    age_days = (build.end_us - int(made["fitted_as_of_us"])) / MICROSECONDS_PER_DAY
    if age_days > build.config.evaluation.test_days:
        logger.warning(
            "increment: the models are those of %s, %.0f days ago, and were tested on %d; build --since auto --retrain"
            " fits them again",
            made["root"],
            age_days,
            build.config.evaluation.test_days,
        )


STEPS = {
    "models": _models,
    "users": _users,
    "clusters": _clusters,
    "growth": _growth,
    "stability": _stability,
    "evaluate": _evaluate,
    "report": _report,
}
