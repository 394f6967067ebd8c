"""Rows on disk -> the matrices that xgboost trains on, never all of them as floats in memory.

Models that look at the same rows and columns share a matrix: it is quantised once, file by file, into two bytes a value
(no value is missing in it: scoring.training.MISSING), and only labels and weights are exchanged from task to task. Who
is not asked by a task has weight 0 in it.
The bins of a large matrix are those of some of its rows, spread over all files: finding the quantiles of every value
took two thirds of the time of building a matrix (benchmarks/scores-scale_2026-11-24.md).
A matrix larger than `max_gib` is kept in pages on disk (ExtMemQuantileDMatrix) and read anew in every round.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipelines.score_rows import ModelPlan, Slice, read_rows, slices_of
from sonder.core.storage import Folder
from sonder.scoring.training import COMMON, fill_missing

GIB = 1 << 30
BYTES_PER_VALUE = 3  # of the quantised matrix; 2.3 were measured
BINNED_ROWS = 200_000  # rows that bins are found on
BATCH_ROWS = 100_000  # handed over at once: 80 MB, and a page on disk (small ones double the time of a round)
_PAGES, _LOCK = "sonder-matrix-", "lock"  # folders of pages, and the file in each that its user has locked


@dataclass(frozen=True)
class RowFiles:
    """The rows of one part: slices of one or more cutoffs in some buckets, always in this order."""

    rows: Folder
    slices: tuple[Slice, ...]
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, rows: Folder, model: ModelPlan, part: str, buckets: Sequence[int]) -> RowFiles:
        return cls(rows, tuple(slices_of(model.plan, part)), tuple(buckets))

    @property
    def pieces(self) -> list[tuple[Slice, int]]:
        return [(cut, bucket) for cut in self.slices for bucket in self.buckets]

    def labels(self, model: ModelPlan) -> NDArray[np.float64]:
        """[N, K], NaN where not asked."""
        return np.concatenate(
            [read_rows(self.rows, cut, bucket, [model.column]).labels(model) for cut, bucket in self.pieces]
        )


def shared_rows(model: ModelPlan) -> tuple[Any, ...]:
    """Models with the same key read the same rows and columns while they are trained; backtests come last."""
    return (
        model.is_backtest,
        model.plan.train_us,
        model.plan.calibration_us,
        model.plan.calibrated_on,
        model.spec.num_features,
    )


def bins_of(files: RowFiles, num_features: int, *, num_rows: int) -> xgboost.DMatrix | None:
    """A small matrix for `ref`, of every n-th of these rows; None where all rows are few enough to look at."""
    every = -(-num_rows // BINNED_ROWS)
    if every <= 1:
        return None
    some: list[NDArray[np.float32]] = []  # xgboost would go through all files several times for them
    rows = _Files(files, num_features, every=every)
    while rows.next(lambda data: some.append(data)):
        pass
    return xgboost.QuantileDMatrix(np.concatenate(some), max_bin=COMMON["max_bin"])


def quantised(
    files: RowFiles,
    num_features: int,
    *,
    num_rows: int,
    max_gib: float,
    pages: Path,
    ref: xgboost.DMatrix | None = None,
    part: str = "train",
) -> xgboost.DMatrix:
    """The features of these rows; `ref` is the matrix whose bins they take over.

    `pages` is a folder on a local disk that outlives the matrix, for one that is kept there, in files named by `part`.
    """
    if num_rows * num_features * BYTES_PER_VALUE <= max_gib * GIB:
        return xgboost.QuantileDMatrix(_Files(files, num_features), max_bin=COMMON["max_bin"], ref=ref)
    paged = _Files(files, num_features, cache_prefix=str(pages / part))
    return xgboost.ExtMemQuantileDMatrix(paged, max_bin=COMMON["max_bin"], ref=ref)


def set_labels(matrix: xgboost.DMatrix, labels_NK: NDArray[np.float64]) -> None:
    """Exchange what a matrix is trained for."""
    is_asked = np.isfinite(labels_NK[:, 0])
    labels = np.where(is_asked[:, None], labels_NK, 0.0).astype(np.float32)
    matrix.set_info(label=labels if labels.shape[1] > 1 else labels[:, 0], weight=is_asked.astype(np.float32))


@contextmanager
def pages_folder() -> Iterator[Path]:
    """A folder on the local disk, gone afterwards; those that killed processes left, of many GiB, go first.

    Whoever uses one holds its lock, which ends with the process. A link that somebody put there is not followed.
    """
    for lock_file in Path(tempfile.gettempdir()).glob(f"{_PAGES}*/{_LOCK}"):
        if not lock_file.parent.is_symlink() and not lock_file.is_symlink():
            with suppress(Timeout, OSError), FileLock(lock_file, timeout=0):
                shutil.rmtree(lock_file.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PAGES) as folder, FileLock(Path(folder) / _LOCK):
        yield Path(folder)


class _Files(xgboost.DataIter):  # type: ignore[misc]  # xgboost does not tell its type
    """Hands the features of some files after others to xgboost; of all rows in a line, each `every`-th."""

    def __init__(self, files: RowFiles, num_features: int, *, cache_prefix: str | None = None, every: int = 1) -> None:
        self._files, self._num_features, self._every = files, num_features, every
        self._place = self._num_seen = 0
        super().__init__(cache_prefix=cache_prefix)

    def next(self, input_data: Callable[..., Any]) -> bool:
        pieces = self._files.pieces
        batch: list[NDArray[np.float32]] = []
        while self._place < len(pieces) and sum(map(len, batch)) < BATCH_ROWS:
            cut, bucket = pieces[self._place]
            self._place += 1
            features = read_rows(self._files.rows, cut, bucket, ["features"]).features[:, : self._num_features]
            first, self._num_seen = -self._num_seen % self._every, self._num_seen + len(features)
            batch.append(features[first :: self._every].copy())  # a view would hold the whole file
        rows = np.concatenate(batch) if batch else np.empty((0, self._num_features), dtype=np.float32)
        if len(rows):
            fill_missing(rows)
            input_data(data=rows)
        return len(rows) > 0

    def reset(self) -> None:
        self._place = self._num_seen = 0
