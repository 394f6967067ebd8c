"""The user frame of an experiment (experiments.metrics), measured over the log: one task per history bucket.

`measure`   exposures of the experiment -> experiments/<name>/analyses/<until>/{manifest.json, users.parquet}
`baseline`  a past period without the experiment, for planning: everybody who was active is taken for exposed

The exposed users are dealt to the buckets of the newest snapshot, with the events that arrived online and are not in
it; a task reads one bucket, so no worker holds the log. Buckets that are done are not done again after a kill.
Cuts: the lifecycle state before the exposure, and the behaviour cluster in the control's release (the served one, if
the control names none), "none" where there is no such release or no cluster of the user.
Limits: the frame of all users is in memory at the end. A cluster is that of the release's as_of: `segment_later` of
the manifest counts the users who were exposed before that, whose cut may know what came.
By default `until` is just after the newest event of all that is read; where a part of the log arrives later than the
rest, name the moment up to which all of it is there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.experiment_buckets import Cuts, UserNumbersBucket, find_eligible, task_arguments
from pipelines.experiment_log import EPOCH, ExperimentLog, deal, frame_of, read_exposures, without
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, InvalidRequest
from sonder.core.ids import digest_bytes, digest_json, stable_hash
from sonder.core.storage import Folder, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.experiments.exposures import first_exposures
from sonder.experiments.metrics import num_mature
from sonder.experiments.specification import Experiment
from sonder.history.timelines import MICROSECONDS_PER_DAY

SMALL_EVENTS = 20_000_000  # up to these the buckets are read in this process
BASELINE_DAYS = 7  # in which users come to be exposed
USERS_FILE = "users.parquet"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Measured:
    """A user frame, and what was counted on the way to it."""

    experiment: Experiment
    users: pl.DataFrame
    until: datetime
    manifest: dict[str, Any]
    users_per_day: tuple[int, ...] = ()  # of a baseline: newly exposed on each of its days


def measure(
    config: SonderConfig, experiment: Experiment, *, until: datetime | None = None, num_workers: int | None = None
) -> Measured:
    """Every user of the experiment who was exposed before `until`; the same question is not answered again.

    NotFound without exposures; ConfigurationError where a metric names what the log does not have; InvalidRequest
    where the log does not reach to `until`, or nobody was exposed before it; DataError for an arm of another design.
    """
    log = ExperimentLog.open(config)
    log.check(experiment)
    until = _reached(log, until)
    exposed, counts = _exposed(log, experiment, until)
    cuts, online = Cuts.of(log.workspace, experiment), log.of_online(exposed[Col.USER_ID])
    identity = digest_json(
        [experiment.model_dump(mode="json"), _us(until), log.snapshot, cuts.release, _digest(exposed), _digest(online)]
    )
    final = analysis_folder(log.workspace, experiment.name, until)
    if final.is_published() and (manifest := read_manifest(final))["identity"] == identity:
        return Measured(experiment, frame_of((final / USERS_FILE).read_table()), until, manifest)
    staged = log.workspace.staging(f"experiment-{experiment.name}-{identity}")
    with telemetry.stage("measure", experiment=experiment.name, snapshot=log.snapshot) as told:
        buckets = deal(exposed, staged / "exposed", log.num_buckets)
        deal(online, staged / "online", log.num_buckets)
        users = _users(log, experiment, until, cuts, staged, buckets, num_workers=num_workers)
        told.update(users=users.height, online_events=online.height)
    later = users.filter(pl.col("exposed_at") < EPOCH + timedelta(microseconds=cuts.as_of_us)).height
    counts |= {"online_events": online.height, "segment_later": later}
    manifest = {"identity": identity, **_facts(log, experiment, until, cuts, users), "counts": counts}
    (staged / USERS_FILE).write_table(users.to_arrow())
    for scratch in ("exposed", "online", "users"):
        (staged / scratch).remove()
    final.remove()
    publish(staged, final, manifest)
    return Measured(experiment, users, until, read_manifest(final))


def baseline(
    config: SonderConfig, experiment: Experiment, *, at: datetime | None = None, num_workers: int | None = None
) -> Measured:
    """What `measure` would find without any effect: users of the control, exposed by their first event from `at` on.

    Whoever had an event in [at, at + 7 days) counts, if eligible by the served release's profiles of today; by default
    the longest window of the last of them ends with the log. Nothing is kept. Errors as of `measure`.
    """
    log = ExperimentLog.open(config)
    log.check(experiment)
    at = at or log.end - timedelta(days=experiment.window_days) - BASELINE_DAYS * _DAY
    if not log.first < _aware(at) < log.end:
        raise InvalidRequest(
            f"A baseline from {at.isoformat()} is not in the log, which goes from {log.first.isoformat()} to "
            f"{log.end.isoformat()}",
            expected=f"some history, {BASELINE_DAYS} days, and {experiment.window_days:g} days of the longest window",
            do="Name another moment, or metrics with shorter windows.",
        )
    cuts = Cuts.of(log.workspace, experiment)
    staged = log.workspace.staging(f"experiment-{experiment.name}-baseline-{uuid.uuid4().hex}")
    with telemetry.stage("baseline", experiment=experiment.name, snapshot=log.snapshot) as told:
        try:
            users, counts = _active(log, experiment, at, cuts, staged, num_workers=num_workers)
        finally:
            staged.remove()
        told["users"] = users.height
    if users.is_empty():
        raise DataError(
            f"Nobody eligible was active in the {BASELINE_DAYS} days from {at.isoformat()}",
            expected="users to plan with",
            do="Name another moment, or look at `eligibility` with `sonder audience preview`.",
        )
    days = ((users["exposed_at"] - at).dt.total_microseconds() // MICROSECONDS_PER_DAY).to_numpy()
    per_day = tuple(np.bincount(days, minlength=BASELINE_DAYS).tolist())
    manifest = _facts(log, experiment, log.end, cuts, users) | {"at": at.isoformat(), "counts": counts}
    return Measured(experiment, users, log.end, manifest, per_day)


def analysis_folder(workspace: Workspace, name: str, until: datetime) -> Folder:
    """Where what was made of an experiment up to a moment lies."""
    return workspace.experiments / name / "analyses" / f"{until.astimezone(UTC):%Y-%m-%dT%H%M%S.%fZ}"


def _reached(log: ExperimentLog, until: datetime | None) -> datetime:
    """The moment asked for, by default the end of the log; at most the midnight after it."""
    if until is None:
        return log.end
    midnight = EPOCH + -((EPOCH - log.end) // _DAY) * _DAY
    if _aware(until) > midnight:
        raise InvalidRequest(
            f"The log ends at {log.end.isoformat()}, so it does not tell of everything until {until.isoformat()}",
            expected=f"{midnight.isoformat()} at most",
            do="Leave the moment out, or `sonder prepare` the newer log first.",
        )
    return until


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise InvalidRequest(f"The moment {moment.isoformat()} has no time zone", expected="one, such as +00:00")
    return moment


def _exposed(log: ExperimentLog, experiment: Experiment, until: datetime) -> tuple[pl.DataFrame, dict[str, Any]]:
    """First exposures before `until` by user, and the counts of who is not among them."""
    rows = read_exposures(log.workspace, experiment.name)
    kept = without(log.erased, rows)
    before = kept.filter(pl.col("exposed_at") < until)
    if before.is_empty():
        first: datetime = rows.select(pl.col("exposed_at").min()).item()
        raise InvalidRequest(
            f"Nobody is left of experiment {experiment.name!r} before {until.isoformat()}; the first exposure was at "
            f"{first.isoformat()}",
            expected="a log that reaches past the first exposures",
            do="`sonder prepare` the newer log, or ask for a later moment.",
        )
    names = [arm.name for arm in experiment.arms]
    if unknown := sorted(set(before["arm"].unique()) - set(names)):
        raise DataError(
            f"Exposures of experiment {experiment.name!r} name the arm {unknown[0]!r}",
            expected=f"one of {', '.join(names)}",
            do="An experiment with other arms needs a name of its own.",
        )
    exposed, num_several = first_exposures(before)
    num_users = [frame[Col.USER_ID].n_unique() for frame in (rows, kept, before)]
    return exposed, {
        "exposed": exposed.height,
        "in_several_arms": num_several,
        "erased": num_users[0] - num_users[1],
        "exposed_later": num_users[1] - num_users[2],
        "exposure_rows": rows.height,
        "versions": sorted(before["version"].unique().to_list()),
    }


def _active(
    log: ExperimentLog, experiment: Experiment, at: datetime, cuts: Cuts, staged: Folder, *, num_workers: int | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The user frame of a baseline, and how many users are eligible at all where that is asked."""
    also: dict[str, Any] = {"period_us": [_us(at), _us(at + BASELINE_DAYS * _DAY)]}
    counts = {}
    if experiment.eligibility is not None:
        num_buckets, counts["eligible"] = find_eligible(log.workspace, experiment.eligibility, staged, num_workers)
        also["eligible_buckets"] = num_buckets
    buckets = deal(log.online, staged / "online", log.num_buckets)
    buckets |= {int(entry["bucket"]) for entry in log.facts["buckets"] if entry["users"]}
    return _users(log, experiment, log.end, cuts, staged, buckets, also, num_workers=num_workers), counts


