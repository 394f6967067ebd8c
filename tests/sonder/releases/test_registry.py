from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, DataError, InvalidRequest, NotFound
from sonder.core.storage import publish
from sonder.core.workspace import Workspace
from sonder.releases.manifest import Manifest
from sonder.releases.registry import Registry, seal

CONFIG = SonderConfig.model_validate({"events": {"path": "log.csv"}})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace.at(str(tmp_path))
    staged = opened.staging("history")
    (staged / "bucket").write_bytes(b"rows")
    publish(staged, opened.history("s-1"), {"counts": {"events": 3}})
    return opened


def sealed(workspace: Workspace, release_id: str) -> Manifest:
    staged = workspace.staging(release_id)
    (staged / "encoder" / "weights.safetensors").write_bytes(b"weights of " + release_id.encode())
    (staged / "profiles" / "part.parquet").write_bytes(b"profiles")
    return seal(
        staged,
        workspace,
        release_id=release_id,
        parent=None,
        snapshot="s-1",
        config=CONFIG,
        metrics={"hr_at_10": 0.5},
        row_counts={"profiles": 1},
        as_of_us=9,
    )


def test_a_sealed_release_reads_back_as_it_was_sealed(workspace: Workspace) -> None:
    manifest = sealed(workspace, "r-1")
    assert Registry(workspace).show("r-1") == manifest
    assert manifest.inputs == {"counts": {"events": 3}}
    assert manifest.config["encoder"]["dim"] == CONFIG.encoder.dim
    assert set(manifest.files) == {"encoder/weights.safetensors", "profiles/part.parquet"}
    assert manifest.files["profiles/part.parquet"].size_bytes == len(b"profiles")


def test_what_a_killed_writer_left_half_written_is_not_sealed(workspace: Workspace) -> None:
    left = workspace.staging("r-1") / "encoder" / "weights.safetensors.0f3a.tmp"
    left.write_bytes(b"half")
    manifest = sealed(workspace, "r-1")
    assert set(manifest.files) == {"encoder/weights.safetensors", "profiles/part.parquet"}
    Registry(workspace).promote("r-1", reason="its files are those that were sealed")


def test_a_release_is_never_sealed_twice(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    with pytest.raises(DataError, match="already published"):
        sealed(workspace, "r-1")


@pytest.mark.parametrize("release_id", ["", "../r", "a/b", ".hidden", "x" * 65, "a b"])
def test_ids_that_are_no_folder_names_are_refused(workspace: Workspace, release_id: str) -> None:
    with pytest.raises(InvalidRequest, match="release id"):
        sealed(workspace, release_id)
    with pytest.raises(NotFound):
        Registry(workspace).show(release_id)


def test_releases_are_listed_and_unfinished_ones_are_not(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    sealed(workspace, "r-2")
    (workspace.release("r-3") / "encoder" / "weights").write_bytes(b"half")
    assert [manifest.id for manifest in Registry(workspace).list()] == ["r-1", "r-2"]


def test_nothing_is_current_before_the_first_promotion(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    assert Registry(workspace).current() is None


def test_promotion_says_what_when_why_and_what_was_before(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    sealed(workspace, "r-2")
    registry = Registry(workspace)
    registry.promote("r-1", reason="first")
    registry.promote("r-2", reason="better")
    current = registry.current()
    assert current is not None
    assert (current.release, current.predecessor, current.reason) == ("r-2", "r-1", "better")
    assert current.promoted_at.endswith("+00:00")


def test_promoting_the_served_release_changes_nothing(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    registry = Registry(workspace)
    first = registry.promote("r-1", reason="first")
    assert registry.promote("r-1", reason="again") == first


def test_rolling_back_twice_goes_back_two(workspace: Workspace) -> None:
    registry = Registry(workspace)
    for release_id in ("r-1", "r-2", "r-3"):
        sealed(workspace, release_id)
        registry.promote(release_id, reason="next")
    assert registry.rollback(reason="slow").release == "r-2"
    current = registry.rollback(reason="slow too")
    assert (current.release, current.predecessor) == ("r-1", None)
    assert current.reason == "rolled back from r-2: slow too"
    with pytest.raises(NotFound, match="before the current one"):
        registry.rollback(reason="further")


def test_an_unknown_release_is_answered_with_those_that_exist(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    sealed(workspace, "r-2")
    with pytest.raises(NotFound, match="one of r-1, r-2"):
        Registry(workspace).promote("r-9", reason="typo")


@pytest.mark.parametrize("damage", ["changed", "lost", "added"])
def test_a_release_whose_files_are_not_the_sealed_ones_is_not_promoted(workspace: Workspace, damage: str) -> None:
    registry = Registry(workspace)
    sealed(workspace, "r-1")
    registry.promote("r-1", reason="first")
    sealed(workspace, "r-2")
    folder = workspace.release("r-2")
    if damage == "changed":
        (folder / "profiles" / "part.parquet").write_bytes(b"Profiles")  # the same length
    elif damage == "lost":
        (folder / "profiles" / "part.parquet").remove()
    else:
        (folder / "profiles" / "more.parquet").write_bytes(b"")
    with pytest.raises(ArtefactMismatch, match=f"1 {damage}, such as profiles/"):
        registry.promote("r-2", reason="hopeful")
    current = registry.current()
    assert current is not None
    assert current.release == "r-1"


def test_a_predecessor_that_was_changed_is_not_rolled_back_to(workspace: Workspace) -> None:
    registry = Registry(workspace)
    for release_id in ("r-1", "r-2"):
        sealed(workspace, release_id)
        registry.promote(release_id, reason="next")
    (workspace.release("r-1") / "profiles" / "part.parquet").write_bytes(b"Profiles")
    with pytest.raises(ArtefactMismatch):
        registry.rollback(reason="slow")


def test_a_manifest_of_another_version_is_told_by_its_keys(workspace: Workspace) -> None:
    sealed(workspace, "r-1")
    file = workspace.release("r-1") / "manifest.json"
    file.write_json({**file.read_json(), "flavour": "mint"})
    with pytest.raises(ArtefactMismatch, match="flavour"):
        Registry(workspace).show("r-1")


def test_a_current_file_that_is_not_ours_is_told(workspace: Workspace) -> None:
    (workspace.releases / "CURRENT").write_json({"release": "r-1"})
    with pytest.raises(ArtefactMismatch, match="CURRENT"):
        Registry(workspace).current()
