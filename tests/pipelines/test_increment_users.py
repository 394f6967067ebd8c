"""A day later by carried models: what an increment computes is what everything computed anew says, user by user.

Without Ray: the bucket tasks are called here. One build of a small log up to a day is the parent; then come two days
with late events, new users, new items and an action that the models do not know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from pipelines.bucket_tasks import over_buckets
from pipelines.cluster import cluster_users
from pipelines.increment_models import Carried, add_cluster_counts, carry_models
from pipelines.increment_users import IncrementBucket
from pipelines.lifecycle import count_growth, write_growth
from pipelines.profiles import write_profiles
from pipelines.score import score_users, train_scores
from pipelines.segment import segment_users, write_popularity
from sonder.core.config import EncoderConfig, EvaluationConfig, SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, load_popularity, save_encoder
from sonder.encoder.content import item_content
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import derive, summarise
from sonder.history.merge import TOUCHED_SCHEMA
from sonder.history.snapshot import read_timelines, touched_file
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.registry import seal
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import Event, random_log, timelines_of, vocabulary_of, write_snapshot

PARENT_DAY, END_DAY, NUM_ITEMS, NUM_KNOWN, BUCKETS = 98, 100, 60, 56, 3
CATEGORIES = [f"c{item % 4}/d{item % 12}" for item in range(NUM_KNOWN)] + ["c9/new", "c9/new", "c1/d1", None]
PARTS = ("vectors", "interests", "affinities", "segments", "clusters", "scores/users", "profiles")


def make_logs() -> tuple[dict[str, list[Event]], dict[str, list[Event]], list[str]]:
    """What the parent knew, what is known two days later, and whose history changed."""
    draw = np.random.default_rng(8)
    whole = random_log(6, num_users=300, num_items=NUM_KNOWN, num_days=END_DAY)
    newcomers = {f"v{user}": [(99.0 + user / 10, user % NUM_ITEMS, "buy")] for user in range(5)}
    before, after, touched = {}, {}, []
    for user, events in whole.items():
        known = [event for event in events if event[0] < PARENT_DAY and draw.random() > 0.004]
        if not known:
            continue
        # Items and an action that nobody had before the two days.
        later = [
            (day, NUM_KNOWN + item % 4 if day > 99 and item % 3 == 0 else item, "share" if item % 17 == 0 else action)
            for day, item, action in events
            if day >= PARENT_DAY
        ]
        late = [event for event in events if event[0] < PARENT_DAY and event not in known]
        before[user], after[user] = known, known + late + later
        if late or later:
            touched.append(user)
    return before, after | newcomers, touched + list(newcomers)


BEFORE, AFTER, TOUCHED = make_logs()


def vocabulary() -> Vocabulary:
    return vocabulary_of(CATEGORIES, first_day=0.5)


def first_items(known: Vocabulary, num: int) -> Vocabulary:
    return replace(known, items=known.items.slice(0, num))


def reordered(known: Vocabulary) -> Vocabulary:
    """The snapshot's own numbers two days later: other ones; new items were first seen on the last day."""
    order = np.random.default_rng(1).permutation(known.num_items)
    seen = pa.array([round((99.1 if item >= NUM_KNOWN else 0.5) * DAY) for item in order])
    items = known.items.take(pa.array(order)).set_column(
        0, known.items.schema.field(0), pa.array(range(known.num_items), pa.int32())
    )
    place = items.schema.get_field_index("first_seen")
    items = items.set_column(place, items.schema.field(place), seen.cast(items.schema.field(place).type))
    return Vocabulary(items, ("buy", "share", *known.actions[:1], *known.actions[2:]), (1.0, 0.0, 1.0, -1.0, 0.0), ())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SonderConfig:
    settled = SonderConfig.model_validate(
        {
            "workspace": str(tmp_path_factory.mktemp("increment")),
            "events": {"path": "unused"},
            "evaluation": {"test_days": 10},
            "encoder": {"dim": 16},
            "segments": {"num_clusters": 5},
            "scoring": {"trials": 1, "backtest_cutoffs": 0},
            "scores": [
                {"name": "buy_10d", "action": "buy", "within_days": 10},
                {"name": "churn_10d", "churn": True, "within_days": 10},
            ],
        }
    )
    workspace = Workspace.at(settled.workspace)
    build_parent(settled, workspace)
    write_day_later(workspace)
    return settled


