"""Two encoders by the same probes: the same users, questions, readers and resamples, so that differences are paired.

Beside the difference of the mean scores stands Borda's count, by which the RecSys Challenge 2025 ranked: of two, a
point for each question that an encoder answers better, half a point each for a tie.
Limits: as of sonder.evaluation.probes: a clear difference of two trainings is not yet one of two ways of training.
"""

from __future__ import annotations

from typing import Any

from sonder.evaluation.probe_metrics import LOWER_IS_BETTER
from sonder.evaluation.probe_readers import ReaderName
from sonder.evaluation.probes import FeatureSet, Measured, Probes

COMPARED: tuple[FeatureSet, ...] = ("vector", "vector_rfm")


def compare_probes(a: Probes, b: Probes) -> dict[str, Any]:
    """`a` less `b` on the same questions and resamples, JSON-able; ValueError for probes of other users or answers.

    questions  {name: {reader: {"vector" | "vector_rfm": {metric: {value, interval, users, better}}}}}
    score      {reader: {"vector" | "vector_rfm": {value, interval, users, better}}}: difference of the mean scores
    borda      {reader: {"a": points, "b": points, "clear": questions whose interval lies off 0}}, by the vector alone
    better is "a", "b", or None where the interval holds 0.
    """
    mine, theirs = ((p.questions.digest, p.readers, p.seed, p.num_resamples) for p in (a, b))
    if mine != theirs:
        raise ValueError("the probes were asked other users or questions, or resampled otherwise: nothing is paired")
    compared: dict[str, Any] = {"questions": {}, "score": {}, "borda": {}}
    for question in a.questions.asked:
        compared["questions"][question.name] = {
            reader: {features: _differences(a, b, question.name, reader, features) for features in COMPARED}
            for reader in a.readers
        }
    for reader in a.readers:
        scores = {features: (a.score(reader, features), b.score(reader, features)) for features in COMPARED}
        compared["score"][reader] = {
            features: None if one is None or other is None else _difference("score", one.less(other))
            for features, (one, other) in scores.items()
        }
        pairs = [(a.headline(q, reader, "vector"), b.headline(q, reader, "vector")) for q in a.questions.asked]
        compared["borda"][reader] = {
            "a": sum((one.value > other.value) + 0.5 * (one.value == other.value) for one, other in pairs),
            "b": sum((one.value < other.value) + 0.5 * (one.value == other.value) for one, other in pairs),
            "clear": sum(_difference("", one.less(other))["better"] is not None for one, other in pairs),
        }
    return compared


def _differences(a: Probes, b: Probes, name: str, reader: ReaderName, features: FeatureSet) -> dict[str, Any]:
    one, other = a.found[name, reader, features], b.found[name, reader, features]
    return {metric: _difference(metric, one[metric].less(other[metric])) for metric in one}


def _difference(metric: str, difference: Measured) -> dict[str, Any]:
    interval, better = difference.interval, None
    if interval is not None and not interval[0] <= 0 <= interval[1]:
        better = "a" if (interval[0] > 0) != (metric in LOWER_IS_BETTER) else "b"
    return difference.to_dict() | {"better": better}
