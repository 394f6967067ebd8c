"""All steps of a release, each resumable.

prepare -> train -> segment -> cluster -> growth -> score -> profiles -> stability -> evaluate -> report -> release

A build is named by what goes into it (snapshot, configuration, code version), so the same command after a kill finds
its own half-finished work: a finished step has left a marker, an unfinished one goes on from what it wrote whole.
Everything is staged; the release appears, complete and immutable, when its manifest does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sonder
from pipelines.cluster import cluster_users
from pipelines.evaluate import evaluate_build
from pipelines.lifecycle import write_growth
from pipelines.prepare import prepare
from pipelines.prepare_plan import archive_online, make_plan
from pipelines.profiles import write_profiles
from pipelines.report import write_build_report
from pipelines.score import score_users, train_scores
from pipelines.segment import segment_users, write_popularity
from pipelines.stability import measure_stability
from pipelines.train import train_encoder
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError, DataError
from sonder.core.ids import digest_json
from sonder.core.locking import Held, exclusive
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.history.cutoffs import test_cutoff_us
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.registry import Registry, seal

logger = logging.getLogger("sonder")
WINDOWS_NEEDED = 2.5  # one to test, one before it to validate, and half of one to learn from


@dataclass(frozen=True)
class Build:
    """What the steps of one build share."""

    config: SonderConfig
    workspace: Workspace
    snapshot: str
    first_us: int  # time of the oldest event
    end_us: int  # one microsecond after the newest event: `as_of` of every profile
    cutoff_us: int | None  # start of the temporal test window; None under leave_one_out

    @property
    def build_id(self) -> str:
        return _build_id(self.config, self.snapshot)

    @property
    def release_id(self) -> str:
        return f"r-{self.build_id[:12]}"

    @property
    def staging(self) -> Folder:
        return self.workspace.staging(f"build-{self.build_id}")

    @property
    def target(self) -> Folder:
        """The release folder to be; moved as a whole in the last step."""
        return self.staging / "release"

    @property
    def steps(self) -> Folder:
        return self.staging / "steps"


def _build_id(config: SonderConfig, snapshot: str) -> str:
    return digest_json([snapshot, config.digest(), sonder.__version__])


def open_build(config: SonderConfig, snapshot: str | None = None) -> Build:
    """Prepare the log (at once if it was prepared before) and fix the build's points in time.

    `snapshot`: one that is there already, in place of what the log is now.
    """
    snapshot = snapshot or prepare(config)
    workspace = Workspace.at(config.workspace)
    manifest = read_manifest(workspace.history(snapshot))
    first_us, end_us = int(manifest["first_event_us"]), int(manifest["last_event_us"]) + 1
    cutoff_us = None
    if config.evaluation.protocol == "temporal":
        cutoff_us = test_cutoff_us(end_us, config.evaluation.test_days)
        _require_room(first_us, end_us, config.evaluation.test_days)
    return Build(config, workspace, snapshot, first_us, end_us, cutoff_us)


def with_parent(config: SonderConfig, parent: str) -> SonderConfig:
    """The configuration of a build whose encoder goes on from a release's; `current` is the one that is served."""
    registry = Registry(Workspace.at(config.workspace))
    current = registry.current()
    if parent == "current":
        if current is None:
            raise ConfigurationError(
                f"No release of {config.workspace} is served",
                expected="a current release to train on from",
                do="Build without --parent first.",
            )
        parent = current.release
    registry.show(parent)  # an unknown one is an error before any work is done
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"parent": parent})})


def _require_room(first_us: int, end_us: int, test_days: int) -> None:
    span_days = (end_us - first_us) / MICROSECONDS_PER_DAY
    if span_days < WINDOWS_NEEDED * test_days:
        fitting = max(1, int(span_days / WINDOWS_NEEDED))
        raise ConfigurationError(
            f"The log spans {span_days:.1f} days and evaluation.test_days is {test_days}",
            expected=f"at least {WINDOWS_NEEDED} test windows, to train, to validate and to test",
            do=f"Pass --set evaluation.test_days={fitting}, or the protocol leave_one_out.",
        )


