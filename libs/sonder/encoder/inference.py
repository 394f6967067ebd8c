"""Histories -> one unit vector per user: the same function in validation, in batch and online.

Shapes: U users, D width.
Limits: reads the newest `spec.max_length` events with a wish in them; a user without a known wanted event among the
readable ones gets the zero vector, and the caller decides what cold users get.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sonder.encoder.artefact import Encoder
from sonder.encoder.batching import Tokens, newest_segments, tokenise, wishes_of
from sonder.encoder.newest import Flat, NewestStates
from sonder.encoder.specification import EncoderSpec
from sonder.history.timelines import Timelines

BATCH_TOKENS = 1 << 11  # activations that stay in a cache: nearly twice as fast as 1 << 14 at width 64


def embed_users(encoder: Encoder, timelines: Timelines, *, as_of_us: int) -> NDArray[np.float32]:
    """Embed each user from the events strictly before `as_of_us` -> float32 [U, D], rows of norm 1 or 0."""
    tokens = tokenise(timelines.before(as_of_us), encoder.spec)
    vectors_UD = encoder.turned(embed_tokens(encoder.newest_states, encoder.spec, tokens))
    has_vector = np.append(encoder.candidates, False)
    counts = tokens.is_wanted & has_vector[tokens.items]
    known = np.concatenate(([0], np.cumsum(counts)))
    vectors_UD[known[tokens.offsets[1:]] == known[tokens.offsets[:-1]]] = 0
    return vectors_UD


class RisingVectors:
    """Vectors of the same users at moments that rise: who has wished for nothing since the last one keeps theirs.

    At each moment what `embed_users` gives, but for the last bits: users are batched in other company.
    """

    def __init__(self, encoder: Encoder, timelines: Timelines) -> None:
        self._encoder = encoder
        self._wishes = wishes_of(timelines, encoder.spec)
        self._num_read_U = np.zeros(len(timelines.user_ids), dtype=np.int64)
        self._vectors_UD = np.zeros((len(timelines.user_ids), encoder.spec.dim), dtype=np.float32)

    def at(self, as_of_us: int) -> NDArray[np.float32]:
        """Vectors [U, D] from the events strictly before `as_of_us`, overwritten by the next call."""
        known = self._wishes.before(as_of_us)
        assert np.all(known.lengths >= self._num_read_U), "moments must rise"
        newer = np.flatnonzero(known.lengths > self._num_read_U)
        self._vectors_UD[newer] = embed_users(self._encoder, known.take(newer), as_of_us=as_of_us)
        self._num_read_U = known.lengths
        return self._vectors_UD


def embed_tokens(states: NewestStates, spec: EncoderSpec, tokens: Tokens) -> NDArray[np.float32]:
    """State of the newest token of each user -> [U, D], zero for a user without tokens."""
    vectors_UD = np.zeros((tokens.num_users, spec.dim), dtype=np.float32)
    for users_S, flat in newest_batches(tokens, spec):
        vectors_UD[users_S] = states(tokens, flat).cpu().numpy()
    return vectors_UD


def newest_batches(tokens: Tokens, spec: EncoderSpec) -> Iterator[tuple[NDArray[np.int64], Flat]]:
    """What the model is given at once: rows of the users [S], shortest history first, and their newest tokens."""
    users_S = np.flatnonzero(tokens.lengths)
    segments = newest_segments(tokens, spec.max_length)
    by_length = np.argsort(segments.lengths, kind="stable")
    batch_S = (np.cumsum(segments.lengths[by_length]) - 1) // BATCH_TOKENS
    for rows in np.split(by_length, np.flatnonzero(np.diff(batch_S)) + 1):
        if len(rows):
            yield users_S[rows], Flat.of(segments, rows)
