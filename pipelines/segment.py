"""Vectors, interests, affinities and lifecycle of every user at a point in time: one Ray Data task per history bucket.

Writes target/{vectors,interests,affinities,segments}/bucket=NNN/part-0.parquet, and what the data decided beside them:
segments/thresholds.json, interests/config.json and affinities/config.json (with the item groups where there is no
catalogue), which the online path reads so that both decide alike.
A bucket whose four files exist is not done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.embed import vector_table
from sonder.core import telemetry
from sonder.core.config import InterestsConfig, SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, save_popularity
from sonder.encoder.inference import embed_users
from sonder.encoder.trend import decayed_counts
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.snapshot import buckets_of, read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity_artefact import item_paths, load_affinity, save_affinity
from sonder.interests.affinity_fit import fit_affinity
from sonder.interests.derive import derive_config
from sonder.interests.naming import Naming
from sonder.profiles.segmenting import Segmenter
from sonder.segments.thresholds import LifecycleThresholds, derive_thresholds

THRESHOLDS_FILE = "thresholds.json"
INTERESTS_FILE = "config.json"
SAMPLE_USERS = 50_000  # what the data decides, it decides on these many users at least: whole buckets, from the first
PARTS = ("vectors", "interests", "affinities", "segments")


def write_popularity(
    history: Folder, vocabulary: Vocabulary, encoder: Encoder, target: Folder, *, as_of_us: int
) -> None:
    """How popular each item is at `as_of`, bucket by bucket: the encoder itself knows it when its training ended."""
    counts_I = np.zeros(vocabulary.num_items)
    for bucket in buckets_of(history):
        timelines = read_timelines(history, vocabulary, [bucket])
        counts_I += popularity_of(timelines, vocabulary, encoder, as_of_us=as_of_us)
    save_popularity(counts_I, target)


def popularity_of(
    timelines: Timelines, vocabulary: Vocabulary, encoder: Encoder, *, as_of_us: int
) -> NDArray[np.float64]:
    """Decayed counts [I] of what these users had wanted by then."""
    wanted = timelines.keep((vocabulary.weight_of(timelines.actions) > 0) & (timelines.items >= 0))
    return decayed_counts(
        wanted.items, wanted.times_us, vocabulary.num_items, as_of_us=as_of_us, half_life_us=encoder.half_life_us
    )


def segment_users(
    config: SonderConfig,
    snapshot: str,
    encoder_folder: Folder,
    target: Folder,
    *,
    as_of_us: int,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Segment everybody from the events before `as_of` -> how many users, cold, interests, affinities, by lifecycle."""
    history = Workspace.at(config.workspace).history(snapshot)
    items = Workspace.at(config.workspace).items(snapshot)
    vocabulary = Vocabulary.load(items)
    with telemetry.stage("segment", snapshot=snapshot) as counts:
        sample, vectors_ID = read_sample(history, vocabulary), load_encoder(encoder_folder).item_vectors
        thresholds = derive_thresholds(sample, end_us=as_of_us, config=config.segments)
        interests = derive_config(config.interests, vectors_ID, vocabulary, as_of_us=as_of_us)
        learn_affinity(sample, vocabulary, vectors_ID, target, as_of_us=as_of_us, days=config.evaluation.test_days)
        (target / "segments" / THRESHOLDS_FILE).write_json(thresholds.to_dict())
        (target / "interests" / INTERESTS_FILE).write_json(interests.model_dump(mode="json"))
        arguments = {
            "history": history.uri,
            "items": items.uri,
            "encoder": encoder_folder.uri,
            "target": target.uri,
            "as_of_us": as_of_us,
            "thresholds": thresholds.to_dict(),
            "interests": interests.model_dump(mode="json"),
        }
        summaries = over_buckets(SegmentBucket, arguments, bucket_numbers(history), num_workers=num_workers)
        result = _total(summaries)
        counts |= {name: result[name] for name in ("users", "cold", "interests", "affinities")}
    return result | {"thresholds": thresholds.to_dict(), "interests_config": interests.model_dump(mode="json")}


def learn_affinity(
    sample: Timelines,
    vocabulary: Vocabulary,
    vectors_ID: NDArray[np.float32],
    target: Folder,
    *,
    as_of_us: int,
    days: float,
) -> None:
    """Write what decides affinities: the tree, and the numbers that fitted the last `days` before `as_of`."""
    items = item_paths(vocabulary, vectors_ID)
    model = fit_affinity(sample, vocabulary, items.taxonomy, as_of_us=as_of_us, horizon_days=days)
    save_affinity(model, items, target / "affinities")


class SegmentBucket:
    """The bucket task: all that was trained or derived is loaded once, then used for every bucket."""

    def __init__(
        self,
        history: str,
        items: str,
        encoder: str,
        target: str,
        as_of_us: int,
        thresholds: Mapping[str, Any],
        interests: Mapping[str, Any],
    ) -> None:
        self.history, self.target, self.as_of_us = Folder.at(history), Folder.at(target), as_of_us
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.encoder = load_encoder(Folder.at(encoder))
        taxonomy, affinity = load_affinity(self.target / "affinities", self.vocabulary)
        self.segmenter = Segmenter(
            vectors_ID=self.encoder.item_vectors,
            vocabulary=self.vocabulary,
            interests=InterestsConfig.model_validate(interests),
            naming=Naming.of(self.vocabulary, as_of_us=as_of_us),
            taxonomy=taxonomy,
            affinity=affinity,
            thresholds=LifecycleThresholds.from_dict(dict(thresholds)),
        )

    def __call__(self, bucket: int) -> dict[str, Any]:
        files = {part: part_file(self.target / part, bucket) for part in PARTS}
        if not all(file.exists() for file in files.values()):
            timelines = read_timelines(self.history, self.vocabulary, [bucket])
            vectors_UD = embed_users(self.encoder, timelines, as_of_us=self.as_of_us)
            files["vectors"].write_table(vector_table(timelines.user_ids, vectors_UD))
            for part, table in self.segmenter.segment(timelines, as_of_us=self.as_of_us)._asdict().items():
                files[part].write_table(table)
        states = files["segments"].read_table(["lifecycle"]).column("lifecycle").to_pylist()
        return {
            "users": len(states),
            **{part: files[part].read_table(["rank"]).num_rows for part in ("interests", "affinities")},
            "lifecycle": Counter(states),
        }


def read_sample(history: Folder, vocabulary: Vocabulary) -> Timelines:
    """At least SAMPLE_USERS users, in whole buckets."""
    return read_timelines(history, vocabulary, buckets_reaching(history, SAMPLE_USERS))


def _total(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    lifecycle = sum((Counter(summary["lifecycle"]) for summary in summaries), Counter())
    return {
        "users": sum(summary["users"] for summary in summaries),
        "cold": lifecycle["cold"],
        **{part: sum(summary[part] for summary in summaries) for part in ("interests", "affinities")},
        "lifecycle": dict(sorted(lifecycle.items())),
    }