def _train(build: Build) -> dict[str, Any]:
    return train_encoder(
        build.config,
        build.snapshot,
        build.target / "encoder",
        cutoff_us=build.cutoff_us,
        follows=_parent_release(build),
    )


def _segment(build: Build) -> dict[str, Any]:
    write_popularity(
        build.workspace.history(build.snapshot),
        Vocabulary.load(build.workspace.items(build.snapshot)),
        load_encoder(build.target / "encoder"),
        build.target / "items",
        as_of_us=build.end_us,
    )
    return segment_users(build.config, build.snapshot, build.target / "encoder", build.target, as_of_us=build.end_us)


def _cluster(build: Build) -> dict[str, Any]:
    return cluster_users(
        build.config, build.snapshot, build.target, as_of_us=build.end_us, parent=_parent_release(build)
    )


def _growth(build: Build) -> dict[str, Any]:
    history, scratch = build.workspace.history(build.snapshot), build.staging / "growth"
    return write_growth(history, build.target, scratch, as_of_us=build.end_us)


def _score(build: Build) -> dict[str, Any]:
    # Under leave_one_out the weights have seen events up to the end of the log.
    encoder_cutoff_us = build.end_us if build.cutoff_us is None else build.cutoff_us
    encoder, heads = build.target / "encoder", build.target / "scores"
    result = train_scores(
        build.config, build.snapshot, encoder, heads, end_us=build.end_us, encoder_cutoff_us=encoder_cutoff_us
    )
    vectors = build.target / "vectors"
    score_users(build.config, build.snapshot, encoder, heads, heads / "users", as_of_us=build.end_us, vectors=vectors)
    return result


def _profiles(build: Build) -> dict[str, Any]:
    history, items = build.workspace.history(build.snapshot), build.workspace.items(build.snapshot)
    Vocabulary.load(items).save(build.target / "items")
    return write_profiles(history, items, build.target, as_of_us=build.end_us)


def _stability(build: Build) -> dict[str, Any]:
    return measure_stability(
        build.workspace, build.snapshot, build.target, parent=_parent_release(build), as_of_us=build.end_us
    )


def _evaluate(build: Build) -> dict[str, Any]:
    return evaluate_build(
        build.config,
        build.workspace,
        build.snapshot,
        build.target,
        end_us=build.end_us,
        cutoff_us=build.cutoff_us,
        score_metrics=result_of(build, "score"),
        step_metrics={
            name: value
            for step in ("growth", "cluster", "stability")
            for name, value in result_of(build, step)["metrics"].items()
        },
    )


def _report(build: Build) -> dict[str, Any]:
    results = {
        name: result_of(build, name)
        for name in ("train", "segment", "cluster", "score", "profiles", "stability", "evaluate")
    }
    return write_build_report(
        build.config, build.workspace, build.snapshot, build.target, release_id=build.release_id, results=results
    )


STEPS: dict[str, Callable[[Build], dict[str, Any]]] = {
    "train": _train,
    "segment": _segment,
    "cluster": _cluster,
    "growth": _growth,
    "score": _score,
    "profiles": _profiles,
    "stability": _stability,
    "evaluate": _evaluate,
    "report": _report,
}


def run_until(config: SonderConfig, last: str) -> dict[str, Any]:
    """Run the steps up to and including `last`, skipping finished ones -> what the last one reported."""
    build = open_build(config)
    if build.workspace.release(build.release_id).is_published():
        return {"release": build.release_id, "status": "released already"}
    with only_build(build) as held:
        for name in list(STEPS)[: list(STEPS).index(last) + 1]:
            held.check()
            result = run_step(build, name, STEPS[name])
        return result


