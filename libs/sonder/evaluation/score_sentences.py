"""What the quality of a score means, in plain words: one sentence a fact, numbers with their interval.

Limits: sentences name no protocol; who shows them shows `protocol` of sonder.evaluation.score_judgement beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sonder.evaluation.backtest import Backtest
from sonder.evaluation.classification import ScoreQuality
from sonder.evaluation.resampling import Interval
from sonder.evaluation.score_categories import CategoryQuality
from sonder.evaluation.score_means import MeanQuality
from sonder.evaluation.score_slices import ScoreSlice, outside_counts

MOST_NAMED = 4


def quality_sentences(quality: ScoreQuality | MeanQuality | CategoryQuality) -> list[str]:
    """Order first, then calibration."""
    if isinstance(quality, ScoreQuality):
        return _of_score(quality)
    if isinstance(quality, MeanQuality):
        return _of_mean(quality)
    return _of_categories(quality)


def slice_sentences(slices: Mapping[str, Sequence[ScoreSlice]], *, is_share: bool) -> list[str]:
    """How many slices hold what was promised, and the worst of those that do not."""
    every = [(by, entry) for by, group in slices.items() for entry in group]
    counts = outside_counts([entry for _, entry in every])
    if not counts["judged"]:
        return []
    outside = [(by, entry) for by, entry in every if entry.is_inside is not None and not entry.is_inside]
    told = (
        f"Prediction and outcome agree in {counts['judged'] - counts['outside']:.0f} of {counts['judged']:.0f} slices;"
        f" by chance {counts['outside_by_chance']:.1f} would not."
    )
    if outside:
        outside.sort(key=lambda pair: -abs(pair[1].predicted - pair[1].observed))
        unit = ".1%" if is_share else ".3g"
        named = "; ".join(
            f"{by} {entry.name}: predicted {entry.predicted:{unit}}, came {entry.observed:{unit}}"
            for by, entry in outside[:MOST_NAMED]
        )
        told += f" Furthest apart: {named}."
    return [told]


def backtest_sentences(backtest: Backtest) -> list[str]:
    """What drifts, if anything."""
    return [backtest.drift.sentence]


def calibration_sentence(ece: float | None, by_chance: float | None, at_most: float | None) -> str | None:
    """Whether an ECE means anything on as many users; None without the reference."""
    if ece is None or by_chance is None or at_most is None:
        return None
    verdict = "within chance" if ece <= at_most else "miscalibrated beyond chance"
    return (
        f"ECE {ece:.4f}; a perfectly calibrated score has {by_chance:.4f} on as many users,"
        f" and at most {at_most:.4f} in 95 of 100 cases: {verdict}."
    )


def _of_score(quality: ScoreQuality) -> list[str]:
    if quality.auc is None or quality.pr_auc is None or quality.top_decile_lift is None:
        return [f"Not measured: {quality.reason}."]
    spans = quality.intervals
    told = [
        f"AUC {quality.auc:.3f}{_span(spans.get('auc'), '.3f')},"
        f" PR-AUC {quality.pr_auc:.3f}{_span(spans.get('pr_auc'), '.3f')} at a base rate of {quality.base_rate:.3f}.",
        f"In the best-scored tenth it comes true {quality.top_decile_lift:.2f} times as often as among all"
        f"{_span(spans.get('top_decile_lift'), '.2f')}.",
        calibration_sentence(quality.ece, quality.ece_by_chance, quality.ece_by_chance_at_most),
        _ratio(quality.predicted_to_observed, spans),
    ]
    return [sentence for sentence in told if sentence]


def _of_mean(quality: MeanQuality) -> list[str]:
    if quality.top_decile_share is None:
        return [f"Not measured: {quality.reason}."]
    spans = quality.intervals
    told = [
        f"The best-scored tenth of users brings {quality.top_decile_share:.0%} of the total"
        f"{_span(spans.get('top_decile_share'), '.0%')}.",
        _ratio(quality.predicted_to_observed, spans),
    ]
    if quality.gini is not None:
        told.insert(1, f"Normalised Gini {quality.gini:.3f}{_span(spans.get('gini'), '.3f')}; 1 is the best order.")
    if quality.deviance_explained is not None:
        told.append(
            f"It explains {quality.deviance_explained:.1%} of the deviance that the best constant leaves"
            f"{_span(spans.get('deviance_explained'), '.1%')}."
        )
    return [sentence for sentence in told if sentence]


def _of_categories(quality: CategoryQuality) -> list[str]:
    if quality.precision_at_1 is None or quality.recall_at_k is None:
        return [f"Not measured: {quality.reason}."]
    spans, k = quality.intervals, quality.k
    told = [
        f"The category named first comes true for {quality.precision_at_1:.1%} of users"
        f"{_span(spans.get('precision_at_1'), '.1%')}, the most popular one for {quality.popular_precision_at_1:.1%}.",
        f"The first {k} hold {quality.recall_at_k:.1%} of what came{_span(spans.get('recall_at_k'), '.1%')},"
        f" the {k} most popular {quality.popular_recall_at_k:.1%}.",
        calibration_sentence(quality.ece, quality.ece_by_chance, quality.ece_by_chance_at_most),
        _ratio(quality.predicted_to_observed, spans),
    ]
    if quality.macro_auc is not None:
        told.insert(
            2,
            f"AUC {quality.macro_auc:.3f}{_span(spans.get('macro_auc'), '.3f')} as the mean of {quality.categories}"
            f" categories, {quality.weighted_auc:.3f} weighted by how often they come.",
        )
    return [sentence for sentence in told if sentence]


def _ratio(ratio: float | None, spans: Mapping[str, Interval]) -> str | None:
    if ratio is None:
        return None
    return f"In sum {ratio:.3f} times what came was predicted{_span(spans.get('predicted_to_observed'), '.3f')}."


def _span(interval: Interval | None, unit: str) -> str:
    return "" if interval is None else f" (95 % {interval[0]:{unit}} to {interval[1]:{unit}})"