def random_encoder(known: Vocabulary) -> Encoder:
    """An untrained one, which is as good here; a popularity with a half-life of ten days."""
    content = item_content(known)
    timelines = timelines_of(BEFORE)
    spec = derive(
        EncoderConfig(dim=16), EvaluationConfig(), known, summarise(timelines, known), reads_time=True, seed=5,
        content=content.shape,
    )  # fmt: skip
    torch.manual_seed(5)
    weights, counts = UserEncoder(spec, content).state_dict(), np.arange(1.0, NUM_KNOWN + 1)
    trained = np.ones(NUM_KNOWN, dtype=np.bool_)
    return Encoder.of(spec, weights, trained, content=content, popularity=counts, half_life_us=10 * DAY)


def build_parent(config: SonderConfig, workspace: Workspace) -> None:
    """The release `parent`, by the jobs of a full build."""
    known = first_items(vocabulary(), NUM_KNOWN)
    history = write_snapshot(workspace, "before", timelines_of(BEFORE), known, num_buckets=BUCKETS)
    as_of_us, target = PARENT_DAY * DAY, workspace.staging("parent")
    encoder, heads, items = target / "encoder", target / "scores", workspace.items("before")
    save_encoder(random_encoder(known), encoder, metrics={"full_epochs": 1})
    write_popularity(history, known, load_encoder(encoder), target / "items", as_of_us=as_of_us)
    segment_users(config, "before", encoder, target, as_of_us=as_of_us, num_workers=0)
    cluster_users(config, "before", target, as_of_us=as_of_us, num_workers=0)
    write_growth(history, target, workspace.staging("growth"), as_of_us=as_of_us, num_workers=0)
    train_scores(config, "before", encoder, heads, end_us=as_of_us, encoder_cutoff_us=88 * DAY, num_workers=0)
    score_users(config, "before", encoder, heads, heads / "users", as_of_us=as_of_us, num_workers=0)
    known.save(target / "items")
    write_profiles(history, items, target, as_of_us=as_of_us, num_workers=0)
    seal(target, workspace, release_id="parent", parent=None, snapshot="before", config=config, metrics={},
         row_counts={}, as_of_us=as_of_us)  # fmt: skip


def write_day_later(workspace: Workspace) -> None:
    timelines = timelines_of(
        {user: [(d, i, "view" if a == "share" else a) for d, i, a in events] for user, events in AFTER.items()}
    )
    flat = [event for events in AFTER.values() for event in sorted(events, key=lambda event: event[0])]
    widened = replace(
        vocabulary(), actions=(*vocabulary().actions, "share"), action_weights=(*vocabulary().action_weights, 0.0)
    )
    shares = np.array([action == "share" for _, _, action in flat])
    timelines = replace(timelines, actions=np.where(shares, 4, timelines.actions).astype(np.int16))
    history = write_snapshot(workspace, "after", timelines, widened, num_buckets=BUCKETS)
    reordered(vocabulary()).save(workspace.items("after"))
    for bucket in range(BUCKETS):
        users = read_timelines(history, widened, [bucket]).user_ids.to_pylist()
        changed = pa.array([user for user in users if user in TOUCHED], pa.large_string())
        touched_file(history, bucket).write_table(pa.table([changed], schema=TOUCHED_SCHEMA))


