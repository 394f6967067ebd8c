"""The newest state of each segment, as `UserEncoder` defines it, computed several times as fast: the path of inference.

Shapes: S segments, N tokens of all of them end to end, T longest segment of a group, D width, H heads, d = D / H.
What the model says for padded rectangles is computed here for real tokens alone, end to end; only attention needs
rectangles, and gets them by groups of like length. What a token starts from is one sum of rows of one table, made once
from the weights: an item's row with its content, scaled. In the last block a state besides the newest is read by recall
alone, and without recall is not computed. Rotations are products of complex numbers: the rows of the query and key
weights are permuted so that the two parts of each stand together, which changes no product of a query and a key.
Held to `UserEncoder` by property, to the rounding of float32.
Limits: the weights must not change while this is used. Past TABLE_ITEMS items no table of items is made, and rows are
looked up as the model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sonder.encoder.batching import Segments, Tokens
from sonder.encoder.model import Block, UserEncoder

TABLE_ITEMS = 1 << 20
GROUP_COST = 8_000  # pairs of positions that cost what one more group of attention does


@dataclass(frozen=True)
class Flat:
    """The tokens of S segments end to end, shortest segment first."""

    indices_N: NDArray[np.int64]  # places in `Tokens`
    positions_N: NDArray[np.int64]  # 0 for the oldest token of its segment
    bounds: NDArray[np.int64]  # [S + 1] where each segment starts and ends

    @classmethod
    def of(cls, segments: Segments, rows_S: NDArray[np.int64]) -> Flat:
        """The segments of these rows, which are sorted by length."""
        lengths = segments.lengths[rows_S]
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        return cls(positions + np.repeat(segments.starts[rows_S], lengths), positions, bounds)


@dataclass(frozen=True)
class _Group:
    """Neighbouring segments of like length, to be attended together as a rectangle [B, T]."""

    tokens: slice  # of the N
    num_segments: int
    length: int
    padded_BT: Tensor | None  # token of each place; None where all are equally long
    real: Tensor | None  # places that hold a token

    def rectangle(self, rows_ND: Tensor) -> Tensor:
        """[N, E] -> [B, T, E]."""
        rows = rows_ND[self.tokens] if self.padded_BT is None else rows_ND[self.padded_BT]
        return rows.view(self.num_segments, self.length, -1)

    def flat(self, x_BTD: Tensor) -> Tensor:
        """[B, T, E] -> the group's tokens [n, E]."""
        rows = x_BTD.reshape(self.num_segments * self.length, -1)
        return rows if self.real is None else rows[self.real]


