"""Small worlds for the encoder: timelines from literals, and a specification that trains in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from sonder.encoder.specification import EncoderSpec
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

MakeTimelines = Callable[..., Timelines]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Worlds this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[True, False], ids=["recalling", "plain"])
def spec(request: pytest.FixtureRequest) -> EncoderSpec:
    """Ten items, actions (buy, hide, impression), no dropout."""
    return EncoderSpec(
        num_items=10,
        num_actions=3,
        num_surfaces=2,
        action_weights=(1.0, -1.0, 0.0),
        reads_time=True,
        dim=16,
        num_blocks=2,
        num_heads=2,
        max_length=8,
        dropout=0.0,
        objective="next_action",
        window_us=0,
        num_negatives=8,
        batch_tokens=64,
        learning_rate=1e-2,
        weight_decay=0.01,
        average_decay=0.9,
        excludes_seen=False,
        recalls=request.param,
        seed=3,
    )


@pytest.fixture
def make_timelines() -> MakeTimelines:
    """`make_timelines([[items of user 0], ...], actions=..., times_s=...)`; one event a minute unless told."""

    def make(
        items: Sequence[Sequence[int]],
        actions: Sequence[Sequence[int]] | None = None,
        times_s: Sequence[Sequence[int]] | None = None,
    ) -> Timelines:
        lengths = [len(row) for row in items]
        num = sum(lengths)
        flat_actions = [a for row in actions for a in row] if actions else [0] * num
        flat_times = [t for row in times_s for t in row] if times_s else [60 * t for n in lengths for t in range(n)]
        return Timelines(
            user_ids=pa.array([f"user-{row}" for row in range(len(items))]),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            items=np.array([i for row in items for i in row], dtype=np.int32),
            actions=np.array(flat_actions, dtype=np.int16),
            surfaces=np.zeros(num, dtype=np.int16),
            times_us=np.array(flat_times, dtype=np.int64) * 1_000_000,
            values=np.full(num, np.nan),
        )

    return make


@pytest.fixture
def make_vocabulary() -> Callable[..., Vocabulary]:
    def make(num_items: int = 10, actions: tuple[str, ...] = ("buy", "hide", "impression")) -> Vocabulary:
        columns = {field.name: pa.nulls(num_items, field.type) for field in ITEM_SCHEMA}
        columns["item_index"] = pa.array(range(num_items), pa.int32())
        columns["item_id"] = pa.array([f"item-{i}" for i in range(num_items)])
        columns["num_events"] = pa.array([0] * num_items, pa.int64())
        weights = {"hide": -1.0, "impression": 0.0}
        return Vocabulary(pa.table(columns), actions, tuple(weights.get(a, 1.0) for a in actions), ("home", "search"))

    return make


@pytest.fixture
def cycle_timelines(make_timelines: MakeTimelines) -> Timelines:
    """60 users who walk the ten items in a circle, from different starts: the next item is certain."""
    return make_timelines([[(start + step) % 10 for step in range(4 + start % 5)] for start in range(60)])


@pytest.fixture
def dense_spec(spec: EncoderSpec) -> EncoderSpec:
    return replace(spec, objective="dense_all_action", window_us=100 * 1_000_000)
