"""What an experiment is measured from: its exposures, the newest history snapshot, and what arrived online since.

An online event is left out where the snapshot has it already: the same user with an event of the same id (event_key),
or, for a log that lost the ids on its way, of the same item, action and time.
Erased users (events.erasure) are in nothing that is read here, whatever they do after their request: what their arm
did to them before is gone.
Limits: a log of online events on a disk or a server is read one event at a time, as its interface gives it. Two
online events of one user, item, action and time are both left out where the snapshot has one of them. `prepare` sets
bots aside (max_events_per_day), their online events count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.bucket_tasks import part_file
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, NotFound
from sonder.core.ids import EVENT_KEY, bucket_of, stable_hash
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.events.erasure import Erased, is_erased, read_erasures
from sonder.experiments import exposure_files
from sonder.experiments.metrics import TIME, check_names
from sonder.experiments.specification import Experiment
from sonder.history.snapshot import read_bucket
from sonder.history.vocabulary import VOCABULARY_FILE
from sonder.profiles.log_shipping import ACCEPTED_AT, SCHEMA, file_name, read_log, segments
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_log import RedisLog
from sonder.releases.registry import Registry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READERS = 8  # of an object store, where a file costs a request
_TRIES = 5
_EVENT = [Col.USER_ID, Col.ACTION, Col.TIMESTAMP, Col.SURFACE, Col.VALUE]
_SAME_ID, _SAME_ROW = [Col.USER_ID, Col.EVENT_KEY], [Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.TIMESTAMP]


@dataclass(frozen=True)
class ExperimentLog:
    """All events that are known of everybody who was not erased."""

    workspace: Workspace
    snapshot: str
    facts: dict[str, Any]  # the snapshot's manifest
    online: pl.DataFrame  # _EVENT, item_id, event_key and accepted_at
    erased: Erased

    @classmethod
    def open(cls, config: SonderConfig) -> ExperimentLog:
        """NotFound before the first `prepare`; DataError where times are only an order."""
        workspace = Workspace.at(config.workspace, config.serving.local_dir)
        snapshot = newest_snapshot(workspace)
        facts, erased = read_manifest(workspace.history(snapshot)), read_erasures(workspace.erasures)
        if facts["is_ordinal"]:
            raise DataError("The log has order but no time", expected="timestamps: days mean nothing here")
        return cls(workspace, snapshot, facts, without(erased, read_online(config, workspace)), erased)

    @property
    def history(self) -> Folder:
        return self.workspace.history(self.snapshot)

    @property
    def num_buckets(self) -> int:
        return len(self.facts["buckets"])

    @property
    def num_events(self) -> int:
        return sum(int(entry["events"]) for entry in self.facts["buckets"]) + self.online.height

    @property
    def first(self) -> datetime:
        return EPOCH + timedelta(microseconds=int(self.facts["first_event_us"]))

    @property
    def end(self) -> datetime:
        """Just after the newest event; one that was dated ahead of its arrival counts as of its arrival."""
        arrived = pl.when(pl.col(ACCEPTED_AT) > EPOCH).then(ACCEPTED_AT)  # 0: not known
        happened = pl.min_horizontal(Col.TIMESTAMP, arrived)
        newest: datetime | None = self.online.select(happened.max()).item()
        known = EPOCH + timedelta(microseconds=int(self.facts["last_event_us"]))
        return max(known, newest or known) + timedelta(microseconds=1)

    def check(self, experiment: Experiment) -> None:
        """ConfigurationError where a metric asks for what no event has."""
        names = (self.workspace.items(self.snapshot) / VOCABULARY_FILE).read_json()
        seen = {key: self.online[key].drop_nulls().unique().to_list() for key in (Col.ACTION, Col.SURFACE)}
        check_names(
            experiment,
            actions=[*names["actions"], *seen[Col.ACTION]],
            surfaces=[*names["surfaces"], *seen[Col.SURFACE]],
        )

    def of_online(self, users: pl.Series) -> pl.DataFrame:
        """Online events of these users."""
        return self.online.filter(pl.col(Col.USER_ID).is_in(users.implode()))


def newest_snapshot(workspace: Workspace) -> str:
    """The published history whose last event is the latest; of equals that of the newest release."""
    found = [folder for folder in (workspace.root / "history").children() if folder.is_published()]
    if not found:
        raise NotFound(f"No history in {workspace.root}", do="`sonder prepare` or `sonder build` makes one.")
    made_by = {release.snapshot: place for place, release in enumerate(Registry(workspace).list())}
    ends = {folder.name: int(read_manifest(folder)["last_event_us"]) for folder in found}
    return max(ends, key=lambda name: (ends[name], made_by.get(name, -1), name))


def read_exposures(workspace: Workspace, name: str) -> pl.DataFrame:
    """Every exposure of an experiment (EXPOSURE_SCHEMA); NotFound where there is none."""
    rows = exposure_files.read_exposures(workspace.experiments, name)
    if not rows.is_empty():
        return rows
    raise NotFound(
        f"No exposure of experiment {name!r} in {workspace.experiments / name / 'exposures'}",
        expected="what gateways write when they answer a user of the experiment",
        do="Start it, and wait until its first users have been answered; `sonder experiment status` tells.",
    )


def read_online(config: SonderConfig, workspace: Workspace) -> pl.DataFrame:
    """Every event that arrived online and is kept, once: user, item, action, time, surface, value, key, arrival."""
    events = frame_of(pa.concat_tables([SCHEMA.empty_table(), *_online_tables(config, workspace)]))
    events = events.unique(Col.EVENT_ID, keep="first", maintain_order=True)
    keys = pl.Series(Col.EVENT_KEY, stable_hash(events[Col.EVENT_ID], EVENT_KEY))
    return events.with_columns(keys).select(*_EVENT, Col.ITEM_ID, Col.EVENT_KEY, ACCEPTED_AT)


def _online_tables(config: SonderConfig, workspace: Workspace) -> Iterator[pa.Table]:
    if config.serving.store is not None:
        yield from read_log(RedisLog(config.serving.store))
        return
    if workspace.online_log.is_dir():
        yield from read_log(OnlineLog(workspace.online_log))
    if workspace.is_shared:
        yield from _read_all(lambda: _shipped(workspace.shipped_log), Folder.read_table)


def _shipped(log: Folder) -> list[Folder]:
    return [node / file_name(first, last) for node in log.children() for first, last in segments(node)]


def _read_all(listed: Callable[[], list[Folder]], read: Callable[[Folder], pa.Table]) -> list[pa.Table]:
    """The tables of files that others may make one of several of meanwhile: then they are listed again."""
    for turn in range(_TRIES):
        try:
            with ThreadPoolExecutor(_READERS) as readers:
                return list(readers.map(read, listed()))
        except NotFound:
            if turn == _TRIES - 1:
                raise
    raise AssertionError("returned or raised above")


def without(erased: Erased, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows but those of erased users."""
    if not erased or frame.is_empty():
        return frame
    return frame.filter(~pl.Series(is_erased(frame[Col.USER_ID].to_arrow(), erased)))


