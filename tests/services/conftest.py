"""A tiny release made by the real functions of the library, without Ray: 24 users, 18 items, two buckets, one score."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
import xgboost

from services.embedding.deployment import Embedding
from services.gateway.engine import Engine
from services.gateway.http import create_app
from services.gateway.opening import describe, open_engine, open_packer
from services.gateway.recent import RecentEvents
from services.gateway.refresh import Refresher
from services.gateway.stages import HandleStages
from services.retrieval.deployment import Retrieval
from services.scoring.deployment import Scoring
from services.segmentation.deployment import Segmentation
from sonder.core.config import InterestsConfig, SegmentsConfig, SonderConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST, publish
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, save_encoder, save_popularity
from sonder.encoder.inference import embed_users
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import EncoderSpec
from sonder.events.contract import USER_SCHEMA
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file, read_timelines, users_file
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.interests.affinity import affinity_table
from sonder.interests.affinity_artefact import item_paths, save_affinity
from sonder.interests.affinity_fit import fit_affinity
from sonder.interests.derive import derive_config
from sonder.interests.ward import cluster_interests
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.record import profile_file
from sonder.profiles.user_features import UserFeatures, derive_user_spec
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry, seal
from sonder.scoring.calibration import Calibrator
from sonder.scoring.heads import ScoreHead, save_heads
from sonder.scoring.table import Scorer
from sonder.segments.clusters import CLUSTERS_FILE, Clusters
from sonder.segments.lifecycle import derive_thresholds, lifecycle_table

START_US = 1_700_000_000_000_000
NUM_DAYS, NUM_USERS, NUM_ITEMS, NUM_BUCKETS, DIM = 60, 24, 18, 2, 8
AS_OF_US = START_US + NUM_DAYS * MICROSECONDS_PER_DAY
SNAPSHOT, RELEASE = "snapshot-1", "release-1"
SHOWN_ONLY = "käufer/only shown"  # a user whose events express no wish, with an id that needs escaping


USER_TABLE = pa.Table.from_pylist(
    [
        {
            "user_id": "user-1",
            "signup_at": AS_OF_US - 1,
            "attributes": [{"name": "country", "value": 'D"E'}],
            "consent": [{"name": "ads", "granted": True}, {"name": "email", "granted": False}],
        }
    ],
    schema=USER_SCHEMA,
)


@dataclass(frozen=True)
class TinyRelease:
    workspace: Workspace
    release: str
    user_ids: list[str]
    shown_only: str
    as_of_us: int
    vocabulary: Vocabulary


@pytest.fixture(scope="session")
def new_release(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TinyRelease]:
    """Makes one in a workspace of its own."""
    return lambda: build_tiny_release(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def release_at() -> Callable[..., TinyRelease]:
    """Makes one at a folder or URI, for a node with a disk of its own."""
    return build_tiny_release


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[Served]]:
    """A gateway over any release, without Ray."""
    return serve


@pytest.fixture(scope="session")
def tiny_release(new_release: Callable[[], TinyRelease]) -> TinyRelease:
    """One for all tests that write nothing."""
    return new_release()


def build_tiny_release(folder: Path | str, local_dir: Path | None = None) -> TinyRelease:
    """`folder`: or a URI."""
    workspace = Workspace.at(str(folder), None if local_dir is None else str(local_dir))
    config = SonderConfig.model_validate(
        {
            "workspace": workspace.root.uri,
            "events": {"path": "events.csv"},
            "encoder": {"dim": DIM},
            "scores": [{"name": "buy_7d", "action": "buy", "within_days": 7}],
        }
    )
    vocabulary = _vocabulary()
    _write_history(workspace)
    snapshot = workspace.history(SNAPSHOT)
    target = workspace.staging("build")
    vocabulary.save(target / "items")
    encoder = _encoder(vocabulary)
    save_encoder(encoder, target / "encoder")
    popularity = 100.0 - np.arange(NUM_ITEMS)
    popularity[1] = 101.0  # lately; over the whole log item-0 has more events
    save_popularity(popularity, target / "items")
    timelines = read_timelines(snapshot, vocabulary)
    thresholds = derive_thresholds(timelines, end_us=AS_OF_US, config=SegmentsConfig())
    (target / "segments" / "thresholds.json").write_json(thresholds.to_dict())
    interests = derive_config(InterestsConfig(), encoder.item_vectors, vocabulary, as_of_us=AS_OF_US)
    (target / "interests" / "config.json").write_json(interests.model_dump(mode="json"))
    items = item_paths(vocabulary, encoder.item_vectors)
    affinity = fit_affinity(timelines, vocabulary, items.taxonomy, as_of_us=AS_OF_US, horizon_days=7)
    save_affinity(affinity, items, target / "affinities")
    head = _head(config, timelines, vocabulary, encoder)
    save_heads([head], [], target / "scores")
    features = UserFeatures.of(head.spec, vocabulary, encoder.item_vectors)
    clusters = Clusters(np.eye(2, DIM, dtype=np.float32), (3, 7), ("first axis", "second axis"))
    clusters.save(target / "clusters")
    entries = [{"id": cluster_id, "name": name} for cluster_id, name in clusters.name_of.items()]
    (target / "clusters" / CLUSTERS_FILE).write_json({"clusters": entries})
    for bucket in range(NUM_BUCKETS):
        users = read_timelines(snapshot, vocabulary, [bucket])
        vectors = embed_users(encoder, users, as_of_us=AS_OF_US)
        outputs = StageOutputs(
            vectors=pa.table({"user_id": users.user_ids, "vector": pa.array(list(vectors), pa.list_(pa.float32()))}),
            interests=cluster_interests(users, encoder.item_vectors, vocabulary, as_of_us=AS_OF_US, config=interests),
            affinities=affinity_table(
                users,
                vocabulary,
                items.taxonomy,
                affinity,
                as_of_us=AS_OF_US,
                max_affinities=interests.max_affinities,
            ),
            segments=lifecycle_table(users, as_of_us=AS_OF_US, thresholds=thresholds),
            scores=Scorer.of([head], vocabulary).score(
                users, features.compute(users, vectors, as_of_us=AS_OF_US), as_of_us=AS_OF_US
            ),
            users=USER_TABLE,
        )
        profiles = assemble_profiles(users, outputs, base_rates={"buy_7d": 0.25}, as_of_us=AS_OF_US, clusters=clusters)
        profile_file(target / "profiles", bucket).write_table(profiles)
    seal(
        target,
        workspace,
        release_id=RELEASE,
        parent=None,
        snapshot=SNAPSHOT,
        config=config,
        metrics={"retrieval.encoder.hr_at_10": 0.5},
        row_counts={"profiles": NUM_USERS + 1},
        as_of_us=AS_OF_US,
    )
    Registry(workspace).promote(RELEASE, reason="the only one")
    return TinyRelease(workspace, RELEASE, _user_ids(), SHOWN_ONLY, AS_OF_US, vocabulary)


@pytest.fixture(scope="session")
def another_release() -> Callable[[TinyRelease, str], str]:
    """Makes a second one in the workspace of a first."""
    return _another_release


def _another_release(release: TinyRelease, release_id: str) -> str:
    """The same files under another id, not promoted: what differs is who answers."""
    source, target = release.workspace.release(release.release), release.workspace.release(release_id)
    shutil.copytree(source.path, target.path)
    manifest = (target / MANIFEST).read_json()
    (target / MANIFEST).write_json({**manifest, "id": release_id})
    return release_id


def _user_ids() -> list[str]:
    return [f"user-{user}" for user in range(NUM_USERS)]


def _vocabulary() -> Vocabulary:
    items = pa.Table.from_pylist(
        [
            {
                "item_index": item,
                "item_id": f"item-{item}",
                "category": f"shop/part-{item % 3}",
                "title": f"Item number {item}",
                "num_events": 100 - item,
                "first_seen": START_US,
                "last_seen": AS_OF_US - 1,
                "vector": None,
            }
            for item in range(NUM_ITEMS)
        ],
        schema=ITEM_SCHEMA,
    )
    return Vocabulary(items, actions=("buy", "impression"), action_weights=(1.0, 0.0), surfaces=("web",))


def _write_history(workspace: Workspace) -> None:
    draw = np.random.default_rng(7)
    rows = []
    for user_id in [*_user_ids(), SHOWN_ONLY]:
        num = int(draw.integers(4, 40))
        days = np.sort(draw.uniform(0, NUM_DAYS, num))
        rows.append(
            {
                "user_id": user_id,
                "item_id": [f"item-{item}" for item in draw.integers(0, NUM_ITEMS, num)],
                "action": ["impression" if user_id == SHOWN_ONLY else "buy"] * num,
                "timestamp": (START_US + days * MICROSECONDS_PER_DAY).astype(np.int64).tolist(),
                "surface": ["web"] * num,
                "value": draw.uniform(1, 50, num).tolist(),
                "request_id": [None] * num,
                "event_key": list(range(num)),
                "num_events": num,
            }
        )
    table = pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA)
    buckets = bucket_of(pl.Series(table.column("user_id").to_pylist(), dtype=pl.String), NUM_BUCKETS)
    staged = workspace.staging("history")
    entries = []
    for bucket in range(NUM_BUCKETS):
        users = table.filter(pa.array(buckets == bucket)).sort_by("user_id")
        bucket_file(staged, bucket).write_table(users)
        events = sum(users.column("num_events").to_pylist())
        entries.append({"bucket": bucket, "users": users.num_rows, "events": events})
    times_us = table.column("timestamp").combine_chunks().flatten().cast(pa.int64()).to_numpy()
    span = {"first_event_us": int(times_us.min()), "last_event_us": int(times_us.max())}
    facts = bucket_of(pl.Series(USER_TABLE.column("user_id").to_pylist(), dtype=pl.String), NUM_BUCKETS)
    for bucket in range(NUM_BUCKETS):
        users_file(staged, bucket).write_table(USER_TABLE.filter(pa.array(facts == bucket)))
    told = {"buckets": entries, "is_ordinal": False, **span, "user_table": {"users": USER_TABLE.num_rows}}
    publish(staged, workspace.history(SNAPSHOT), told)


def _encoder(vocabulary: Vocabulary) -> Encoder:
    spec = EncoderSpec(
        num_items=NUM_ITEMS,
        num_actions=2,
        num_surfaces=1,
        action_weights=vocabulary.action_weights,
        reads_time=True,
        dim=DIM,
        num_blocks=1,
        num_heads=2,
        max_length=16,
        dropout=0.1,
        objective="next_action",
        window_us=0,
        num_negatives=8,
        batch_tokens=64,
        learning_rate=1e-3,
        weight_decay=0.0,
        average_decay=0.9,
        excludes_seen=False,
        recalls=True,
        seed=7,
    )
    torch.manual_seed(7)
    return Encoder.of(spec, UserEncoder(spec).state_dict(), np.arange(NUM_ITEMS) != NUM_ITEMS - 1)


def _head(config: SonderConfig, timelines: Timelines, vocabulary: Vocabulary, encoder: Encoder) -> ScoreHead:
    spec = derive_user_spec(
        timelines,
        vocabulary,
        first_us=START_US,
        cutoff_us=AS_OF_US,
        item_vectors_ID=encoder.item_vectors,
        segments=config.segments,
        interests=config.interests,
    )
    vectors = embed_users(encoder, timelines, as_of_us=AS_OF_US)
    features = UserFeatures.of(spec, vocabulary, encoder.item_vectors).compute(timelines, vectors, as_of_us=AS_OF_US)
    labels = np.arange(len(features)) % 4 == 0
    parameters = {"objective": "binary:logistic", "max_depth": 2, "min_child_weight": 0.1, "nthread": 1, "seed": 7}
    booster = xgboost.train(parameters, xgboost.DMatrix(features, label=labels), num_boost_round=5)
    task = config.scores[0]
    return ScoreHead(task, (task.name,), booster, (Calibrator("none"),), spec, {"mean_labels": [0.25]})


class LocalHandle:
    """Looks like a Serve handle and calls the object in this process; `fails` and `hangs` name methods."""

    def __init__(self, deployment: Any) -> None:
        self.deployment = deployment
        self.fails: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.calls: list[tuple[str, int]] = []  # method, users of the micro-batch

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments, **asked: self._call(method, arguments, asked))

    async def _call(self, method: str, arguments: tuple[Any, ...], asked: dict[str, Any]) -> Any:
        self.calls.append((method, len(arguments[0])))
        if method in self.hangs:
            await asyncio.sleep(60)
        if method in self.fails:
            raise self.fails[method]
        return await getattr(self.deployment, method)(*arguments, **asked)


@dataclass
class Served:
    """The gateway's HTTP application over the real deployments of the tiny release, without Serve."""

    release: TinyRelease
    handles: dict[str, LocalHandle]
    engine: Engine
    store: LmdbStore
    log: OnlineLog

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        return self.together([(method, path, content)])[0]

    def get(self, path: str) -> dict[str, Any]:
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer.text
        parsed: dict[str, Any] = answer.json()
        return parsed

    def refresher(self) -> Refresher:
        release = Release.open(self.release.workspace, self.release.release)
        info = describe(release, num_profiles=0)
        packer = open_packer(release, self.store)
        recent = RecentEvents(self.store, self.log, packer, info.cold, release_as_of_us=info.as_of_us)
        return Refresher(recent, self.engine._fresh_path, clock_us=lambda: 1_800_000_000_000_000)

    def together(self, requests: list[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
        """Send all at the same moment."""
        transport = httpx.ASGITransport(create_app(self.engine), raise_app_exceptions=False)

        async def send() -> list[httpx.Response]:
            async with httpx.AsyncClient(transport=transport, base_url="http://sonder") as client:
                calls = [client.request(method, path, **content) for method, path, content in requests]
                return await asyncio.gather(*calls)

        return asyncio.run(send())


@pytest.fixture
def served(tiny_release: TinyRelease) -> Iterator[Served]:
    with serve(tiny_release) as opened:
        yield opened


@pytest.fixture
def own_served(tmp_path: Path) -> Iterator[Served]:
    """The same over a workspace that no other test sees: for what is written into it."""
    with serve(build_tiny_release(tmp_path / "workspace"), writable=True) as opened:
        yield opened


@contextmanager
def serve(release: TinyRelease, *, writable: bool = False) -> Iterator[Served]:
    where = {"workspace": release.workspace.root.uri, "release": release.release}
    kinds = {"embedding": Embedding, "segmentation": Segmentation, "scoring": Scoring, "retrieval": Retrieval}
    handles = {name: LocalHandle(kind(**where)) for name, kind in kinds.items()}
    opened = Release.open(release.workspace, release.release)
    store, log = opened.open_store(), OnlineLog(release.workspace.online_log)
    if writable:  # what the refresh has open, in one process with the gateway
        store.close()
        store = LmdbStore.open(release.workspace.store / release.release, release=release.release, writable=True)
    engine = open_engine(opened, HandleStages(**handles), store=store, log=log)
    yield Served(release, handles, engine, store, log)
    engine.close()
