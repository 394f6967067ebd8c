"""One lookalike for the report: people like those who did the first score's action in the last days before as_of.

The list is an illustration that every build can make by itself: MAX_SEEDS users at most, drawn by a digest of their
ids, grown and measured as `sonder lookalike` does it (`pipelines.lookalike.rank_users`). Who is a seed depends on
events strictly before as_of. Bounded: of a release with more than MAX_USERS users whole buckets are taken, from the
first up to that many.
Limits: what makes somebody a seed also stands in the profile (recency, activity), so these seeds are easier to find
than those of a list that was picked by something that Sonder does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.lookalike import Asked, rank_users
from sonder.core.config import SonderConfig
from sonder.core.ids import unit_interval
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder, read_manifest
from sonder.evaluation.reach_chart import ReachFacts, ReachRow
from sonder.events.contract import Col
from sonder.history.bucket_sample import buckets_within
from sonder.history.snapshot import read_bucket
from sonder.segments.lookalike import MIN_SEEDS

MAX_SEEDS = 200
MAX_USERS = 200_000
SEED_KEY = "sonder/report/seeds/1/"


def illustrate_reach(
    config: SonderConfig,
    history: Folder,
    target: Folder,
    staged: Folder,
    *,
    as_of: datetime,
    is_ordinal: bool,
    num_workers: int | None = None,
) -> ReachFacts | str:
    """The reach of the list, or why there is none. `target`: a release that may be staged; `staged`: scratch."""
    task = next((task for task in config.scores if task.action is not None), None)
    if is_ordinal:
        return "The log has an order and no dates, so nobody is known to have done something lately."
    if task is None:
        return "No score names an `action`, so there is no list of people who did it."
    users = {int(entry["bucket"]): int(entry["users"]) for entry in read_manifest(history)["buckets"]}
    buckets = buckets_within(history, max_users=MAX_USERS)
    workers = 0 if len(buckets) == 1 else num_workers  # one bucket is not worth another process
    start = as_of - timedelta(days=task.within_days)
    arguments = {"history": history.uri, "profiles": (target / "profiles").uri}
    window = {"action": task.action, "start": start, "end": as_of}
    found = over_buckets(FindActors, arguments | window, buckets, num_workers=workers)
    num_actors = sum(summary["actors"] for summary in found)
    if reason := _refusal(task, num_actors, sum(summary["known"] for summary in found)):
        return reason
    seeds = draw_seeds([seed for summary in found for seed in summary["drawn"]])
    asked = Asked(seeds, pl.Series("user_id", [], dtype=pl.String), size=0, seed=config.seed)
    num_looked_at = sum(users[bucket] for bucket in buckets)
    profiles = target / "profiles"
    ranking = rank_users(profiles, staged, asked, buckets, num_users=num_looked_at, num_workers=workers)
    staged.remove()
    assert task.action is not None
    return ReachFacts(
        action=task.action,
        within_days=task.within_days,
        as_of=f"{as_of:%Y-%m-%d}",
        num_actors=num_actors,
        num_seeds=ranking.seeds["used"],
        num_ranked=ranking.num_ranked,
        num_users=sum(users.values()),
        num_looked_at=num_looked_at,
        auc=ranking.held_out.auc,
        auc_error=ranking.held_out.auc_error,
        protocol=ranking.held_out.protocol,
        rows=[ReachRow(**row) for row in ranking.reach],
    )


class FindActors:
    """The bucket task: of the users with a vector, who did the action in [start, end), and a draw of them."""

    def __init__(self, history: str, profiles: str, action: str, start: datetime, end: datetime) -> None:
        self.history, self.profiles = Folder.at(history), Folder.at(profiles)
        self.action, self.start, self.end = action, start, end

    def __call__(self, bucket: int) -> dict[str, Any]:
        profiles = _frame(part_file(self.profiles, bucket).read_table(["user_id", "is_cold"]))
        known = profiles.filter(~pl.col("is_cold")).get_column("user_id")
        columns = [Col.ACTION, Col.TIMESTAMP]
        events = _frame(read_bucket(self.history, bucket, [Col.USER_ID, *columns])).explode(columns)
        is_recent = pl.col(Col.TIMESTAMP).is_between(self.start, self.end, closed="left")
        acted = events.filter((pl.col(Col.ACTION) == self.action) & is_recent).get_column(Col.USER_ID)
        actors = known.filter(known.is_in(acted.unique().implode()))
        drawn = pl.DataFrame({"draw": unit_interval(actors, SEED_KEY), "user_id": actors}).sort("draw", "user_id")
        return {"known": len(known), "actors": len(actors), "drawn": drawn.head(MAX_SEEDS).rows()}


def draw_seeds(drawn: Sequence[tuple[float, str]]) -> pl.Series:
    """The MAX_SEEDS users with the lowest draw over all buckets: the same users in every build."""
    return pl.Series("user_id", [user_id for _, user_id in sorted(map(tuple, drawn))[:MAX_SEEDS]], dtype=pl.String)


def _refusal(task: ScoreTask, num_actors: int, num_known: int) -> str | None:
    """Why the list is none to learn from."""
    who = f"users with a vector did `{task.action}` in the last {task.within_days} days"
    if num_actors < MIN_SEEDS:
        return f"{num_actors:,} {who}, fewer than the {MIN_SEEDS} that a list needs."
    if num_actors > num_known / 2:
        return f"{num_actors:,} of {num_known:,} {who}, more than half: people like them are simply everybody."
    return None


def _frame(table: Any) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
