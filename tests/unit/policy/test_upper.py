"""The tiny policy's upper layers: no change at first, left out of histories, and looking where a line is left open."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deeprec.config import TinyConfig
from deeprec.explore.prompt import NEXT
from deeprec.policy.tiny import build_model
from deeprec.policy.upper import look_back, lower_layers, lower_weights

TEXTS = (
    "History:\n1. Zeta\n2. Theta\nNext: \n<think>\nA thought.\n<|begin_of_preference|>comedy<|end_of_preference|>",
    "History:\n1. Theta\nNext: \n<think>\nA thought.\n<|begin_of_item_list|>\n1. Zeta\n2. Gamma <2>",
    "History:\nNext: \n<think>\n1990s; drama\n<recommendation_list>\n1. Zeta",
)


@pytest.fixture
def tall(tokenizer: Any) -> Any:
    return build_model(tokenizer, TinyConfig(width=32, layers=1, upper_layers=2, heads=2, inner=32), 0).eval()


@pytest.fixture
def sequences(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return found


def test_upper_layers_change_nothing_at_first_and_can_be_left_out(tall: Any, sequences: list[list[int]]) -> None:
    whole = logits(tall, sequences[0])
    with lower_layers(tall, 2):
        assert len(tall.model.layers) == 1
        assert torch.equal(logits(tall, sequences[0]), whole)
    assert len(tall.model.layers) == tall.config.num_hidden_layers == 3
    with lower_layers(tall, 0):
        assert len(tall.model.layers) == 3


def test_weights_are_of_the_upper_layers_or_lower(tall: Any) -> None:
    names = {id(weight): name for name, weight in tall.named_parameters()}
    lower = {names[id(weight)] for weight in lower_weights(tall, 2)}
    assert {name for name in names.values() if name not in lower} == {
        name for name in names.values() if name.startswith(("model.layers.1.", "model.layers.2."))
    }
    assert len(lower_weights(tall, 0)) == len(names)


def test_their_heads_begin_by_looking_at_the_open_line_and_copy_what_is_there(
    tall: Any, tokenizer: Any, sequences: list[list[int]]
) -> None:
    [token] = tokenizer.encode(NEXT, add_special_tokens=False)
    look_back(tall, 2, token, sequences)
    tall.set_attn_implementation("eager")
    for ids in sequences:
        with torch.no_grad():
            lower, upper, _ = tall(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
        there = ids.index(token)
        assert lower[0, :, there + 1 :, there].max() < 0.6, "the others attend as they did"
        assert upper[0, :, there:, there].min() > 0.9
    _, reading, topmost = (layer.self_attn for layer in tall.model.layers)
    assert torch.allclose(reading.o_proj.weight @ reading.v_proj.weight, torch.eye(32), atol=1e-4)
    assert not topmost.o_proj.weight.any()


def test_what_has_learnt_already_is_left_alone(tall: Any, tokenizer: Any, sequences: list[list[int]]) -> None:
    [token] = tokenizer.encode(NEXT, add_special_tokens=False)
    with torch.no_grad():
        for layer in tall.model.layers[1:]:
            layer.self_attn.o_proj.weight[0, 0] = 0.1
    before = {name: weight.clone() for name, weight in tall.state_dict().items()}
    look_back(tall, 2, token, sequences)
    assert all(torch.equal(weight, before[name]) for name, weight in tall.state_dict().items())
