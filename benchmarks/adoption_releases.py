"""Two releases of one small synthetic world whose log ends now: a rough encoder and a better trained one.

Rough: one block over the ten newest events, one epoch at a learning rate that leaves the weights nearly as they were
drawn. Trained: the defaults, for as many epochs as asked.

The world's own log lies in 2025; here every timestamp is moved by the same whole number of days, so that what
users do while the releases are served comes hours after the log and not years.
"""

from __future__ import annotations

import json
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

ROUGH = ("encoder.max_epochs=1", "encoder.num_blocks=1", "encoder.max_length=10", "encoder.learning_rate=0.000001")
IN_BOTH = ("scores=[]",)  # nobody asks for scores here
BUILT = "adoption-releases.json"  # beside sonder.yaml: which release is which


@dataclass(frozen=True)
class Releases:
    """What was built below a folder."""

    config: WorldConfig
    file: Path  # sonder.yaml
    workspace: Workspace
    rough: str
    trained: str


def build_releases(config: WorldConfig, folder: Path, *, epochs: int) -> Releases:
    """Write the log, build both, serve the rough one; what is there already is not made again."""
    file = folder / "sonder.yaml"
    if not file.exists():
        write_world(config, Folder.at(str(folder)))
        _move_to_now(config, folder)
    workspace = Workspace.at(str(folder / "workspace"))
    registry, built = Registry(workspace), folder / BUILT
    known: dict[str, str] = json.loads(built.read_text()) if built.exists() else {}
    for name, settings in (("rough", ROUGH), ("trained", (f"encoder.max_epochs={epochs}",))):
        if name not in known:
            before = {one.id for one in registry.list()}
            _sonder("build", "-c", str(file), *(part for one in (*settings, *IN_BOTH) for part in ("--set", one)))
            (known[name],) = {one.id for one in registry.list()} - before
            built.write_text(json.dumps(known))
    current = registry.current()
    if current is None or current.release != known["rough"]:
        registry.promote(known["rough"], reason="the control of the adoption story")
    return Releases(config, file, workspace, known["rough"], known["trained"])


def _move_to_now(config: WorldConfig, folder: Path) -> None:
    """Add whole days to events and sign-ups, so that the log's last day is yesterday or earlier today."""
    days = (datetime.now(UTC) - START - timedelta(days=config.num_days)).days
    for path in (*sorted((folder / "events").glob("*.parquet")), folder / "users.parquet"):
        column = "signup_at" if path.name == "users.parquet" else "timestamp"
        moved = pl.read_parquet(path).with_columns(pl.col(column) + timedelta(days=days))
        moved.write_parquet(path)


def _sonder(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], check=True)
