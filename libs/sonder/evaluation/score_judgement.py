"""All that is known about how good one score is, from what it said and what came true: one call a task.

`judge_score` reads the rows of target/test/<task>.parquet and target/backtest/<task>.parquet:
user_id     string
cutoff      timestamp
label       double, what came true; a list of one double per output where a task has several
value       float, what was said before; a list like `label`
lifecycle   string, state at the cutoff      both optional: without them there are no such slices
tenure_days float, since the first event
Kinds: action and churn are one probability, next_category one per category, value and count a mean.
Limits: everything is held in memory; time grows with rows x outputs x resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.evaluation.backtest import evaluate_backtest
from sonder.evaluation.classification import ScoreQuality, evaluate_score
from sonder.evaluation.resampling import NUM_RESAMPLES
from sonder.evaluation.score_categories import CategoryQuality, evaluate_categories
from sonder.evaluation.score_means import MeanQuality, evaluate_mean
from sonder.evaluation.score_sentences import backtest_sentences, quality_sentences, slice_sentences
from sonder.evaluation.score_slices import (
    ScoreRows,
    ScoreSlice,
    outside_counts,
    slices_by,
    slices_by_score,
    slices_by_tenure,
)
from sonder.segments.lifecycle import STATES

ScoreKind = Literal["action", "churn", "next_category", "value", "count"]
TWEEDIE_POWER = 1.5
_MEANS = {"value": TWEEDIE_POWER, "count": 1.0}  # power of the deviance


@dataclass(frozen=True)
class _Asked:
    """The columns of a file of rows, side by side; N rows, K outputs."""

    outcomes_NK: NDArray[np.float64]
    predictions_NK: NDArray[np.float64]
    user_codes_N: NDArray[np.int64]
    cutoffs_us_N: NDArray[np.int64]

    @classmethod
    def of(cls, rows: pa.Table, num_outputs: int) -> _Asked:
        users = pc.dictionary_encode(rows.column("user_id").combine_chunks()).indices
        return cls(
            _matrix(rows, "label", num_outputs),
            _matrix(rows, "value", num_outputs),
            users.to_numpy(zero_copy_only=False).astype(np.int64),
            rows.column("cutoff").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(),
        )

    def pairs(self, *, is_share: bool) -> ScoreRows:
        """One row for each row and output."""
        codes = np.repeat(self.user_codes_N, self.outcomes_NK.shape[1])
        return ScoreRows(self.outcomes_NK.ravel(), self.predictions_NK.ravel(), codes, is_share)


def judge_score(
    kind: ScoreKind,
    rows: pa.Table,
    *,
    outputs: Sequence[str],
    backtest: pa.Table | None = None,
    trained_until_us: int | None = None,
    popularity: Sequence[float] | None = None,
    power: float | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge a task on its held-out test rows and, if given, on the rows of its backtest -> JSON-ready.

    `outputs`: names in the order of the lists in `label` and `value`; what stands before "/" in the first names the
    task. `trained_until`: the last moment that the model of the backtest knew, for its age. `popularity` per output,
    in the training rows (next_category). `power` of Tweedie's deviance; None: 1.5 for value, 1 for count.

    protocol   one sentence: how many users, asked when
    cutoffs    ISO days of the test
    metrics    {"scores.<task>.<key>": number}, without what could not be measured
    quality    all of ScoreQuality, MeanQuality or CategoryQuality, with 95 % intervals
    slices     {"lifecycle" | "tenure" | "score": [ScoreSlice, …]}; of next_category over (user, category) pairs
    outside    how many slices were judged, lie outside, and would by chance
    backtest   Backtest, or None
    sentences  the same in plain words, one fact each

    ValueError for rows that are not of this kind (labels of a probability other than 0 and 1, a mean below 0).
    """
    asked = _Asked.of(rows, len(outputs))
    name, is_share = outputs[0].split("/")[0], kind not in _MEANS
    resampling = {"num_resamples": num_resamples, "seed": seed}
    quality = _quality(kind, asked, outputs, popularity, power, resampling)
    slices = _slices(asked.pairs(is_share=is_share), rows, len(outputs), resampling) if rows.num_rows else {}
    cutoffs = sorted({_iso_day(moment) for moment in np.unique(asked.cutoffs_us_N).tolist()})
    judged = [entry for group in slices.values() for entry in group]
    sentences = [*quality_sentences(quality), *slice_sentences(slices, is_share=is_share)]
    aged = None
    if backtest is not None and backtest.num_rows:
        old = _Asked.of(backtest, len(outputs))
        aged = evaluate_backtest(
            old.outcomes_NK,
            old.predictions_NK,
            old.cutoffs_us_N,
            old.user_codes_N,
            is_share=is_share,
            trained_until_us=trained_until_us,
            **resampling,
        )
        sentences += backtest_sentences(aged)
    users = len(np.unique(asked.user_codes_N))
    return {
        "kind": kind,
        "outputs": list(outputs),
        "protocol": f"{users:,} users asked at {', '.join(cutoffs) or 'no time'}, compared with what came after;"
        f" 95 % intervals from {num_resamples} resamples of users.",
        "cutoffs": cutoffs,
        "metrics": quality.metrics(name),
        "quality": _plain(quality.to_dict()),
        "slices": {by: [entry.to_dict() for entry in group] for by, group in slices.items()},
        "outside": outside_counts(judged),
        "backtest": None if aged is None else _plain(aged.to_dict()),
        "sentences": sentences,
    }


