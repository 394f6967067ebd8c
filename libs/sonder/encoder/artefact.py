"""The trained encoder on disk: `weights.safetensors` and `encoder.json`.

Shapes: I items of the vocabulary it was trained with, D width.
An item's score for a user is the cosine of their vectors plus `item_bias`: what it loses for being less popular than
the most popular item, as of the end of the training data or later (`with_popularity`).
An item that no user had wanted before the cutoff has `trained_items` False; its vector is what was learnt about its
content, or zero where nothing was: then it is no candidate.
A release that was aligned onto its parent holds a rotation too (`sonder.encoder.alignment`): every vector that leaves
the encoder is turned by it, the weights are as they were learnt. Encoders without one are read as they are.
Limits: item vectors are derived from the weights on loading, so the two can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from sonder.core.errors import ArtefactMismatch
from sonder.core.ids import digest_bytes
from sonder.core.storage import Folder
from sonder.encoder.content import ItemContent
from sonder.encoder.model import UserEncoder
from sonder.encoder.newest import NewestStates
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.trend import log_shares

WEIGHTS_FILE = "weights.safetensors"
ENCODER_FILE = "encoder.json"
POPULARITY_FILE = "popularity.safetensors"
_TRAINED, _POPULARITY, _ROTATION = "trained_items", "popularity", "rotation"
_CONTENT = ("features_IF", "vectors_IV", "id_rows_IP")
_BLOCK_ITEMS = 1 << 16


@dataclass(frozen=True)
class Encoder:
    """Weights in evaluation mode, and the item space that they span."""

    spec: EncoderSpec
    model: UserEncoder
    trained_items: NDArray[np.bool_]  # [I]
    candidates: NDArray[np.bool_]  # [I] items with a vector: trained, or like a trained one by content
    popularity: NDArray[np.float64]  # [I] decayed counts of wanted events
    item_bias: NDArray[np.float32]  # [I] 0 for the most popular item, below for all others
    half_life_us: int  # of the counts; 0: they do not decay
    digest: str  # 16 hex digits over the weights and the rotation
    content: ItemContent
    rotation_DD: NDArray[np.float64] | None = None  # orthogonal; from the space of the weights to the release's

    @classmethod
    def of(
        cls,
        spec: EncoderSpec,
        weights: dict[str, Tensor],
        trained_items: NDArray[np.bool_],
        *,
        content: ItemContent | None = None,
        popularity: NDArray[np.float64] | None = None,
        half_life_us: int = 0,
        rotation: NDArray[np.float64] | None = None,
    ) -> Encoder:
        """Build from trained weights; what no wanted item taught is cleared. No popularity: all alike."""
        content = content or ItemContent.nothing(spec.num_items)
        if content.shape != spec.content:
            raise ArtefactMismatch(
                f"Item content of the shape {content.shape}",
                expected=f"{spec.content}, as the weights were trained with",
                do="Restore the folder from its release.",
            )
        model = UserEncoder(spec, content)
        _check_names(set(weights), set(model.state_dict()))
        model.load_state_dict(weights)
        with torch.no_grad():
            trained_I = torch.from_numpy(trained_items)
            model.forget_ids(torch.nonzero(~trained_I)[:, 0])
            model.forget_features(trained_I)
            candidates = (trained_I | model.teaches(trained_I)).numpy()
        model.eval().requires_grad_(False)
        counts = np.zeros(spec.num_items) if popularity is None else popularity
        encoder = cls(
            spec,
            model,
            trained_items,
            candidates,
            counts,
            np.zeros(0, np.float32),
            half_life_us,
            _digest(model, rotation),
            content,
            rotation,
        )
        return encoder.with_popularity(counts)

    @cached_property
    def item_vectors(self) -> NDArray[np.float32]:
        """Unit rows [I, D], zero where nothing is known; made when first asked for."""
        return self.turned(self.raw_item_vectors)

    @property
    def raw_item_vectors(self) -> NDArray[np.float32]:
        """The same in the space of the weights."""
        vectors = np.empty((self.spec.num_items, self.spec.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, self.spec.num_items, _BLOCK_ITEMS):
                block = self.model.item_vectors(start, min(start + _BLOCK_ITEMS, self.spec.num_items))
                vectors[start : start + len(block)] = block.numpy()
        vectors[~self.candidates] = 0
        return vectors

    @cached_property
    def newest_states(self) -> NewestStates:
        """What embeds users; made when first asked for."""
        return NewestStates(self.model, self.spec.max_length)

    def turned(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of the weights' space in the release's."""
        return vectors_ND if self.rotation_DD is None else vectors_ND @ self.rotation_DD.astype(np.float32)

    def unturned(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of the release's space in that of the weights: what a retrain gives that nobody aligned."""
        return vectors_ND if self.rotation_DD is None else vectors_ND @ self.rotation_DD.T.astype(np.float32)

    def aligned(self, rotation_DD: NDArray[np.float64] | None) -> Encoder:
        """The same weights in another space; None: in their own."""
        return replace(self, rotation_DD=rotation_DD, digest=_digest(self.model, rotation_DD))

    def with_popularity(self, popularity: NDArray[np.float64]) -> Encoder:
        """The same weights beside newer popularity: decayed counts [I], half-life `half_life_us`."""
        if popularity.shape != (self.spec.num_items,):
            raise ArtefactMismatch(
                f"The popularity of {len(popularity)} items",
                expected=f"that of the {self.spec.num_items} items of the encoder",
                do="Make the release again.",
            )
        with torch.no_grad():
            bias = self.model.item_bias(torch.from_numpy(log_shares(popularity)))
            bias -= bias.max()
        return replace(self, popularity=popularity, item_bias=bias.numpy())


def _digest(model: UserEncoder, rotation_DD: NDArray[np.float64] | None) -> str:
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    return digest_bytes(content if rotation_DD is None else content + np.ascontiguousarray(rotation_DD).tobytes())


def _check_names(found: set[str], wanted: set[str]) -> None:
    """ArtefactMismatch unless the weights are those of this version's model."""
    missing, unknown = sorted(wanted - found), sorted(found - wanted)
    if missing or unknown:
        told = [f"{len(missing)} missing ({', '.join(missing[:3])})"] if missing else []
        told += [f"{len(unknown)} unknown ({', '.join(unknown[:3])})"] if unknown else []
        raise ArtefactMismatch(
            f"Weights of another version's encoder: {' and '.join(told)}",
            expected="the weights of an encoder that this version of Sonder trains",
            do="Build without --parent, or read the release with the version that made it.",
        )


def save_encoder(encoder: Encoder, folder: Folder, *, metrics: dict[str, Any] | None = None) -> None:
    """Write both files; `metrics` tell how the training went."""
    tensors = {name: tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}
    tensors[_TRAINED] = torch.from_numpy(encoder.trained_items)
    tensors[_POPULARITY] = torch.from_numpy(encoder.popularity)
    if encoder.rotation_DD is not None:
        tensors[_ROTATION] = torch.from_numpy(np.ascontiguousarray(encoder.rotation_DD))
    for name in _CONTENT:
        tensors[name] = torch.from_numpy(getattr(encoder.content, name))
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))
    content = {
        "spec": encoder.spec.to_dict(),
        "digest": encoder.digest,
        "popularity_half_life_us": encoder.half_life_us,
        "category_paths": encoder.content.paths,
        "training": metrics or {},
    }
    (folder / ENCODER_FILE).write_json(content)


