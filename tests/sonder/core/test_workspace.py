"""Where the folders of an installation lie, and what a node keeps for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.errors import ConfigurationError
from sonder.core.workspace import NODE_FOLDER, Workspace


def test_embedded_stores_lie_in_a_local_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NODE_FOLDER, raising=False)
    workspace = Workspace.at(str(tmp_path))
    assert (workspace.store, workspace.online_log) == (tmp_path / "store", tmp_path / "log" / "online")


def test_a_node_keeps_them_where_it_was_told_and_apart_for_each_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_FOLDER, str(tmp_path / "node"))
    stores = {Workspace.at(uri).store for uri in (str(tmp_path / "a"), str(tmp_path / "b"), "memory://a")}
    assert len(stores) == 3
    assert all(store.is_relative_to(tmp_path / "node") for store in stores)
    assert Workspace.at("memory://a").store in stores  # the same in every process


def test_a_shared_workspace_has_none_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NODE_FOLDER, raising=False)
    with pytest.raises(ConfigurationError, match=f"Set {NODE_FOLDER}"):
        _ = Workspace.at("memory://a").store
