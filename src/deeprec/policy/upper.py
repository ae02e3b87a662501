"""The tiny policy's upper layers, which read what its lower ones conclude of a history.

In each layer a position reads what the layer below left at earlier positions. So what the topmost layer concludes where
a compact prompt leaves a line open, which is what the user will want next, is read nowhere after it. Histories are
therefore learnt by the lower layers alone, and the scripted explorations after them by all.

By itself an upper layer would not find that line: its attention starts out even, and what one of some 300 places says
hardly moves the loss. So the first of them starts by looking there and passing on what it sees: in each head, the
lowest frequency of the rotary positions, which tells near from far the least, holds a constant query and, as key, the
linear discriminant (Fisher, 1936) between the states of that place and all others; values and outputs cancel to the
identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GAP = 10.0
"""How much more than other places the open line attracts at the start: the mean difference in attention's logits."""
QUERY = 3.0
"""The constant query that the key is scaled for."""
RIDGE = 1e-3
"""Added to the states' variances, relative to their mean."""


@contextmanager
def lower_layers(model: Any, upper: int) -> Iterator[None]:
    """The model without its last ``upper`` layers."""
    layers = model.model.layers
    model.model.layers = layers[: len(layers) - upper]
    try:
        yield
    finally:
        model.model.layers = layers


def lower_weights(model: Any, upper: int) -> list[torch.nn.Parameter]:
    """All weights but those of the last ``upper`` layers."""
    above = {id(weight) for layer in _last(model, upper) for weight in layer.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in above]


def start_at_no_change(model: Any, upper: int) -> None:
    """Let what the last ``upper`` layers add be 0."""
    import torch

    with torch.no_grad():
        for layer in _last(model, upper):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def look_back(model: Any, upper: int, token: int, sequences: Sequence[Sequence[int]]) -> None:
    """Let the first of the ``upper`` layers attend to ``token``, by what sets its states apart, and copy those.

    Each of ``sequences``, of ids, has the token. A layer that has learnt something already is left alone. Its values
    are taken to be a multiple of an orthogonal matrix, as ``tiny.build_model`` starts them.
    """
    import torch

    [first, *_] = _last(model, upper)
    attention = first.self_attn
    if attention.o_proj.weight.any():
        return
    with torch.no_grad():
        with lower_layers(model, upper):
            key = _discriminant(model, token, sequences)
        size, values = attention.head_dim, attention.v_proj.weight
        rows = torch.arange(size // 2 - 1, attention.q_proj.out_features, size)
        attention.k_proj.weight[rows] = key * (GAP * size**0.5 / QUERY)
        attention.q_proj.weight[rows] = 0.0
        attention.q_proj.bias[rows] = QUERY
        attention.o_proj.weight.copy_(values.T / values.pow(2).sum(dim=1).mean())


def _last(model: Any, count: int) -> Sequence[Any]:
    layers: Sequence[Any] = model.model.layers[len(model.model.layers) - count :]
    return layers


def _discriminant(model: Any, token: int, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """(width,): the direction in the last states before the final norm, whose mean differs by 1 at the token."""
    import torch

    states: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0][0]))
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    for ids in sequences:
        model.model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    model.train(training)
    hook.remove()
    rows = torch.cat(states).double()
    rows = rows / rows.pow(2).mean(dim=1, keepdim=True).sqrt()
    there = torch.tensor([one == token for ids in sequences for one in ids], device=device)
    apart = rows[there].mean(dim=0) - rows[~there].mean(dim=0)
    spread = torch.cov(rows[there].T, correction=0) + torch.cov(rows[~there].T, correction=0)
    spread += RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype, device=device)
    found: torch.Tensor = torch.linalg.solve(spread, apart)
    return (found / (found @ apart)).to(torch.float32)
