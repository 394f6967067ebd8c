"""The fixed small models that read a vector: the same for every encoder, nothing of them is tuned to one.

Shapes: N training users, T test users, D inputs, K outputs of a question, C calibration rows.
linear   inputs standardised on the training users, then ridge least squares for all outputs at once; the strength for
         each output is the best of STRENGTHS by the squared error over FOLDS folds of training users. Beside a vector
         RFM is hardly penalised (LIGHT), so that a vector that says nothing can be turned off and costs little. For a
         probability it is Fisher's discriminant: its order is what is judged, not its level
network  one hidden layer of HIDDEN, as small as those of the RecSys Challenge 2025; AdamW for at most EPOCHS epochs,
         the best of them by the loss on one fold of the training users, which it does not learn from
Folds are by a digest of user ids. The same inputs and ids give the same answers on one machine.
Counts and amounts are learnt as logarithms; `calibrate_mean` says what mean a score stands for, from training users
whom the score did not learn from.
Source: Alain and Bengio (2016) for linear probes; Dabrowski et al., RecSys Challenge 2025 (Universal Behavioral
Modeling), for fixed small networks on frozen user vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from sonder.evaluation.probe_questions import Kind

ReaderName = Literal["linear", "network"]
Floats = NDArray[np.float64]
FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the penalty, a training user and standardised input
LIGHT = 0.01  # of that, on the plain inputs beside a vector
HIDDEN, EPOCHS, PATIENCE, BATCH = 64, 12, 3, 512
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 1e-2
NEWTON_STEPS = 25


@dataclass(frozen=True)
class Answers:
    """Scores of the test users, and of training users from whom the model that scored them did not learn."""

    test_TK: Floats
    calibration_C: NDArray[np.int64]  # places among the training users
    calibration_CK: Floats


@dataclass(frozen=True)
class Task:
    """What a reader is given."""

    inputs_ND: Floats
    targets_NK: Floats
    test_TD: Floats
    folds_N: NDArray[np.int64]
    kind: Kind
    num_plain: int = 0  # the last inputs, which stand beside a vector
    seed: int = 0


Reader = Callable[[Task], Answers]


def linear(task: Task) -> Answers:
    """Ridge least squares on standardised inputs; draws nothing."""
    train_ND, test_TD = _standardised(task)
    targets_NK, folds_N = task.targets_NK, task.folds_N
    plain = slice(train_ND.shape[1] - task.num_plain, None)
    for part in (train_ND, test_TD):
        part[:, plain] /= np.sqrt(LIGHT)  # a wider input needs a smaller weight, which costs less
    whole = _Moments.of(train_ND, targets_NK)
    held_out_SNK = np.zeros((len(STRENGTHS), *targets_NK.shape))
    for fold in np.unique(folds_N):
        held = folds_N == fold
        rest = whole.less(_Moments.of(train_ND[held], targets_NK[held]))
        for place, (weights_DK, start_K) in enumerate(rest.solutions()):
            held_out_SNK[place, held] = train_ND[held] @ weights_DK + start_K
    best_K = ((held_out_SNK - targets_NK) ** 2).mean(axis=1).argmin(axis=0)
    outputs_K = np.arange(len(best_K))
    solutions = list(whole.solutions())
    weights_SDK, starts_SK = (np.stack([solution[part] for solution in solutions]) for part in (0, 1))
    answers_TK = test_TD @ weights_SDK[best_K, :, outputs_K].T + starts_SK[best_K, outputs_K]
    return Answers(answers_TK, np.arange(len(train_ND)), held_out_SNK[best_K, :, outputs_K].T)


@dataclass(frozen=True)
class _Moments:
    """Sums over users from which every ridge solution follows, so that a fold costs one product and not a fit."""

    num: float
    x_D: Floats
    y_K: Floats
    xx_DD: Floats
    xy_DK: Floats

    @classmethod
    def of(cls, x_ND: Floats, y_NK: Floats) -> _Moments:
        return cls(len(x_ND), x_ND.sum(axis=0), y_NK.sum(axis=0), x_ND.T @ x_ND, x_ND.T @ y_NK)

    def less(self, other: _Moments) -> _Moments:
        return _Moments(
            self.num - other.num,
            self.x_D - other.x_D,
            self.y_K - other.y_K,
            self.xx_DD - other.xx_DD,
            self.xy_DK - other.xy_DK,
        )

    def solutions(self) -> Iterator[tuple[Floats, Floats]]:
        """Weights [D, K] and intercepts [K] for each of STRENGTHS."""
        mean_D, mean_K = self.x_D / self.num, self.y_K / self.num
        values_D, vectors_DD = np.linalg.eigh(self.xx_DD - self.num * np.outer(mean_D, mean_D))
        turned_DK = vectors_DD.T @ (self.xy_DK - self.num * np.outer(mean_D, mean_K))
        for strength in STRENGTHS:
            weights_DK = vectors_DD @ (turned_DK / (np.maximum(values_D, 0) + strength * self.num)[:, None])
            yield weights_DK, mean_K - mean_D @ weights_DK


def network(task: Task) -> Answers:
    """A small network, its best epoch by the loss on the first fold."""
    train_ND, test_TD = _standardised(task)
    targets_NK, held_N = task.targets_NK, task.folds_N == task.folds_N.min()
    if task.kind != "binary":
        middle_K, spread_K = targets_NK[~held_N].mean(axis=0), np.maximum(targets_NK[~held_N].std(axis=0), 1e-12)
        targets_NK = (targets_NK - middle_K) / spread_K
    x_ND, y_NK, x_TD = (torch.from_numpy(part).float() for part in (train_ND, targets_NK, test_TD))
    held = torch.from_numpy(held_N)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(task.seed)
        model = nn.Sequential(nn.Linear(x_ND.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, y_NK.shape[1]))
        _fit(model, x_ND, y_NK, held, task.kind)
    with torch.inference_mode():
        of_test_TK, of_held_CK = (model(part).double().numpy() for part in (x_TD, x_ND[held]))
    return Answers(of_test_TK, np.flatnonzero(held_N), of_held_CK)


def _fit(model: nn.Module, x_ND: torch.Tensor, y_NK: torch.Tensor, held_N: torch.Tensor, kind: Kind) -> None:
    """Leave the weights of the best epoch in the model."""
    loss_of = functional.binary_cross_entropy_with_logits if kind == "binary" else functional.mse_loss
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    learn = torch.nonzero(~held_N)[:, 0]
    best, best_loss, since = {name: part.clone() for name, part in model.state_dict().items()}, np.inf, 0
    for _ in range(EPOCHS):
        order = learn[torch.randperm(len(learn))]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            optimiser.zero_grad()
            torch.autograd.backward(loss_of(model(x_ND[rows]), y_NK[rows]))
            optimiser.step()
        with torch.inference_mode():
            loss = float(loss_of(model(x_ND[held_N]), y_NK[held_N]))
        since += 1
        if loss < best_loss:
            best, best_loss, since = {name: part.clone() for name, part in model.state_dict().items()}, loss, 0
        if since >= PATIENCE:
            break
    model.load_state_dict(best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network is slower on several, and its sums would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


READERS: dict[ReaderName, Reader] = {"linear": linear, "network": network}


def calibrate_mean(scores_C: Floats, outcomes_C: Floats) -> Callable[[Floats], Floats]:
    """The mean exp(a + b score), by Poisson's likelihood: two numbers, learnt from calibration users."""
    middle, spread = scores_C.mean(), max(float(scores_C.std()), 1e-12)
    x_CP = np.column_stack([np.ones(len(scores_C)), (scores_C - middle) / spread])
    beta = np.array([np.log(max(float(outcomes_C.mean()), 1e-9)), 0.0])
    ridge = np.diag([0.0, 1e-6 * len(scores_C)])
    for _ in range(NEWTON_STEPS):
        means_C = np.exp(np.clip(x_CP @ beta, -30, 30))
        slope = x_CP.T @ (outcomes_C - means_C) - ridge @ beta
        step = np.linalg.solve(x_CP.T @ (x_CP * means_C[:, None]) + ridge + 1e-9 * np.eye(2), slope)
        beta = beta + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    highest = float(outcomes_C.max())

    def mean_of(scores_T: Floats) -> Floats:
        means: Floats = np.minimum(np.exp(beta[0] + beta[1] * (scores_T - middle) / spread), highest)
        return means

    return mean_of


def _standardised(task: Task) -> tuple[Floats, Floats]:
    """Inputs of both, by mean and spread of the training users; what does not vary among them says nothing."""
    middle_D, spread_D = task.inputs_ND.mean(axis=0), task.inputs_ND.std(axis=0)
    scale_D = np.where(spread_D > 1e-9, 1 / np.maximum(spread_D, 1e-9), 0.0)
    return (task.inputs_ND - middle_D) * scale_D, (task.test_TD - middle_D) * scale_D
