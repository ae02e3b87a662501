"""Health of a stage while it trains: how far it is from its start, and whether exploring has collapsed.

The figures themselves are a batch's statistics (``policy.curves``); here they are held against the configured bounds.
What a stage does about a collapse is the trainer's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.config import HealthConfig
from deeprec.types import JsonDict, Trajectory

if TYPE_CHECKING:
    import torch

    from deeprec.policy.batches import Held

_MICRO_BATCH = 8
"""Trajectories per forward pass of the start model."""


@dataclass(frozen=True, slots=True)
class Collapse:
    """Why a stage should stop, in one line, and its last step (1-based) before that began; 0 when there was none."""

    reason: str
    healthy_steps: int


def collapse(records: Sequence[JsonDict], health: HealthConfig) -> Collapse | None:
    """The first bound that each of the last ``patience`` records breaks; None while there is no such bound.

    A figure that was not measured in a step breaks nothing.
    """
    recent = records[-health.patience :]
    if len(recent) < health.patience:
        return None
    for name, option, bound, floor in _bounds(health):
        if not all(_broken(record, name, bound, floor) for record in recent):
            continue
        began = len(records)
        while began and _broken(records[began - 1], name, bound, floor):
            began -= 1
        shown = ", ".join(f"{record[name]:.3g}" for record in recent)
        reason = (
            f"{name} stayed {'below' if floor else 'above'} health.{option} = {bound:g} "
            f"for {len(records) - began} steps (last {shown})"
        )
        return Collapse(reason, int(records[began - 1]["step"]) if began else 0)
    return None


def _bounds(health: HealthConfig) -> list[tuple[str, str, float, bool]]:
    """Figure, option, bound, and whether it is a floor; bounds that are switched off are left out."""
    bounds = [
        ("valid_rate", "min_valid_rate", health.min_valid_rate, True),
        ("mean_calls", "min_mean_calls", health.min_mean_calls, True),
        ("repeated_preferences", "max_repeated_preferences", health.max_repeated_preferences, False),
    ]
    if health.max_logprob_gap:
        bounds.append(("logprob_gap", "max_logprob_gap", health.max_logprob_gap, False))
    return bounds


def _broken(record: JsonDict, name: str, bound: float, floor: bool) -> bool:
    value = record.get(name)
    if value is None:
        return False
    return bool(value < bound) if floor else bool(value > bound)


class StartModel:
    """A frozen copy of the policy as the stage found it, to measure how far training has taken it from there."""

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        pad_id: int,
        most: int,
        allowed: Held | None = None,
    ) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._temperature, self._pad_id, self._most, self._allowed = temperature, pad_id, most, allowed

    def divergence(self, trajectories: Sequence[Trajectory]) -> float | None:
        """KL(policy ‖ start) in nats per token the policy wrote, on ``most`` trajectories spread over the batch.

        The k3 estimator, mean of r − 1 − log r with r = p_start / p_policy on sampled tokens: unbiased, never
        negative (J. Schulman, Approximating KL Divergence, 2020). Both at the sampling temperature, the policy's
        log-probabilities as sampled. None when no token was written.
        """
        import torch

        written = [trajectory for trajectory in trajectories if any(trajectory.loss_mask)]
        count = min(self._most, len(written))
        chosen = [written[place * len(written) // count] for place in range(count)]
        total, tokens = 0.0, 0
        with torch.no_grad():
            for begin in range(0, count, _MICRO_BATCH):
                own, sampled, start = self._score(chosen[begin : begin + _MICRO_BATCH])
                ratio = (start - sampled)[own].double()
                total += float((torch.expm1(ratio) - ratio).sum())
                tokens += int(own.sum())
        return total / tokens if tokens and math.isfinite(total) else None

    def _score(self, batch: Sequence[Trajectory]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy's own tokens, and what it and the start give them: (batch, C) each."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from deeprec.policy.batches import own_logprobs

        device = next(self._model.parameters()).device
        prompts = [torch.tensor(trajectory.prompt_ids) for trajectory in batch]
        completions = [torch.tensor(trajectory.completion_ids) for trajectory in batch]

        def sides(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
            ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_id, padding_side=side)
            seen = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
            return ids, seen

        (before, seen_before), (after, seen_after) = sides(prompts, "left"), sides(completions, "right")
        own = pad_sequence([torch.tensor(t.loss_mask, dtype=torch.bool) for t in batch], batch_first=True).to(device)
        sampled = pad_sequence([torch.tensor(t.logprobs) for t in batch], batch_first=True).to(device)
        ids = torch.cat([before, after], dim=1).to(device)
        attention = torch.cat([seen_before, seen_after], dim=1).to(device)
        held = [self._allowed(trajectory) for trajectory in batch] if self._allowed else ()
        start, _ = own_logprobs(self._model, ids, attention, own, temperature=self._temperature, allowed=held)
        return own, sampled, start
