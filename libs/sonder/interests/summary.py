"""The interests of each user in seven numbers: what a model reads of them.

Shapes: U users, C interests that are kept. The columns, in this order, from the events before `as_of` alone:
0 number of interests                                     0 without any; all others are NaN then
1 weight of the strongest                                 weights of a user sum to 1
2 entropy of the weights in nats                          0 for a single interest
3, 4, 5 weight of the new, growing and fading ones        interests.states
6 days since the strongest was last seen
Limits: the bits of a row depend on its user alone, as long as the item vectors are the same.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.states import FADING, GROWING, NEW
from sonder.interests.ward import find_interests

NUM_COLUMNS = 7
_RECENCY = 6
SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("numbers", pa.list_(pa.float64(), _RECENCY), nullable=False),  # the first six
        pa.field("strongest_at", TIMESTAMP_TYPE),  # when the strongest was last seen; null without any
    ]
)


def summarise_interests(
    timelines: Timelines,
    vectors_ID: NDArray[np.float32],
    vocabulary: Vocabulary,
    *,
    as_of_us: int,
    config: InterestsConfig,
    is_known_I: NDArray[np.bool_] | None = None,
    clusters_P: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """The seven numbers of every user -> [U, 7]; the last two as ward.find_interests takes them."""
    found = find_interests(
        timelines,
        vectors_ID,
        vocabulary,
        as_of_us=as_of_us,
        config=config,
        is_known_I=is_known_I,
        clusters_P=clusters_P,
    )
    num_users, users_C = timelines.num_users, found.users
    weights_C = found.evidence.weights[found.kept]
    weights_C = weights_C / np.bincount(users_C, weights_C, minlength=num_users)[users_C]
    states_C = found.evidence.trends.states[found.kept]
    summary = np.zeros((num_users, NUM_COLUMNS))
    summary[:, 0] = np.bincount(users_C, minlength=num_users)
    positive_C = np.maximum(weights_C, np.finfo(np.float64).tiny)  # a weight may have decayed to nothing
    summary[:, 2] = np.bincount(users_C, -weights_C * np.log(positive_C), minlength=num_users)
    for column, state in enumerate((NEW, GROWING, FADING), 3):
        summary[:, column] = np.bincount(users_C, weights_C * (states_C == state), minlength=num_users)
    summary[summary[:, 0] == 0, 1:] = np.nan
    is_strongest = found.ranks == 1
    strongest = users_C[is_strongest]
    summary[strongest, 1] = weights_C[is_strongest]
    summary[strongest, 6] = found.evidence.recency_days[found.kept][is_strongest]
    return summary


def summary_table(user_ids: pa.Array, summary_UI: NDArray[np.float64], *, as_of_us: int) -> pa.Table:
    """The seven numbers as SUMMARY_SCHEMA, in a form that a later moment can be read from."""
    recency = summary_UI[:, _RECENCY]
    is_none = np.isnan(recency)
    seen_us = as_of_us - np.rint(np.where(is_none, 0.0, recency) * MICROSECONDS_PER_DAY).astype(np.int64)
    numbers = pa.array(np.ascontiguousarray(summary_UI[:, :_RECENCY]).ravel())
    columns = [
        user_ids.cast(pa.string()),
        pa.FixedSizeListArray.from_arrays(numbers, _RECENCY),
        pa.array(seen_us, mask=is_none).cast(TIMESTAMP_TYPE),
    ]
    return pa.Table.from_arrays(columns, schema=SUMMARY_SCHEMA)


def summary_at(table: pa.Table, *, as_of_us: int) -> NDArray[np.float64]:
    """SUMMARY_SCHEMA -> [U, 7] at a moment, for users whose interests only time has moved on (interests.aging)."""
    table = table.combine_chunks()
    numbers = table.column("numbers").combine_chunks()
    seen = table.column("strongest_at").combine_chunks().cast(pa.int64())
    summary = np.empty((table.num_rows, NUM_COLUMNS))
    summary[:, :_RECENCY] = numbers.flatten().to_numpy(zero_copy_only=False).reshape(-1, _RECENCY)
    seen_us = seen.fill_null(0).to_numpy(zero_copy_only=False)
    days = (as_of_us - seen_us) / MICROSECONDS_PER_DAY
    summary[:, _RECENCY] = np.where(seen.is_null().to_numpy(zero_copy_only=False), np.nan, days)
    return summary
