"""The network's operations against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeprec.trm import functions
from deeprec.trm.functions import attend, dropout_add, gather, linear, mix_recent, norm


def plain(parts: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    length = parts.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask if bias is None else mask + bias)
    return mixed.transpose(1, 2).reshape(*parts.shape[:2], -1)


@pytest.mark.parametrize("length", [1, 4, 5, 11])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_blocks_equals_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, length: int, biased: bool
) -> None:
    monkeypatch.setattr(functions, "BLOCK", 4)
    torch.manual_seed(0)
    parts = torch.randn(3, length, 3, 2, 8, requires_grad=True)
    bias = torch.randn(2, length, length, requires_grad=True) if biased else None
    inputs = [parts] if bias is None else [parts, bias]
    upstream = torch.randn(3, length, 16)
    expected, found = plain(parts, bias), attend(parts, bias)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    for one, other in zip(torch.autograd.grad(found, inputs, upstream), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_the_short_convolution_equals_torchs(length: int) -> None:
    torch.manual_seed(0)
    values, taps = torch.randn(2, length, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    kernel = torch.cat([torch.ones(1, 5), taps]).flip(0).T[:, None]
    expected = F.conv1d(F.pad(values.mT, (3, 0)), kernel, groups=5).mT
    found, upstream = mix_recent(values, taps), torch.randn(2, length, 5)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, (values, taps), upstream)
    for one, other in zip(torch.autograd.grad(found, (values, taps), upstream), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_in_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    parts = torch.randn(4, 150, 3, 2, 16, requires_grad=True)
    upstream = torch.randn(4, 150, 32)
    (wanted,) = torch.autograd.grad(plain(parts, None), parts, upstream)
    (found,) = torch.autograd.grad(attend(parts.bfloat16()), parts, upstream.bfloat16())
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_passes_the_gradient_where_it_kept(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    residual = torch.full((1001, 37), 2.0, dtype=kind, requires_grad=True)
    branch = torch.ones(1001, 37, dtype=kind, requires_grad=True)
    added = dropout_add(residual, branch, 0.25, True)
    dropped = added == 2.0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert added.float().mean().item() == pytest.approx(3, abs=0.02)
    to_residual, to_branch = torch.autograd.grad(added, (residual, branch), torch.full_like(added, 3.0))
    assert (to_residual == 3).all()
    assert torch.equal(to_branch == 0, dropped)
    assert to_branch[~dropped].float().unique().tolist() == [4.0]
    alone = dropout_add(None, branch, 0.25, True)
    assert alone.float().unique().tolist() == pytest.approx([0, 4 / 3], rel=0.01)


def test_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    values = torch.ones(3, 5)
    assert dropout_add(None, values, 0.25, False) is values
    assert torch.equal(dropout_add(values, values, 0.0, True), 2 * values)


def test_gathered_rows_add_their_gradients_in_float32() -> None:
    table = torch.randn(5, 3, requires_grad=True)
    rows = torch.tensor([[1, 1], [4, 0]]).repeat(400, 1)
    taken = gather(table, rows, torch.bfloat16)
    assert taken.dtype == torch.bfloat16
    assert torch.equal(taken, table.detach().bfloat16()[rows])
    (found,) = torch.autograd.grad(taken, table, torch.ones_like(taken))
    assert found[:, 0].tolist() == [400, 800, 0, 0, 400]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_layers_work_in_the_type_of_their_values(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    values, dense, layer = torch.randn(6, 8), nn.Linear(8, 4), nn.LayerNorm(8)
    tolerance = 1e-6 if kind == torch.float32 else 0.03
    for found, expected in (
        (linear(values.to(kind), dense), dense(values)),
        (norm(values.to(kind), layer), layer(values)),
    ):
        assert found.dtype == kind
        torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
