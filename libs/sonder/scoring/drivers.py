"""Why a score is what it is: exact tree SHAP, summed over columns that say the same, in plain words.

Shapes: U users, F features, G families, K drivers told at most.
Contributions are in margins before calibration (log-odds, or the log of a mean); over all families plus the bias they
sum to the raw margin. A family is one statement over several windows ("number of 'buy' events"), or the whole
embedding. Source: TreeSHAP (Lundberg et al. 2020), as xgboost's `pred_contribs`.

What is told holds still when a feature moves by a hair (driver_stability measures it): a family is told if it has at
least LEAST_SHARE of everything that moved the score, and by the model's main column of the family unless another one
weighs more than twice as much for this user. Of equals the first in the specification.
Limits: contributions explain the model, not the world; correlated features share what they say together. Exact SHAP
costs some milliseconds per user for ten heads, many times the scores themselves: ask for it where somebody reads it.
A sensitive name is never told, but the embedding may still know what it stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xgboost
from numpy.typing import NDArray
from scipy.stats import rankdata

from sonder.scoring.forest import ROWS_PER_THREAD, single_outputs
from sonder.scoring.specification import EMBEDDING_DRIVER, FeatureSpec

NUM_DRIVERS = 4
LEAST_SHARE = 0.03  # of the sum of absolute contributions; the heaviest driver is told in any case
LEAST_CORRELATION = 0.1  # of ranks, for a direction
DRIVERS_TYPE = pa.list_(pa.struct([("reason", pa.string()), ("contribution", pa.float32())]))


class Told(NamedTuple):
    """The drivers of U users as numbers, heaviest first; -1 and 0 where there is no further one."""

    families_UK: NDArray[np.int64]  # place in Explainer.families
    columns_UK: NDArray[np.int64]  # that the family is told by
    weights_UK: NDArray[np.float32]  # contribution of the family


class GlobalDriver(NamedTuple):
    family: str
    mean_contribution: float  # of its absolute value, over users
    direction: int  # 1: more of it raises the score, -1: lowers it, 0: neither, or the embedding


@dataclass(frozen=True)
class Explainer:
    """Explains one head; made once by `of`, used for every batch."""

    boosters: tuple[xgboost.Booster, ...]  # one per output
    spec: FeatureSpec  # of the columns that the head reads
    sensitive: tuple[str, ...] = ()

    @classmethod
    def of(cls, booster: xgboost.Booster, spec: FeatureSpec, *, sensitive: Collection[str] = ()) -> Explainer:
        """`sensitive`: categories (names or paths) and attributes that no reason may name."""
        num_outputs = int(json.loads(booster.save_config())["learner"]["learner_model_param"]["num_target"])
        boosters = single_outputs(booster) if num_outputs > 1 else [booster]
        return cls(tuple(boosters), spec, tuple(sensitive))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Names of the G families, in the order of the specification."""
        return tuple(dict.fromkeys(family for family, _ in self.spec.columns))

    @cached_property
    def family_F(self) -> NDArray[np.int64]:
        """Place of each column's family [F]."""
        places = {name: place for place, name in enumerate(self.families)}
        return np.array([places[family] for family, _ in self.spec.columns])

    @cached_property
    def is_sensitive_G(self) -> NDArray[np.bool_]:
        """Families that name what is marked sensitive, in their own words or in those of a column."""
        found = np.zeros(len(self.families), dtype=np.bool_)
        for place, column in zip(self.family_F, self.spec.columns, strict=True):
            found[place] |= any(_names(text, name) for text in column for name in self.sensitive)
        return found

    @cached_property
    def main_column_G(self) -> NDArray[np.int64]:
        """The column of each family that the model itself gained most by; of equals the first."""
        gains = np.zeros(len(self.family_F))
        for booster in self.boosters:
            for name, gain in booster.get_score(importance_type="total_gain").items():
                column = booster.feature_names.index(name) if booster.feature_names else int(name.removeprefix("f"))
                gains[column] += gain if isinstance(gain, float) else sum(gain)
        members = [np.flatnonzero(self.family_F == place) for place in range(len(self.families))]
        return np.array([columns[np.argmax(gains[columns])] for columns in members])

    def contributions(
        self, features_UF: NDArray[np.float32], outputs_U: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """What each column adds to the margin, and last the bias -> [U, F + 1].

        `outputs_U` says which output of each user is asked about (of next_category the leading one); a head of one
        output needs none. Columns past those of the specification are not looked at.
        """
        if outputs_U is None:
            if len(self.boosters) > 1:
                raise ValueError(f"a head of {len(self.boosters)} outputs: say which one each user is asked about")
            outputs_U = np.zeros(len(features_UF), dtype=np.int64)
        wanted = features_UF[:, : self.spec.num_features]
        exact = np.zeros((len(wanted), self.spec.num_features + 1), np.float32)
        for output in np.unique(outputs_U):
            rows = np.flatnonzero(outputs_U == output)
            matrix = xgboost.DMatrix(wanted[rows], nthread=1 if len(rows) <= ROWS_PER_THREAD else None)
            exact[rows] = self.boosters[output].predict(matrix, pred_contribs=True, validate_features=False)
        return exact

    def by_family(self, contributions_UF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum the columns of each family; the bias stays last -> [U, G + 1]."""
        order = np.argsort(self.family_F, kind="stable")
        starts = np.searchsorted(self.family_F[order], np.arange(len(self.families)))
        sums = np.add.reduceat(contributions_UF[:, :-1][:, order], starts, axis=1)
        return np.concatenate([sums, contributions_UF[:, -1:]], axis=1)

    def tell(
        self, features_UF: NDArray[np.float32], outputs_U: NDArray[np.int64] | None = None, *, num: int = NUM_DRIVERS
    ) -> Told:
        """Which families are told for each user, by which column, with which weight; `num` at most."""
        exact = self.contributions(features_UF, outputs_U)
        sums = self.by_family(exact)[:, :-1]
        strength = np.where(self.is_sensitive_G, 0.0, np.abs(sums))
        top = np.argsort(-strength, axis=1, kind="stable")[:, :num]  # [U, K]
        strengths = np.take_along_axis(strength, top, axis=1)
        is_told = strengths >= LEAST_SHARE * np.abs(sums).sum(axis=1, keepdims=True)
        is_told[:, :1] = True
        is_told &= strengths > 0
        columns = np.take_along_axis(self._told_columns(exact[:, :-1], sums), top, axis=1)
        weights = np.take_along_axis(sums, top, axis=1)
        return Told(np.where(is_told, top, -1), np.where(is_told, columns, -1), np.where(is_told, weights, 0))

    def drivers(
        self, features_UF: NDArray[np.float32], outputs_U: NDArray[np.int64] | None = None, *, num: int = NUM_DRIVERS
    ) -> pa.Array:
        """The drivers of each user in words, heaviest first -> list<struct<reason, contribution>> [U]."""
        told = self.tell(features_UF, outputs_U, num=num)
        users, places = np.nonzero(told.families_UK >= 0)
        columns, weights = told.columns_UK[users, places], told.weights_UK[users, places]
        reasons = self._reasons(columns, features_UF[users, columns], weights)
        entries = pa.StructArray.from_arrays(
            [reasons, pa.array(weights, pa.float32())], fields=list(DRIVERS_TYPE.value_type)
        )
        offsets = np.concatenate([[0], np.cumsum((told.families_UK >= 0).sum(axis=1))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entries, type=DRIVERS_TYPE)

    def _told_columns(self, exact_UF: NDArray[np.float32], sums_UG: NDArray[np.float32]) -> NDArray[np.int64]:
        """For each user and family a column that pulls where the family pulls -> [U, G]."""
        told = np.empty(sums_UG.shape, dtype=np.int64)
        for place, main in enumerate(self.main_column_G):
            members = np.flatnonzero(self.family_F == place)
            sign = np.where(sums_UG[:, place] < 0, np.float32(-1), np.float32(1))
            pull = exact_UF[:, members] * sign[:, None]
            is_main_heavy = exact_UF[:, main] * sign >= pull.max(axis=1) / 2
            told[:, place] = np.where(is_main_heavy, main, members[pull.argmax(axis=1)])
        return told

    def _reasons(
        self, columns: NDArray[np.int64], values: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> pa.Array:
        """`raises: number of 'buy' events in the last 30 days = 3`, each distinct reason written once."""
        numbers = np.where(np.isnan(values), np.inf, np.round(values.astype(np.float64), 3))
        is_embedding = np.array([family == EMBEDDING_DRIVER for family, _ in self.spec.columns], dtype=np.bool_)
        numbers[is_embedding[columns]] = 0.0
        keys = np.column_stack([columns, weights >= 0, numbers])
        distinct, places = np.unique(keys, axis=0, return_inverse=True)
        said = [self._reason(int(column), bool(raises), number) for column, raises, number in distinct.tolist()]
        return pa.array(said, pa.string()).take(pa.array(places.ravel()))

    def _reason(self, column: int, raises: bool, number: float) -> str:
        family, text = self.spec.columns[column]
        direction = "raises" if raises else "lowers"
        if family == EMBEDDING_DRIVER:
            return f"{direction}: {family}"
        return f"{direction}: {text} = {spoken(number)}"


def global_drivers(
    explainer: Explainer, features_UF: NDArray[np.float32], outputs_U: NDArray[np.int64] | None = None
) -> list[GlobalDriver]:
    """What moves the scores of these users at all, heaviest family first; sensitive families are left out.

    The direction is that of the rank correlation between the family's heaviest column and the family's contribution,
    over the users for whom the column is known.
    """
    exact = explainer.contributions(features_UF, outputs_U)
    sums = explainer.by_family(exact)[:, :-1]
    if len(sums) == 0:
        return []
    means, column_means = np.abs(sums).mean(axis=0), np.abs(exact[:, :-1]).mean(axis=0)
    told = []
    for place in np.argsort(-means, kind="stable").tolist():
        if means[place] == 0 or explainer.is_sensitive_G[place]:
            continue
        members = np.flatnonzero(explainer.family_F == place)
        values = features_UF[:, members[np.argmax(column_means[members])]]
        name = explainer.families[place]
        direction = 0 if name == EMBEDDING_DRIVER else _direction(values, sums[:, place])
        told.append(GlobalDriver(name, float(means[place]), direction))
    return told


def spoken(number: float) -> str:
    """A number for people: two decimals at most, thousands apart; infinite stands for what never happened."""
    if np.isinf(number):
        return "none yet"
    if 0 < abs(number) < 0.005:
        return "less than 0.01" if number > 0 else "just below 0"
    text = f"{number:,.2f}"
    return text.rstrip("0").rstrip(".")


def _direction(values_U: NDArray[np.float32], contributions_U: NDArray[np.float32]) -> int:
    is_known = np.isfinite(values_U)
    x, y = rankdata(values_U[is_known]), rankdata(contributions_U[is_known])
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return 0
    correlation = float(np.corrcoef(x, y)[0, 1])
    return 0 if abs(correlation) < LEAST_CORRELATION else int(np.sign(correlation))


def _names(text: str, name: str) -> bool:
    """Whether a text holds a sensitive name, or the last level of a sensitive path, as a word of its own."""
    words = {name.casefold(), name.casefold().rsplit("/", 1)[-1]} - {""}
    return any(re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text.casefold()) for word in words)
