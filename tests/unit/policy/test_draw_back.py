"""Between two states of a model, where a share that falls on the way is still as large as wanted."""

from __future__ import annotations

import pytest
import torch

from deeprec.policy.draw_back import draw_back


class Tied(torch.nn.Module):
    """A layer and one that has its weights, as a language model's tables are."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        self.last.weight = self.first.weight
        with torch.no_grad():
            for weights in self.parameters():
                weights.fill_(value)


def drawn(wanted: float) -> tuple[Tied, float, float]:
    """From 0 to 4, with a share that falls from 1 to 0."""
    model = Tied(4.0)
    before = {name: weights.detach().clone() for name, weights in Tied(0.0).named_parameters()}
    way, share = draw_back(model, before, lambda: 1 - model.first.weight[0, 0].item() / 4, wanted)
    return model, way, share


@pytest.mark.parametrize("wanted", [0.25, 0.65, 0.9])
def test_weights_end_where_the_share_is_as_wanted(wanted: float) -> None:
    model, way, share = drawn(wanted)
    assert wanted <= share < wanted + 0.01
    assert way == pytest.approx(1 - share)
    for weights in (*model.parameters(), model.last.weight):
        assert torch.allclose(weights, torch.full_like(weights, 4 * way))


def test_where_enough_is_left_nothing_is_drawn_back() -> None:
    model, way, share = drawn(0.0)
    assert (way, share) == (1.0, 0.0)
    assert model.first.bias.item() == 4.0


def test_where_nothing_helps_the_weights_are_those_before() -> None:
    model, way, share = drawn(1.5)
    assert (way, share) == (0.0, 1.0)
    assert model.last.bias.item() == 0.0