def deal(frame: pl.DataFrame, folder: Folder, num_buckets: int) -> set[int]:
    """Write rows of users into folder/bucket=NNN/part-0.parquet -> the buckets that have some."""
    if frame.is_empty():
        return set()
    placed = frame.with_columns(bucket=pl.Series(bucket_of(frame[Col.USER_ID], num_buckets)))
    parts = placed.partition_by("bucket", as_dict=True, include_key=False)
    for (bucket,), part in parts.items():
        part_file(folder, int(bucket)).write_table(part.to_arrow())
    return {int(bucket) for (bucket,) in parts}


def dealt(folder: Folder, bucket: int) -> pl.DataFrame | None:
    """What `deal` wrote of a bucket."""
    file = part_file(folder, bucket)
    return frame_of(file.read_table()) if file.exists() else None


def bucket_events(history: Folder, bucket: int, online: pl.DataFrame | None, users: pl.Series | None) -> pl.DataFrame:
    """Events of these users (None: everybody) of a bucket: user_id, action, timestamp, surface, value."""
    also = [] if online is None else [Col.ITEM_ID, Col.EVENT_KEY]
    lists = frame_of(read_bucket(history, bucket, [*_EVENT, *also]))
    if users is not None:
        lists = lists.filter(pl.col(Col.USER_ID).is_in(users.implode()))
    of_events = [name for name in lists.columns if name != Col.USER_ID]
    held = lists.explode(of_events).with_columns(pl.col(Col.TIMESTAMP).cast(TIME))
    if online is None:
        return held
    new = online.with_columns(pl.col(Col.TIMESTAMP).cast(TIME))
    for same in (_SAME_ID, _SAME_ROW):
        new = new.join(held.select(same), on=same, how="anti")
    return pl.concat([held.select(_EVENT), new.select(_EVENT)])


def frame_of(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
