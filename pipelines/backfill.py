"""`sonder backfill`: the profiles of past days by the models of a release, point in time.

Writes target/as_of=YYYY-MM-DD/bucket=NNN/part-0.parquet (profiles.record.PROFILE_SCHEMA, as in a release) and then
manifest.json, a day whole or not at all: one Ray Data task per day and history bucket. `as_of` is the midnight (UTC)
that begins the day, and only events before it are read. A user without any is absent; one whose events say nothing is
cold, as in a build. A bucket whose file is staged is not done again, nor is a published day.

The models are those of the release, so their knowledge may be younger than the day: `models_trained_until` in the
manifest says how young, and `knows_the_future` whether it is. A model that is trained on such profiles learns from a
leak. The way out is a release that ends before the day: its profiles of later days read the log of the served release.
Limits: a log without real times has no days; attributes and consent are those of the snapshot's user table.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

import sonder
from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from sonder.core import telemetry
from sonder.core.errors import DataError, InvalidRequest
from sonder.core.ids import digest_json
from sonder.core.storage import MANIFEST, Folder, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import Erased, erased_until_us, read_erasures
from sonder.history.snapshot import read_timelines, read_users
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release, served_release
from sonder.releases.manifest import describe_files
from sonder.releases.profiling import Profiler, trained_until_us
from sonder.releases.registry import Registry

logger = logging.getLogger("sonder")
PAIRS_AT_ONCE = 2_000  # of a day and a bucket: each is a block of one Ray Data run
SECONDS_BETWEEN_LINES = 10.0
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


@dataclass(frozen=True)
class Backfill:
    """What the days of one backfill share."""

    release: Release
    snapshot: str
    target: Folder
    erased: Erased

    @property
    def staging(self) -> Folder:
        """On the target's own file system; another release, log, code or erasure never finds it."""
        identity = [self.release.id, self.snapshot, sonder.__version__, sorted(self.erased.items()), self.target.uri]
        name = f"backfill-{digest_json(identity)}"
        inside = self.target.uri.startswith(self.release.workspace.root.uri)
        return self.release.workspace.staging(name) if inside else self.target / ".staging" / name

    def is_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a published day came of the same release, log and code."""
        ours = {"release": self.release.id, "snapshot": self.snapshot, "code_version": sonder.__version__}
        return all(manifest.get(name) == value for name, value in ours.items())


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
    with telemetry.stage("backfill", release=release.id, days=len(moments_us)) as counts, _only_one(job):
        pending_us = [moment for moment in moments_us if not _is_there(job, moment, again)]
        progress = _Progress(job, len(pending_us), trained_until_us(workspace, release))
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


def day_folder(target: Folder, as_of_us: int) -> Folder:
    """Folder of the day that begins at a midnight."""
    return target / f"as_of={iso_time(as_of_us)[:10]}"


def _write_days(job: Backfill, moments_us: Sequence[int], progress: _Progress, num_workers: int | None) -> None:
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


@dataclass
class _Progress:
    """Publishes each day when its last bucket is done, and tells how far it is."""

    job: Backfill
    num_days: int
    trained_until_us: dict[str, int]
    num_buckets: int = 0
    done: int = 0  # days
    profiles: int = 0
    waiting: dict[int, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    told: float = field(default_factory=time.perf_counter)

    def add(self, summary: Mapping[str, Any]) -> None:
        day = self.waiting[summary["as_of_us"]]
        day.append(summary)
        self.profiles += summary["profiles"]
        if len(day) == self.num_buckets:
            self._publish(summary["as_of_us"], self.waiting.pop(summary["as_of_us"]))
            self.done += 1
            logger.info("backfill: %s written, %s profiles, %d of %d days", iso_time(summary["as_of_us"])[:10],
                        f"{sum(part['profiles'] for part in day):,}", self.done, self.num_days)  # fmt: skip
            self.told = time.perf_counter()
        elif time.perf_counter() - self.told > SECONDS_BETWEEN_LINES:
            waiting = sum(map(len, self.waiting.values()))
            logger.info("backfill: %d of %d days, %d buckets of others", self.done, self.num_days, waiting)
            self.told = time.perf_counter()

    def _publish(self, as_of_us: int, parts: Sequence[Mapping[str, Any]]) -> None:
        staged, final = day_folder(self.job.staging, as_of_us), day_folder(self.job.target, as_of_us)
        counts = {name: sum(part[name] for part in parts) for name in ("profiles", "cold")}
        entries = read_manifest(self.job.release.workspace.history(self.job.snapshot))["buckets"]
        counts["absent"] = sum(int(entry["users"]) for entry in entries) - counts["profiles"]
        if final.is_published():  # asked to be made anew; the old day was there until the new one was
            (final / MANIFEST).remove()
        publish(staged, final, describe_day(self.job, staged, as_of_us, counts, self.trained_until_us))


def describe_day(
    job: Backfill, staged: Folder, as_of_us: int, counts: Mapping[str, int], trained_until: Mapping[str, int]
) -> dict[str, Any]:
    """The manifest of a day. Nothing in it depends on when or where it was made."""
    files = {name: asdict(entry) for name, entry in describe_files(staged).items()}
    return {
        "as_of": iso_time(as_of_us),
        "as_of_us": as_of_us,
        "release": job.release.id,
        "snapshot": job.snapshot,
        "code_version": sonder.__version__,
        "counts": dict(counts),
        "models_trained_until": iso_time(max(trained_until.values())),
        "models_trained_until_by_part": {name: iso_time(until_us) for name, until_us in trained_until.items()},
        "knows_the_future": max(trained_until.values()) > as_of_us,
        "attributes_as_of": "snapshot",
        "files": files,
        "digest": digest_json(files),
    }


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


@contextmanager
def _only_one(job: Backfill) -> Iterator[None]:
    """Two backfills of the same days would write the same files; the second is told so."""
    if not job.staging.is_local:  # object stores have no locks; `sonder submit` gives the same work one job id
        yield
        return
    file = Path(f"{job.staging.path}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(file))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"Another process backfills by {job.release.id} into {job.target}",
            expected="one backfill of a release into a folder at a time",
            do="Wait for it, or end it; then the same command goes on where it stopped.",
        ) from error
    try:
        yield
    finally:
        lock.release()
