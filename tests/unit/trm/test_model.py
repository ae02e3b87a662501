from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from deeprec.config import TrmConfig
from deeprec.trm import loss as loss_module
from deeprec.trm.loss import catalogue_loss
from deeprec.trm.model import Trm, attend, dropout, mean_phrases


def make_model() -> Trm:
    torch.manual_seed(0)
    return Trm(TrmConfig(width=16, max_length=10), F.normalize(torch.randn(20, 12), dim=-1)).eval()


def test_attention_equals_the_fused_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attend(query, key, value), expected)


def test_padding_and_later_items_never_change_an_encoding() -> None:
    model = make_model()
    with torch.no_grad():
        table = model.item_table()
        alone = model.encode(torch.tensor([[3, 5, 8]]), table)[0]
        for rest in (0, 19, 7):
            padded = model.encode(torch.tensor([[3, 5, 8, rest, rest], [1, 2, 3, 4, 5]]), table)[0, :3]
            torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-5)


def test_order_of_the_history_matters() -> None:
    model = make_model()
    with torch.no_grad():
        table = model.item_table()
        one, two = (model.encode(torch.tensor([rows]), table)[0, -1] for rows in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(one, two, atol=1e-3)


def test_mean_phrases_by_hand() -> None:
    adapted = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    phrases = torch.tensor([[0, 1, -1], [-1, -1, -1], [-1, 2, -1]])
    assert mean_phrases(phrases, adapted).tolist() == [[2.0, 1.0], [0.0, 0.0], [9.0, 9.0]]


def test_user_vectors_have_unit_length_even_for_nothing() -> None:
    users = make_model().user(torch.stack([torch.randn(16), torch.zeros(16)]))
    assert torch.isfinite(users).all()
    assert users[0].norm().item() == pytest.approx(1, abs=1e-5)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    values = torch.ones(1001, 37)
    dropped = dropout(values, 0.25, True)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert dropout(values, 0.25, False) is values
    assert dropout(values, 0.0, True) is values


def test_loss_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 4)
    torch.manual_seed(0)
    users, items = (F.normalize(torch.randn(n, 6), dim=-1).requires_grad_() for n in (10, 9))
    targets = torch.randint(9, (10,))
    expected = F.cross_entropy(users @ items.T / 0.1, targets)
    wanted = torch.autograd.grad(expected * 3, (users, items))
    loss = catalogue_loss(users, items, targets, 0.1)
    found = torch.autograd.grad(loss * 3, (users, items))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    low = catalogue_loss(users, items, targets, 0.1, low=True)
    assert low.item() == pytest.approx(expected.item(), rel=0.02)


def test_uniform_scores_cost_the_log_of_the_catalogue() -> None:
    users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]).repeat(5, 1)
    assert catalogue_loss(users, items, torch.tensor([2]), 0.05).item() == pytest.approx(math.log(5))
