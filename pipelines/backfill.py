"""`sonder backfill`: the profiles of past days by the models of a release, point in time.

Writes target/as_of=YYYY-MM-DD/bucket=NNN/part-0.parquet (profiles.record.PROFILE_SCHEMA, as in a release) and then
manifest.json, a day whole or not at all: one Ray Data task per day and history bucket. `as_of` is the midnight (UTC)
that begins the day, and only events before it are read. A user without any is absent; one whose events say nothing is
cold, as in a build. A bucket whose file is staged is not done again, nor is a published day.

The models are those of the release, so their knowledge may be younger than the day: `models_trained_until` in the
manifest says how young, and `knows_the_future` whether it is. A model that is trained on such profiles learns from a
leak. The way out is a release that ends before the day: its profiles of later days read the log of the served release.
The same log, release and code give the same bytes where tasks have the same number of threads (OMP_NUM_THREADS): the
last digits of floats depend on it.
Limits: a log without real times has no days; attributes and consent are those of the snapshot's user table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

import sonder
from pipelines.backfill_days import Backfill, Progress, day_folder, only_one
from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from sonder.core import telemetry
from sonder.core.errors import InvalidRequest
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import Erased, erased_until_us, read_erasures
from sonder.history.snapshot import read_timelines, read_users
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release, served_release
from sonder.releases.profiling import Profiler, trained_until_us
from sonder.releases.registry import Registry

PAIRS_AT_ONCE = 2_000  # of a day and a bucket: each is a block of one Ray Data run
_PLACES = 1_000  # buckets are numbered below it


@dataclass(frozen=True)
class AskedDays:
    """From the first day to the last, both included."""

    first: date
    last: date
    every_days: int = 1

    def moments_us(self) -> list[int]:
        """The midnights that begin them, oldest first."""
        if self.last < self.first or self.every_days < 1:
            raise InvalidRequest(
                f"Days from {self.first} to {self.last}, every {self.every_days}",
                expected="a last day that is not before the first, and steps of a day at least",
            )
        step = timedelta(days=self.every_days)
        number = (self.last - self.first) // step + 1
        return [_midnight_us(self.first + place * step) for place in range(number)]


def backfill(
    workspace: Workspace,
    asked: AskedDays,
    *,
    release_id: str | None = None,
    out: Folder | None = None,
    again: bool = False,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Write every day that is not there -> target, release, days written and kept, profiles, trained_until_us.

    `again`: make days anew that are there from another log or version of Sonder; without it they are an error.
    """
    release = Release.open(workspace, release_id or served_release(workspace))
    moments_us = asked.moments_us()
    snapshot = _snapshot_reaching(workspace, release, moments_us)
    target = workspace.backfills(release.id) if out is None else out
    job = Backfill(release, snapshot, target, read_erasures(workspace.erasures))
    with telemetry.stage("backfill", release=release.id, days=len(moments_us)) as counts, only_one(job):
        pending_us = [moment for moment in moments_us if not _is_there(job, moment, again)]
        progress = Progress(job, len(pending_us), trained_until_us(workspace, release))
        _write_days(job, pending_us, progress, num_workers)
        job.staging.remove()
        counts |= {"written": len(pending_us), "profiles": progress.profiles}
    return {
        "target": target,
        "release": release.id,
        "written": len(pending_us),
        "kept": len(moments_us) - len(pending_us),
        "profiles": progress.profiles,
        "trained_until_us": max(progress.trained_until_us.values()),
        "leaking_days": sum(moment < max(progress.trained_until_us.values()) for moment in moments_us),
    }


def _write_days(job: Backfill, moments_us: Sequence[int], progress: Progress, num_workers: int | None) -> None:
    buckets = bucket_numbers(job.release.workspace.history(job.snapshot))
    progress.num_buckets = len(buckets)
    pairs = [place * _PLACES + bucket for place in range(len(moments_us)) for bucket in buckets]
    arguments = {
        "workspace": job.release.workspace.root.uri,
        "release": job.release.id,
        "snapshot": job.snapshot,
        "staging": job.staging.uri,
        "moments_us": list(moments_us),
        "erased": dict(job.erased),
    }
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        over_buckets(BackfillBucket, arguments, part, num_workers=num_workers, on_done=progress.add)


