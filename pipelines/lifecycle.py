"""Growth accounting, cohorts and the forecast of a log: one Ray Data task per history bucket, small counts summed.

The step `growth` writes target/segments/growth.json (segments.overview). A task reads the times of its users' events
and nothing else, and leaves its counts in a scratch folder, so a bucket that was counted is not counted again.
`sonder lifecycle` asks the same of any past day, with the state definitions of the served release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets
from sonder.core import telemetry
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.history.snapshot import find_user, read_bucket
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.registry import Registry
from sonder.segments.lifecycle import STATES, lifecycle_table
from sonder.segments.moments import daily_moments, states_at
from sonder.segments.overview import NO_CALENDAR, LifecycleOverview, iso_day
from sonder.segments.thresholds import LifecycleThresholds

GROWTH_FILE, THRESHOLDS_FILE = "growth.json", "thresholds.json"
EVENTS_IN_PROCESS = 20_000_000  # a question about fewer events is answered before a Ray would have started


class GrowthBucket:
    """The bucket task: the counts of one bucket's users (`LifecycleOverview.counts`)."""

    def __init__(
        self, history: str, first_us: int, as_of_us: int, thresholds: Mapping[str, Any], scratch: str | None
    ) -> None:
        self.history, self.scratch = Folder.at(history), None if scratch is None else Folder.at(scratch)
        self.empty = LifecycleOverview.empty(first_us, as_of_us, LifecycleThresholds.from_dict(dict(thresholds)))

    def __call__(self, bucket: int) -> dict[str, Any]:
        if self.scratch is None:
            return self._count(bucket)
        file = self.scratch / f"bucket={bucket:03d}.json"
        if not file.exists():
            file.write_json(self._count(bucket))
        counts: dict[str, Any] = file.read_json()
        return counts

    def _count(self, bucket: int) -> dict[str, Any]:
        return self.empty.count(*event_times(read_bucket(self.history, bucket, [Col.TIMESTAMP]))).counts()


