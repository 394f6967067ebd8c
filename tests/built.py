"""A small world, built once per session by the real jobs: what the tests of the whole main job look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sonder.core.config import SonderConfig, load

OVERRIDES = (
    *("encoder.dim=16", "encoder.max_epochs=2", "encoder.num_heads=2"),
    *("prepare.num_buckets=3", "scoring.trials=2", "scoring.backtest_cutoffs=2"),
)


@dataclass(frozen=True)
class BuiltWorld:
    """Where the world, its configuration and its release lie."""

    config_file: Path
    overrides: tuple[str, ...]
    release_id: str

    @property
    def config(self) -> SonderConfig:
        return load(self.config_file, self.overrides)

    @property
    def arguments(self) -> list[str]:
        """As `sonder` commands take them."""
        sets = [argument for override in self.overrides for argument in ("--set", override)]
        return ["--config", str(self.config_file), *sets]


def write_small_world(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A world of 800 users over 90 days, and the overrides that keep its build short."""
    from sonder.core.storage import Folder
    from sonder.events.synthetic import WorldConfig, write_world

    write_world(WorldConfig(num_users=800, num_days=90, seed=11), Folder.at(str(folder)))
    return folder / "sonder.yaml", (*OVERRIDES, f"workspace={folder / 'workspace'}")
