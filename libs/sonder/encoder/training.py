"""The epoch loop: train, average the weights, validate, keep the best, stop when it no longer gets better.

A run is a function of its specification, its data and its number of workers: the random numbers of an epoch depend
on the seed, the epoch and the worker alone, so a run that is resumed after any epoch ends with the same weights as
one that was never interrupted. What validates and what is kept is the running average of the weights over about one
epoch, which takes the place of a falling learning rate and needs no known end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonder.core.errors import DataError
from sonder.encoder.batching import Batch, Segments, Tokens, all_segments, collate, plan_batches, tokenise
from sonder.encoder.categories import ItemCategories
from sonder.encoder.checkpoint import Progress, TrainingState
from sonder.encoder.holdout import Holdout
from sonder.encoder.model import UserEncoder
from sonder.encoder.objective import (
    Goals,
    Negatives,
    NegativeSampler,
    Popularity,
    own_positives,
    sampled_softmax,
    set_goals,
)
from sonder.encoder.peers import Peers
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.trend import Trend, constant_trend, fit_trend
from sonder.encoder.validation import Exam, examine

logger = logging.getLogger("sonder.encoder")
WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    max_epochs: int
    patience: int  # validations without improvement
    max_minutes: float | None = None


class TrainingRun:
    """One worker's share of a run: its tokens, its model, its optimiser."""

    def __init__(
        self,
        spec: EncoderSpec,
        holdout: Holdout,
        target_counts_I: NDArray[np.int64],
        peers: Peers | None = None,
        *,
        categories: ItemCategories | None = None,
    ) -> None:
        """`target_counts_I` counts the wanted events of all workers' training data."""
        self.spec, self.peers = spec, peers or Peers()
        self.is_trained_I = target_counts_I > 0
        self.tokens: Tokens = tokenise(holdout.visible, spec)
        self.goals: Goals = set_goals(self.tokens, spec)
        self.ends_U = self.goals.ends(self.tokens.offsets)
        self.exam = Exam.of(holdout.validation, spec)
        self.sampler = NegativeSampler(target_counts_I, self.goals.items, spec.num_negatives)
        if self.peers.max(float(len(self.goals.items) == 0)):
            raise DataError(
                "A training worker has no wanted event to learn from",
                expected="at least one wanted event before the cutoff for each worker",
                do="Check evaluation.test_days and events.action_weights, or lower encoder.num_workers.",
            )
        self.trend = self._trend(target_counts_I)
        self.log_shares_PI = torch.from_numpy(self.trend.log_shares_PI)
        exam_us = np.asarray([self.peers.max(float(self.exam.tokens.times_us.max(initial=0)))], dtype=np.int64)
        self.exam_shares_I = self.log_shares_PI[int(self.trend.points_at(exam_us)[0])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            self.model = UserEncoder(spec)
            if categories is not None:
                self.model.place_items(torch.from_numpy(categories.paths_IL))
            self.average = UserEncoder(spec).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        self.optimiser = _optimiser(self.model, spec)
        self.loss = self.peers.share_gradients(_Loss(self.model))
        self.progress = Progress()

    def fit(self, limits: Limits, on_epoch: Callable[[TrainingRun], None] | None = None) -> None:
        """Train until a limit; `on_epoch` sees the run after each epoch, on every worker."""
        while not self.is_finished(limits):
            started = time.perf_counter()
            loss = self.train_epoch()
            metrics = examine(
                self.average, self.spec, self.exam, self.is_trained_I, self.peers, log_shares_I=self.exam_shares_I
            )
            seconds = self.peers.max(time.perf_counter() - started)
            if self.progress.add(loss, metrics, seconds):
                self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
            if self.peers.rank == 0:
                shown = " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
                logger.info("epoch %d: loss=%.4f %s (%.1f s)", self.progress.epoch, loss, shown, seconds)
            if on_epoch is not None:
                on_epoch(self)

    def is_finished(self, limits: Limits) -> bool:
        progress = self.progress
        minutes = np.inf if limits.max_minutes is None else limits.max_minutes
        return (
            progress.epoch >= limits.max_epochs
            or progress.epoch - progress.best_epoch >= limits.patience
            or progress.seconds >= minutes * 60
        )

    def train_epoch(self) -> float:
        """One pass over all events of this worker -> mean loss over the workers."""
        entropy = [self.spec.seed, self.progress.epoch, self.peers.rank]
        random = np.random.default_rng(entropy)
        drawn_N = self.goals.draw(random)
        segments = self._segments(random)
        plan = self._plan(segments, random)
        self.model.train()
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**62)))
            for rows_B in plan:
                batch = collate(self.tokens, self.spec, segments.starts[rows_B], segments.stops[rows_B])
                losses.append(self._step(batch, drawn_N, random))
        total = self.peers.sum(np.asarray([sum(losses), len(losses)]))
        return float(total[0] / total[1])

    def _trend(self, target_counts_I: NDArray[np.int64]) -> Trend:
        if self.spec.window_us == 0 or not self.spec.reads_time:
            return constant_trend(target_counts_I)
        wanted = self.tokens.is_wanted
        times_us = self.tokens.times_us[wanted]
        return fit_trend(
            self.tokens.items[wanted],
            times_us,
            self.spec.num_items,
            start_us=-int(self.peers.max(-float(times_us.min()))),
            end_us=int(self.peers.max(float(times_us.max()))) + 1,
            window_us=self.spec.window_us,
            add_up=self.peers.sum_counts,
        )

    def _popularity(self, cells_M: NDArray[np.int64], targets_M: NDArray[np.int64], negatives: Negatives) -> Popularity:
        """`cells_M` are the tokens that predict."""
        points_M = torch.from_numpy(self.trend.points_at(self.tokens.times_us[cells_M]))
        return Popularity(
            weight=self.model.popularity,
            points_M=points_M,
            of_positives_M=self.log_shares_PI[points_M, torch.from_numpy(targets_M)],
            of_negatives_PK=self.log_shares_PI[:, torch.from_numpy(negatives.items)],
        )

    def _segments(self, random: np.random.Generator) -> Segments:
        shifts_U = random.integers(0, self.spec.max_length, self.tokens.num_users)
        segments = all_segments(self.tokens.offsets, self.ends_U, self.spec.max_length, shifts_U)
        goals_before = np.concatenate(([0], np.cumsum(self.goals.stops > self.goals.firsts)))
        has_goal = goals_before[segments.stops] > goals_before[segments.starts]
        return Segments(segments.starts[has_goal], segments.stops[has_goal])

    def _plan(self, segments: Segments, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Batches in random order, as many on each worker as on the busiest one."""
        order = random.permutation(len(segments.starts))
        batches = plan_batches(segments.lengths, max(self.spec.batch_tokens // self.peers.world, 1), order)
        num_steps = int(self.peers.max(float(len(batches))))
        return [batches[i % len(batches)] for i in random.permutation(num_steps)]

    def _step(self, batch: Batch, drawn_N: NDArray[np.int64], random: np.random.Generator) -> float:
        positions = batch.positions_BT.ravel()
        cells_M = np.flatnonzero((positions >= 0) & (drawn_N[positions] >= 0))
        negatives = self.sampler.draw(random)
        rows, items = self.goals.of(positions[cells_M])
        excluded = own_positives(negatives, rows, items)
        drawn_M = drawn_N[positions[cells_M]]
        targets_M = self.goals.items[drawn_M].astype(np.int64)
        popularity = self._popularity(positions[cells_M], targets_M, negatives)
        loss: Tensor = self.loss(
            batch,
            torch.from_numpy(cells_M),
            torch.from_numpy(targets_M),
            negatives,
            excluded,
            popularity,
            torch.from_numpy(self.goals.weights[drawn_M]),
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        progress = self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = self.spec.learning_rate * min((progress.step + 1) / WARM_UP_STEPS, 1.0)
        self.optimiser.step()
        progress.step += 1
        keep = min(self.spec.average_decay, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        return float(loss.detach())

    # -- resumable state ---------------------------------------------------------------------------------------

    def state(self) -> TrainingState:
        """All that a later process needs to go on from here."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["trained_items"] = torch.from_numpy(self.is_trained_I)
        tensors["popularity"] = torch.from_numpy(self.trend.newest_I)
        return TrainingState(self.spec, self.progress, tensors, self.trend.half_life_us)

    def resume(self, state: TrainingState) -> None:
        """Take over a state of the same specification."""
        self.model.load_state_dict(state.part("model."))
        self.average.load_state_dict(state.part("average."))
        self.best = state.part("best.")
        self.progress = state.progress
        for name, parameter in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            held = {key: state.tensors.get(f"adam.{key}.{name}") for key in keys}
            if held["step"] is not None:
                self.optimiser.state[parameter] = held


class _Loss(nn.Module):
    """The loss as a module, so that gradients can be shared around it."""

    def __init__(self, model: UserEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        batch: Batch,
        cells_M: Tensor,
        targets_M: Tensor,
        negatives: Negatives,
        excluded: tuple[NDArray[np.int64], NDArray[np.int64]],
        popularity: Popularity,
        weights_M: Tensor,
    ) -> Tensor:
        # one gather, so that the backward pass fills one gradient of the size of the item table and not three
        negatives_K = torch.from_numpy(negatives.items)
        items = torch.cat([batch.items_BT.flatten(), targets_M, negatives_K])
        rows: Tensor = self.model.item_rows(items, forgets=True)
        sizes = [batch.items_BT.numel(), len(targets_M), len(negatives_K)]
        read, wanted_MD, unwanted_KD = torch.split(rows, sizes)
        states_BTD = self.model(batch, read.view(*batch.items_BT.shape, -1))
        return sampled_softmax(
            states_BTD.flatten(0, 1)[cells_M],
            functional.normalize(wanted_MD, dim=-1),
            functional.normalize(unwanted_KD, dim=-1),
            torch.from_numpy(negatives.log_q),
            excluded,
            1 / self.model.temperature,
            popularity,
            weights_M,
        )


def _optimiser(model: UserEncoder, spec: EncoderSpec) -> torch.optim.Optimizer:
    """Fused AdamW; norms and the temperature do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(0.9, 0.98), fused=True)
