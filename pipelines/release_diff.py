"""Compare two releases: what there is to know of each, and the profiles of the users that are in both.

Of many users a sample is read, the same ones in every run and in both releases: those whose keyed digest is lowest.
Files are read batch by batch and only the columns that are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from pipelines.promotion import read_consumers
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.ids import unit_interval
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.evaluation.diff_page import render_diff
from sonder.evaluation.user_comparison import UserComparison, compare_users
from sonder.releases.artefacts import Release
from sonder.releases.checking import known_metrics
from sonder.releases.differences import Differences, compare
from sonder.releases.facts import read_facts
from sonder.releases.gate import Verdict, judge

MAX_USERS = 50_000
SAMPLE_KEY = "sonder/diff/1/"
_COLUMNS = (
    *("user_id", "segments.lifecycle", "segments.cluster_id", "segments.cluster"),
    *("interests.list.element.rank", "scores.list.element.name", "scores.list.element.value", "embedding"),
)


@dataclass(frozen=True)
class ReleaseComparison:
    """Everything that is shown of two releases."""

    differences: Differences
    users: UserComparison
    share: float  # of the users, that were read
    verdict: Verdict | None  # what the gate would say; None where nobody registered

    def to_dict(self) -> dict[str, Any]:
        content = {**self.differences.to_dict(), "users": {**self.users.to_dict(), "share_read": self.share}}
        return content if self.verdict is None else {**content, "consumers": self.verdict.to_dict()}


def compare_releases(
    config: SonderConfig, was_id: str, now_id: str, *, max_users: int = MAX_USERS
) -> ReleaseComparison:
    """`now` seen from `was`; NotFound if one of them is not there."""
    workspace, consumers = Workspace.at(config.workspace), read_consumers(config)
    releases = [Release.open(workspace, release_id) for release_id in (was_id, now_id)]
    with telemetry.stage("release.diff", was=was_id, now=now_id) as counts:
        was, now = (read_facts(release) for release in releases)
        most = max(facts.metrics.get("rows.profiles", 0.0) for facts in (was, now))
        share = min(1.0, max_users / most) if most else 1.0
        users = compare_users(*(read_profiles(release, share) for release in releases))
        counts.update(users=users.users, metrics=len(now.metrics))
    verdict = None
    if consumers is not None and consumers.consumers:
        verdict = judge(consumers, now, was, lambda: known_metrics(workspace))
    return ReleaseComparison(compare(was, now), users, share, verdict)


def write_page(compared: ReleaseComparison, out: Path) -> None:
    """The comparison as one HTML file, whole or not at all."""
    page = render_diff(compared.differences, compared.users, share=compared.share, verdict=compared.verdict)
    Folder.at(str(out.resolve())).write_bytes(page.encode())


def read_profiles(release: Release, share: float) -> pl.DataFrame:
    """A sample of a release's users, with what is compared of them."""
    parts = []
    for name in release.profiles.files():
        if not name.endswith(".parquet"):
            continue
        with (release.profiles / name).open() as opened:
            file = pq.ParquetFile(opened)
            for batch in file.iter_batches(batch_size=1 << 15, columns=list(_COLUMNS)):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                parts.append(_flat(frame.filter(unit_interval(frame["user_id"], SAMPLE_KEY) < share)))
    return pl.concat(parts)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that are compared; what an older release has not is null."""
    segments = frame.schema["segments"]
    assert isinstance(segments, pl.Struct)
    known = {field.name for field in segments.fields}
    within = pl.col("segments").struct
    return frame.select(
        "user_id",
        *(
            (within.field(name) if name in known else pl.lit(None)).cast(kind).alias(name)
            for name, kind in (("lifecycle", pl.String), ("cluster_id", pl.Int64), ("cluster", pl.String))
        ),
        pl.col("interests").list.len().alias("num_interests"),
        "scores",
        "embedding",
    )
