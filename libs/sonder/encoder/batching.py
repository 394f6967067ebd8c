"""Timelines -> flat tokens -> batches of segments of like length, so that hardly any work is spent on padding.

Shapes: U users, N tokens, S segments, B segments of a batch, T positions of its longest segment.
A token is an event with a wish in it: wanted or unwanted, never merely shown. Item -1 (unknown) stays a token.
Limits: everything of one worker stays in memory, 21 bytes an event; batches are cut from it by index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonder.encoder.specification import EncoderSpec
from sonder.encoder.time_classes import NUM_AGES, NUM_GAPS, NUM_HOURS, age_classes, gap_classes, hours_of_week
from sonder.history.timelines import Timelines

NUM_VALUES = 96  # classes of a value, by sign and two per doubling of its size


@dataclass(frozen=True)
class Tokens:
    """What the encoder reads of U users; unknown ids point at the last row of their table."""

    offsets: NDArray[np.int64]  # [U + 1]
    items: NDArray[np.int32]  # [N]
    actions: NDArray[np.int16]  # [N]
    surfaces: NDArray[np.int16]  # [N]
    gaps: NDArray[np.uint8]  # [N] log class of the time since the previous token
    hours: NDArray[np.uint8]  # [N] hour of the week
    ages: NDArray[np.uint8]  # [N] log class of the time since the first token of the user, spec.oldest_age at most
    values: NDArray[np.uint8]  # [N] class of the event's value, NUM_VALUES without one
    times_us: NDArray[np.int64]  # [N]
    is_wanted: NDArray[np.bool_]  # [N] of a known item

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @classmethod
    def concat(cls, parts: Iterable[Tokens]) -> Tokens:
        """Of disjoint sets of users, in their order; no part is held longer than until its columns are joined."""
        lengths: list[NDArray[np.int64]] = []
        pieces: dict[str, list[NDArray[Any]]] = {field.name: [] for field in fields(cls) if field.name != "offsets"}
        for part in parts:
            lengths.append(part.lengths)
            for name, held in pieces.items():
                held.append(getattr(part, name))
        offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
        return cls(offsets=offsets, **{name: np.concatenate(pieces.pop(name)) for name in list(pieces)})


@dataclass(frozen=True)
class Batch:
    """B segments, padded behind their newest token with the last row of every table."""

    items_BT: Tensor
    actions_BT: Tensor
    surfaces_BT: Tensor
    gaps_BT: Tensor
    hours_BT: Tensor
    ages_BT: Tensor
    values_BT: Tensor
    positions_BT: NDArray[np.int64]  # index of each token, -1 for padding


@dataclass(frozen=True)
class Segments:
    """Runs of tokens of one user each: start <= token < stop."""

    starts: NDArray[np.int64]  # [S]
    stops: NDArray[np.int64]  # [S]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.stops - self.starts


def wishes_of(timelines: Timelines, spec: EncoderSpec) -> Timelines:
    """The events that carry a wish: what an encoder reads."""
    return timelines.keep(_weights(timelines, spec) != 0)


def _weights(timelines: Timelines, spec: EncoderSpec) -> NDArray[np.float32]:
    """Weight of each event [N]."""
    weights = np.asarray([*spec.action_weights, 0.0], dtype=np.float32)  # index -1, unknown, reads the last
    return weights[timelines.actions]


def tokenise(timelines: Timelines, spec: EncoderSpec) -> Tokens:
    """Keep the events that carry a wish and translate them into table rows."""
    events = wishes_of(timelines, spec)
    items = np.where((events.items < 0) | (events.items >= spec.num_items), spec.num_items, events.items)
    surfaces = np.where(events.surfaces < 0, spec.num_surfaces, events.surfaces)
    return Tokens(
        offsets=events.offsets,
        items=items.astype(np.int32),
        actions=events.actions,
        surfaces=surfaces.astype(np.int16),
        gaps=gap_classes(events).astype(np.uint8),
        hours=hours_of_week(events).astype(np.uint8),
        ages=np.minimum(age_classes(events), spec.oldest_age).astype(np.uint8),
        values=_value_classes(events.values),
        times_us=events.times_us,
        is_wanted=(_weights(events, spec) > 0) & (items < spec.num_items),
    )


def newest_segments(tokens: Tokens, max_length: int) -> Segments:
    """The newest tokens of each user with any, in the order of the users."""
    has_any = tokens.lengths > 0
    stops = tokens.offsets[1:][has_any]
    return Segments(starts=np.maximum(tokens.offsets[:-1][has_any], stops - max_length), stops=stops)


def all_segments(
    offsets: NDArray[np.int64], ends_U: NDArray[np.int64], max_length: int, shifts_U: NDArray[np.int64]
) -> Segments:
    """Cut every history up to its end into segments, the newest one shortened by the user's shift if there are more."""
    begins_U = offsets[:-1]
    lengths_U = np.maximum(ends_U - begins_U, 0)
    shifts_U = np.where(lengths_U > max_length, shifts_U % max_length, 0)
    num_U = -(-(lengths_U + shifts_U) // max_length)
    users_S = np.repeat(np.arange(len(begins_U)), num_U)
    ranks_S = np.arange(len(users_S)) - np.repeat(np.cumsum(num_U) - num_U, num_U)  # 0 is the newest
    stops_S = ends_U[users_S] + shifts_U[users_S] - ranks_S * max_length
    starts_S = np.maximum(stops_S - max_length, begins_U[users_S])
    return Segments(starts=starts_S, stops=np.minimum(stops_S, ends_U[users_S]))


def plan_batches(
    lengths_S: NDArray[np.int64], batch_tokens: int, order_S: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Segments grouped by like length, at most `batch_tokens` padded positions each; `order_S` breaks ties."""
    by_length = order_S[np.argsort(lengths_S[order_S], kind="stable")]
    lengths = lengths_S[by_length]
    batches, start = [], 0
    while start < len(by_length):
        # padded size of a batch start:stop is (stop - start) * lengths[stop - 1]; it grows with stop
        ahead = lengths[start : start + batch_tokens + 1]
        sizes = np.arange(1, len(ahead) + 1) * ahead
        stop = start + max(int(np.searchsorted(sizes, batch_tokens, side="right")), 1)
        batches.append(by_length[start:stop])
        start = stop
    return batches


def collate(
    tokens: Tokens,
    spec: EncoderSpec,
    starts_B: NDArray[np.int64],
    stops_B: NDArray[np.int64],
    device: torch.device | None = None,
) -> Batch:
    """Gather segments into rectangles, on the device if one is named."""
    grid_BT = starts_B[:, None] + np.arange(int((stops_B - starts_B).max()))[None, :]
    is_real_BT = grid_BT < stops_B[:, None]
    inside_BT = np.where(is_real_BT, grid_BT, 0)

    def rows(values_N: NDArray[np.int32] | NDArray[np.int16] | NDArray[np.uint8], padding: int) -> Tensor:
        return torch.from_numpy(np.where(is_real_BT, values_N[inside_BT], padding).astype(np.int64)).to(device)

    return Batch(
        items_BT=rows(tokens.items, spec.num_items),
        actions_BT=rows(tokens.actions, spec.num_actions),
        surfaces_BT=rows(tokens.surfaces, spec.num_surfaces),
        gaps_BT=rows(tokens.gaps, NUM_GAPS),
        hours_BT=rows(tokens.hours, NUM_HOURS),
        ages_BT=rows(tokens.ages, NUM_AGES),
        values_BT=rows(tokens.values, NUM_VALUES),
        positions_BT=np.where(is_real_BT, grid_BT, -1),
    )


def _value_classes(values_N: NDArray[np.float64]) -> NDArray[np.uint8]:
    """By sign and logarithm: 0 up to a tenth, then half doublings to about a million; the same again below zero."""
    half = NUM_VALUES // 2
    sizes = np.clip(np.rint(2 * np.log2(np.maximum(np.abs(values_N), 1e-9)) + 7), 0, half - 1)
    classes = np.where(values_N < 0, half + sizes, sizes)
    return np.where(np.isfinite(values_N), classes, NUM_VALUES).astype(np.uint8)
