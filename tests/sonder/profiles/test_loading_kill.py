"""A load that is killed by the kernel: the old store goes on being read, the next start finishes the new one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from sonder.core.workspace import Workspace
from sonder.profiles import lmdb_store, loading
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.loading import StoreSource, ensure_store
from sonder.profiles.record import profile_file
from sonder.profiles.store import StoredProfile
from tests.tiny_log import random_log, timelines_of, vocabulary_of, write_snapshot

AS_OF_US = 60 * 86_400_000_000


def source_at(folder: Path, release: str) -> StoreSource:
    """A release of 30 users in two buckets; each profile's computed_at is the release's number."""
    workspace = Workspace.at(str(folder))
    timelines = timelines_of(random_log(7, num_users=30, num_items=5, num_days=40))
    vocabulary = vocabulary_of(["a"] * 5)
    snapshot = write_snapshot(workspace, release, timelines, vocabulary)
    profiles = workspace.release(release) / "profiles"
    for bucket in range(2):
        users = timelines.take(np.arange(bucket, timelines.num_users, 2))
        outputs = StageOutputs(None, None, None, None, None)
        table = assemble_profiles(users, outputs, base_rates={}, as_of_us=AS_OF_US)
        profile_file(profiles, bucket).write_table(table)
    number = int(release.removeprefix("r-"))
    return StoreSource(release, profiles, snapshot, vocabulary, as_of_us=AS_OF_US, computed_at_us=number, dim=2)


def load_and_die(target: Path, source: StoreSource) -> None:
    """Load in this process, which gets SIGKILL when it writes the second part."""
    put_part, parts = LmdbStore.put_part, []

    def dies_at_the_second(store: LmdbStore, name: str, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        parts.append(name)
        if len(parts) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return put_part(store, name, profiles)

    LmdbStore.put_part = dies_at_the_second
    lmdb_store._COMMIT_BYTES = 1  # of parts that are large, as the first one has to be here
    ensure_store(target, source)


def test_a_load_killed_in_the_middle_leaves_the_old_store_served_and_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = source_at(tmp_path, "r-1"), source_at(tmp_path, "r-2")
    store = tmp_path / "store"
    with ensure_store(store / "r-1", old) as served:
        child = multiprocessing.get_context("spawn").Process(target=load_and_die, args=(store / "r-2", new))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert (store / "r-2.loading").is_dir()
        assert not (store / "r-2").exists()
        kept = served.get("u0001")
        assert kept is not None
        assert kept.computed_at_us == 1

    read_part, read = loading._part, []
    monkeypatch.setattr(loading, "_part", lambda source, name: (read.append(name), read_part(source, name))[1])
    with ensure_store(store / "r-1", old) as again, ensure_store(store / "r-2", new) as finished:
        assert again.metadata().num_profiles == finished.metadata().num_profiles == 30
        stored = finished.batch_get([f"u{user:04d}" for user in range(30)])
    assert [profile is not None and profile.computed_at_us for profile in stored] == [2] * 30
    assert read == ["bucket=001/part-0.parquet"]  # the first one was committed before the kill
