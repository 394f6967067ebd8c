"""Histories -> one unit vector per user: the same function in validation, in batch and online.

Shapes: U users, D width.
Limits: reads the newest `spec.max_length` events with a wish in them; a user without a known wanted event among the
readable ones gets the zero vector, and the caller decides what cold users get.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from sonder.encoder.artefact import Encoder
from sonder.encoder.batching import Batch, Tokens, collate, newest_segments, plan_batches, tokenise
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import EncoderSpec
from sonder.history.timelines import Timelines

BATCH_TOKENS = 1 << 11  # activations that stay in a cache: nearly twice as fast as 1 << 14 at width 64
_COLLATED_AT_ONCE = 32  # batches; taking turns after each one costs a tenth more, the caches are never warm


def embed_users(encoder: Encoder, timelines: Timelines, *, as_of_us: int) -> NDArray[np.float32]:
    """Embed each user from the events strictly before `as_of_us` -> float32 [U, D], rows of norm 1 or 0."""
    tokens = tokenise(timelines.before(as_of_us), encoder.spec)
    vectors_UD = encoder.turned(embed_tokens(encoder.model, encoder.spec, tokens))
    has_vector = np.append(encoder.candidates, False)
    counts = tokens.is_wanted & has_vector[tokens.items]
    known = np.concatenate(([0], np.cumsum(counts)))
    vectors_UD[known[tokens.offsets[1:]] == known[tokens.offsets[:-1]]] = 0
    return vectors_UD


def embed_tokens(model: UserEncoder, spec: EncoderSpec, tokens: Tokens) -> NDArray[np.float32]:
    """State of the newest token of each user -> [U, D], zero for a user without tokens."""
    vectors_UD = np.zeros((tokens.num_users, spec.dim), dtype=np.float32)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batches = newest_batches(tokens, spec, model.device)
        while collated := list(islice(batches, _COLLATED_AT_ONCE)):
            for users_B, newest_B, batch in collated:
                states_BD = model.newest_states(batch, torch.from_numpy(newest_B).to(model.device))
                vectors_UD[users_B] = states_BD.cpu().numpy()
    model.train(was_training)
    return vectors_UD


def newest_batches(
    tokens: Tokens, spec: EncoderSpec, device: torch.device | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Batch]]:
    """What the model is given: rows of the users [B], position of the newest token of each [B], their batch."""
    users_S = np.flatnonzero(tokens.lengths)
    segments = newest_segments(tokens, spec.max_length)
    for rows in plan_batches(segments.lengths, BATCH_TOKENS, np.arange(len(users_S))):
        batch = collate(tokens, spec, segments.starts[rows], segments.stops[rows], device)
        yield users_S[rows], segments.lengths[rows] - 1, batch