def day_later(config: SonderConfig, name: str, *, everybody: bool) -> tuple[Folder, Carried, list[dict[str, Any]]]:
    """Run the bucket tasks -> the release to be, the models' record, the summaries."""
    workspace = Workspace.at(config.workspace)
    target, parent = workspace.staging(name) / "release", Release.open(workspace, "parent")
    carried = carry_models(parent, workspace.items("after"), target)
    arguments = {
        "history": workspace.history("after").uri,
        "target": target.uri,
        "parent": parent.folder.uri,
        "scratch": (workspace.staging(name) / "scratch").uri,
        "first_us": 0,
        "before_us": PARENT_DAY * DAY,
        "as_of_us": END_DAY * DAY,
        "named_as_of_us": carried.named_as_of_us,
        "is_ordinal": False,
        "keeps_interests": carried.keeps_interests,
        "everybody": everybody,
        "sensitive": [],
    }
    return target, carried, over_buckets(IncrementBucket, arguments, range(BUCKETS), num_workers=0)


@pytest.fixture(scope="module")
def both(config: SonderConfig) -> tuple[Folder, Folder, Carried, list[dict[str, Any]], list[dict[str, Any]]]:
    kept, carried, summaries = day_later(config, "kept", everybody=False)
    anew, _, all_summaries = day_later(config, "anew", everybody=True)
    return kept, anew, carried, summaries, all_summaries


def read(target: Folder, part: str) -> pl.DataFrame:
    tables = [(target / part / f"bucket={bucket:03d}" / "part-0.parquet").read_table() for bucket in range(BUCKETS)]
    frame = pl.from_arrow(pa.concat_tables(tables))
    assert isinstance(frame, pl.DataFrame)
    return frame


def numbers_within(left: pl.DataFrame, right: pl.DataFrame, tolerance: float) -> bool:
    """Every column equal, floating-point ones to the tolerance."""
    assert left.columns == right.columns
    assert left.height == right.height
    for name, kind in left.schema.items():
        if kind.is_float():
            difference = (left[name] - right[name]).abs().fill_nan(0.0).max()
            if difference is not None and difference > tolerance:
                return False
        elif not left[name].equals(right[name], null_equal=True):
            return False
    return True


def test_only_those_with_news_are_embedded_and_clustered_anew(both: Any) -> None:
    _, _, carried, summaries, all_summaries = both
    users = sum(summary["profiles"] for summary in summaries)
    assert users == len(AFTER)
    assert sum(summary["embedded"] for summary in summaries) == len(TOUCHED) < users / 2
    assert sum(summary["embedded"] for summary in all_summaries) == users
    for name in ("interests_found", "interests_summarised"):
        assert len(TOUCHED) < sum(summary[name] for summary in summaries) < users * 0.8
    assert carried.new_items == NUM_ITEMS - NUM_KNOWN
    assert carried.unknown_actions == ("share",)
    assert carried.keeps_interests


@pytest.mark.parametrize("part", ["interests", "affinities", "segments", "clusters"])
def test_ids_and_states_are_exactly_those_of_everything_computed_anew(both: Any, part: str) -> None:
    kept, anew = (read(target, part) for target in both[:2])
    assert kept.height > 0
    assert numbers_within(kept, anew, 1e-5)


def test_vectors_agree_and_those_of_users_without_news_keep_their_bits(both: Any, config: SonderConfig) -> None:
    kept, anew = (np.stack(read(target, "vectors")["vector"].to_numpy()) for target in both[:2])
    assert np.abs(kept - anew).max() < 1e-5
    parent = read(Workspace.at(config.workspace).release("parent"), "vectors")
    now = read(both[0], "vectors").filter(~pl.col("user_id").is_in(TOUCHED))
    assert now.height == len(AFTER) - len(TOUCHED)
    joined = now.join(parent, on="user_id", suffix="_before")
    assert joined.height == now.height
    assert (joined["vector"] == joined["vector_before"]).all()


def test_scores_and_their_drivers_agree(both: Any) -> None:
    kept, anew = (read(target, "scores/users") for target in both[:2])
    assert kept.select("user_id", "name").equals(anew.select("user_id", "name"))
    assert (kept["value"] - anew["value"]).abs().max() < 1e-5
    reasons = [frame["drivers"].list.eval(pl.element().struct.field("reason")) for frame in (kept, anew)]
    assert (reasons[0] == reasons[1]).all()


