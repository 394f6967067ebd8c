"""Releases without a model: profiles drawn at random, heads without trees, metrics as told. Seconds, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sonder.core.config import SonderConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import publish
from sonder.core.workspace import Workspace
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.releases.manifest import Manifest
from sonder.releases.registry import seal
from sonder.segments.clusters import CLUSTERS_FILE

START_US = 1_700_000_000_000_000
DIM = 8
STATES = ("new", "core", "casual", "marginal", "dormant")
METRICS = {
    "retrieval.encoder.ndcg_at_10": 0.04,
    "retrieval.encoder.hr_at_10": 0.08,
    "scores.buy_7d.auc": 0.75,
    "scores.buy_7d.ece": 0.02,
    "data.users": 200.0,
}
TASK = {"name": "buy_7d", "action": "buy", "within_days": 7}


def config_of(workspace: Workspace, **changes: Any) -> SonderConfig:
    raw = {"workspace": workspace.root.path, "events": {"path": "log.csv"}, "encoder": {"dim": DIM}, "scores": [TASK]}
    return SonderConfig.model_validate(raw | changes)


def seal_release(
    workspace: Workspace,
    release_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    profiles: pa.Table | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    parent: str | None = None,
    day: int = 60,
    tasks: tuple[Mapping[str, Any], ...] = (TASK,),
    **changes: Any,
) -> Manifest:
    """Seal one; `metrics` are added to METRICS (None takes one away), `changes` are sections of the configuration."""
    if not workspace.history("s-1").is_published():
        staged = workspace.staging("history")
        (staged / "bucket").write_bytes(b"rows")
        publish(staged, workspace.history("s-1"), {"counts": {"events": 3, "users": 200}, "paths": ["log.csv"]})
    as_of_us = START_US + day * MICROSECONDS_PER_DAY
    profiles = draw_profiles() if profiles is None else profiles
    staged = workspace.staging(release_id)
    (staged / "encoder" / "weights.safetensors").write_bytes(b"weights of " + release_id.encode())
    buckets = bucket_of(_series(profiles), 2)
    for bucket in range(2):
        profile_file(staged / "profiles", bucket).write_table(profiles.filter(pa.array(buckets == bucket)))
    heads = [{"task": dict(task), "outputs": [task["name"]]} for task in tasks]
    (staged / "scores" / "heads.json").write_json({"heads": heads, "refusals": []})
    quality = {"quality": {"intervals": {key: list(ends) for key, ends in (intervals or {}).items()}}}
    (staged / "scores" / "quality" / "buy_7d.json").write_json(quality)
    named = [{"id": number, "name": f"likes {number}"} for number in range(4)]
    (staged / "clusters" / CLUSTERS_FILE).write_json({"clusters": named})
    measured = {**METRICS, **(metrics or {})}
    return seal(
        staged,
        workspace,
        release_id=release_id,
        parent=parent,
        snapshot="s-1",
        config=config_of(workspace, scores=list(tasks), **changes),
        metrics={name: value for name, value in measured.items() if value is not None},
        row_counts={"profiles": profiles.num_rows, "cold": profiles.column("embedding").null_count, "seconds": 1.5},
        as_of_us=as_of_us,
    )


def draw_profiles(
    seed: int = 0, *, users: int = 200, first: int = 0, num_cold: int = 20, shift: float = 0.0, turn: bool = False
) -> pa.Table:
    """Profiles of users first … first + users. The same user is drawn alike by every seed, but for a little noise.

    `shift` moves the log-odds of scores; `turn` swaps the coordinates of all vectors: another space, same angles.
    """
    noise = np.random.default_rng(seed + 1)
    rows = [
        _row(number, noise, number >= first + users - num_cold, shift, turn) for number in range(first, first + users)
    ]
    return pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA)


def _row(number: int, noise: np.random.Generator, is_cold: bool, shift: float, turn: bool) -> dict[str, Any]:
    own = np.random.default_rng(number + 10_000)
    vector = own.normal(size=DIM) + 0.1 * noise.normal(size=DIM)
    vector = np.roll(vector, 3) if turn else vector
    state = int((own.integers(len(STATES)) + (noise.random() < 0.1)) % len(STATES))
    cluster = None if is_cold else int((own.integers(4) + (noise.random() < 0.1)) % 4)
    logit = own.normal() - 1 + 0.1 * noise.normal() + shift
    interest = {"rank": 0, "name": "thing", "medoid_item_id": "i1", "weight": 1.0, "num_events": 3, "state": "new"}
    return {
        "user_id": f"u{number:05d}",
        "as_of": START_US,
        "is_cold": is_cold,
        "cold_reason": "no_wanted_events" if is_cold else None,
        "num_events": 3,
        "segments": {
            "lifecycle": STATES[state],
            "cluster_id": cluster,
            "cluster": None if cluster is None else f"likes {cluster}",
        },
        "interests": [] if is_cold else [interest] * int(own.integers(1, 5)),
        "affinities": [],
        "scores": [{"name": "buy_7d", "value": 1 / (1 + np.exp(-logit)), "base_rate": 0.2, "drivers": []}],
        "embedding": None if is_cold else (vector / np.linalg.norm(vector)).tolist(),
    }


def _series(profiles: pa.Table) -> Any:
    import polars as pl

    return pl.Series(profiles.column("user_id").to_pylist())
