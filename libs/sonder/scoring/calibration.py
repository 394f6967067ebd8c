"""Raw margins -> probabilities: isotonic, Platt or none, whichever has the least held-out log loss.

none       sigmoid(margin): what the booster was trained to say
platt      sigmoid(slope * margin + intercept), fitted to Platt's targets (1999): (N+ + 1) / (N+ + 2) for a positive,
           1 / (N- + 2) for a negative, so that labels that the margins separate do not make the slope infinite
isotonic   a rising step-and-line function through pooled frequencies (Zadrozny & Elkan 2002), kept half an event away
           from 0 and 1, so that no finite sample promises the impossible
The choice is made by cross-fitting inside the calibration set, so that no method is judged on rows it was fitted to;
the winner is then fitted on all rows. Of equals the simpler one. A calibrator is JSON and is applied by numpy alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

Method = Literal["none", "platt", "isotonic"]
NUM_FOLDS = 5


@dataclass(frozen=True)
class Calibrator:
    method: Method
    slope: float = 1.0
    intercept: float = 0.0
    margins: tuple[float, ...] = ()  # of the isotonic function, ascending
    probabilities: tuple[float, ...] = ()

    def __call__(self, margins: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Probability of each raw margin, same shape."""
        raw = margins.astype(np.float64)
        if self.method == "isotonic":
            return np.interp(raw, self.margins, self.probabilities)
        calibrated: NDArray[np.float64] = expit(self.slope * raw + self.intercept)
        return calibrated

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Calibrator:
        lists = {name: tuple(content[name]) for name in ("margins", "probabilities")}
        return cls(**(content | lists))


def fit_calibrator(margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.bool_]) -> Calibrator:
    """Choose and fit on N held-out rows that hold both labels."""
    if labels_N.all() or not labels_N.any():
        raise ValueError(f"all {len(labels_N)} calibration labels are {bool(labels_N.any())}: nothing to fit")
    losses = cross_fit_losses(margins_N, labels_N)
    return fit_method(min(losses, key=lambda method: losses[method]), margins_N, labels_N)


def cross_fit_losses(margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.bool_]) -> dict[Method, float]:
    """Log loss of each method on rows it was not fitted to, simplest method first."""
    # Folds deal out the positives and the negatives one by one, so that each holds both.
    folds = np.zeros(len(labels_N), dtype=np.int64)
    for label in (False, True):
        rows = np.flatnonzero(labels_N == label)
        folds[rows] = np.arange(len(rows)) % NUM_FOLDS
    losses: dict[Method, float] = {}
    for method in get_args(Method):
        predicted = np.zeros(len(labels_N))
        for fold in range(NUM_FOLDS):
            rest = folds != fold
            predicted[~rest] = fit_method(method, margins_N[rest], labels_N[rest])(margins_N[~rest])
        losses[method] = log_loss(labels_N, predicted)
    return losses


def fit_method(method: Method, margins_N: NDArray[np.floating[Any]], labels_N: NDArray[np.bool_]) -> Calibrator:
    margins = margins_N.astype(np.float64)
    if method == "platt":
        num_positives = np.count_nonzero(labels_N)
        num_negatives = len(labels_N) - num_positives
        targets = np.where(labels_N, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
        # A target of t is a positive of weight t and a negative of weight 1 - t.
        both, ones = np.concatenate([margins, margins]), np.repeat([True, False], len(margins))
        weights = np.concatenate([targets, 1 - targets])
        model = LogisticRegression(C=np.inf, tol=1e-8).fit(both[:, None], ones, weights)
        return Calibrator("platt", slope=float(model.coef_[0, 0]), intercept=float(model.intercept_[0]))
    if method == "isotonic":
        steps = IsotonicRegression(out_of_bounds="clip").fit(margins, labels_N.astype(np.float64))
        margin_of_safety = 0.5 / len(labels_N)
        heights = np.clip(steps.y_thresholds_, margin_of_safety, 1 - margin_of_safety)
        return Calibrator(
            "isotonic", margins=tuple(steps.X_thresholds_.tolist()), probabilities=tuple(heights.tolist())
        )
    return Calibrator("none")


def log_loss(labels_N: NDArray[np.bool_], probabilities_N: NDArray[np.float64]) -> float:
    """Mean negative log likelihood in nats; a probability of 0 or 1 is taken as 1e-7 away from it."""
    likely = np.where(labels_N, probabilities_N, 1 - probabilities_N)
    return float(-np.log(np.clip(likely, 1e-7, None)).mean())