class BackfillBucket:
    """The task of one bucket on one day: the release is opened once, its catalogue read once a day."""

    def __init__(
        self,
        workspace: str,
        release: str,
        snapshot: str,
        staging: str,
        moments_us: Sequence[int],
        erased: Mapping[int, int],
    ) -> None:
        opened = Workspace.at(workspace)
        self.history, self.staging = opened.history(snapshot), Folder.at(staging)
        self.moments_us, self.erased = moments_us, erased
        self.profiler = Profiler.of(Release.open(opened, release), named_as_of_us=moments_us[0])
        self.named_as_of_us = moments_us[0]

    def __call__(self, pair: int) -> dict[str, Any]:
        place, bucket = divmod(pair, _PLACES)
        as_of_us = self.moments_us[place]
        file = part_file(day_folder(self.staging, as_of_us), bucket)
        if not file.exists():
            file.write_table(self._profiles(bucket, as_of_us))
        is_cold = file.read_table(["is_cold"]).column("is_cold").to_numpy()
        return {"as_of_us": as_of_us, "profiles": len(is_cold), "cold": int(is_cold.sum())}

    def _profiles(self, bucket: int, as_of_us: int) -> Any:
        if self.named_as_of_us != as_of_us:
            self.profiler, self.named_as_of_us = self.profiler.named_at(as_of_us), as_of_us
        timelines = read_timelines(self.history, self.profiler.vocabulary, [bucket])
        known = known_before(timelines, self.erased, as_of_us)
        return self.profiler.profiles(known, read_users(self.history, bucket), as_of_us=as_of_us)


def known_before(timelines: Timelines, erased: Erased, as_of_us: int) -> Timelines:
    """The users with an event before `as_of` and these events; what an erased user did before asking is gone."""
    gone_until_us = erased_until_us(timelines.user_ids, erased)[timelines.user_rows]
    history = timelines.keep(timelines.times_us > gone_until_us).before(as_of_us)
    return history.take(np.flatnonzero(history.lengths > 0))


def _is_there(job: Backfill, as_of_us: int, again: bool) -> bool:
    folder = day_folder(job.target, as_of_us)
    if not folder.is_published():
        return False
    manifest = read_manifest(folder)
    if job.is_of(manifest):
        return True
    if again:
        return False
    raise InvalidRequest(
        f"{folder} is there, of release {manifest.get('release')}, snapshot {manifest.get('snapshot')} and version "
        f"{manifest.get('code_version')}",
        expected=f"release {job.release.id}, snapshot {job.snapshot} and version {sonder.__version__}",
        do="Pass --again to make such days anew, or name another folder with --out.",
    )


def _snapshot_reaching(workspace: Workspace, release: Release, moments_us: Sequence[int]) -> str:
    """The release's own log where it reaches to the last day, else that of the served release."""
    current = Registry(workspace).current()
    served = [] if current is None else [Registry(workspace).show(current.release).snapshot]
    for snapshot in (release.manifest.snapshot, *served):
        manifest = read_manifest(workspace.history(snapshot))
        if manifest["is_ordinal"]:
            raise InvalidRequest("The times of this log are only an order", do="A backfill needs a log with dates.")
        first_us, end_us = int(manifest["first_event_us"]), int(manifest["last_event_us"]) + 1
        if moments_us[-1] <= -(-end_us // MICROSECONDS_PER_DAY) * MICROSECONDS_PER_DAY:
            break
    else:
        raise _untold(moments_us[-1], first_us, end_us)
    if moments_us[0] <= first_us:
        raise _untold(moments_us[0], first_us, end_us)
    return snapshot


def _untold(as_of_us: int, first_us: int, end_us: int) -> InvalidRequest:
    return InvalidRequest(
        f"The log tells nothing of {iso_time(as_of_us)[:10]}",
        expected=f"days after its first event at {iso_time(first_us)}, the day after its last one "
        f"({iso_time(end_us - 1)}) at most",
    )


def _midnight_us(day: date) -> int:
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