def build(config: SonderConfig, snapshot: str | None = None) -> str:
    """Build the release of this configuration -> release id; a release that exists is returned at once."""
    with telemetry.stage("build") as counts:
        if snapshot is None and config.events.online and not _is_under_way(config):
            archive_online(config)
        build = open_build(config, snapshot)
        counts["release"] = build.release_id
        if build.workspace.release(build.release_id).is_published():
            logger.info("release %s exists already: same log, configuration and code", build.release_id)
            build.staging.remove()  # of a build that was killed between its manifest and its end
            return build.release_id
        return _build_release(build)


def _is_under_way(config: SonderConfig) -> bool:
    """Whether a build of what is archived already was begun and not ended: it goes on, without what arrived since."""
    build_id = _build_id(config, make_plan(config).snapshot)
    is_begun = Workspace.at(config.workspace).staging(f"build-{build_id}").exists()
    if is_begun:
        logger.info(
            "build: %s goes on; what arrived online since it began is for the next one,"
            " or `sonder prepare` takes it in and the build begins anew",
            build_id,
        )
    return is_begun


def _build_release(build: Build) -> str:
    with only_build(build) as held:
        if build.workspace.release(build.release_id).is_published():
            return build.release_id  # by the process that held the lock until now
        for name, step in STEPS.items():
            held.check()
            run_step(build, name, step)
        held.check()
        seal(
            build.target,
            build.workspace,
            release_id=build.release_id,
            parent=_parent_release(build),
            snapshot=build.snapshot,
            config=build.config,
            metrics=result_of(build, "evaluate")["metrics"],
            row_counts=result_of(build, "profiles") | {"seconds": _seconds(build)},
            as_of_us=build.end_us,
        )
        build.staging.remove()
    return build.release_id


def build_metrics(config: SonderConfig) -> dict[str, float]:
    """The flat metrics object of this configuration's release, building it as far as `evaluate` where needed."""
    build = open_build(config)
    released = build.workspace.release(build.release_id)
    if released.is_published():
        metrics: dict[str, float] = (released / "report" / "metrics.json").read_json()
        return metrics
    run_until(config, "evaluate")
    measured: dict[str, float] = result_of(build, "evaluate")["metrics"]
    return measured


def run_step(build: Build, name: str, step: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Run one step, or return what it said if it ended before."""
    if (build.steps / f"{name}.json").exists():
        logger.info("%s: done before, kept", name)
        return result_of(build, name)
    started = time.perf_counter()
    with telemetry.stage(name, build=build.build_id):
        result = step(build)
    (build.steps / f"{name}.json").write_json({**result, "seconds": round(time.perf_counter() - started, 1)})
    return result


def result_of(build: Build, name: str) -> dict[str, Any]:
    """What a step said that has ended."""
    result: dict[str, Any] = (build.steps / f"{name}.json").read_json()
    return result


def _seconds(build: Build) -> dict[str, float]:
    """What each step took, of the run that ended it: a step that was killed before has lost what it took then."""
    return {name: float(result_of(build, name)["seconds"]) for name in STEPS}


def _parent_release(build: Build) -> str | None:
    """Whose weights the encoder goes on from, else what was served when the build began: one for all its steps."""
    pinned = build.steps / "parent.json"
    if not pinned.exists():
        current = Registry(build.workspace).current()
        pinned.write_json({"parent": build.config.encoder.parent or (current.release if current else None)})
    parent: str | None = pinned.read_json()["parent"]
    return parent


@contextmanager
def only_build(build: Build) -> Iterator[Held]:
    """Two builds of the same release would write the same files; the second is told so."""
    lock = Folder(build.staging.fs, f"{build.staging.path}.lock")
    try:
        with exclusive(lock) as held:
            yield held
            held.is_last = build.workspace.release(build.release_id).is_published()  # whoever waits looks for it first
    except TimeoutError as error:
        raise DataError(
            f"Another process is building {build.release_id} in {build.workspace.root} ({error})",
            expected="one build of a release at a time",
            do="Wait for it, or end it; then the same command goes on where it stopped.",
        ) from error
