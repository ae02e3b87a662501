"""The catalogue softmax against torch's cross entropy, and the sampled one against the whole."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deeprec.trm.learning import loss as loss_module
from deeprec.trm.learning.loss import Sample, Seen, catalogue_loss


def unit(rows: int, width: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=-1).requires_grad_()


def reference(users: Tensor, items: Tensor, targets: Tensor, temperature: float, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(users @ items.T / temperature, targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 4)
    users, items, targets = unit(10, 6, 0), unit(9, 6, 1), torch.arange(10) * 5 % 9
    weights = torch.linspace(0.0, 2.0, 10) if weighted else torch.ones(10)
    expected = reference(users, items, targets, 0.1, weights)
    wanted = torch.autograd.grad(expected * 3, (users, items))
    loss = catalogue_loss(users, items, targets, 0.1, weights=weights if weighted else None)
    found = torch.autograd.grad(loss * 3, (users, items))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_position_has_seen_is_left_out_except_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 3)
    users, items, targets = unit(5, 6, 6), unit(7, 6, 7), torch.tensor([1, 2, 5, 3, 0])
    inputs, places = torch.tensor([[0, 1, 2], [4, 3, 3]]), torch.tensor([0, 1, 2, 4, 5])
    seen = [{0}, {0, 1}, {0, 1, 2}, {4, 3}, {4, 3}]
    barred = torch.tensor(
        [[item in row and item != own for item in range(7)] for row, own in zip(seen, targets.tolist(), strict=True)]
    )
    scores = (users @ items.T / 0.1).masked_fill(barred, -math.inf)
    expected = F.cross_entropy(scores, targets)
    wanted = torch.autograd.grad(expected, (users, items))
    loss = catalogue_loss(users, items, targets, 0.1, seen=Seen(inputs, places))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, (users, items)), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_close_to_float32() -> None:
    users, items = unit(3000, 128, 2), unit(2000, 128, 3)
    targets = (users @ items.T).detach().topk(5).indices[:, 3]
    weights = torch.where(torch.arange(3000) < 2000, 1.0, 0.5)
    expected = reference(users, items, targets, 0.05, weights)
    wanted = torch.autograd.grad(expected, (users, items))
    loss = catalogue_loss(users, items, targets, 0.05, weights=weights, low=True)
    found = torch.autograd.grad(loss, (users, items))
    assert loss.item() == pytest.approx(expected.item(), abs=2e-3)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 2e-3 * other.norm()


@pytest.mark.parametrize("low", [False, True])
def test_the_least_temperature_does_not_overflow(low: bool) -> None:
    users, items = unit(4, 8, 4), unit(50, 8, 5)
    same = torch.cat([users.detach(), items.detach()])
    for one in (same, -same):
        found = catalogue_loss(users, one.requires_grad_(), torch.arange(4), 0.0125, low=low)
        assert torch.isfinite(found)
        assert all(torch.isfinite(part).all() for part in torch.autograd.grad(found, (users, one)))


def test_uniform_scores_cost_the_log_of_the_catalogue() -> None:
    users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]).repeat(5, 1)
    assert catalogue_loss(users, items, torch.tensor([2]), 0.05).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("low", [False, True])
def test_a_sample_of_everything_is_the_whole_catalogue(low: bool) -> None:
    users, items, targets = unit(12, 6, 6), unit(9, 6, 7), torch.arange(12) % 9
    expected = reference(users, items, targets, 0.1, torch.ones(12))
    wanted = torch.autograd.grad(expected, (users, items))
    sample = Sample(torch.arange(9), torch.ones(9), targets)
    loss = catalogue_loss(users, items, targets, 0.1, sample=sample, low=low)
    found = torch.autograd.grad(loss, (users, items))
    tolerance = 1e-5 if not low else 1e-2
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < tolerance * other.norm()


def test_sampled_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates that stand for 3 and 2 items; the second is one user's target and not counted twice."""
    monkeypatch.setattr(loss_module, "CHUNK", 1)
    users, items = unit(2, 4, 8), unit(6, 4, 9)
    targets, rows, weights = torch.tensor([4, 5]), torch.tensor([1, 5]), torch.tensor([3.0, 2.0])
    scores = users @ items.T / 0.5
    first = torch.log(scores[0, 4].exp() + 3 * scores[0, 1].exp() + 2 * scores[0, 5].exp()) - scores[0, 4]
    second = torch.log(scores[1, 5].exp() + 3 * scores[1, 1].exp()) - scores[1, 5]
    expected = (first + second) / 2
    wanted = torch.autograd.grad(expected, (users, items))
    loss = catalogue_loss(users, items, targets, 0.5, sample=Sample(rows, weights, torch.tensor([-1, 1])))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, (users, items)), wanted, strict=True):
        torch.testing.assert_close(one, other)