def load_encoder(folder: Folder) -> Encoder:
    """Read both files and check that they belong together."""
    content = (folder / ENCODER_FILE).read_json()
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    trained_items = tensors.pop(_TRAINED).numpy()
    popularity = tensors.pop(_POPULARITY).numpy()
    rotation = tensors.pop(_ROTATION).numpy() if _ROTATION in tensors else None
    spec = EncoderSpec.from_dict(content["spec"])
    known = {name: tensors.pop(name).numpy() for name in _CONTENT}
    encoder = Encoder.of(
        spec,
        tensors,
        trained_items,
        content=ItemContent(spec.content, **known, paths=tuple(content["category_paths"])),
        popularity=popularity,
        half_life_us=content["popularity_half_life_us"],
        rotation=rotation,
    )
    if encoder.digest != content["digest"]:
        raise ArtefactMismatch(
            f"The weights at {folder} have digest {encoder.digest}",
            expected=f"{content['digest']}, as its {ENCODER_FILE} says",
            do="Restore the folder from its release, or train again.",
        )
    return encoder


def training_of(folder: Folder) -> dict[str, Any]:
    """How the training of a saved encoder went, as `save_encoder` was told."""
    training: dict[str, Any] = (folder / ENCODER_FILE).read_json()["training"]
    return training


def save_popularity(popularity: NDArray[np.float64], folder: Folder) -> None:
    """Write decayed counts that are newer than the training."""
    (folder / POPULARITY_FILE).write_bytes(save({_POPULARITY: torch.from_numpy(popularity)}))


def load_popularity(folder: Folder) -> NDArray[np.float64]:
    popularity: NDArray[np.float64] = load((folder / POPULARITY_FILE).read_bytes())[_POPULARITY].numpy()
    return popularity
