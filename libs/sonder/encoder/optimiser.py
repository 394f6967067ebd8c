"""One step of AdamW for all weights, or, for an item table too large for that, for the rows that the step touched.

Shapes: R rows of the item table.
A dense step reads and writes the whole table five times (weights, gradient, two moments, running average). Past
`SPARSE_PAST` times the rows that a step can touch, `spec.is_sparse`, the gradient is a list of rows, Adam's moments
move where it has any (torch's SparseAdam), workers exchange lists of rows, and the running average of a row is brought
up to date when the row is about to change: until then it decays towards a weight that stands still, which has a closed
form, so it is the same average.
Limits: rows of a sparse table do not decay (weight decay), and their moments stand still between two touches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import EncoderSpec

BETAS = (0.9, 0.98)
_TABLE = "items.weight"
_BLOCK_ROWS = 1 << 16


class Optimiser:
    """AdamW, fused; norms and the temperature do not decay. Beside it SparseAdam for a sparse item table."""

    def __init__(self, model: UserEncoder, spec: EncoderSpec) -> None:
        self.named = dict(model.named_parameters())
        self.table: Tensor | None = model.items.weight if spec.is_sparse else None
        dense = [parameter for parameter in model.parameters() if parameter is not self.table]
        groups = [
            {"params": [parameter for parameter in dense if parameter.ndim > 1], "weight_decay": spec.weight_decay},
            {"params": [parameter for parameter in dense if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=BETAS, fused=True)]
        if self.table is not None:
            self.parts.append(torch.optim.SparseAdam([self.table], betas=BETAS))

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def touched_rows(self) -> Tensor | None:
        """Rows of the item table that the next step changes; None: perhaps all."""
        if self.table is None or self.table.grad is None:
            return None
        self.table.grad = self.table.grad.coalesce()
        return self.table.grad.indices()[0]

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def state(self) -> dict[str, Tensor]:
        """The moments, as `moment.name of the weight`."""
        held = {}
        for name, parameter in self.named.items():
            for part in self.parts:
                for key, value in part.state.get(parameter, {}).items():
                    held[f"{key}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
        return held

    def resume(self, held: dict[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            if f"step.{name}" not in held:
                continue
            is_table = parameter is self.table
            step = held[f"step.{name}"]
            self.parts[1 if is_table else 0].state[parameter] = {
                "step": int(step) if is_table else step,
                "exp_avg": held[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": held[f"exp_avg_sq.{name}"].to(parameter.device),
            }


class RunningAverage:
    """The weights averaged over about one epoch: `model` holds them."""

    def __init__(self, followed: UserEncoder, model: UserEncoder, spec: EncoderSpec) -> None:
        self._decay = spec.average_decay
        self._followed, self._model = followed, model
        is_table = [name == _TABLE and spec.is_sparse for name, _ in followed.named_parameters()]
        pairs = zip(followed.parameters(), model.parameters(), is_table, strict=True)
        dense = [(weight.detach(), mean.detach()) for weight, mean, is_sparse in pairs if not is_sparse]
        self._dense = [weight for weight, _ in dense], [mean for _, mean in dense]
        self._log_kept = 0.0  # logarithm of what is left of the average at the start
        self._caught_up_R = torch.zeros(len(followed.items.weight), dtype=torch.float64) if spec.is_sparse else None

    @property
    def model(self) -> UserEncoder:
        """The average, up to date."""
        self.catch_up(None)
        return self._model

    def catch_up(self, rows: Tensor | None) -> None:
        """Bring rows of a sparse item table (None: all) up to date with the weights that they had until now."""
        if self._caught_up_R is None:
            return
        weight, mean = self._followed.items.weight.detach(), self._model.items.weight
        blocks = torch.split(torch.arange(len(weight)), _BLOCK_ROWS) if rows is None else (rows,)
        for block in blocks:
            left = (self._log_kept - self._caught_up_R[block]).exp().to(weight.dtype)[:, None]
            mean[block] = torch.lerp(weight[block], mean[block], left)
            self._caught_up_R[block] = self._log_kept

    def follow(self, step: int) -> None:
        """Move towards the weights after step `step` (from 1): by more in the first steps, by 1 - decay later."""
        keep = min(self._decay, (1 + step) / (10 + step))
        weights, means = self._dense
        torch._foreach_lerp_(means, weights, 1 - keep)
        self._log_kept += math.log(keep)

    def weights(self) -> dict[str, Tensor]:
        """A copy."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def resume(self, weights: dict[str, Tensor]) -> None:
        self._model.load_state_dict(weights)
        self._log_kept = 0.0
        if self._caught_up_R is not None:
            self._caught_up_R.zero_()
