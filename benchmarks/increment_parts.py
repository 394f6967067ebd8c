"""The work of an increment without Ray around it: CPU seconds of each part at 1 %, 10 % and 100 % new events.

    python -m benchmarks.increment_parts parent .bench/parts --users 1000 --days 90
    python -m benchmarks.increment_parts share .bench/parts 0.01     # one JSON line each; 0.1, 1

The first command makes a synthetic world, cuts its events in time, and builds the parent from the first half with an
untrained encoder, which costs in use what a trained one does. The second merges what follows and computes users twice
by carried models: keeping what has no news, and everybody anew. Everything runs in one process of one thread, so CPU
seconds compare on a machine that others use too. Left out are Ray, reading and mapping of files, evaluation, sealing:
`python -m benchmarks.increment` has them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.bucket_tasks import over_buckets
from pipelines.cluster import cluster_users
from pipelines.increment_models import carry_models
from pipelines.increment_users import IncrementBucket
from pipelines.lifecycle import write_growth
from pipelines.profiles import write_profiles
from pipelines.score import score_users, train_scores
from pipelines.segment import segment_users
from sonder.core.config import EncoderConfig, EvaluationConfig, SonderConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, save_encoder, save_popularity
from sonder.encoder.content import item_content
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import derive, summarise
from sonder.events.contract import EVENT_SCHEMA, Col
from sonder.events.quarantine import empty_quarantine
from sonder.events.synthetic import WorldConfig, write_world
from sonder.history.assemble import assemble_bucket
from sonder.history.item_table import build_vocabulary
from sonder.history.merge import merge_bucket
from sonder.history.snapshot import bucket_file, read_bucket, read_timelines, touched_file
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.registry import seal

BUCKETS, MOST_A_DAY = 4, 5_000
WEIGHTS = {"view": 1.0, "click": 1.0, "save": 1.0, "buy": 1.0, "hide": -1.0, "impression": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parent", "share"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("share", type=float, nargs="?", default=0.01)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--days", type=int, default=90)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.resolve()
    if arguments.what == "parent":
        world = WorldConfig(num_users=arguments.users, num_days=arguments.days, seed=7)
        write_world(world, Folder.at(str(folder)))
        print(json.dumps(make_parent(folder) | {"users": arguments.users, "days": arguments.days}))
    else:
        print(json.dumps(measure(folder, arguments.share)))


def configuration(folder: Path) -> SonderConfig:
    return SonderConfig.model_validate(
        {
            "workspace": str(folder / "workspace"),
            "events": {"path": "unused"},
            "evaluation": {"test_days": 10},
            "scoring": {"trials": 1, "backtest_cutoffs": 0},
            "scores": [
                {"name": "buy_7d", "action": "buy", "within_days": 7},
                {"name": "churn_7d", "churn": True, "within_days": 7},
            ],
        }
    )


def read_events(folder: Path) -> tuple[pa.Table, int]:
    """Every event of the world by time (EVENT_SCHEMA), and how many the parent has."""
    frame = pl.concat([pl.read_parquet(part) for part in sorted((folder / "events").glob("*.parquet"))])
    frame = frame.sort("timestamp", maintain_order=True).with_row_index(Col.LOG_ORDER)
    held = {name: frame[name].to_arrow() for name in frame.columns}
    columns = [
        held[field.name].cast(field.type) if field.name in held else pa.nulls(frame.height, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.table(columns, schema=EVENT_SCHEMA), frame.height // 2


def by_bucket(events: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    buckets = bucket_of(pl.Series(pl.from_arrow(events.column(Col.USER_ID))), BUCKETS)
    for bucket in range(BUCKETS):
        yield bucket, events.filter(pa.array(buckets == bucket))


def write_whole(workspace: Workspace, name: str, events: pa.Table, catalogue: pa.Table) -> None:
    """A snapshot of these events by the functions of `prepare`."""
    history, items, labels, entries = workspace.history(name), [], [], []
    for bucket, part in by_bucket(events):
        made = assemble_bucket(part, max_events_per_day=MOST_A_DAY)
        bucket_file(history, bucket).write_table(made.history)
        items.append(made.item_stats)
        labels.append(made.label_stats)
        entries.append({"bucket": bucket, "users": made.history.num_rows, "events": part.num_rows})
    build_vocabulary(items, labels, catalogue, WEIGHTS).save(workspace.items(name))
    write_manifest(history, events, entries)


def write_manifest(history: Folder, events: pa.Table, entries: list[dict[str, Any]]) -> None:
    times = events.column(Col.TIMESTAMP).cast(pa.int64()).to_numpy()
    span = {"first_event_us": int(times.min()), "last_event_us": int(times.max())}
    (history / MANIFEST).write_json({"buckets": entries, "is_ordinal": False, **span})


def make_parent(folder: Path) -> dict[str, float]:
    """The parent release; CPU seconds of its steps but the training of an encoder."""
    config = configuration(folder)
    workspace, found = Workspace.at(config.workspace), dict[str, float]()
    events, half = read_events(folder)
    known = events.slice(0, half)
    with clocked(found, "prepare"):
        write_whole(workspace, "parent", known, pl.read_parquet(folder / "items.parquet").to_arrow())
    history, items, target = workspace.history("parent"), workspace.items("parent"), workspace.staging("parent")
    vocabulary = Vocabulary.load(items)
    vocabulary.save(target / "items")
    end_us = int(pc.max(known.column(Col.TIMESTAMP)).value) + 1
    save_encoder(untrained(history, vocabulary), target / "encoder", metrics={"full_epochs": 1})
    save_popularity(np.ones(vocabulary.num_items), target / "items")
    encoder, heads = target / "encoder", target / "scores"
    steps: dict[str, Callable[[], Any]] = {
        "segment": lambda: segment_users(config, "parent", encoder, target, as_of_us=end_us, num_workers=0),
        "cluster": lambda: cluster_users(config, "parent", target, as_of_us=end_us, num_workers=0),
        "growth": lambda: write_growth(history, target, target / "growth", as_of_us=end_us, num_workers=0),
        "train_scores": lambda: train_scores(
            config, "parent", encoder, heads, end_us=end_us, encoder_cutoff_us=0, num_workers=0
        ),
        "score": lambda: score_users(config, "parent", encoder, heads, heads / "users", as_of_us=end_us, num_workers=0),
        "profiles": lambda: write_profiles(history, items, target, as_of_us=end_us, num_workers=0),
    }
    for name, step in steps.items():
        with clocked(found, name):
            step()
    seal(target, workspace, release_id="parent", parent=None, snapshot="parent", config=config, metrics={},
         row_counts={}, as_of_us=end_us)  # fmt: skip
    return found


def untrained(history: Folder, vocabulary: Vocabulary) -> Encoder:
    content = item_content(vocabulary)
    timelines = read_timelines(history, vocabulary)
    spec = derive(
        EncoderConfig(), EvaluationConfig(), vocabulary, summarise(timelines, vocabulary), reads_time=True, seed=5,
        content=content.shape,
    )  # fmt: skip
    torch.manual_seed(5)
    weights, trained = UserEncoder(spec, content).state_dict(), np.ones(vocabulary.num_items, dtype=np.bool_)
    half_life_us = 14 * MICROSECONDS_PER_DAY
    return Encoder.of(spec, weights, trained, content=content, half_life_us=half_life_us)


def measure(folder: Path, share: float) -> dict[str, Any]:
    """Merge this share, and compute the users both ways."""
    config, name = configuration(folder), f"share-{share:g}"
    workspace, found = Workspace.at(config.workspace), dict[str, Any]()
    events, half = read_events(folder)
    delivery, whole = events.slice(half, round(half * share)), events.slice(0, half + round(half * share))
    catalogue = pl.read_parquet(folder / "items.parquet").to_arrow()
    with clocked(found, "prepare_all"):
        write_whole(workspace, f"{name}-all", whole, catalogue)
    history, parent = workspace.history(name), workspace.history("parent")
    entries = []
    with clocked(found, "merge"):
        for bucket, part in by_bucket(delivery):
            merged = merge_bucket(read_bucket(parent, bucket), empty_quarantine(), part, max_events_per_day=MOST_A_DAY)
            bucket_file(history, bucket).write_table(merged.history)
            touched_file(history, bucket).write_table(merged.touched)
            entries.append({"bucket": bucket, "users": merged.history.num_rows, "events": part.num_rows})
    write_manifest(history, whole, entries)
    same = [
        bucket_file(history, bucket).digest() == bucket_file(workspace.history(f"{name}-all"), bucket).digest()
        for bucket in range(BUCKETS)
    ]
    found |= {"share": share, "new_events": delivery.num_rows, "events": whole.num_rows, "bytes_equal": all(same)}
    release = Release.open(workspace, "parent")
    for way, everybody in (("users", False), ("users_anew", True)):
        target = workspace.staging(f"{name}-{way}")
        target.remove()
        carried = carry_models(release, workspace.items(f"{name}-all"), target / "release")
        arguments = {
            "history": history.uri,
            "target": (target / "release").uri,
            "parent": release.folder.uri,
            "scratch": (target / "scratch").uri,
            "first_us": int(pc.min(events.column(Col.TIMESTAMP)).value),
            "before_us": release.manifest.as_of_us,
            "as_of_us": int(pc.max(whole.column(Col.TIMESTAMP)).value) + 1,
            "named_as_of_us": carried.named_as_of_us,
            "is_ordinal": False,
            "keeps_interests": carried.keeps_interests,
            "everybody": everybody,
            "sensitive": [],
        }
        with clocked(found, way):
            summaries = over_buckets(IncrementBucket, arguments, range(BUCKETS), num_workers=0)
        names = ("profiles", "embedded", "interests_found", "interests_summarised")
        found[f"{way}_counts"] = {part: sum(int(summary[part]) for summary in summaries) for part in names}
        sizes = [int(target.fs.size((target / file).path)) for file in target.files()]
        found[f"{way}_bytes"] = sum(sizes)
    return found


@contextmanager
def clocked(found: dict[str, Any], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    found[name] = round(time.process_time() - start, 2)


if __name__ == "__main__":
    main()
