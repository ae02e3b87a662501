from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deeprec.config import TrmConfig
from deeprec.trm import model as model_module
from deeprec.trm.model import Trm, mean_phrases

ITEMS = 20


def make_model(**changes: float) -> Trm:
    torch.manual_seed(0)
    config = TrmConfig.model_validate({"width": 16, "max_length": 10, "dropout": 0.0, **changes})
    model = Trm(config, F.normalize(torch.randn(ITEMS, 12), dim=-1)).eval()
    for name, value in model.named_parameters():
        if "taps" in name or "nearness" in name:
            torch.nn.init.normal_(value, std=0.3)
    return model


def convolved(states: Tensor, taps: Tensor) -> Tensor:
    kernel = torch.cat([torch.ones(1, states.shape[-1]), taps]).flip(0).T[:, None]
    return F.conv1d(F.pad(states.mT, (len(taps), 0)), kernel, groups=states.shape[-1]).mT


def plain_encoding(model: Trm, rows: Tensor, table: Tensor) -> Tensor:
    """The encoder as one would write it with torch's own layers in float32."""
    batch, length = rows.shape
    states = F.embedding(rows, table) + model.positions.weight[:length]
    back = torch.arange(length)[:, None] - torch.arange(length)
    for layer in model.layers:
        mixed = convolved(layer.norm_attention(states), layer.taps_attention)
        parts = layer.project(mixed).view(batch, length, 3, layer.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        bias = layer.nearness[:, back.clamp(min=0)].masked_fill(back < 0, -math.inf)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        gated = attended.transpose(1, 2).reshape(batch, length, -1) * torch.sigmoid(layer.gate_attention(mixed))
        states = states + layer.merge(gated)
        mixed = convolved(layer.norm_inner(states), layer.taps_inner)
        states = states + layer.narrow(F.silu(layer.gate_inner(mixed)) * layer.widen(mixed))
    return model.norm_history(states)


def encoder_gradients(model: Trm, rows: Tensor, encoded: Tensor) -> tuple[Tensor, ...]:
    parts = [value for name, value in model.named_parameters() if "adaptor" not in name and "norm_user" not in name]
    upstream = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(encoded, parts, upstream)


def test_encoder_and_its_gradients_equal_the_plain_one() -> None:
    model, rows = make_model(width=64), torch.randint(ITEMS, (6, 9))
    expected, found = plain_encoding(model, rows, model.item_table()), model.encode(rows, model.item_table())
    torch.testing.assert_close(found, expected)
    wanted = encoder_gradients(model, rows, expected)
    for one, other in zip(encoder_gradients(model, rows, found), wanted, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_encoder_in_bfloat16_is_as_close_to_float32_as_autocast() -> None:
    model, rows = make_model(width=64), torch.randint(ITEMS, (6, 9))
    expected = plain_encoding(model, rows, model.item_table())
    with torch.autocast("cpu", torch.bfloat16):
        cast = plain_encoding(model, rows, model.item_table())
    found = model.encode(rows, model.item_table(), low=True)
    assert found.dtype == torch.float32
    three = [
        torch.cat([part.flatten() for part in encoder_gradients(model, rows, one)]) for one in (expected, cast, found)
    ]
    wanted, one, other = three
    assert (other - wanted).norm() < 2 * (one - wanted).norm()
    assert (other - wanted).norm() < 0.02 * wanted.norm()


def test_chosen_positions_are_those_of_the_whole() -> None:
    model = make_model()
    rows = torch.randint(ITEMS, (3, 5))
    with torch.no_grad():
        whole = model.encode(rows, model.item_table())
        some = model.encode(rows, model.item_table(), torch.tensor([0, 7, 14]))
    assert torch.equal(some, whole[[0, 1, 2], [0, 2, 4]])


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6),
    rest=st.lists(st.integers(0, ITEMS - 1), min_size=0, max_size=4),
    other=st.integers(0, ITEMS - 1),
)
def test_padding_and_later_items_never_change_an_encoding(history: list[int], rest: list[int], other: int) -> None:
    model = make_model()
    longer = history + rest
    with torch.no_grad():
        table = model.item_table()
        alone = model.encode(torch.tensor([history]), table)[0]
        padded = model.encode(torch.tensor([longer, [other] * len(longer)]), table)[0, : len(history)]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-5)


def test_order_of_the_history_matters() -> None:
    model = make_model()
    with torch.no_grad():
        table = model.item_table()
        one, two = (model.encode(torch.tensor([rows]), table)[0, -1] for rows in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(one, two, atol=1e-3)


def test_item_table_of_some_rows_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    whole = model.item_table().detach()
    with torch.no_grad():
        model.item_ids.weight[3] = 0
        text_alone = model.item_adaptor(model.item_text)[3]
        monkeypatch.setattr(model_module, "TABLE_CHUNK", 7)
        torch.testing.assert_close(model.item_table()[4:], whole[4:])
        rows = torch.tensor([19, 3, 3, 8, 0, 1, 2, 4, 5])
        some = model.item_table(rows)
    torch.testing.assert_close(some[3:], whole[rows[3:]])
    torch.testing.assert_close(some[1], text_alone)


def test_text_vectors_may_be_float16() -> None:
    model = make_model()
    half = Trm(model.config, model.item_text.half())
    half.load_state_dict(model.state_dict())
    assert half.item_text.dtype == torch.float16
    torch.testing.assert_close(half.item_table(), model.item_table(), atol=0.01, rtol=0.01)


def test_mean_phrases_by_hand() -> None:
    adapted = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    phrases = torch.tensor([[0, 1, -1], [-1, -1, -1], [-1, 2, -1]])
    assert mean_phrases(phrases, adapted).tolist() == [[2.0, 1.0], [0.0, 0.0], [9.0, 9.0]]


def test_user_vectors_have_unit_length_even_for_nothing() -> None:
    users = make_model().user(torch.stack([torch.randn(16), torch.zeros(16)]))
    assert torch.isfinite(users).all()
    assert math.isclose(users[0].norm().item(), 1, abs_tol=1e-5)
