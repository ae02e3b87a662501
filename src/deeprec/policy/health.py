"""Health of a stage while it trains: how far it is from its start, and whether exploring has collapsed.

The figures themselves are a batch's statistics (``policy.curves``); here they are held against the configured bounds.
What a stage does about a collapse is the trainer's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.config import HealthConfig
from deeprec.policy.lora import without_wrapper
from deeprec.types import JsonDict, Trajectory

if TYPE_CHECKING:
    import torch

    from deeprec.policy.batches import Held

_MICRO_BATCH = 8
"""Trajectories per forward pass of the start model, at most."""
_PLACES = 16384
"""Token places per forward pass, at most, unless one trajectory has more: each has a logit for the whole vocabulary."""


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
        ("top_preference_share", "max_top_preference_share", health.max_top_preference_share, False),
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
    """The policy as the stage found it, to measure how far training has taken it from there.

    A frozen copy, which waits in the machine's memory where the trained model is on an accelerator, and goes there to
    score. With adapters there is none: the start is the trained model without them.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        pad_id: int,
        most: int,
        allowed: Held | None = None,
        adapted: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._copy = None if adapted else _waiting_copy(model, dtype)
        self._temperature, self._pad_id, self._most, self._allowed = temperature, pad_id, most, allowed

    def divergence(self, trajectories: Sequence[Trajectory], trained: Any) -> float | None:
        """KL(policy ‖ start) in nats per token the policy wrote, on ``most`` trajectories spread over the batch.

        The k3 estimator, mean of r − 1 − log r with r = p_start / p_policy on sampled tokens: unbiased, never
        negative (J. Schulman, Approximating KL Divergence, 2020). Both at the sampling temperature, the policy's
        log-probabilities as sampled. None when no token was written.

        Args:
            trajectories: a batch that the policy has just rolled out.
            trained: the model under training, in peft's wrapper where it has adapters.
        """
        import torch

        written = [trajectory for trajectory in trajectories if any(trajectory.loss_mask)]
        count = min(self._most, len(written))
        chosen = [written[place * len(written) // count] for place in range(count)]
        longest = max((len(one.prompt_ids) + len(one.completion_ids) for one in chosen), default=1)
        size = max(1, min(_MICRO_BATCH, _PLACES // longest))
        total, tokens = 0.0, 0
        with torch.no_grad(), self._start(trained) as model:
            for begin in range(0, count, size):
                own, sampled, start = self._score(model, chosen[begin : begin + size])
                ratio = (start - sampled)[own].double()
                total += float((torch.expm1(ratio) - ratio).sum())
                tokens += int(own.sum())
        return total / tokens if tokens and math.isfinite(total) else None

    @contextmanager
    def _start(self, trained: Any) -> Iterator[Any]:
        """The start, where ``trained`` is."""
        if self._copy is None:
            training = trained.training
            with trained.disable_adapter():
                try:
                    yield without_wrapper(trained.eval())
                finally:
                    trained.train(training)
            return
        home, away = (next(model.parameters()).device for model in (self._copy, trained))
        try:
            yield self._copy.to(away)
        finally:
            self._copy.to(home)

    def _score(self, model: Any, batch: Sequence[Trajectory]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy's own tokens, and what it and the start give them: (batch, C) each."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from deeprec.policy.batches import own_logprobs

        device = next(model.parameters()).device
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
        start, _ = own_logprobs(model, ids, attention, own, temperature=self._temperature, allowed=held)
        return own, sampled, start


def _waiting_copy(model: Any, dtype: torch.dtype | None) -> Any:
    """A frozen copy in the machine's memory, in ``dtype`` where one is given; an accelerator keeps no trace of it."""
    import torch

    start = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", dtype)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return start
