"""What one training worker needs of the others; alone, all of it is the identity.

Limits: uses torch.distributed's default group if one was set up (gloo on a CPU), and never sets one up itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Peers:
    """This worker's place among `world` workers."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Peers:
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(rank=dist.get_rank(), world=dist.get_world_size())

    def sum(self, values: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Add up over the workers, element by element; exact for counts below 2**53."""
        return self._reduce(values, "sum")

    def sum_counts(self, counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        return self.sum(np.asarray(counts, dtype=np.int64)).astype(np.int64)

    def max(self, value: float) -> float:
        return float(self._reduce(np.asarray([value]), "max")[0])

    def share_gradients(self, module: nn.Module) -> nn.Module:
        """Average the gradients of each step over the workers; sparse ones travel as lists of rows.

        Buffers hold what is known of the items and never change, so they do not travel.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _reduce(self, values: NDArray[np.int64] | NDArray[np.float64], how: str) -> NDArray[np.float64]:
        total = np.asarray(values, dtype=np.float64).copy()
        if self.world > 1:
            dist.all_reduce(torch.from_numpy(total), op=dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
        return total
