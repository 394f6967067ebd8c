"""The two numbers of an InterestsConfig that the data decides, both independent of which users are looked at.

merge_distance   the Ward distance that ends the merging: the 5 % quantile of the distance between two items
                 drawn at random. Within one tight cluster the last Ward merge costs about one typical distance of
                 its members whatever their number, so the quantile reads "closer than 19 of 20 random pairs".
half_life_days   an eighth of the log up to `as_of`, 60 days at most: the newest half-life is then the newest eighth of
                 the log, and an event from its beginning weighs 1/256 (of a log with order only, order decays).
Limits: the quantile is taken over items, not over a category's items; a catalogue that is one tight cluster still
splits. The log's beginning is the oldest `first_seen` of the vocabulary; without any, the half-life is 30 days.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary

MERGE_QUANTILE = 0.05
HALF_LIVES_IN_LOG = 8.0
MAX_HALF_LIFE_DAYS = 60.0
HALF_LIFE_DAYS_UNKNOWN = 30.0
NUM_SAMPLED_PAIRS = 100_000
SAMPLE_SEED = 20_171


def derive_config(
    config: InterestsConfig, vectors_ID: NDArray[np.float32], vocabulary: Vocabulary, *, as_of_us: int
) -> InterestsConfig:
    """Fill in what the configuration leaves open; a configuration without gaps comes back as it is."""
    if config.merge_distance is not None and config.half_life_days is not None:
        return config
    derived = {
        "merge_distance": config.merge_distance or derive_merge_distance(vectors_ID),
        "half_life_days": config.half_life_days or derive_half_life_days(vocabulary, as_of_us=as_of_us),
    }
    return InterestsConfig.model_validate(config.model_dump() | derived)


def derive_merge_distance(vectors_ID: NDArray[np.float32]) -> float:
    """The low quantile of the distance of random pairs of distinct known items; 1.0 where there are no two."""
    known = np.flatnonzero(is_known_vector(vectors_ID))
    if len(known) < 2:
        return 1.0
    draw = np.random.default_rng(SAMPLE_SEED)
    left = draw.integers(0, len(known), NUM_SAMPLED_PAIRS)
    right = (left + draw.integers(1, len(known), NUM_SAMPLED_PAIRS)) % len(known)  # never the item itself
    difference = vectors_ID[known[left]] - vectors_ID[known[right]]
    distances = np.sqrt(np.einsum("pd,pd->p", difference, difference, dtype=np.float64))
    return float(np.quantile(distances, MERGE_QUANTILE)) or 1e-6


def derive_half_life_days(vocabulary: Vocabulary, *, as_of_us: int) -> float:
    """A fixed part of the log's length up to `as_of`."""
    first_us = pc.min(vocabulary.items.column(Col.FIRST_SEEN)).cast("int64").as_py()
    if first_us is None or first_us >= as_of_us:
        return HALF_LIFE_DAYS_UNKNOWN
    days = (as_of_us - first_us) / MICROSECONDS_PER_DAY / HALF_LIVES_IN_LOG
    return float(min(days, MAX_HALF_LIFE_DAYS))


def is_known_vector(vectors_ID: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Items [I] that the encoder placed: a vector of zeros says that it never saw the item."""
    known: NDArray[np.bool_] = np.any(vectors_ID != 0, axis=1)
    return known