def test_profiles_agree(both: Any) -> None:
    kept, anew = (read(target, "profiles") for target in both[:2])
    exact = ["user_id", "as_of", "is_cold", "cold_reason", "num_events", "first_seen", "last_seen"]
    assert kept.select(exact).equals(anew.select(exact))
    for name in ("segments", "interests", "affinities"):
        flat = [frame[name] if name == "segments" else frame[name].explode() for frame in (kept, anew)]
        left, right = (series.struct.unnest() for series in flat)
        assert numbers_within(left, right, 1e-5), name
    assert kept["segments"].struct.field("cluster").null_count() < kept.height


def test_popularity_growth_and_cluster_sizes_are_those_of_the_jobs_of_a_full_build(
    both: Any, config: SonderConfig
) -> None:
    kept, _, _, summaries, _ = both
    workspace = Workspace.at(config.workspace)
    history, scratch = workspace.history("after"), workspace.staging("kept") / "scratch"
    write_popularity(
        history, Vocabulary.load(kept / "items"), load_encoder(kept / "encoder"), workspace.staging("popular"),
        as_of_us=END_DAY * DAY,
    )  # fmt: skip
    counts = np.zeros(NUM_ITEMS)
    for file in (scratch / "popularity").children():
        table = file.read_table()
        counts[table.column("item").to_numpy()] += table.column("count").to_numpy()
    assert np.array_equal(counts, load_popularity(workspace.staging("popular")))
    thresholds = LifecycleThresholds.from_dict((kept / "segments" / "thresholds.json").read_json())
    counted = count_growth(history, as_of_us=END_DAY * DAY, thresholds=thresholds, num_workers=0)
    found = counted.empty(counted.first_us, END_DAY * DAY, thresholds)
    for file in (scratch / "growth").children():
        found += found.empty(counted.first_us, END_DAY * DAY, thresholds).with_counts(file.read_json())
    assert found.counts()["states"] == counted.counts()["states"]
    content = add_cluster_counts(Release.open(workspace, "parent"), kept, summaries)
    assert sum(entry["users"] for entry in content["clusters"]) + content["users_without"] == len(AFTER)
    assert 0 <= content["metrics"]["segments.cluster_share_moved"] < 0.5


def test_a_title_that_was_changed_makes_everybodys_interests_be_named_anew(
    config: SonderConfig, tmp_path: Path
) -> None:
    workspace = Workspace.at(config.workspace)
    changed = reordered(vocabulary())
    titles = pa.array([f"other {row}" for row in range(changed.num_items)])
    place = changed.items.schema.get_field_index("title")
    items = changed.items.set_column(place, changed.items.schema.field(place), titles)
    replace(changed, items=items).save(Folder.at(str(tmp_path / "items")))
    parent = Release.open(workspace, "parent")
    carried = carry_models(parent, Folder.at(str(tmp_path / "items")), Folder.at(str(tmp_path / "release")))
    assert not carried.keeps_interests


def test_known_items_keep_numbers_and_vectors_and_new_ones_follow(both: Any, config: SonderConfig) -> None:
    parent, kept = Release.open(Workspace.at(config.workspace), "parent"), both[0]
    before, after = Vocabulary.load(parent.items), Vocabulary.load(kept / "items")
    assert after.item_ids[:NUM_KNOWN].to_pylist() == before.item_ids.to_pylist()
    assert after.actions == before.actions
    old, new = load_encoder(parent.encoder), load_encoder(kept / "encoder")
    assert np.array_equal(old.item_vectors, new.item_vectors[:NUM_KNOWN])
    assert not new.trained_items[NUM_KNOWN:].any()
    assert new.item_vectors[NUM_KNOWN + 2].any()  # a new item in a category that the weights know
