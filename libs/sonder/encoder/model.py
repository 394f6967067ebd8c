"""A causal transformer: the tokens of a history -> one state per event, each a function of that event and older ones.

Shapes: B segments, T positions (oldest first, padding last), D width, H heads, I items.
Padding stands behind every real event, so the causal mask alone keeps it out of all real states. The tables end in
one extra row for "unknown or none" that stays zero and learns nothing.
Source: pre-norm blocks with rotary positions (RoFormer, 2021) and a gated feed-forward (SwiGLU, 2020).
Limits: positions are relative, so a segment may start anywhere in a history.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonder.encoder.batching import NUM_VALUES, Batch
from sonder.encoder.content import ItemContent
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.time_classes import NUM_AGES, NUM_GAPS, NUM_HOURS

ID_DROPOUT = 0.1  # share of items that are read by their content alone in training, as an item that is new will be
HOTTEST, COLDEST = 0.03, 1.0  # temperatures; below the first, exp() of a cosine difference leaves float32


class UserEncoder(nn.Module):
    """Item table, token embeddings and blocks. The item vectors and the states are compared by cosine."""

    def __init__(self, spec: EncoderSpec, content: ItemContent | None = None) -> None:
        """`content` None: nothing is known of any item but its id, and `spec.content` says so."""
        super().__init__()
        shape = spec.content
        self.num_items, self.dim = spec.num_items, spec.dim
        self.scale = math.sqrt(spec.dim)
        self.dropout = spec.dropout
        self.casts = spec.precision == "bfloat16"
        self.items = _table(
            shape.num_id_rows or spec.num_items,
            spec.dim,
            std=1 / math.sqrt(spec.dim * shape.rows_of_an_id),
            is_sparse=spec.is_sparse,
        )
        self.features: nn.Embedding | None = None
        if shape.num_features:
            self.features = _table(shape.num_rows, spec.dim, std=1 / math.sqrt(spec.dim * shape.num_features))
        self.given = nn.Linear(shape.vector_width, spec.dim, bias=False) if shape.vector_width else None
        if self.given is not None:
            nn.init.normal_(self.given.weight, std=1 / math.sqrt(spec.dim))
        self.feature_rows: Tensor
        self.vectors: Tensor
        self.id_rows: Tensor | None
        self.is_known: Tensor | None
        self._place(content or ItemContent.nothing(spec.num_items))
        self.actions = _table(spec.num_actions, spec.dim)
        self.surfaces = _table(spec.num_surfaces, spec.dim) if spec.num_surfaces else None
        self.values = _table(NUM_VALUES, spec.dim) if spec.reads_value else None
        self.gaps = _table(NUM_GAPS, spec.dim) if spec.reads_time else None
        self.hours = _table(NUM_HOURS, spec.dim) if spec.reads_time else None
        self.ages = _table(NUM_AGES, spec.dim) if spec.reads_time else None
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.num_blocks))
        self.norm = nn.LayerNorm(spec.dim)
        self.recall = Recall(spec) if spec.recalls else None
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self.popularity_weight = nn.Parameter(torch.ones(()))

    @property
    def device(self) -> torch.device:
        return self.items.weight.device

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(HOTTEST, COLDEST)

    @property
    def popularity(self) -> Tensor:
        """How much of an item's log popularity its scores get, in logits."""
        return self.popularity_weight.clamp(0.0, 2.0)

    def item_bias(self, log_shares_I: Tensor) -> Tensor:
        """What popularity adds to the cosine of each item -> [I]."""
        return self.temperature * self.popularity * log_shares_I

    def forward(self, batch: Batch, items_BTD: Tensor | None = None) -> Tensor:
        """Unit states -> [B, T, D]. Training hands in the rows of the items, gathered together with the targets'.

        The newest ones alone, without padding and without dropout: sonder.encoder.newest.
        """
        items_BTD = self.item_rows(batch.items_BT) if items_BTD is None else items_BTD
        x_BTD = items_BTD + self.actions(batch.actions_BT)
        if self.surfaces is not None:
            x_BTD = x_BTD + self.surfaces(batch.surfaces_BT)
        if self.values is not None:
            x_BTD = x_BTD + self.values(batch.values_BT)
        if self.gaps is not None and self.hours is not None and self.ages is not None:
            x_BTD = x_BTD + self.gaps(batch.gaps_BT) + self.hours(batch.hours_BT) + self.ages(batch.ages_BT)
        x_BTD = drop(x_BTD * self.scale, self.dropout, self.training)
        cos_sin = _rotations(x_BTD.shape[1], self.blocks[0].head_dim, x_BTD.device)  # type: ignore[arg-type]
        with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=self.casts):
            for block in self.blocks:
                x_BTD = block(x_BTD, cos_sin)
        x_BTD = self.norm(x_BTD)
        if self.recall is not None:
            x_BTD = x_BTD / self.scale + self.recall(x_BTD, items_BTD, batch.actions_BT)
        return functional.normalize(x_BTD, dim=-1)

    def item_rows(self, items: Tensor, *, forgets: bool = False) -> Tensor:
        """What is learnt about each item alone, plus what is learnt about its content -> [..., D].

        A training step `forgets` some of the first, so that content alone is worth what it says.
        """
        rows: Tensor = self.items(items) if self.id_rows is None else self.items(self.id_rows[items]).sum(dim=-2)
        if self.is_known is None:
            return rows
        if forgets:
            is_new = torch.rand(items.shape, device=items.device) < ID_DROPOUT
            rows = rows.masked_fill((is_new & self.is_known[items])[..., None], 0.0)
        if self.features is not None:
            rows = rows + self.features(self.feature_rows[items]).sum(dim=-2)
        if self.given is not None:
            rows = rows + self.given(self.vectors[items])
        return rows

    def teaches(self, trained_I: Tensor) -> Tensor:
        """Items of whose content something was learnt from the trained ones, after `forget_features` -> bool [I]."""
        is_taught_I = torch.zeros_like(trained_I)
        if self.features is not None:
            is_taught_R = self.features.weight.any(dim=1)
            is_taught_I |= is_taught_R[self.feature_rows[:-1]].any(dim=1)
        if self.given is not None:
            has_vector_I = self.vectors[:-1].any(dim=1)
            is_taught_I |= has_vector_I & (has_vector_I & trained_I).any()
        return is_taught_I

    def item_vectors(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Unit vectors of the items from `start` up to `stop`, by default of all -> [I, D]."""
        items = torch.arange(start, self.num_items if stop is None else stop, device=self.device)
        return functional.normalize(self.item_rows(items), dim=-1)

    def forget_ids(self, items: Tensor) -> None:
        """Take away what the table holds of some items' ids: nothing was learnt there."""
        if self.id_rows is None:
            self.items.weight[items] = 0
        else:
            self.id_rows = self.id_rows.clone()
            self.id_rows[items] = self.items.num_embeddings - 1

    def forget_features(self, trained_I: Tensor) -> None:
        """Clear the rows that no trained item has: they hold the random numbers that they were made with."""
        if self.features is not None:
            is_taught_R = torch.zeros(self.features.num_embeddings, dtype=torch.bool)
            is_taught_R[self.feature_rows[:-1][trained_I].flatten()] = True
            self.features.weight[~is_taught_R] = 0

    def _place(self, content: ItemContent) -> None:
        """Hold the content as tensors that are no weights."""
        has_content = bool(content.shape.num_features or content.shape.vector_width)
        tensors: dict[str, Tensor | None] = {
            "feature_rows": torch.from_numpy(content.features_IF),
            "vectors": torch.from_numpy(content.vectors_IV),
            "id_rows": torch.from_numpy(content.id_rows_IP) if content.shape.num_id_rows else None,
            "is_known": torch.from_numpy(content.is_known) if has_content else None,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


class Recall(nn.Module):
    """A learned mean of the unit vectors of what the user wanted, added to the state.

    Without it a state reaches the vectors of a user's own items only through the blocks, which takes long to learn;
    with it every training starts from the decayed mean of PinnerSage's comparison. For logs where people come back to
    what they had; where nobody does, it draws the states to the very items that are never the answer
    (docs/experiments.md).
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.query_key = nn.Linear(spec.dim, 2 * spec.dim, bias=False)
        nn.init.normal_(self.query_key.weight, std=0.1 / math.sqrt(spec.dim))
        self.gain = nn.Parameter(torch.ones(()))
        is_wanted = [float(weight > 0) for weight in spec.action_weights]
        self.is_wanted: Tensor
        self.register_buffer("is_wanted", torch.tensor([*is_wanted, 0.0]), persistent=False)

    def forward(self, x_BTD: Tensor, items_BTD: Tensor, actions_BT: Tensor) -> Tensor:
        query_BTD, key_BTD = self.query_key(x_BTD).chunk(2, dim=-1)
        wanted_BTD = functional.normalize(items_BTD, dim=-1) * self.is_wanted[actions_BT][..., None]
        mean_BTD = functional.scaled_dot_product_attention(query_BTD, key_BTD, wanted_BTD, is_causal=True)
        return self.gain * functional.normalize(mean_BTD, dim=-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + gated feed-forward(norm(x))."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.num_heads, self.head_dim = spec.num_heads, spec.dim // spec.num_heads
        self.dropout = spec.dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(spec.dim), nn.LayerNorm(spec.dim)
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim, bias=False)
        self.mix = nn.Linear(spec.dim, spec.dim, bias=False)
        self.gate_up = nn.Linear(spec.dim, 4 * spec.dim, bias=False)
        self.down = nn.Linear(2 * spec.dim, spec.dim, bias=False)
        for layer in (self.qkv, self.mix, self.gate_up, self.down):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        for layer in (self.mix, self.down):  # each block starts close to the identity
            nn.init.normal_(layer.weight, std=0.1 / math.sqrt(layer.in_features))

    def forward(self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q_BHTd, k_BHTd, v_BHTd = _rotate(qkv[0], cos_sin), _rotate(qkv[1], cos_sin), qkv[2]
        mixed = functional.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)
        mixed_BTD = self.mix(mixed.transpose(1, 2).reshape(B, T, D))
        x_BTD = x_BTD + drop(mixed_BTD, self.dropout, self.training)
        return x_BTD + drop(self.feed(x_BTD), self.dropout, self.training)

    def feed(self, x: Tensor) -> Tensor:
        """Gated feed-forward of norm(x)."""
        gate, up = self.gate_up(self.feed_norm(x)).chunk(2, dim=-1)
        fed: Tensor = self.down(functional.silu(gate) * up)
        return fed


def drop(x: Tensor, share: float, is_training: bool) -> Tensor:
    """Dropout from random bytes: 12 times faster than torch's own on a CPU; the share is rounded to 1/256."""
    threshold = round(share * 256)
    if not is_training or threshold == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, share)
    words = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 8 + 1,), dtype=torch.int64)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    return x * (keep.to(x.dtype) * (256 / (256 - threshold)))


def _table(num: int, dim: int, *, std: float | None = None, is_sparse: bool = False) -> nn.Embedding:
    """`num` rows, about unit vectors unless told, and a last one that is zero for ever."""
    table = nn.Embedding(num + 1, dim, padding_idx=num, sparse=is_sparse)
    nn.init.normal_(table.weight, std=1 / math.sqrt(dim) if std is None else std)
    with torch.no_grad():
        table.weight[num].zero_()
    return table


def _rotations(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(length, device=device)[:, None] * frequencies[None, :]
    return angles.cos(), angles.sin()


def _rotate(x_BHTd: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = cos_sin
    left, right = x_BHTd.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
