"""Raw margins -> what is promised: isotonic, a line, or none, whichever has the least held-out loss.

A probability (link logit: margins are log-odds, the loss is log loss)
none       sigmoid(margin): what the booster was trained to say
platt      sigmoid(slope * margin + intercept), fitted to Platt's targets (1999): (N+ + 1) / (N+ + 2) for a positive,
           1 / (N- + 2) for a negative, so that labels that the margins separate do not make the slope infinite
isotonic   lines between the middles of pooled frequencies (Zadrozny & Elkan 2002; centred as Oron & Flournoy 2017),
           kept half an event away from 0 and 1, so that no finite sample promises the impossible; Platt's slope beyond
           the outermost middles. Steps would make ties of users whom the booster tells apart, this keeps their order
An expected amount (link log: margins are its logarithm, the loss is Tweedie deviance; power 1 is Poisson's)
none       exp(margin)
scale      exp(margin + intercept): the totals agree
isotonic   lines between the middles of pooled means, kept above 0; beyond the outermost in proportion to exp(margin)
The choice is made by cross-fitting inside the calibration set, so that no method is judged on rows it was fitted to;
the winner is then fitted on all rows. Of equals the simpler one. A calibrator is JSON and is applied by numpy alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_tweedie_deviance

Method = Literal["none", "platt", "scale", "isotonic"]
Link = Literal["logit", "log"]
METHODS: dict[Link, tuple[Method, ...]] = {
    "logit": ("none", "platt", "isotonic"),
    "log": ("none", "scale", "isotonic"),
}  # simplest first
NUM_FOLDS = 5
MOST_LOG = 50.0  # of an amount; beyond it lies no amount that anybody means


@dataclass(frozen=True)
class Calibrator:
    method: Method
    slope: float = 1.0
    intercept: float = 0.0
    margins: tuple[float, ...] = ()  # of the isotonic function, ascending
    heights: tuple[float, ...] = ()
    link: Link = "logit"

    def __call__(self, margins: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Probability or expected amount of each raw margin, same shape."""
        raw = margins.astype(np.float64)
        if self.method == "isotonic":
            return self._between_middles(raw)
        return _unlinked(self.slope * raw + self.intercept, self.link)

    def _between_middles(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        told = np.interp(raw, self._margins, self._heights)
        for end, is_beyond in ((0, raw < self._margins[0]), (-1, raw > self._margins[-1])):
            if is_beyond.any():
                height = self._heights[end]
                start = logit(height) if self.link == "logit" else np.log(height)
                told[is_beyond] = _unlinked(start + self.slope * (raw[is_beyond] - self._margins[end]), self.link)
        return told

    @cached_property
    def _margins(self) -> NDArray[np.float64]:
        return np.asarray(self.margins)

    @cached_property
    def _heights(self) -> NDArray[np.float64]:
        return np.asarray(self.heights)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Calibrator:
        lists = {name: tuple(content[name]) for name in ("margins", "heights")}
        return cls(**(content | lists))


def fit_calibrator(margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.generic]) -> Calibrator:
    """Choose and fit the calibrator of a probability on N held-out rows that hold both labels."""
    labels = labels_N.astype(np.bool_)
    if labels.all() or not labels.any():
        raise ValueError(f"all {len(labels)} calibration labels are {bool(labels.any())}: nothing to fit")
    losses = cross_fit_losses(margins_N, labels)
    return fit_method(min(losses, key=lambda method: losses[method]), margins_N, labels)


def fit_mean_calibrator(
    margins_N: NDArray[np.floating[Any]], amounts_N: NDArray[np.floating[Any]], *, power: float
) -> Calibrator:
    """Choose and fit the calibrator of an expected amount; `power` of the Tweedie deviance, 1 for counts."""
    if not (amounts_N > 0).any():
        raise ValueError(f"all {len(amounts_N)} calibration amounts are 0: nothing to fit")
    losses = cross_fit_losses(margins_N, amounts_N, link="log", power=power)
    return fit_method(min(losses, key=lambda method: losses[method]), margins_N, amounts_N, link="log")


