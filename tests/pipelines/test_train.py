"""The training job: in this process, on Ray, resumed after a kill, on two workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipelines.train
from pipelines.train import train_encoder
from sonder.core.config import SonderConfig
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.holdout import hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.training import TrainingRun
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file, read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from tests.s3_server import S3Server

NUM_ITEMS, NUM_USERS, NUM_BUCKETS = 12, 120, 4
NUM_EVENTS = sum(6 + user % 5 for user in range(NUM_USERS))
DAY_US = 86_400_000_000


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    """A snapshot `walks`: every user steps through the items in a circle, one a day, so the next one is certain."""
    if getattr(request, "param", "local") == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        return _with_walks(Workspace.at(server.uri(f"train-{os.urandom(4).hex()}")))
    return _with_walks(Workspace.at(str(tmp_path / "workspace")))


def _with_walks(place: Workspace) -> Workspace:
    history = place.history("walks")
    buckets = []
    for bucket in range(NUM_BUCKETS):
        users = range(bucket, NUM_USERS, NUM_BUCKETS)
        lengths = [6 + user % 5 for user in users]
        rows: dict[str, list[Any]] = {
            "user_id": [f"u{user:04d}" for user in users],
            "item_id": [
                [f"i{(user + s) % NUM_ITEMS}" for s in range(n)] for user, n in zip(users, lengths, strict=True)
            ],
            "action": [["buy"] * n for n in lengths],
            "timestamp": [[(9_000 + s) * DAY_US for s in range(n)] for n in lengths],
            "surface": [[None] * n for n in lengths],
            "value": [[None] * n for n in lengths],
            "request_id": [[None] * n for n in lengths],
            "event_key": [list(range(n)) for n in lengths],
            "num_events": lengths,
        }
        bucket_file(history, bucket).write_table(pa.table(rows, schema=HISTORY_SCHEMA))
        buckets.append({"bucket": bucket, "users": len(lengths), "events": sum(lengths)})
    columns = {field.name: pa.nulls(NUM_ITEMS, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(range(NUM_ITEMS), pa.int32())
    columns["item_id"] = pa.array([f"i{i}" for i in range(NUM_ITEMS)])
    columns["num_events"] = pa.array([1] * NUM_ITEMS, pa.int64())
    Vocabulary(pa.table(columns), ("buy",), (1.0,), ()).save(place.items("walks"))
    (history / MANIFEST).write_json({"buckets": buckets, "is_ordinal": False})
    return place


@pytest.fixture
def configure(workspace: Workspace) -> Callable[..., SonderConfig]:
    def make(protocol: str = "leave_one_out", **encoder: Any) -> SonderConfig:
        return SonderConfig.model_validate(
            {
                "workspace": workspace.root.uri,
                "events": {"path": "unused"},
                "evaluation": {"protocol": protocol, "test_days": 3},
                "encoder": {
                    "dim": 16,
                    "max_epochs": 8,
                    "patience": 8,
                    "dropout": 0.1,
                    "learning_rate": 1e-2,
                    **encoder,
                },
            }
        )

    return make


@pytest.mark.parametrize("workspace", ["local", "s3"], indirect=True)
def test_it_learns_in_process_and_writes_an_encoder_that_embeds(workspace, configure, tmp_path):
    target = Folder.at(str(tmp_path / "encoder"))
    metrics = train_encoder(configure(max_epochs=30, patience=30), "walks", target, cutoff_us=None, num_workers=0)
    assert metrics["epochs"] == len(metrics["history"]) == 30
    assert 0.9 < metrics["validation"]["ndcg_at_10"] <= 1  # lists are shorter than ten here: -1 is no item
    encoder = load_encoder(target)
    vocabulary = Vocabulary.load(workspace.items("walks"))
    timelines = read_timelines(workspace.history("walks"), vocabulary)
    vectors = embed_users(encoder, timelines.without_last(1), as_of_us=9_999 * DAY_US)
    best = (vectors @ encoder.item_vectors.T).argmax(axis=1)
    assert np.mean(best == timelines.last(1).items) > 0.9
    assert workspace.staging("training").files() == []


def test_the_temporal_protocol_reads_nothing_from_the_cutoff_on(workspace, configure, tmp_path):
    config = configure("temporal")
    digests = set()
    for attempt in range(2):
        target = Folder.at(str(tmp_path / f"encoder-{attempt}"))
        train_encoder(config, "walks", target, cutoff_us=9_007 * DAY_US, num_workers=0)
        digests.add(load_encoder(target).digest)
        rewrite_future(workspace, 9_007 * DAY_US)
    assert len(digests) == 1


def rewrite_future(workspace: Workspace, cutoff_us: int) -> None:
    """Every event from the cutoff on becomes a wish for the first item."""
    for bucket in range(NUM_BUCKETS):
        file = bucket_file(workspace.history("walks"), bucket)
        rows = file.read_table().to_pylist()
        for row in rows:
            is_later = [9_000 * DAY_US + s * DAY_US >= cutoff_us for s in range(row["num_events"])]
            row["item_id"] = ["i0" if late else item for item, late in zip(row["item_id"], is_later, strict=True)]
        file.write_table(pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA))


def test_of_a_log_past_the_most_events_some_users_are_read_and_others_for_another_snapshot(
    workspace, configure, tmp_path, monkeypatch
):
    for copied in ("history", "items"):
        shutil.copytree((workspace.root / copied / "walks").path, (workspace.root / copied / "later").path)
    read: list[str] = []

    def told(timelines: Timelines, *others: Any, **options: Any) -> Any:
        read.extend(timelines.user_ids.to_pylist())
        return hold_out(timelines, *others, **options)

    monkeypatch.setattr(pipelines.train, "hold_out", told)
    users, config = {}, configure(max_epochs=1, max_training_events=NUM_EVENTS // 3)
    for attempt, snapshot in enumerate(("walks", "walks", "later")):
        read.clear()
        target = Folder.at(str(tmp_path / f"encoder-{attempt}"))
        metrics = train_encoder(config, snapshot, target, cutoff_us=None, num_workers=0)
        assert metrics["share_of_users"] == pytest.approx(1 / 3, abs=0.01)
        assert 20 < len(read) < 60
        users[attempt] = set(read)
    assert users[0] == users[1] != users[2]


class Asked(Exception):
    """What a trainer was asked for."""


@pytest.mark.ray
def test_a_worker_takes_the_resources_that_are_asked_for(ray_session, configure, tmp_path, monkeypatch):
    def asked(*_: object, **options: Any) -> None:
        raise Asked(options["scaling_config"].resources_per_worker)

    monkeypatch.setattr("pipelines.train.TorchTrainer", asked)
    for given, expected in (({}, {"CPU": 1}), ({"training": 1}, {"CPU": 1, "training": 1}), ({"CPU": 4}, {"CPU": 4})):
        with pytest.raises(Asked) as told:
            train_encoder(
                configure(worker_resources=given), "walks", Folder.at(str(tmp_path / "encoder")), cutoff_us=None
            )
        assert told.value.args == (expected,)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_where_it_was_and_ends_with_the_same_weights(
    ray_session, configure, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipelines.train, "MOST_FAILURES", 1)
    config = configure(max_epochs=4, dropout=0.3)
    whole, resumed = Folder.at(str(tmp_path / "whole")), Folder.at(str(tmp_path / "resumed"))
    train_encoder(config, "walks", whole, cutoff_us=None, num_workers=0)

    loop = pipelines.train.train_loop_per_worker
    marker = str(tmp_path / "died")

    def mortal_loop(arguments):  # the worker's process ends at the start of its third epoch, the first time
        import os

        original = TrainingRun.train_epoch

        def train_epoch(run, on_pause):
            if run.progress.epoch == 2 and not os.path.exists(marker):
                open(marker, "w").close()
                os._exit(1)
            return original(run, on_pause)

        TrainingRun.train_epoch = train_epoch
        pipelines.train.SECONDS_BETWEEN_CHECKPOINTS = 0.0
        loop(arguments)

    monkeypatch.setattr(pipelines.train, "train_loop_per_worker", mortal_loop)
    metrics = train_encoder(config, "walks", resumed, cutoff_us=None)
    assert Path(marker).exists()
    assert metrics["epochs"] == 4
    assert load_encoder(resumed).digest == load_encoder(whole).digest


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_an_epoch_goes_on_from_there(ray_session, configure, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.train, "MOST_FAILURES", 1)
    config = configure(max_epochs=3, dropout=0.3)
    whole, resumed = Folder.at(str(tmp_path / "whole")), Folder.at(str(tmp_path / "resumed"))
    steps = 3  # of an epoch at least: 120 users of about 8 events, 256 positions a batch
    train_encoder(config, "walks", whole, cutoff_us=None, num_workers=0)

    loop = pipelines.train.train_loop_per_worker
    marker, seen = str(tmp_path / "died"), str(tmp_path / "seen")

    def mortal_loop(arguments):  # saved after each step; the process ends in the second epoch's third, the first time
        import os

        import sonder.encoder.training as training

        training.PAUSE_STEPS, pipelines.train.SECONDS_BETWEEN_PAUSES = 1, 0.0
        original = TrainingRun._step

        def step(run, *parts):
            if run.progress.epoch == 1 and run.progress.step_of_epoch == steps - 1 and not os.path.exists(marker):
                open(marker, "w").close()
                os._exit(1)
            with open(seen, "a") as file:
                file.write(f"{run.progress.epoch}.{run.progress.step_of_epoch} ")
            return original(run, *parts)

        TrainingRun._step = step
        loop(arguments)

    monkeypatch.setattr(pipelines.train, "train_loop_per_worker", mortal_loop)
    metrics = train_encoder(config, "walks", resumed, cutoff_us=None)
    assert Path(marker).exists()
    done = Path(seen).read_text().split()
    assert done.count("0.0") == 1  # the first epoch was not done again
    assert len(done) <= len(set(done)) + 1  # at most the step after the newest checkpoint was
    assert metrics["epochs"] == 3
    assert load_encoder(resumed).digest == load_encoder(whole).digest


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_with_a_sparse_table_learn_what_one_learns(ray_session, configure, tmp_path, monkeypatch):
    loop = pipelines.train.train_loop_per_worker

    def sparse_loop(arguments):
        import sonder.encoder.specification as specification

        specification.SPARSE_PAST = 0
        loop(arguments)

    monkeypatch.setattr(pipelines.train, "train_loop_per_worker", sparse_loop)
    target = Folder.at(str(tmp_path / "encoder"))
    metrics = train_encoder(configure(max_epochs=30, patience=30), "walks", target, cutoff_us=None, num_workers=2)
    assert load_encoder(target).spec.is_sparse
    assert metrics["validation"]["ndcg_at_10"] > 0.9


@pytest.mark.ray
@pytest.mark.slow
def test_workers_between_a_least_and_a_most_number_learn(ray_session, configure, tmp_path):
    config = configure(max_epochs=30, patience=30, num_workers=[1, 2])
    metrics = train_encoder(config, "walks", Folder.at(str(tmp_path / "encoder")), cutoff_us=None)
    assert metrics["validation"]["ndcg_at_10"] > 0.9


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_learn_what_one_learns(ray_session, configure, tmp_path):
    target = Folder.at(str(tmp_path / "encoder"))
    metrics = train_encoder(configure(max_epochs=30, patience=30), "walks", target, cutoff_us=None, num_workers=2)
    assert metrics["validation"]["ndcg_at_10"] > 0.9
