"""The bucket tasks of an experiment's user frame: whose cuts are which, who is eligible, and the numbers.

A task of `UserNumbersBucket` takes the users of one history bucket. The profiles of a release that was made from
another snapshot may lie in other buckets; then every task looks through the two columns of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.audience import Asked
from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.experiment_log import EPOCH, bucket_events, dealt, frame_of
from sonder.core.errors import NotFound
from sonder.core.storage import Folder
from sonder.core.telemetry import logger
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.experiments.lifecycle_cut import lifecycle_at_exposure
from sonder.experiments.metrics import user_numbers
from sonder.experiments.specification import Experiment
from sonder.history.snapshot import buckets_of
from sonder.profiles.audience_counts import evaluate
from sonder.profiles.audience_reading import ReleaseUsers
from sonder.profiles.record import profile_file
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry
from sonder.segments.lifecycle import LifecycleThresholds
from sonder.segments.rules.rule import Rule, fields_of_rules

NO_CUT = "none"


@dataclass(frozen=True)
class Cuts:
    """The release that users are cut by; all of it empty where there is none."""

    release: str | None = None
    as_of_us: int = 0  # of its profiles
    profiles: str | None = None
    num_buckets: int = 0  # of its profiles
    thresholds: dict[str, Any] | None = None  # of its lifecycle

    @classmethod
    def of(cls, workspace: Workspace, experiment: Experiment) -> Cuts:
        """The release of the control, the served one if it names none."""
        current = Registry(workspace).current()
        release_id = experiment.control.release or (None if current is None else current.release)
        if release_id is None:
            return cls()
        try:
            release = Release.open(workspace, release_id)
            num_buckets = len(buckets_of(workspace.history(release.manifest.snapshot)))
        except NotFound as error:
            logger.warning("measure: nobody has a cut, for the control's release is gone: %s", error.found)
            return cls()
        thresholds = release.thresholds.read_json() if release.thresholds.exists() else None
        return cls(release.id, release.manifest.as_of_us, release.profiles.uri, num_buckets, thresholds)


class UserNumbersBucket:
    """The exposed users of one bucket, with their cuts and numbers, in staged/users.

    They lie in staged/exposed; or, with `period_us` [start, end), they are whoever had an event in it, exposed by the
    first one. `eligible_buckets`: of staged/eligible, which names the only users who may be exposed so; None: all.
    """

    def __init__(
        self,
        history: str,
        staged: str,
        experiment: dict[str, Any],
        until_us: int,
        cuts: dict[str, Any],
        num_buckets: int,
        period_us: tuple[int, int] | None = None,
        eligible_buckets: int | None = None,
    ) -> None:
        self.history, self.staged = Folder.at(history), Folder.at(staged)
        self.experiment = Experiment.model_validate(experiment)
        self.until = EPOCH + timedelta(microseconds=until_us)
        self.cuts, self.num_buckets = Cuts(**cuts), num_buckets
        self.period, self.eligible_buckets = period_us, eligible_buckets

    def __call__(self, bucket: int) -> dict[str, int]:
        file = part_file(self.staged / "users", bucket)
        if not file.exists():
            exposed, online = dealt(self.staged / "exposed", bucket), dealt(self.staged / "online", bucket)
            users = None if exposed is None else exposed[Col.USER_ID]
            events = bucket_events(self.history, bucket, online, users).filter(pl.col(Col.TIMESTAMP) < self.until)
            if exposed is None:
                exposed = self._active(events, bucket)
            exposed = self._with_cuts(exposed, events, bucket)
            file.write_table(user_numbers(self.experiment, exposed, events, until=self.until).to_arrow())
        return {"bucket": bucket}

    def _active(self, events: pl.DataFrame, bucket: int) -> pl.DataFrame:
        """Everybody eligible with an event in the period, as if exposed to the control by the first."""
        assert self.period is not None, "exposed users are dealt to buckets that have some"
        start, end = (EPOCH + timedelta(microseconds=moment) for moment in self.period)
        exposed = (
            events.lazy()
            .filter(pl.col(Col.TIMESTAMP).is_between(start, end, closed="left"))
            .group_by(Col.USER_ID)
            .agg(pl.col(Col.TIMESTAMP).min().alias("exposed_at"))
            .sort(Col.USER_ID)
            .select(Col.USER_ID, pl.lit(self.experiment.control.name).alias("arm"), "exposed_at")
            .collect()
        )
        if self.eligible_buckets is None:
            return exposed
        eligible = self._beside(bucket, self.eligible_buckets, lambda other: dealt(self.staged / "eligible", other))
        return exposed.join(eligible, on=Col.USER_ID, how="semi", maintain_order="left")

    def _with_cuts(self, exposed: pl.DataFrame, events: pl.DataFrame, bucket: int) -> pl.DataFrame:
        lifecycle = pl.Series("lifecycle", [NO_CUT], dtype=pl.String).new_from_index(0, exposed.height)
        if self.cuts.thresholds is not None:
            thresholds = LifecycleThresholds.from_dict(self.cuts.thresholds)
            lifecycle = lifecycle_at_exposure(exposed, events, thresholds)
        known = self._beside(bucket, self.cuts.num_buckets, self._segments)
        joined = exposed.with_columns(lifecycle).join(known, on=Col.USER_ID, how="left", maintain_order="left")
        return joined.with_columns(pl.col("segment").fill_null(NO_CUT))

    def _segments(self, bucket: int) -> pl.DataFrame | None:
        """user_id and segment of a bucket of the release's profiles."""
        file = profile_file(Folder.at(str(self.cuts.profiles)), bucket)
        if not file.exists():
            return None
        with file.open() as opened:
            table = pq.ParquetFile(opened).read([Col.USER_ID, "segments.cluster"])
        if "segments" not in table.column_names:  # of a release made without clusters
            return None
        return frame_of(table).select(Col.USER_ID, segment=pl.col("segments").struct.field("cluster"))

    def _beside(self, bucket: int, num_buckets: int, read: Callable[[int], pl.DataFrame | None]) -> pl.DataFrame:
        """What lies in another set of buckets of the users of this one, perhaps with others."""
        buckets = [bucket] if num_buckets == self.num_buckets else range(num_buckets)
        parts = [part for other in buckets if (part := read(other)) is not None]
        nobody = pl.DataFrame(schema={Col.USER_ID: pl.String, "segment": pl.String})
        return pl.concat(parts) if parts else nobody


