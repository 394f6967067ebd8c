"""Small releases over a tiny log whose encoders are as they were drawn: what probes and rankings are tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonder.core.config import EncoderConfig, EvaluationConfig, SonderConfig
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, save_encoder
from sonder.encoder.content import item_content
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import derive, summarise
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import INCREMENT_FILE, Release
from sonder.releases.registry import seal
from tests.tiny_log import ACTIONS, random_log, timelines_of, vocabulary_of, write_snapshot

NUM_USERS, NUM_ITEMS, EARLY, LATE, TEST_DAYS = 400, 16, 70, 80, 10
LOG = random_log(5, num_users=NUM_USERS, num_items=NUM_ITEMS, num_days=LATE)


def log_until(day: int, num_items: int = NUM_ITEMS) -> Timelines:
    """As the log was: what came later, users and items, is not there."""
    users = {
        user: [event for event in events if event[0] < day and event[1] < num_items] for user, events in LOG.items()
    }
    return with_prices(timelines_of({user: events for user, events in users.items() if events}))


def with_prices(timelines: Timelines) -> Timelines:
    return replace(timelines, values=np.where(timelines.actions == ACTIONS.index("buy"), 2.5, np.nan))


def untrained(timelines: Timelines, vocabulary: Vocabulary, seed: int, dim: int = 8) -> Encoder:
    """Weights as they were drawn."""
    content = item_content(vocabulary)
    spec = derive(
        EncoderConfig(dim=dim, num_blocks=1), EvaluationConfig(test_days=TEST_DAYS), vocabulary,
        summarise(timelines, vocabulary), reads_time=True, seed=seed, content=content.shape,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = UserEncoder(spec, content).state_dict()
    return Encoder.of(spec, weights, np.ones(vocabulary.num_items, np.bool_), content=content)


def two_releases(folder: Path) -> SonderConfig:
    """A workspace with the snapshots `early` and `late`, a release of each; the early one knows twelve items."""
    config = SonderConfig.model_validate(
        {
            "workspace": str(folder / "workspace"),
            "events": {"path": "unused"},
            "evaluation": {"test_days": TEST_DAYS},
        }
    )
    workspace = Workspace.at(config.workspace)
    for name, day, num_items, num_buckets in (("early", EARLY, 12, 3), ("late", LATE, NUM_ITEMS, 2)):
        vocabulary = vocabulary_of([f"c{item % 4}" for item in range(num_items)])
        write_snapshot(workspace, name, log_until(day, num_items), vocabulary, num_buckets=num_buckets)
    make_release(config, "r-early", "early", EARLY)
    make_release(config, "r-late", "late", LATE, seed=2, dim=16)
    return config


def make_release(
    config: SonderConfig,
    name: str,
    snapshot: str,
    day: int,
    *,
    seed: int = 1,
    dim: int = 8,
    training: dict[str, Any] | None = None,
    increment: dict[str, Any] | None = None,
    **evaluation: Any,
) -> Release:
    workspace = Workspace.at(config.workspace)
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    staged = workspace.staging(name)
    encoder = untrained(log_until(day, vocabulary.num_items), vocabulary, seed, dim)
    save_encoder(encoder, staged / "encoder", metrics=training)
    vocabulary.save(staged / "items")
    if increment is not None:
        (staged / INCREMENT_FILE).write_json(increment)
    settings = config.model_dump(mode="json") | {"evaluation": {"test_days": TEST_DAYS} | evaluation}
    seal(
        staged, workspace, release_id=name, parent=None, snapshot=snapshot,
        config=SonderConfig.model_validate(settings), metrics={}, row_counts={}, as_of_us=day * DAY,
    )  # fmt: skip
    return Release.open(workspace, name)


def opened(config: SonderConfig, name: str) -> Release:
    return Release.open(Workspace.at(config.workspace), name)
