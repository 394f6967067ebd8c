"""An encoder meets a newer catalogue: every row that still has its item, category, word, action or surface is kept.

Shapes: I items of the newer vocabulary, R rows of a table.
`continued`   the same for a release that goes on with its parent's weights: what was known of an item stays as it was
`grown`       the same weights for inference: an item that is new has the vector of its content at once
`carry_over`  the weights that a training goes on from (warm start): a new item starts from its content, or anew
Rows are matched by name, never by number: item id, category path, action, surface. Rows of words are digests modulo a
power of two, so the rows of a table that has doubled are those of the smaller one, repeated.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonder.core.errors import ConfigurationError
from sonder.encoder.artefact import Encoder
from sonder.encoder.content import ItemContent, item_content
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.time_classes import NUM_AGES
from sonder.history.vocabulary import Vocabulary

SHARE_OF_FULL = 0.1  # of the epochs of a training from nothing: what a warm start may take
_FIXED = ("dim", "num_blocks", "num_heads")


def warm_epochs(full_epochs: int) -> int:
    """Epochs of a warm start beside those of the training from nothing that it descends from; at least one."""
    return max(math.ceil(full_epochs * SHARE_OF_FULL), 1)


def continued(encoder: Encoder, known: Vocabulary, vocabulary: Vocabulary) -> Encoder:
    """The encoder over a catalogue that begins with the items it knows, whose vectors keep their bits.

    A new item has the vector of its content. The content of a known one is what the weights were trained with, however
    often its words are heard meanwhile: else vectors of users who did nothing would move.
    """
    num_known = encoder.spec.num_items
    assert vocabulary.item_ids.slice(0, num_known).equals(known.item_ids), "known items keep their numbers"
    if vocabulary.num_items == num_known:
        return encoder
    newer = item_content(vocabulary, like=encoder.content)
    content = replace(
        encoder.content,
        features_IF=_followed(encoder.content.features_IF, newer.features_IF, num_known),
        vectors_IV=_followed(encoder.content.vectors_IV, newer.vectors_IV, num_known),
        id_rows_IP=_followed(encoder.content.id_rows_IP, newer.id_rows_IP, num_known),
    )
    return grown(encoder, known, vocabulary, content=content)[0]


def _followed(known: NDArray[Any], newer: NDArray[Any], num_known: int) -> NDArray[Any]:
    """The first rows of one, the others of the other."""
    rows: NDArray[Any] = np.concatenate([known[:num_known], newer[num_known:]])
    return rows


def grown(
    encoder: Encoder, known: Vocabulary, vocabulary: Vocabulary, *, content: ItemContent | None = None
) -> tuple[Encoder, Vocabulary]:
    """The encoder over the items of another catalogue; `known` is the one that it was trained with.

    Histories for it are read with the second of the pair: the other's items beside the actions and surfaces that the
    weights know. `content` of the items, if it is settled already.
    """
    content = content or item_content(vocabulary, like=encoder.content)
    rows_I = places_of(vocabulary.item_ids, known.item_ids)
    weights = dict(encoder.model.state_dict())
    if not content.shape.num_id_rows:
        nothing = torch.zeros(vocabulary.num_items + 1, encoder.spec.dim)
        weights["items.weight"] = _filled(nothing, weights["items.weight"], np.append(rows_I, -1))
    has_row = rows_I >= 0
    over = Encoder.of(
        replace(encoder.spec, num_items=vocabulary.num_items),
        weights,
        has_row & encoder.trained_items[rows_I],
        content=content,
        popularity=np.where(has_row, encoder.popularity[rows_I], 0.0),
        half_life_us=encoder.half_life_us,
        rotation=encoder.rotation_DD,
    )
    return over, replace(known, items=vocabulary.items)


def carry_over(
    parent: Encoder, known: Vocabulary, spec: EncoderSpec, vocabulary: Vocabulary, content: ItemContent
) -> dict[str, Tensor]:
    """Weights of a model of `spec` and `content`, the parent's wherever it has them; `known` is its vocabulary."""
    for name in _FIXED:
        if getattr(parent.spec, name) != getattr(spec, name):
            raise ConfigurationError(
                f"encoder.{name} is {getattr(spec, name)}, the parent's is {getattr(parent.spec, name)}",
                expected="the same shape as the release whose weights are to go on",
                do=f"Pass --set encoder.{name}={getattr(parent.spec, name)}, or build without a parent.",
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        fresh = UserEncoder(spec, content).state_dict()
    held = parent.model.state_dict()
    rows = {
        "items.weight": _item_rows(parent, known, vocabulary, spec),
        "features.weight": _feature_rows(parent.content, content),
        "actions.weight": _named_rows(known.actions, vocabulary.actions),
        "surfaces.weight": _named_rows(known.surfaces, vocabulary.surfaces),
        # Who is older now than anybody was then begins where the oldest were.
        "ages.weight": np.append(np.minimum(np.arange(NUM_AGES), parent.spec.oldest_age), -1),
    }
    weights = {}
    for name, tensor in fresh.items():
        if name in rows and name in held:
            weights[name] = _filled(tensor, held[name], rows[name])
        else:
            weights[name] = held[name].clone() if name in held and held[name].shape == tensor.shape else tensor
    if not spec.content.num_id_rows:
        # what is known of an item says all that is known of a new one
        is_new = torch.from_numpy(rows["items.weight"][:-1] < 0)
        weights["items.weight"][:-1][is_new & torch.from_numpy(content.is_known[:-1])] = 0
    return weights


def _item_rows(parent: Encoder, known: Vocabulary, vocabulary: Vocabulary, spec: EncoderSpec) -> NDArray[np.int64]:
    """Row of the parent's id table for each of ours [R], -1 where it has none to give."""
    before, now = parent.spec.content.num_id_rows, spec.content.num_id_rows
    if before != now:
        return np.full((now or vocabulary.num_items) + 1, -1)
    if now:
        return np.arange(now + 1)
    rows_I = places_of(vocabulary.item_ids, known.item_ids)
    return np.append(np.where(parent.trained_items[rows_I] & (rows_I >= 0), rows_I, -1), -1)


def _feature_rows(before: ItemContent, now: ItemContent) -> NDArray[np.int64]:
    paths = _named_rows(before.paths, now.paths)[:-1]
    words = np.full(now.shape.num_word_rows, -1)
    if before.shape.num_word_rows:
        words = before.shape.num_paths + np.arange(now.shape.num_word_rows) % before.shape.num_word_rows
    return np.concatenate([paths, words, [-1]])


def _named_rows(before: tuple[str, ...], now: tuple[str, ...]) -> NDArray[np.int64]:
    """Place in `before` of each name in `now`, and -1 for the row of none at the end."""
    places = {name: place for place, name in enumerate(before)}
    return np.asarray([*(places.get(name, -1) for name in now), -1], dtype=np.int64)


def places_of(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """Place of each id among others, -1 where it is not."""
    places = pl.DataFrame({"id": pl.Series(among)}).with_row_index("place")
    found = pl.DataFrame({"id": pl.Series(ids)}).join(places, on="id", how="left", maintain_order="left")["place"]
    return found.cast(pl.Int64).fill_null(-1).to_numpy()


def _filled(fresh: Tensor, held: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """`fresh` with the rows of `held` where there is one."""
    has_row = torch.from_numpy(rows >= 0)
    filled = fresh.clone()
    filled[has_row] = held[torch.from_numpy(rows[rows >= 0])]
    return filled
