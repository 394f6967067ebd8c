"""Promote a release through the gate: what consumers rely on is read from the file that the configuration names."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from sonder.core.config import SonderConfig
from sonder.core.errors import PromotionRefused
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.checking import Gate, check
from sonder.releases.consumers import Consumers, load_consumers
from sonder.releases.current import Current
from sonder.releases.gate import Verdict
from sonder.releases.registry import Registry


def read_consumers(config: SonderConfig) -> Consumers | None:
    """Who relies on a release; None where the configuration names no file."""
    if config.consumers is None:
        return None
    path = config.consumers
    return load_consumers(Folder.at(path if "://" in path else str(Path(path).resolve())))


def gate_of(config: SonderConfig, forced_by: str | None = None) -> Gate | None:
    """What a promotion goes through; None where nobody relies on anything."""
    consumers = read_consumers(config)
    return None if consumers is None else Gate(Workspace.at(config.workspace), consumers, forced_by)


def promote_release(config: SonderConfig, release_id: str, *, reason: str, forced_by: str | None = None) -> Current:
    """Serve a release if it keeps what consumers rely on, or whatever it keeps if somebody forces it."""
    workspace = Workspace.at(config.workspace)
    return Registry(workspace).promote(release_id, reason=reason, gate=gate_of(config, forced_by))


def promote_build(config: SonderConfig, release_id: str, *, asked: bool) -> PromotionRefused | None:
    """Serve a new release if that was asked, or if nothing is served yet -> the refusal, if there was one."""
    if not asked and Registry(Workspace.at(config.workspace)).current() is not None:
        return None
    try:
        promote_release(config, release_id, reason="asked by build" if asked else "first release of the workspace")
    except PromotionRefused as refusal:
        return refusal
    return None


def check_release(config: SonderConfig, release_id: str, against: str | None) -> Verdict:
    """What the gate says of a release compared with another, or with the served one if there is one."""
    workspace = Workspace.at(config.workspace)
    current = Registry(workspace).current()
    compared = against or (current.release if current is not None else None)
    return check(workspace, read_consumers(config) or Consumers(consumers=()), release_id, compared)


def operator() -> str:
    """Who runs this command: the name of the account, or its number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a number without an account
        return f"uid {os.getuid()}"
