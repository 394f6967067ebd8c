"""Promotion and rollback against a plain list, digests against any changed bit, a switch that is whole or absent."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.storage import publish
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry, seal

CONFIG = SonderConfig.model_validate({"events": {"path": "log.csv"}})
RELEASES = ("r-1", "r-2", "r-3")
FILES = {"encoder/weights.safetensors": b"\x00weights\xff", "profiles/bucket=000/part-0.parquet": b"PAR1 rows PAR1"}


def workspace_at(folder: Path, *release_ids: str) -> Workspace:
    """A workspace with these releases sealed, none promoted."""
    workspace = Workspace.at(str(folder))
    staged = workspace.staging("history")
    (staged / "bucket").write_bytes(b"rows")
    publish(staged, workspace.history("s-1"), {})
    for release_id in release_ids:
        staged = workspace.staging(release_id)
        for name, content in FILES.items():
            (staged / name).write_bytes(content)
        told = {"parent": None, "snapshot": "s-1", "metrics": {}, "row_counts": {}, "as_of_us": 9}
        seal(staged, workspace, release_id=release_id, config=CONFIG, **told)  # type: ignore[arg-type]
    return workspace


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*RELEASES, "back"]), max_size=12))
def test_any_sequence_of_switches_serves_what_a_plain_list_says(steps: list[str]) -> None:
    served: list[str] = []  # the reference: oldest first, the last one is served
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(workspace_at(Path(folder), *RELEASES))
        for step in steps:
            if step == "back" and len(served) < 2:
                with pytest.raises(NotFound):
                    registry.rollback(reason="slow")
            elif step == "back":
                left = served.pop()
                assert registry.rollback(reason="slow").reason == f"rolled back from {left}: slow"
            else:
                registry.promote(step, reason="next")
                served += [step] if served[-1:] != [step] else []
            current = registry.current()
            if current is None:
                assert served == []
            else:
                assert current.release == served[-1]
                assert [promotion.release for promotion in current.history] == served[-2::-1]
                assert current.predecessor == (served[-2] if len(served) > 1 else None)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_release_with_any_one_bit_changed_is_neither_promoted_nor_rolled_back_to(
    name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder:
        workspace = workspace_at(Path(folder), "r-1", "r-2")
        registry = Registry(workspace)
        registry.promote("r-1", reason="first")
        current = registry.promote("r-2", reason="better")
        (workspace.release("r-1") / name).write_bytes(bytes(content))
        with pytest.raises(ArtefactMismatch, match=f"1 changed, such as {name}"):
            registry.promote("r-1", reason="hopeful")
        with pytest.raises(ArtefactMismatch, match=f"1 changed, such as {name}"):
            registry.rollback(reason="slow")
        assert registry.current() == current


def test_a_switch_that_is_killed_before_it_is_whole_leaves_the_old_release_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_at(tmp_path, "r-1", "r-2")
    registry = Registry(workspace)
    before = registry.promote("r-1", reason="first")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "mv", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("r-2", reason="better")
    assert registry.current() == before
    assert [manifest.id for manifest in registry.list()] == ["r-1", "r-2"]
    assert registry.promote("r-2", reason="better").predecessor == "r-1"


def test_the_new_release_is_written_whole_before_readers_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(workspace_at(tmp_path, "r-1", "r-2"))
    registry.promote("r-1", reason="first")
    move, seen = LocalFileSystem.mv, []

    def observed(fs: LocalFileSystem, source: str, target: str, **options: object) -> None:
        for moment in ("before", "after"):
            current = registry.current()
            seen.append((moment, Path(target).name, current and current.release))
            if moment == "before":
                move(fs, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "mv", observed)
    registry.promote("r-2", reason="better")
    assert seen == [("before", "CURRENT", "r-1"), ("after", "CURRENT", "r-2")]


def test_a_current_file_that_is_not_json_is_told(tmp_path: Path) -> None:
    workspace = workspace_at(tmp_path, "r-1")
    (workspace.releases / "CURRENT").write_bytes(b'{"release": "r-')
    with pytest.raises(ArtefactMismatch, match="CURRENT cannot be read"):
        Registry(workspace).current()
