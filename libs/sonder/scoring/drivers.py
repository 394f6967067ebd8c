"""Why a score is what it is: exact tree SHAP, summed over columns that say the same, in plain words.

Contributions are in log-odds before calibration; over all families plus the bias they sum to the raw margin.
A family is one statement over several windows ("number of 'buy' events"), or the whole embedding; it is told by its
column that weighs most for this user. Source: TreeSHAP (Lundberg et al. 2020), as xgboost's `pred_contribs`.
Limits: contributions explain the model, not the world; correlated features share what they say together.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import xgboost
from numpy.typing import NDArray

from sonder.scoring.heads import ScoreHead, features_of
from sonder.scoring.specification import EMBEDDING_DRIVER

NUM_DRIVERS = 4
DRIVERS_TYPE = pa.list_(pa.struct([("reason", pa.string()), ("contribution", pa.float32())]))


def contributions(head: ScoreHead, features_UF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-odds that each column adds, and last the bias -> [U, F + 1]."""
    wanted = features_of(head, features_UF)
    if len(wanted) == 0:  # xgboost forgets the columns of a prediction without rows
        return np.zeros((0, wanted.shape[1] + 1), np.float32)
    matrix = xgboost.DMatrix(wanted)
    exact: NDArray[np.float32] = head.booster.predict(matrix, pred_contribs=True)
    return exact


def families(head: ScoreHead) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the G families, and the family of each column [F]."""
    names = list(dict.fromkeys(family for family, _ in head.spec.columns))
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[family] for family, _ in head.spec.columns])


def by_family(head: ScoreHead, contributions_UF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the columns of each family; the bias stays last -> [U, G + 1]."""
    names, family_F = families(head)
    order = np.argsort(family_F, kind="stable")
    starts = np.searchsorted(family_F[order], np.arange(len(names)))
    sums = np.add.reduceat(contributions_UF[:, :-1][:, order], starts, axis=1)
    return np.concatenate([sums, contributions_UF[:, -1:]], axis=1)


def drivers(head: ScoreHead, features_UF: NDArray[np.float32], *, num: int = NUM_DRIVERS) -> pa.Array:
    """The `num` families that weigh most for each user, heaviest first -> list<struct<reason, contribution>> [U]."""
    exact = contributions(head, features_UF)
    sums = by_family(head, exact)[:, :-1]
    _, family_F = families(head)
    num = min(num, sums.shape[1])
    top = np.argsort(-np.abs(sums), axis=1, kind="stable")[:, :num]  # [U, num]
    told = _heaviest_columns(exact[:, :-1], family_F, sums.shape[1])
    columns = np.take_along_axis(told, top, axis=1).ravel()
    users = np.repeat(np.arange(len(sums)), num)
    weights = np.take_along_axis(sums, top, axis=1).ravel()
    reasons = _reasons(head, columns, features_UF[users, columns], weights)
    entries = pa.StructArray.from_arrays(
        [reasons, pa.array(weights, pa.float32())], fields=list(DRIVERS_TYPE.value_type)
    )
    offsets = pa.array(np.arange(0, (len(sums) + 1) * num, num), pa.int32())
    return pa.ListArray.from_arrays(offsets, entries, type=DRIVERS_TYPE)


def _heaviest_columns(
    contributions_UF: NDArray[np.float32], family_F: NDArray[np.int64], num_families: int
) -> NDArray[np.int64]:
    """For each user and family the column that weighs most -> [U, G]."""
    heaviest = np.empty((len(contributions_UF), num_families), dtype=np.int64)
    for family in range(num_families):
        members = np.flatnonzero(family_F == family)
        heaviest[:, family] = members[np.argmax(np.abs(contributions_UF[:, members]), axis=1)]
    return heaviest


def _reasons(
    head: ScoreHead, columns: NDArray[np.int64], values: NDArray[np.float32], weights: NDArray[np.float32]
) -> pa.Array:
    """`raises: number of 'buy' events in the last 30 days = 3`, in one pass over all drivers."""
    said = [EMBEDDING_DRIVER if family == EMBEDDING_DRIVER else text for family, text in head.spec.columns]
    frame = pl.DataFrame({"column": columns, "value": values.astype(np.float64), "weight": weights})
    text = pl.col("column").replace_strict(range(len(said)), said, return_dtype=pl.String)
    number = pl.col("value").round(2).cast(pl.String).str.strip_suffix(".0")
    value = pl.when(pl.col("value").is_nan()).then(pl.lit("none yet")).otherwise(number)
    direction = pl.when(pl.col("weight") >= 0).then(pl.lit("raises: ")).otherwise(pl.lit("lowers: "))
    is_embedding = pl.col("column") >= head.spec.num_plain
    told = pl.when(is_embedding).then(direction + text).otherwise(direction + text + " = " + value)
    return frame.select(told.alias("reason")).to_series().to_arrow().cast(pa.string())
