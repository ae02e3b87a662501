"""The warm start: supervised learning on scripted trajectories, for the tiny policy only.

Only tokens the policy would have written carry loss; lists and prompts are read, never learnt. Logits are computed at
those positions alone, which halves a step's work. Batches hold trajectories of similar length, padded on the right,
where a causal model needs no mask. The same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprec.config import WarmStartConfig
from deeprec.errors import PolicyError
from deeprec.types import JsonDict, Trajectory

if TYPE_CHECKING:
    import torch

    from deeprec.explore.masks import Choices
    from deeprec.policy.batches import Allowed

WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
GRADIENT_NORM = 1.0
WARM_UP = 0.2
"""Share of the steps over which the learning rate rises."""
SETTLED_RATE = 0.5
"""Share of the learning rate for what has learnt already."""
POOL = 32
"""Batches whose trajectories are sorted by length together."""
CPU_ATTENTION = "eager"
"""Attention written out is learnt from 1.7 × as fast as torch's fused kernel on a CPU, for lessons of 100 tokens."""
REPORTS = 10
"""Progress lines, evenly spread."""


def warm_start(
    model: Any,
    trajectories: Sequence[Trajectory],
    config: WarmStartConfig,
    seed: int,
    progress: Callable[[str], None] = print,
    *,
    allowed: Allowed = (),
    rehearsal: Sequence[Trajectory] = (),
    settled: Sequence[torch.nn.Parameter] = (),
    dropout: float = 0.0,
    name: str = "warm start",
) -> list[JsonDict]:
    """Train ``model`` in place on trajectories; ``config`` gives epochs, batch size and learning rate.

    Args:
        allowed: for each trajectory, the tokens that an answer rule allows at places of its completion; what is
            learnt there is which of them it is.
        rehearsal: what was learnt before, in batches of its own among those of ``trajectories``, each once. The curve
            leaves its loss out.
        settled: weights that have learnt already, and go on at ``SETTLED_RATE`` of the rate.
        dropout: share of the input embeddings' cells that are dropped.
        name: what is learnt, as progress and curve call it.

    Returns:
        A curve of {part, step, loss, accuracy, tokens_per_second}; loss in nats per token.

    Raises:
        PolicyError: the loss is not a number, or a trajectory is longer than the model reads.
    """
    import torch

    _check_lengths(model, trajectories)
    known, new = [*trajectories, *rehearsal], len(trajectories)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batches = [batch for _ in range(config.epochs) for batch in _batches(trajectories, config.batch_size, generator)]
    if rehearsal:
        batches += [[new + row for row in batch] for batch in _batches(rehearsal, config.batch_size, generator)]
        batches = [batches[place] for place in generator.permutation(len(batches))]
    slow = {id(weight) for weight in settled}
    groups = [
        {"params": [weight for weight in model.parameters() if (id(weight) in slow) == (share < 1)], "share": share}
        for share in (1.0, SETTLED_RATE)
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, foreach=True)
    curve: list[JsonDict] = []
    every = max(1, len(batches) // REPORTS)
    losses, hits, scored, tokens, started = 0.0, 0, 0, 0, time.perf_counter()
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * config.learning_rate * schedule(step, len(batches))
        ids, wanted = _tensors([known[row] for row in batch], _device(model))
        lessons = batch[0] < new
        held = [_shifted(allowed[row], len(known[row].prompt_ids) - 1) for row in batch] if allowed and lessons else ()
        with _learning(model, dropout):
            total, correct, count = _loss(model, ids, wanted, held)
        optimizer.zero_grad(set_to_none=True)
        (total / max(count, 1)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        tokens += ids.numel()
        if lessons:
            losses, hits, scored = losses + total.item(), hits + correct, scored + count
        if scored and (step % every == 0 or step == len(batches)):
            curve.append(_record(name, step, losses, hits, scored, tokens, time.perf_counter() - started))
            progress(_line(name, curve[-1], len(batches)))
            losses, hits, scored, tokens, started = 0.0, 0, 0, 0, time.perf_counter()
    return curve


@contextmanager
def _learning(model: Any, dropout: float) -> Iterator[None]:
    """Training mode, with the faster attention of a CPU and dropped embeddings, while a loss is computed."""
    import torch

    attention = model.config._attn_implementation
    if _device(model).type == "cpu":
        model.set_attn_implementation(CPU_ATTENTION)
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, _, rows: torch.nn.functional.dropout(rows, dropout)
    )
    model.train()
    try:
        yield
    finally:
        hook.remove()
        model.set_attn_implementation(attention)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at ``step`` (1-based): a linear rise, then half a cosine down to 0."""
    rise = max(1, math.ceil(WARM_UP * steps))
    if step <= rise:
        return step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _shifted(held: Choices, by: int) -> Choices:
    return {place + by: tokens for place, tokens in held.items()}


def _loss(model: Any, ids: torch.Tensor, wanted: torch.Tensor, allowed: Allowed) -> tuple[torch.Tensor, int, int]:
    """Summed cross-entropy of the wanted tokens, how many were most likely, and how many there are.

    ``ids`` (batch, length); ``wanted`` (batch, length) bool: the tokens to learn, each predicted from those before it;
    ``allowed``: place after the first token → what it could be.
    """
    import torch

    from deeprec.explore.masks import hold_
    from deeprec.policy.batches import places
    from deeprec.trm.training import has_bf16

    with torch.autocast(ids.device.type, torch.bfloat16, enabled=has_bf16(ids.device)):
        hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        target = wanted[:, 1:]
        logits = model.get_output_embeddings()(hidden[target]).float()
    if allowed:
        logits = hold_(logits, places(target, allowed))
    labels = ids[:, 1:][target]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return loss, int((logits.detach().argmax(-1) == labels).sum()), labels.numel()


def _tensors(trajectories: Sequence[Trajectory], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    length = max(len(t.prompt_ids) + len(t.completion_ids) for t in trajectories)
    ids = torch.zeros((len(trajectories), length), dtype=torch.long)
    wanted = torch.zeros((len(trajectories), length), dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        tokens = (*trajectory.prompt_ids, *trajectory.completion_ids)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        wanted[row, len(trajectory.prompt_ids) : len(tokens)] = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
    return ids.to(device), wanted.to(device)


def _batches(trajectories: Sequence[Trajectory], size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """One pass over all rows in batches of similar length, in random order."""
    lengths = np.array([len(t.prompt_ids) + len(t.completion_ids) for t in trajectories])
    order = generator.permutation(len(trajectories))
    made: list[list[int]] = []
    for start in range(0, len(order), size * POOL):
        pool = order[start : start + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        made += [pool[first : first + size].tolist() for first in range(0, len(pool), size)]
    for index in generator.permutation(len(made)):
        yield made[index]


def _check_lengths(model: Any, trajectories: Sequence[Trajectory]) -> None:
    if not trajectories:
        raise PolicyError("there is no scripted trajectory to learn from; set policy.warm_start.trajectories to 0")
    longest = max(len(t.prompt_ids) + len(t.completion_ids) for t in trajectories)
    if longest > model.config.max_position_embeddings:
        raise PolicyError(
            f"a scripted trajectory has {longest} tokens but the model reads {model.config.max_position_embeddings}; "
            f"lower explore.items_per_call, max_calls or prompt_history"
        )


def _device(model: Any) -> Any:
    return next(model.parameters()).device


def _record(name: str, step: int, loss: float, hits: int, scored: int, tokens: int, seconds: float) -> JsonDict:
    if not math.isfinite(loss):
        raise PolicyError(f"the loss of the {name} is {loss} at step {step}; lower policy.warm_start's learning rates")
    return {
        "part": name,
        "step": step,
        "loss": loss / max(scored, 1),
        "accuracy": hits / max(scored, 1),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }


def _line(name: str, record: JsonDict, steps: int) -> str:
    return (
        f"{name} {record['step']}/{steps}: loss {record['loss']:.3f} accuracy {record['accuracy']:.3f} "
        f"{record['tokens_per_second']:,.0f} tokens/s"
    )
