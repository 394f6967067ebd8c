"""One row per user with everything that the stages said: one Ray Data task per history bucket.

Writes target/profiles/bucket=NNN/part-0.parquet (profiles.record.PROFILE_SCHEMA). A bucket whose file exists is not
done again.
"""

from __future__ import annotations

from typing import Any

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from sonder.core import telemetry
from sonder.core.storage import Folder
from sonder.history.snapshot import read_timelines, read_users
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.scoring.heads import load_heads
from sonder.segments.clusters import Clusters


def write_profiles(
    history: Folder, items: Folder, target: Folder, *, as_of_us: int, num_workers: int | None = None
) -> dict[str, Any]:
    """Join what lies below `target` -> row counts of the release: profiles, cold, interests, scores."""
    arguments = {"history": history.uri, "items": items.uri, "target": target.uri, "as_of_us": as_of_us}
    with telemetry.stage("assemble profiles", snapshot=history.name) as counts:
        summaries = over_buckets(ProfileBucket, arguments, bucket_numbers(history), num_workers=num_workers)
        totals = {name: sum(summary[name] for summary in summaries) for name in ("profiles", "cold")}
        counts.update(totals)
    return dict(totals)


class ProfileBucket:
    """The bucket task."""

    def __init__(self, history: str, items: str, target: str, as_of_us: int) -> None:
        self.history, self.target, self.as_of_us = Folder.at(history), Folder.at(target), as_of_us
        self.vocabulary = Vocabulary.load(Folder.at(items))
        heads = load_heads(self.target / "scores")
        self.clusters = Clusters.load(self.target / "clusters")
        self.base_rates = {name: mean for head in heads for name, mean in head.fallbacks.items()}

    def __call__(self, bucket: int) -> dict[str, Any]:
        file = part_file(self.target / "profiles", bucket)
        if not file.exists():
            timelines = read_timelines(self.history, self.vocabulary, [bucket]).before(self.as_of_us)
            parts = {
                name: part_file(self.target / name, bucket).read_table()
                for name in ("vectors", "interests", "affinities", "segments")
            }
            scores = part_file(self.target / "scores" / "users", bucket).read_table()
            outputs = StageOutputs(**parts, scores=scores, users=read_users(self.history, bucket))
            profiles = assemble_profiles(
                timelines, outputs, base_rates=self.base_rates, as_of_us=self.as_of_us, clusters=self.clusters
            )
            file.write_table(profiles)
        is_cold = file.read_table(["is_cold"]).column("is_cold").to_pylist()
        return {"profiles": len(is_cold), "cold": sum(is_cold)}