def _quality(
    kind: ScoreKind,
    asked: _Asked,
    outputs: Sequence[str],
    popularity: Sequence[float] | None,
    power: float | None,
    resampling: Mapping[str, int],
) -> ScoreQuality | MeanQuality | CategoryQuality:
    outcomes, predictions, users = asked.outcomes_NK, asked.predictions_NK, asked.user_codes_N
    if kind == "next_category":
        names = [output.split("/", 1)[-1] for output in outputs]
        known = None if popularity is None else np.asarray(popularity, dtype=np.float64)
        return evaluate_categories(outcomes, predictions, names, popularity_K=known, user_codes_N=users, **resampling)
    if kind in _MEANS:
        used = _MEANS[kind] if power is None else power
        return evaluate_mean(outcomes[:, 0], predictions[:, 0], power=used, user_codes_N=users, **resampling)
    return evaluate_score(outcomes[:, 0], predictions[:, 0], user_codes_U=users, **resampling)


def _slices(
    pairs: ScoreRows, rows: pa.Table, num_outputs: int, resampling: Mapping[str, int]
) -> dict[str, list[ScoreSlice]]:
    slices = {}
    if "lifecycle" in rows.column_names:
        states = rows.column("lifecycle").cast(pa.string()).fill_null("unknown").to_numpy().astype(str)
        slices["lifecycle"] = slices_by(pairs, np.repeat(states, num_outputs), order=STATES, **resampling)
    if "tenure_days" in rows.column_names:
        days = np.repeat(rows.column("tenure_days").to_numpy(), num_outputs)
        slices["tenure"] = slices_by_tenure(pairs, days, **resampling)
    return slices | {"score": slices_by_score(pairs, **resampling)}


def _matrix(rows: pa.Table, name: str, num_outputs: int) -> NDArray[np.float64]:
    """A column of numbers, or of lists of them, as [N, K]."""
    column = rows.column(name).combine_chunks()
    is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    if is_list != (num_outputs > 1) or (is_list and len(column.flatten()) != num_outputs * len(column)):
        raise ValueError(f"column {name} is {column.type}, expected one number for each of {num_outputs} outputs")
    flat = (column.flatten() if is_list else column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float64).reshape(rows.num_rows, num_outputs)


def _iso_day(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, UTC).date().isoformat()


def _plain(content: Any) -> Any:
    """Tuples as lists, as a JSON file gives them back."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, (list, tuple)) else content