class EligibleBucket:
    """The users of one bucket of a release for whom a rule holds, in staged/eligible."""

    def __init__(self, profiles: str, history: str, actions: list[str], rule: str, staged: str) -> None:
        self.users = ReleaseUsers(Folder.at(profiles), Folder.at(history), tuple(actions))
        self.rule, self.staged = Rule.parse(rule), Folder.at(staged)

    def __call__(self, bucket: int) -> dict[str, int]:
        profiles, timelines = self.users.read(bucket, fields_of_rules([self.rule]))
        held = evaluate([self.rule], profiles, timelines, self.users.actions).to_series().fill_null(False)
        eligible = profiles.select([Col.USER_ID]).filter(pa.array(held.to_numpy()))
        part_file(self.staged / "eligible", bucket).write_table(eligible)
        return {"eligible": eligible.num_rows}


def find_eligible(workspace: Workspace, rule: str, staged: Folder, num_workers: int | None) -> tuple[int, int]:
    """Evaluate an audience rule over the served release -> in how many buckets staged/eligible lies, how many users.

    InvalidRule where the rule does not fit the release.
    """
    asked = Asked.of(workspace)
    Rule.parse(rule, asked.schema)
    workers = asked.num_workers if num_workers is None else num_workers
    arguments = asked.users | {"rule": rule, "staged": staged.uri}
    found = over_buckets(EligibleBucket, arguments, asked.buckets, num_workers=workers)
    return len(asked.buckets), sum(part["eligible"] for part in found)


def task_arguments(
    history: Folder, staged: Folder, experiment: Experiment, *, until_us: int, cuts: Cuts, num_buckets: int
) -> Mapping[str, Any]:
    """Of a `UserNumbersBucket`."""
    return {
        "history": history.uri,
        "staged": staged.uri,
        "experiment": experiment.model_dump(mode="json"),
        "until_us": until_us,
        "cuts": asdict(cuts),
        "num_buckets": num_buckets,
    }