def event_times(history: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`offsets` [U + 1] and `times_us` [N] of rows of a history snapshot."""
    lists = history.column(Col.TIMESTAMP).combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return offsets, lists.flatten().cast(pa.int64()).to_numpy()


def count_growth(
    history: Folder,
    *,
    as_of_us: int,
    thresholds: LifecycleThresholds,
    scratch: Folder | None = None,
    num_workers: int | None = None,
) -> LifecycleOverview:
    """The overview of all users of a snapshot from their events before `as_of`."""
    first_us = int(read_manifest(history)["first_event_us"])
    arguments = {
        "history": history.uri,
        "first_us": first_us,
        "as_of_us": as_of_us,
        "thresholds": thresholds.to_dict(),
        "scratch": None if scratch is None else scratch.uri,
    }
    parts = over_buckets(GrowthBucket, arguments, bucket_numbers(history), num_workers=num_workers)
    empty = LifecycleOverview.empty(first_us, as_of_us, thresholds)
    return reduce(LifecycleOverview.__add__, map(empty.with_counts, parts), empty)


def write_growth(
    history: Folder, target: Folder, scratch: Folder, *, as_of_us: int, num_workers: int | None = None
) -> dict[str, Any]:
    """Write target/segments/growth.json by the thresholds beside it -> the metrics; a reason for an ordinal log."""
    with telemetry.stage("growth") as counts:
        if read_manifest(history)["is_ordinal"]:
            (target / "segments" / GROWTH_FILE).write_json({"reason": NO_CALENDAR})
            return {"reason": NO_CALENDAR, "metrics": {}}
        overview = count_growth(
            history,
            as_of_us=as_of_us,
            thresholds=thresholds_of(target),
            scratch=scratch,
            num_workers=num_workers,
        )
        (target / "segments" / GROWTH_FILE).write_json(overview.to_dict())
        counts |= {"periods": len(overview.periods), "cohorts": len(overview.cohorts.starts_us)}
        return {"metrics": overview.metrics(), "missing": overview.missing}


def read_growth(release: Folder) -> LifecycleOverview | str:
    """What a release says of growth, or why it says nothing."""
    file = release / "segments" / GROWTH_FILE
    if not file.exists():
        return "this release was built without growth accounting"
    content = file.read_json()
    return str(content["reason"]) if "reason" in content else LifecycleOverview.from_dict(content)


def thresholds_of(release: Folder) -> LifecycleThresholds:
    """The state definitions of a release."""
    return LifecycleThresholds.from_dict((release / "segments" / THRESHOLDS_FILE).read_json())


@dataclass(frozen=True)
class Asked:
    """A question about a day: the log and the definitions of the served release."""

    release_id: str
    history: Folder
    items: Folder
    thresholds: LifecycleThresholds
    first_us: int
    as_of_us: int
    num_events: int


def ask(workspace: Workspace, as_of_us: int | None = None) -> Asked:
    """Settle the moment, by default the end of the served release's log; NotFound if nothing is served."""
    current = Registry(workspace).current()
    if current is None:
        raise NotFound(f"No release is served in {workspace.root}", do="Make one with `sonder build`")
    snapshot = Registry(workspace).show(current.release).snapshot
    manifest = read_manifest(workspace.history(snapshot))
    if manifest["is_ordinal"]:
        raise InvalidRequest("The times of this log are only an order", do="Lifecycle needs a log with dates")
    first_us, end_us = int(manifest["first_event_us"]), int(manifest["last_event_us"]) + 1
    if as_of_us is not None and not first_us < as_of_us <= _last_midnight(end_us):
        raise InvalidRequest(
            f"The log tells nothing of --as-of {iso_day(as_of_us)}",
            expected=f"a day after its first event on {iso_day(first_us)}, the day after its last one at most",
            do=f"Leave --as-of out for the end of the log, {iso_day(end_us)}",
        )
    return Asked(
        release_id=current.release,
        history=workspace.history(snapshot),
        items=workspace.items(snapshot),
        thresholds=thresholds_of(workspace.release(current.release)),
        first_us=first_us,
        as_of_us=end_us if as_of_us is None else as_of_us,
        num_events=sum(int(entry["events"]) for entry in manifest["buckets"]),
    )


def answer(asked: Asked) -> LifecycleOverview:
    """The overview of the log at the moment asked."""
    num_workers = 0 if asked.num_events <= EVENTS_IN_PROCESS else None
    return count_growth(asked.history, as_of_us=asked.as_of_us, thresholds=asked.thresholds, num_workers=num_workers)


@dataclass(frozen=True)
class Stay:
    """Days that a user spent in one state, `start_us` the first moment asked and `end_us` the last."""

    state: str
    start_us: int
    end_us: int


@dataclass(frozen=True)
class UserLifecycle:
    """The state of one user at a moment, what it is decided from, and the states before it, oldest first."""

    user_id: str
    evidence: dict[str, Any]  # a row of segments.lifecycle.LIFECYCLE_SCHEMA
    stays: tuple[Stay, ...]


def answer_for_user(asked: Asked, user_id: str) -> UserLifecycle:
    """One user at the moment asked, and its state on every day before; NotFound for a user the log does not know."""
    row = find_user(asked.history, user_id)
    timelines = Timelines.from_history(row, Vocabulary.load(asked.items))
    table = lifecycle_table(timelines, as_of_us=asked.as_of_us, thresholds=asked.thresholds)
    moments = daily_moments(int(timelines.times_us[0]), asked.as_of_us)
    states = states_at(timelines.offsets, timelines.times_us, moments, asked.thresholds)[0]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(states)) + 1))
    ends = np.append(starts[1:], len(states)) - 1
    stays = tuple(
        Stay(STATES[states[start]], int(moments[start]), int(moments[end]))
        for start, end in zip(starts, ends, strict=True)
    )
    return UserLifecycle(user_id, table.to_pylist()[0], stays)


def _last_midnight(end_us: int) -> int:
    """The midnight that ends the last day of a log."""
    return -(-end_us // MICROSECONDS_PER_DAY) * MICROSECONDS_PER_DAY
