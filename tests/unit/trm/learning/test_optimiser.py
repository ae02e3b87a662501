from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from deeprec.config import TrmConfig
from deeprec.trm.learning.optimiser import LazyRows, Optimiser, schedule
from deeprec.trm.model import Trm


def test_schedule_rises_and_falls() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.02
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_lazy_rows_of_width_one_that_are_always_touched_are_adamw() -> None:
    torch.manual_seed(0)
    plain = torch.randn(5, 1, requires_grad=True)
    lazy = LazyRows(plain.detach().clone(), 0.1, False)
    adam = torch.optim.AdamW([plain], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(1, 8):
        plain.grad = torch.randn(5, 1)
        adam.step()
        order = torch.randperm(5)
        lazy.update(order, plain.grad[order], 0.01, step, 0.0)
        torch.testing.assert_close(lazy.weight, plain.detach())


def test_rows_that_sit_out_do_not_move_and_their_average_catches_up() -> None:
    torch.manual_seed(0)
    lazy = LazyRows(torch.randn(6, 3), 0.0, True)
    average, keeps = lazy.weight.clone(), [0.1, 0.5, 0.9, 0.99, 0.8]
    for step, keep in enumerate(keeps, 1):
        rows, before = torch.tensor([0, step]), lazy.weight.clone()
        lazy.update(rows, torch.randn(2, 3), 0.1, step, keep)
        still = torch.ones(6, dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(lazy.weight[still], before[still])
        average = keep * average + (1 - keep) * lazy.weight
    lazy.synchronise()
    assert lazy.average is not None
    torch.testing.assert_close(lazy.average, average)


@pytest.mark.parametrize("sampled", [False, True])
def test_averaged_weights_are_seen_inside_and_come_back(sampled: bool) -> None:
    torch.manual_seed(0)
    trm = TrmConfig(width=8, layers=1, heads=1, max_length=4, learning_rate=0.1, average=0.5)
    model = Trm(trm, torch.randn(7, 5))
    optimiser = Optimiser(model, trm, 10, sampled)
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    leaf = model.item_ids.weight[:4].detach().requires_grad_() if sampled else None
    ids = model.item_ids.weight if leaf is None else leaf
    (model.fuse(ids, model.item_text[: len(ids)]).square().sum() + model.norm_user.weight.sum()).backward()
    optimiser.clip(leaf)
    optimiser.step(torch.arange(4) if sampled else None, leaf)
    optimiser.synchronise()
    moved = {name: value.detach().clone() for name, value in model.named_parameters()}
    with optimiser.averaged():
        for name in ("item_ids.weight", "norm_user.weight"):
            inside = dict(model.named_parameters())[name]
            torch.testing.assert_close(inside.detach(), 0.1 * first[name] + 0.9 * moved[name])
            assert not torch.equal(inside, moved[name])
    assert all(torch.equal(value, moved[name]) for name, value in model.named_parameters())
