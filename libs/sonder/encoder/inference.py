"""Histories -> one unit vector per user: the same function in validation, in batch and online.

Shapes: U users, D width.
Limits: reads the newest `spec.max_length` events with a wish in them; a user without a known wanted event among the
readable ones gets the zero vector, and the caller decides what cold users get.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sonder.encoder.artefact import Encoder
from sonder.encoder.batching import Tokens, collate, newest_segments, plan_batches, tokenise
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import EncoderSpec
from sonder.history.timelines import Timelines

_BATCH_TOKENS = 1 << 14


def embed_users(encoder: Encoder, timelines: Timelines, *, as_of_us: int) -> NDArray[np.float32]:
    """Embed each user from the events strictly before `as_of_us` -> float32 [U, D], rows of norm 1 or 0."""
    tokens = tokenise(timelines.before(as_of_us), encoder.spec)
    vectors_UD = embed_tokens(encoder.model, encoder.spec, tokens)
    has_vector = np.append(encoder.candidates, False)
    counts = tokens.is_wanted & has_vector[tokens.items]
    known = np.concatenate(([0], np.cumsum(counts)))
    vectors_UD[known[tokens.offsets[1:]] == known[tokens.offsets[:-1]]] = 0
    return vectors_UD


def embed_tokens(model: UserEncoder, spec: EncoderSpec, tokens: Tokens) -> NDArray[np.float32]:
    """State of the newest token of each user -> [U, D], zero for a user without tokens."""
    vectors_UD = np.zeros((tokens.num_users, spec.dim), dtype=np.float32)
    users_S = np.flatnonzero(tokens.lengths)
    segments = newest_segments(tokens, spec.max_length)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in plan_batches(segments.lengths, _BATCH_TOKENS, np.arange(len(users_S))):
            batch = collate(tokens, spec, segments.starts[rows], segments.stops[rows])
            states_BTD = model(batch)
            newest = torch.from_numpy(segments.lengths[rows] - 1)
            vectors_UD[users_S[rows]] = states_BTD[torch.arange(len(rows)), newest].numpy()
    model.train(was_training)
    return vectors_UD
