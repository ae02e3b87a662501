"""What changes the weights: AdamW, lazily updated embedding rows, and the moving average of both.

A catalogue that is trained with a sampled softmax sees a few of its ID embeddings per step. ``LazyRows`` updates those
alone: Adam with one second moment per row (as TorchRec's partial row-wise Adam), bias-corrected by the step, weight
decay at the steps a row is in. Its average is exact: a row catches up on the steps it sat out when it is next touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deeprec.config import TrmConfig
from deeprec.trm.model import Trm

BETAS = (0.9, 0.98)
_EPSILON = 1e-8
_FINAL_RATE = 0.01
_SYNC_CHUNK = 65_536


class LazyRows:
    """Adam for some rows of an embedding at a time. Memory: two copies of it (moment, average), and numbers per row."""

    def __init__(self, weight: Tensor, decay: float, average: bool) -> None:
        weight.requires_grad_(False)
        self.weight, self._decay = weight, decay
        self.moment = torch.zeros_like(weight)
        self.square = weight.new_zeros(len(weight))
        self.average = weight.detach().clone() if average else None
        self._logs = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        self._log = 0.0

    def update(self, rows: Tensor, gradient: Tensor, rate: float, step: int, keep: float) -> None:
        """Adam's ``step`` (1-based) for distinct ``rows`` (n,) with their (n, width) gradient.

        ``keep`` is the decay of the average.
        """
        first, second = BETAS
        moment = torch.lerp(self.moment[rows], gradient, 1 - first)
        square = torch.lerp(self.square[rows], gradient.square().mean(1), 1 - second)
        self.moment[rows], self.square[rows] = moment, square
        scale = (square / (1 - second**step)).sqrt_().add_(_EPSILON)
        old = self.weight[rows]
        new = old * (1 - rate * self._decay) - moment / scale[:, None] * (rate / (1 - first**step))
        if self.average is not None:
            self._catch_up(rows, old)
            self.average[rows] = torch.lerp(new, self.average[rows], keep)
            self._log += math.log(keep)
            self._logs[rows] = self._log
        self.weight[rows] = new

    def synchronise(self) -> None:
        """Let the average of every row catch up."""
        for start in range(0, len(self.weight), _SYNC_CHUNK):
            rows = torch.arange(start, min(start + _SYNC_CHUNK, len(self.weight)), device=self.weight.device)
            self._catch_up(rows, self.weight[rows])
            self._logs[rows] = self._log

    def _catch_up(self, rows: Tensor, weight: Tensor) -> None:
        if self.average is not None:
            missed = (self._log - self._logs[rows]).exp().to(weight.dtype)[:, None]
            self.average[rows] = torch.lerp(weight, self.average[rows], missed)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but the weight itself."""
        state = {"moment": self.moment, "square": self.square, "logs": self._logs}
        state["log"] = torch.tensor(self._log, dtype=torch.float64)
        return state if self.average is None else {**state, "average": self.average}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave."""
        self.moment.copy_(state["moment"])
        self.square.copy_(state["square"])
        self._logs.copy_(state["logs"])
        self._log = float(state["log"])
        if self.average is not None:
            self.average.copy_(state["average"])


class Optimiser:
    """Steps a network with a one-cycle schedule over ``steps`` steps, and averages its weights."""

    def __init__(self, model: Trm, trm: TrmConfig, steps: int, sampled: bool) -> None:
        self.trm, self._steps, self.step_number = trm, steps, 0
        self.lazy = LazyRows(model.item_ids.weight, trm.weight_decay, trm.average > 0) if sampled else None
        self._named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        matrices = [value for value in self._named.values() if value.dim() > 1]
        others = [value for value in self._named.values() if value.dim() <= 1]
        self._adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": trm.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=trm.learning_rate,
            betas=BETAS,
            eps=_EPSILON,
            fused=True,
        )
        self._average = {name: value.detach().clone() for name, value in self._named.items()} if trm.average else {}

    def clear(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def clip(self, leaf: Tensor | None = None) -> float:
        """Scale all gradients, that of ``leaf`` too, down to a norm of ``clip_norm``; the norm before."""
        extra = [] if leaf is None else [leaf]
        return float(nn.utils.clip_grad_norm_([*self._named.values(), *extra], self.trm.clip_norm))

    def step(self, rows: Tensor | None = None, leaf: Tensor | None = None) -> None:
        """Move the weights; for a lazily updated embedding its ``rows`` and the ``leaf`` that holds their gradient."""
        rate = self.trm.learning_rate * schedule(self.step_number, self._steps, self.trm.warmup)
        keep = min(self.trm.average, (1 + self.step_number) / (10 + self.step_number))
        self.step_number += 1
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        if self.lazy is not None and rows is not None and leaf is not None and leaf.grad is not None:
            self.lazy.update(rows, leaf.grad, rate, self.step_number, keep)
        if self._average:
            weights = [value.detach() for value in self._named.values()]
            torch._foreach_lerp_(list(self._average.values()), weights, 1 - keep)

    def synchronise(self) -> None:
        """Let the averages of rows that sat out catch up; at the end of every epoch, measured or not."""
        if self.lazy is not None:
            self.lazy.synchronise()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network has its averaged weights inside; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep_average(self) -> None:
        """Leave the averaged weights in the network; no step may follow."""
        self._swap()

    def _swap(self) -> None:
        for name, average in self._average.items():
            value = self._named[name]
            self._average[name], value.data = value.data, average
        if self.lazy is not None and self.lazy.average is not None:
            self.lazy.average, self.lazy.weight.data = self.lazy.weight.data, self.lazy.average

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        found = {f"weight.{name}": value.detach() for name, value in self._named.items()}
        found |= {f"average.{name}": value for name, value in self._average.items()}
        for name, value in self._named.items():
            found |= {f"{key}.{name}": part for key, part in self._adam.state[value].items()}
        if self.lazy is not None:
            found["lazy.weight"] = self.lazy.weight.detach()
            found |= {f"lazy.{key}": value for key, value in self.lazy.tensors().items()}
        return found

    def load(self, state: Mapping[str, Tensor], step_number: int) -> None:
        """Take over what ``tensors`` gave after ``step_number`` steps.

        Raises:
            KeyError, RuntimeError: a tensor is missing or has another shape.
        """
        self.step_number = step_number
        with torch.no_grad():
            for name, value in self._named.items():
                value.copy_(state[f"weight.{name}"])
                self._adam.state[value] = {
                    "step": state[f"step.{name}"].to(value.device, copy=True),
                    **{key: state[f"{key}.{name}"].to(value).clone() for key in ("exp_avg", "exp_avg_sq")},
                }
            for name, average in self._average.items():
                average.copy_(state[f"average.{name}"])
            if self.lazy is not None:
                self.lazy.weight.copy_(state["lazy.weight"])
                parts = {name: value for name, value in state.items() if name.startswith("lazy.")}
                self.lazy.load({name.removeprefix("lazy."): value for name, value in parts.items()})


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a 0-based step: a linear rise, then a half cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