def _users(
    log: ExperimentLog,
    experiment: Experiment,
    until: datetime,
    cuts: Cuts,
    staged: Folder,
    buckets: Iterable[int],
    also: Mapping[str, Any] | None = None,
    *,
    num_workers: int | None,
) -> pl.DataFrame:
    """The user frame of all buckets, by user_id."""
    arguments = {
        **task_arguments(log.history, staged, experiment, until_us=_us(until), cuts=cuts, num_buckets=log.num_buckets),
        **(also or {}),
    }
    workers = 0 if num_workers is None and log.num_events <= SMALL_EVENTS else num_workers
    found = over_buckets(UserNumbersBucket, arguments, sorted(buckets), num_workers=workers)
    parts = [part_file(staged / "users", part["bucket"]).read_table() for part in found]
    return without(log.erased, frame_of(pa.concat_tables(parts))).sort(Col.USER_ID)


def _facts(
    log: ExperimentLog, experiment: Experiment, until: datetime, cuts: Cuts, users: pl.DataFrame
) -> dict[str, Any]:
    arms = dict(users.group_by("arm").len().iter_rows())
    return {
        "experiment": experiment.model_dump(mode="json"),
        "until": until.isoformat(),
        "snapshot": log.snapshot,
        "release": cuts.release,
        "users": {arm.name: arms.get(arm.name, 0) for arm in experiment.arms},
        "mature": num_mature(experiment, users),
    }


def _digest(frame: pl.DataFrame) -> str:
    """Of exposed users, or of online events, in their order."""
    texts = [name for name in (Col.USER_ID, "arm") if name in frame.columns]
    numbers = [name for name in ("exposed_at", Col.EVENT_KEY) if name in frame.columns]
    columns = [stable_hash(frame[name], name) for name in texts]
    columns += [frame[name].to_physical().to_numpy() for name in numbers]
    return digest_bytes(b"".join(column.tobytes() for column in columns))


def _us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
