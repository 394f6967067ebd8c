"""The epoch loop: train, average the weights, validate, keep the best, stop when it no longer gets better.

A run is a function of its specification, its data and its number of workers: the random numbers of a step depend on
the seed, the epoch, the worker and the step alone, so a run that is resumed after any step ends with the same weights
as one that was never interrupted. What validates and what is kept is the running average of the weights over about
one epoch, which takes the place of a falling learning rate and needs no known end.
Negatives are each worker's own: none leaves it, and a user's events are all on one worker, so what masks a user's own
positives within a worker masks them everywhere.
Limits: a run that goes on with another number of workers is cut into other batches from that step on. Every worker
makes as many steps as the busiest one, so more workers make a few more steps an epoch: 8 % with two, 20 % with four.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonder.core.errors import DataError
from sonder.core.memory import give_back
from sonder.encoder.batching import Batch, Segments, Tokens, all_segments, collate, plan_batches, tokenise
from sonder.encoder.checkpoint import Progress, TrainingState
from sonder.encoder.content import ItemContent
from sonder.encoder.holdout import Holdout
from sonder.encoder.model import UserEncoder
from sonder.encoder.objective import (
    Cells,
    Draws,
    Goals,
    Negatives,
    NegativeSampler,
    Popularity,
    loses_to_unwanted,
    own_positives,
    running_sum,
    sampled_softmax,
    set_goals,
)
from sonder.encoder.optimiser import Optimiser, RunningAverage
from sonder.encoder.peers import Peers
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.trend import Trend, constant_trend, fit_trend
from sonder.encoder.validation import Exam, examine
from sonder.history.cutoffs import Split

logger = logging.getLogger("sonder.encoder")
WARM_UP_STEPS = 100
PAUSE_STEPS = 64  # between two chances to save the state within an epoch


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
        holdouts: Iterable[Holdout],
        target_counts_I: NDArray[np.int64],
        peers: Peers | None = None,
        *,
        content: ItemContent | None = None,
        start: dict[str, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`holdouts` are of disjoint sets of users, none of which is held longer than it takes to read it.

        `target_counts_I` counts the wanted events of all workers' training data.
        `start` holds the weights to go on from (`sonder.encoder.growth`); None: new ones.
        """
        self.spec, self.peers, self.device = spec, peers or Peers(), device or torch.device("cpu")
        self.is_trained_I = target_counts_I > 0
        validations: list[Split] = []

        def read() -> Iterator[Tokens]:
            for holdout in holdouts:
                validations.append(holdout.validation)
                yield tokenise(holdout.visible, spec)

        self.tokens = Tokens.concat(read())
        give_back()
        self.goals: Goals = set_goals(self.tokens, spec)
        self.unwanted: Goals | None = set_goals(self.tokens, spec, unwanted=True) if spec.has_unwanted else None
        self.ends_U = self.goals.ends(self.tokens.offsets)
        self.exam = Exam.of(Split.concat(validations), spec)
        self.sampler = NegativeSampler(
            target_counts_I, self.goals.items, spec.num_negatives, corrects=spec.corrects_log_q
        )
        if self.peers.max(float(len(self.goals.items) == 0)):
            raise DataError(
                "A training worker has no wanted event to learn from",
                expected="at least one wanted event before the cutoff for each worker",
                do="Check evaluation.test_days, events.action_weights and encoder.max_training_events; give each "
                "worker a bucket by raising prepare.num_buckets or lowering encoder.num_workers.",
            )
        self.trend = self._trend(target_counts_I)
        self.log_shares_PI = torch.from_numpy(self.trend.log_shares_PI)
        exam_us = np.asarray([self.peers.max(float(self.exam.tokens.times_us.max(initial=0)))], dtype=np.int64)
        self.exam_shares_I = self.log_shares_PI[int(self.trend.points_at(exam_us)[0])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            self.model = UserEncoder(spec, content)
        if start is not None:
            self.model.load_state_dict(start)
        self.model.to(self.device)
        shared: dict[int, object] = {id(tensor): tensor for tensor in self.model.buffers()}  # what no step changes
        average = copy.deepcopy(self.model, shared).requires_grad_(False)
        self.average = RunningAverage(self.model, average, spec)
        self.best = self.average.weights()
        self.optimiser = Optimiser(self.model, spec)
        self.loss = self.peers.share_gradients(_Loss(self.model))
        self.progress = Progress()
        self._clock = time.perf_counter()

    def fit(
        self,
        limits: Limits,
        on_epoch: Callable[[TrainingRun], None] | None = None,
        on_pause: Callable[[TrainingRun], None] | None = None,
    ) -> None:
        """Train until a limit. Both see the run on every worker: after each epoch, every PAUSE_STEPS steps within."""
        while not self.is_finished(limits):
            self._clock = time.perf_counter()
            loss = self.train_epoch(on_pause)
            metrics = examine(
                self.average.model, self.spec, self.exam, self.is_trained_I, self.peers, log_shares_I=self.exam_shares_I
            )
            self._count_seconds()
            seconds = self.progress.epoch_seconds
            if self.progress.add(loss, metrics):
                self.best = self.average.weights()
            if self.peers.rank == 0:
                shown = " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
                logger.info("epoch %d: loss=%.4f %s (%.1f s)", self.progress.epoch, loss, shown, seconds)
            if on_epoch is not None:
                on_epoch(self)

    def _count_seconds(self) -> None:
        """Add the time since the clock was read to the run's; the slowest worker's holds for all."""
        now = time.perf_counter()
        self.progress.epoch_seconds += self.peers.max(now - self._clock)
        self._clock = now

    def is_finished(self, limits: Limits) -> bool:
        progress = self.progress
        minutes = np.inf if limits.max_minutes is None else limits.max_minutes
        return (
            progress.epoch >= limits.max_epochs
            or progress.epoch - progress.best_epoch >= limits.patience
            or progress.seconds >= minutes * 60
        )

    def train_epoch(self, on_pause: Callable[[TrainingRun], None] | None = None) -> float:
        """What is left of one pass over all events of this worker -> mean loss over the workers."""
        progress = self.progress
        entropy = [self.spec.seed, progress.epoch, self.peers.rank]
        random = np.random.default_rng(entropy)
        drawn = self.goals.draw(random)
        drawn_unwanted = self.unwanted.draw(random) if self.unwanted is not None else None
        segments = self._segments(random)
        plan = self._plan(segments, random)
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            while progress.step_of_epoch < len(plan):
                random = np.random.default_rng([*entropy, progress.step_of_epoch])
                torch.manual_seed(int(random.integers(2**62)))
                rows_B = plan[progress.step_of_epoch]
                batch = collate(self.tokens, self.spec, segments.starts[rows_B], segments.stops[rows_B], self.device)
                progress.loss += self._step(batch, drawn, drawn_unwanted, random)
                progress.step_of_epoch += 1
                if progress.step_of_epoch % PAUSE_STEPS == 0 and on_pause is not None:
                    self._count_seconds()
                    progress.loss = float(self.peers.sum(np.asarray([progress.loss]))[0]) / self.peers.world
                    with torch.random.fork_rng(devices=[]):
                        on_pause(self)
        total = self.peers.sum(np.asarray([progress.loss, progress.step_of_epoch]))
        progress.loss, progress.step_of_epoch = 0.0, 0
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
            points_M=points_M.to(self.device),
            of_positives_M=self.log_shares_PI[points_M, torch.from_numpy(targets_M)].to(self.device),
            of_negatives_PK=self.log_shares_PI[:, torch.from_numpy(negatives.items)].to(self.device),
        )

    def _segments(self, random: np.random.Generator) -> Segments:
        shifts_U = random.integers(0, self.spec.max_length, self.tokens.num_users)
        segments = all_segments(self.tokens.offsets, self.ends_U, self.spec.max_length, shifts_U)
        goals_before = running_sum(self.goals.stops > self.goals.firsts, most=len(self.goals.firsts))
        has_goal = goals_before[segments.stops] > goals_before[segments.starts]
        return Segments(segments.starts[has_goal], segments.stops[has_goal])

    def _plan(self, segments: Segments, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Batches in random order, as many on each worker as on the busiest one."""
        order = random.permutation(len(segments.starts))
        batches = plan_batches(segments.lengths, max(self.spec.batch_tokens // self.peers.world, 1), order)
        num_steps = int(self.peers.max(float(len(batches))))
        return [batches[i % len(batches)] for i in random.permutation(num_steps)]

    def _step(self, batch: Batch, drawn: Draws, drawn_unwanted: Draws | None, random: np.random.Generator) -> float:
        positions = batch.positions_BT.ravel()
        cells_M, drawn_M = drawn.at(positions)
        negatives = self.sampler.draw(random)
        rows, items = self.goals.of(positions[cells_M])
        targets_M = self.goals.items[drawn_M].astype(np.int64)
        loss: Tensor = self.loss(
            batch,
            torch.from_numpy(cells_M).to(self.device),
            torch.from_numpy(targets_M).to(self.device),
            negatives,
            own_positives(negatives, rows, items),
            self._popularity(positions[cells_M], targets_M, negatives),
            torch.from_numpy(self.goals.weights[drawn_M]).to(self.device),
            self._unwanted(positions, cells_M, drawn_unwanted),
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        progress = self.progress
        touched = self.optimiser.touched_rows()
        self.average.catch_up(touched)
        self.optimiser.step(self.spec.learning_rate * min((progress.step + 1) / WARM_UP_STEPS, 1.0))
        progress.step += 1
        self.average.follow(progress.step)
        return float(loss.detach())

    def _unwanted(
        self, positions: NDArray[np.int64], cells_M: NDArray[np.int64], drawn: Draws | None
    ) -> Unwanted | None:
        """The unwanted item beside each prediction of an event that has one."""
        if self.unwanted is None or drawn is None:
            return None
        rows_H, places_H = drawn.at(positions[cells_M])
        if len(rows_H) == 0:
            return None
        return Unwanted(
            rows=torch.from_numpy(rows_H).to(self.device),
            items=torch.from_numpy(self.unwanted.items[places_H].astype(np.int64)).to(self.device),
            weights=torch.from_numpy(self.unwanted.weights[places_H]).to(self.device),
        )

    # -- resumable state ---------------------------------------------------------------------------------------

    def state(self) -> TrainingState:
        """All that a later process needs to go on from here; no copy: save it before the next step."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimiser.state().items()}
        tensors["trained_items"] = torch.from_numpy(self.is_trained_I)
        tensors["popularity"] = torch.from_numpy(self.trend.newest_I)
        return TrainingState(self.spec, copy.deepcopy(self.progress), tensors, self.trend.half_life_us)

    def resume(self, state: TrainingState) -> None:
        """Take over a state of the same specification."""
        self.model.load_state_dict(state.part("model."))
        self.average.resume(state.part("average."))
        self.best = {name: tensor.to(self.device) for name, tensor in state.part("best.").items()}
        self.progress = state.progress
        self.optimiser.resume(state.part("adam."))


@dataclass(frozen=True)
class Unwanted:
    """An unwanted item beside some of the predictions of a batch."""

    rows: Tensor  # [H] of the predictions
    items: Tensor  # [H]
    weights: Tensor  # [H]


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
        excluded: Cells,
        popularity: Popularity,
        weights_M: Tensor,
        unwanted: Unwanted | None,
    ) -> Tensor:
        # one gather, so that the backward pass fills one gradient of the size of the item table and not four
        negatives_K = torch.from_numpy(negatives.items).to(targets_M.device)
        unwanted_H = targets_M[:0] if unwanted is None else unwanted.items
        items = torch.cat([batch.items_BT.flatten(), targets_M, negatives_K, unwanted_H])
        rows: Tensor = self.model.item_rows(items, forgets=True)
        sizes = [batch.items_BT.numel(), len(targets_M), len(negatives_K), len(unwanted_H)]
        read, *others = torch.split(rows, sizes)
        wanted_MD, negatives_KD, unwanted_HD = (functional.normalize(rows, dim=-1) for rows in others)
        states_MD = self.model(batch, read.view(*batch.items_BT.shape, -1)).flatten(0, 1)[cells_M]
        scale = 1 / self.model.temperature
        loss = sampled_softmax(
            states_MD,
            wanted_MD,
            negatives_KD,
            torch.from_numpy(negatives.log_q).to(targets_M.device),
            excluded,
            scale,
            popularity,
            weights_M,
        )
        if unwanted is None:
            return loss
        lost = loses_to_unwanted(
            states_MD[unwanted.rows], wanted_MD[unwanted.rows], unwanted_HD, scale, unwanted.weights
        )
        return loss + lost / weights_M.sum()
