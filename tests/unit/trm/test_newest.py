from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.trm.newest import encode_newest
from tests.unit.trm.test_model import ITEMS, make_model, plain_encoding


@pytest.mark.parametrize("layers", [1, 2, 3])
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_it_is_the_whole_networks_encoding_at_the_last_item(layers: int, lengths: list[int], seed: int) -> None:
    """Of every length, the shortest included, where the convolutions reach back before the beginning."""
    model, generator = make_model(layers=layers), torch.Generator().manual_seed(seed)
    histories = [torch.randint(ITEMS, (length,), generator=generator) for length in lengths]
    table = model.item_table()
    with torch.inference_mode():
        found = encode_newest(model, torch.cat(histories), torch.tensor(lengths), table)
        expected = [plain_encoding(model, history[None], table)[0, -1] for history in histories]
    torch.testing.assert_close(found, torch.stack(expected))