def split_by_length(lengths_S: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Sorted lengths -> runs of segments whose padding costs less than one more group would."""
    runs: list[tuple[int, int]] = []
    pending = [(0, len(lengths_S))] if len(lengths_S) else []
    while pending:
        start, stop = pending.pop()
        squares = lengths_S[start:stop] ** 2
        first = np.arange(1, stop - start)
        saved = first * (squares[-1] - squares[:-1])  # pairs less, by how many segments are in the first part
        best = int(saved.argmax()) if len(saved) else 0
        if len(saved) and saved[best] > GROUP_COST:
            pending += [(start + best + 1, stop), (start, start + best + 1)]
        else:
            runs.append((start, stop))
    return runs


class NewestStates:
    """A model read for inference; made from its weights as they are now."""

    @torch.inference_mode()
    def __init__(self, model: UserEncoder, max_length: int) -> None:
        self._model = model
        self._blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        self._qkv = [_interleaved(block) for block in self._blocks]
        head_dim = self._blocks[0].head_dim
        frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=model.device) / head_dim)
        angles = torch.arange(max_length, device=model.device)[:, None] * frequencies[None, :]
        self._turns = torch.polar(torch.ones_like(angles), angles)  # [T, d / 2]
        self._rows: Tensor | None = None
        if model.num_items <= TABLE_ITEMS:
            self._rows = model.item_rows(torch.arange(model.num_items + 1, device=model.device))
        fields: dict[str, torch.nn.Embedding | None] = {
            "actions": model.actions,
            "surfaces": model.surfaces,
            "values": model.values,
            "gaps": model.gaps,
            "hours": model.hours,
            "ages": model.ages,
        }
        self._fields = {name: table.weight for name, table in fields.items() if table is not None}
        tables = ([] if self._rows is None else [self._rows]) + list(self._fields.values())
        self._table = torch.cat(tables) * model.scale
        self._starts = np.concatenate(([0], np.cumsum([len(table) for table in tables])))[:-1]
        self._units: Tensor | None = None
        if model.recall is not None and self._rows is not None:
            self._units = functional.normalize(self._rows, dim=-1)

    @torch.inference_mode()
    def __call__(self, tokens: Tokens, flat: Flat) -> Tensor:
        """Unit states of the newest token of each segment -> [S, D], in the order of `flat`."""
        model, newest = self._model, torch.from_numpy(flat.bounds[1:] - 1).to(self._model.device)
        items_N = torch.from_numpy(tokens.items[flat.indices_N].astype(np.int64)).to(model.device)
        x_ND = self._start(tokens, flat, items_N)
        turns = self._turns[torch.from_numpy(flat.positions_N).to(model.device)][:, None, :]
        groups = self._groups(flat)
        with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=model.casts):
            for block, qkv in zip(self._blocks[:-1], self._qkv, strict=False):
                x_ND = _through(block, qkv, x_ND, turns, groups)
            if model.recall is None:
                x_SD = _newest_through(self._blocks[-1], self._qkv[-1], x_ND, turns, groups, newest)
                return functional.normalize(model.norm(x_SD), dim=-1)
            x_ND = _through(self._blocks[-1], self._qkv[-1], x_ND, turns, groups)
        x_ND = model.norm(x_ND)
        states_SD = x_ND[newest] / model.scale + self._recalled(x_ND, items_N, tokens, flat, groups, newest)
        return functional.normalize(states_SD, dim=-1)

    def _start(self, tokens: Tokens, flat: Flat, items_N: Tensor) -> Tensor:
        """What the first block reads [N, D]."""
        columns = [] if self._rows is None else [tokens.items]
        columns += [getattr(tokens, name) for name in self._fields]
        places_NF = np.stack([column[flat.indices_N] for column in columns], axis=1) + self._starts
        x_ND = functional.embedding_bag(torch.from_numpy(places_NF).to(items_N.device), self._table, mode="sum")
        return x_ND if self._rows is not None else x_ND + self._model.item_rows(items_N) * self._model.scale

    def _recalled(
        self, x_ND: Tensor, items_N: Tensor, tokens: Tokens, flat: Flat, groups: list[_Group], newest: Tensor
    ) -> Tensor:
        """What recall adds to the newest states [S, D]."""
        recall = self._model.recall
        assert recall is not None
        to_query, to_key = recall.query_key.weight.chunk(2)
        query_SD, key_ND = functional.linear(x_ND[newest], to_query), functional.linear(x_ND, to_key)
        unit_ND = functional.normalize(self._model.item_rows(items_N), dim=-1) if self._units is None else None
        actions_N = torch.from_numpy(tokens.actions[flat.indices_N].astype(np.int64)).to(items_N.device)
        unit_ND = self._units[items_N] if unit_ND is None and self._units is not None else unit_ND
        assert unit_ND is not None
        wanted_ND = unit_ND * recall.is_wanted[actions_N][:, None]
        segments = iter(_newest_of(groups, query_SD))
        means = [
            functional.scaled_dot_product_attention(
                query[:, None], group.rectangle(key_ND), group.rectangle(wanted_ND), attn_mask=is_older
            )[:, 0]
            for group, (query, is_older) in zip(groups, segments, strict=True)
        ]
        return recall.gain * functional.normalize(torch.cat(means), dim=-1)

    def _groups(self, flat: Flat) -> list[_Group]:
        lengths, groups = np.diff(flat.bounds), []
        for start, stop in split_by_length(lengths):
            num, length, base = stop - start, int(lengths[stop - 1]), int(flat.bounds[start])
            tokens = slice(base, int(flat.bounds[stop]))
            padded, real = None, None
            if lengths[start] != length:
                grid = flat.bounds[start:stop, None] + np.arange(length)
                is_real = np.arange(length) < lengths[start:stop, None]
                padded = torch.from_numpy(np.where(is_real, grid, base).reshape(-1)).to(self._model.device)
                real = torch.from_numpy(np.flatnonzero(is_real)).to(self._model.device)
            groups.append(_Group(tokens, num, length, padded, real))
        return groups


def _interleaved(block: Block) -> Tensor:
    """The block's query, key and value weights with the two parts of each rotation side by side in the first two."""
    D, half = block.qkv.weight.shape[1], block.head_dim // 2
    heads = block.qkv.weight[: 2 * D].view(2 * block.num_heads, 2, half, D).transpose(1, 2).reshape(2 * D, D)
    return torch.cat([heads, block.qkv.weight[2 * D :]])


def _turned(x_NE: Tensor, turns: Tensor, num_heads: int) -> Tensor:
    """Rotate queries or keys [N, E] by their positions."""
    parts = x_NE.float().view(len(x_NE), num_heads, -1, 2)
    return torch.view_as_real(torch.view_as_complex(parts) * turns).reshape(x_NE.shape)


def _through(block: Block, qkv: Tensor, x_ND: Tensor, turns: Tensor, groups: list[_Group]) -> Tensor:
    """One block over all tokens [N, D]."""
    D = x_ND.shape[1]
    projected = functional.linear(block.attention_norm(x_ND), qkv)
    turned = _turned(projected[:, : 2 * D].contiguous(), turns, 2 * block.num_heads)
    projected = torch.cat([turned, projected[:, 2 * D :].float()], dim=1)
    mixed = []
    for group in groups:
        parts = group.rectangle(projected).view(group.num_segments, group.length, 3, block.num_heads, block.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed.append(group.flat(attended.transpose(1, 2).reshape(group.num_segments, group.length, D)))
    x_ND = x_ND + block.mix(torch.cat(mixed))
    return x_ND + block.feed(x_ND)


def _newest_through(
    block: Block, qkv: Tensor, x_ND: Tensor, turns: Tensor, groups: list[_Group], newest: Tensor
) -> Tensor:
    """The last block, for the newest token of each segment alone -> [S, D]."""
    D, H = x_ND.shape[1], block.num_heads
    normed = block.attention_norm(x_ND)
    query_SD = _turned(functional.linear(normed[newest], qkv[:D]), turns[newest], H)
    projected = functional.linear(normed, qkv[D:])
    key_ND = _turned(projected[:, :D].contiguous(), turns, H)
    kept = torch.cat([key_ND, projected[:, D:].float()], dim=1)
    mixed = []
    for group, (query, is_older) in zip(groups, _newest_of(groups, query_SD), strict=True):
        parts = group.rectangle(kept).view(group.num_segments, group.length, 2, H, block.head_dim)
        k, v = parts.permute(2, 0, 3, 1, 4)
        query = query.view(group.num_segments, H, 1, block.head_dim)
        mask = None if is_older is None else is_older[:, None]
        mixed.append(functional.scaled_dot_product_attention(query, k, v, attn_mask=mask).reshape(-1, D))
    x_SD: Tensor = x_ND[newest] + block.mix(torch.cat(mixed))
    return x_SD + block.feed(x_SD)


def _newest_of(groups: list[_Group], rows_SD: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Rows of each group's segments, and which places [B, 1, T] of its rectangle hold a token; None where all do."""
    bounds = np.concatenate(([0], np.cumsum([group.num_segments for group in groups])))
    found: list[tuple[Tensor, Tensor | None]] = []
    for group, (start, stop) in zip(groups, pairwise(bounds.tolist()), strict=True):
        mask = None
        if group.real is not None:
            mask = torch.zeros(group.num_segments * group.length, dtype=torch.bool, device=rows_SD.device)
            mask[group.real] = True
            mask = mask.view(group.num_segments, 1, group.length)
        found.append((rows_SD[start:stop], mask))
    return found