def cross_fit_losses(
    margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.generic], *, link: Link = "logit", power: float = 1.0
) -> dict[Method, float]:
    """Loss of each method on rows it was not fitted to, simplest method first."""
    # Folds deal out the rows above 0 and the others one by one, so that each holds both.
    folds = np.zeros(len(labels_N), dtype=np.int64)
    for is_positive in (False, True):
        rows = np.flatnonzero(labels_N.astype(np.bool_) == is_positive)
        folds[rows] = np.arange(len(rows)) % NUM_FOLDS
    losses: dict[Method, float] = {}
    for method in METHODS[link]:
        predicted = np.zeros(len(labels_N))
        for fold in range(NUM_FOLDS):
            rest = folds != fold
            predicted[~rest] = fit_method(method, margins_N[rest], labels_N[rest], link=link)(margins_N[~rest])
        if link == "logit":
            losses[method] = log_loss(labels_N.astype(np.bool_), predicted)
        else:
            losses[method] = tweedie_deviance(labels_N.astype(np.float64), predicted, power=power)
    return losses


def fit_method(
    method: Method, margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.generic], *, link: Link = "logit"
) -> Calibrator:
    margins = margins_N.astype(np.float64)
    if method == "platt":
        return _fit_platt(margins, labels_N.astype(np.bool_))
    if method == "scale":
        told = float(np.exp(np.minimum(margins, MOST_LOG)).sum())
        return Calibrator("scale", intercept=float(np.log(max(float(labels_N.sum()), 0.5) / told)), link=link)
    if method == "isotonic":
        return _fit_isotonic(margins, labels_N, link)
    return Calibrator("none", link=link)


def _fit_platt(margins_N: NDArray[np.float64], labels_N: NDArray[np.bool_]) -> Calibrator:
    num_positives = np.count_nonzero(labels_N)
    num_negatives = len(labels_N) - num_positives
    targets = np.where(labels_N, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
    # A target of t is a positive of weight t and a negative of weight 1 - t.
    both, ones = np.concatenate([margins_N, margins_N]), np.repeat([True, False], len(margins_N))
    weights = np.concatenate([targets, 1 - targets])
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(both[:, None], ones, weights)
    return Calibrator("platt", slope=float(model.coef_[0, 0]), intercept=float(model.intercept_[0]))


def _fit_isotonic(margins_N: NDArray[np.float64], labels_N: NDArray[np.generic], link: Link) -> Calibrator:
    amounts = labels_N.astype(np.float64)
    pooled = IsotonicRegression().fit_transform(margins_N, amounts)
    heights, block_N = np.unique(pooled, return_inverse=True)
    middles = np.bincount(block_N, margins_N) / np.bincount(block_N)
    # Half a usual event among all rows: no finite sample promises the impossible, and a mean of 0 has no deviance.
    least = 0.5 / len(amounts) * (amounts.sum() / max(np.count_nonzero(amounts), 1))
    heights = np.clip(heights, least, 1 - least if link == "logit" else None)
    slope = max(_fit_platt(margins_N, labels_N.astype(np.bool_)).slope, 0.0) if link == "logit" else 1.0
    return Calibrator(
        "isotonic", slope=slope, margins=tuple(middles.tolist()), heights=tuple(heights.tolist()), link=link
    )


def _unlinked(line: NDArray[np.float64], link: Link) -> NDArray[np.float64]:
    unlinked: NDArray[np.float64] = expit(line) if link == "logit" else np.exp(np.minimum(line, MOST_LOG))
    return unlinked


def log_loss(labels_N: NDArray[np.bool_], probabilities_N: NDArray[np.float64]) -> float:
    """Mean negative log likelihood in nats; a probability of 0 or 1 is taken as 1e-7 away from it."""
    likely = np.where(labels_N, probabilities_N, 1 - probabilities_N)
    return float(-np.log(np.clip(likely, 1e-7, None)).mean())


def tweedie_deviance(amounts_N: NDArray[np.float64], means_N: NDArray[np.float64], *, power: float) -> float:
    """Mean unit deviance of amounts >= 0 under means > 0; power 1 is Poisson's, between 1 and 2 amounts with zeros."""
    return float(mean_tweedie_deviance(amounts_N, np.maximum(means_N, 1e-12), power=power))
