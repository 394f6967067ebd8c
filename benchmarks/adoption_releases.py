"""Two releases of one small synthetic world whose log ends now: one trained for a single epoch, one trained properly.

The world's own log lies in 2025; here every timestamp is moved by the same whole number of days, so that what
users do while the releases are served comes hours after the log and not years.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.synthetic import WorldConfig, write_world
from sonder.events.synthetic.config import START
from sonder.releases.registry import Registry

ROUGH = ("encoder.max_epochs=1", "scores=[]")
TRAINED = ("encoder.max_epochs=25", "scores=[]")


@dataclass(frozen=True)
class Releases:
    """What was built below a folder."""

    config: WorldConfig
    file: Path  # sonder.yaml
    workspace: Workspace
    rough: str
    trained: str


def build_releases(config: WorldConfig, folder: Path) -> Releases:
    """Write the log, build both, promote the rough one; what is there already is not made again."""
    file = folder / "sonder.yaml"
    if not file.exists():
        write_world(config, Folder.at(str(folder)))
        _move_to_now(config, folder)
    workspace = Workspace.at(str(folder / "workspace"))
    registry = Registry(workspace)
    found = sorted(one.id for one in registry.list())
    for number, settings in enumerate((ROUGH, TRAINED)):
        if len(found) <= number:
            _sonder("build", "-c", str(file), *(part for one in settings for part in ("--set", one)))
            found += sorted({one.id for one in registry.list()} - set(found))
    current = registry.current()
    if current is None:
        _sonder("release", "promote", found[0], "-c", str(file))
    return Releases(config, file, workspace, found[0], found[1])


def _move_to_now(config: WorldConfig, folder: Path) -> None:
    """Add whole days to events and sign-ups, so that the log's last day is yesterday or earlier today."""
    days = (datetime.now(UTC) - START - timedelta(days=config.num_days)).days
    for path in (*sorted((folder / "events").glob("*.parquet")), folder / "users.parquet"):
        column = "signup_at" if path.name == "users.parquet" else "timestamp"
        moved = pl.read_parquet(path).with_columns(pl.col(column) + timedelta(days=days))
        moved.write_parquet(path)


def _sonder(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], check=True)
