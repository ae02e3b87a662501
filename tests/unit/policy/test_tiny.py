from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import ExploreConfig, TinyConfig
from deeprec.errors import PolicyError, ProtocolError
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    MARKUP,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    THINK_CLOSE,
    TitleBook,
    render_list,
    render_preference,
)
from deeprec.policy.tiny import UNKNOWN, build_model, build_tokenizer, split_pieces
from deeprec.types import Catalogue, Item, RetrievedItem

ROWS = st.lists(st.integers(0, 7), min_size=0, max_size=4)


def _there_and_back(tokenizer: Any, text: str) -> str:
    """The text as its tokens give it back; an unknown piece comes back as UNKNOWN."""
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False))


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


@settings(deadline=None, max_examples=60)
@given(history=ROWS, found=ROWS, scores=st.lists(st.floats(0, 1), min_size=4, max_size=4), wanted=ROWS)
def test_protocol_texts_survive_encoding(
    tokenizer: Any, books: Catalogue, explore: ExploreConfig, history: list[int], found: list[int],
    scores: list[float], wanted: list[int],
) -> None:  # fmt: skip
    titles = TitleBook(books)
    items = [RetrievedItem(f"i{row}", score) for row, score in zip(found, scores, strict=False)]
    preference = render_preference(sorted({books.phrases[row % len(books.phrases)] for row in wanted}))
    answer = "".join(f"\n{line}. {titles.title(f'i{row}')}" for line, row in enumerate(found, start=1))
    text = (
        PromptBuilder(explore, titles).text([f"i{row}" for row in history])
        + f"\nA thought.\n{PREFERENCE_OPEN}{preference}{PREFERENCE_CLOSE}"
        + render_list(items, titles, explore)
        + f"A thought.\n{THINK_CLOSE}\n{ANSWER_OPEN}{answer}\n{ANSWER_CLOSE}"
    )
    assert _there_and_back(tokenizer, text) == text


def test_a_title_is_one_token_and_a_list_line_three(tokenizer: Any, books: Catalogue, explore: ExploreConfig) -> None:
    titles = TitleBook(books)
    for text in (*titles.titles, *MARKUP):
        assert _there_and_back(tokenizer, text) == text
        assert _length(tokenizer, text) == 1
    items = [RetrievedItem(f"i{row}", 0.97) for row in range(3)]
    assert _length(tokenizer, render_list(items, titles, explore)) == 3 * 3 + 2 + 3


def test_full_prompts_and_phrase_lines_are_known_when_given(books: Catalogue) -> None:
    explore = ExploreConfig(prompt="full", items_per_call=4, answer_size=3, show_phrases=True)
    titles = TitleBook(books)
    prompts = PromptBuilder(explore, titles)
    lines = {", ".join(titles.phrases(item.item_id)) for item in books.items}
    tokenizer = build_tokenizer(titles.titles, books.phrases, lines, MARKUP, [prompts.text(["i0"])], explore)
    for text in (
        prompts.text(["i0", "i1", "i2"]),
        render_list([RetrievedItem("i0", 0.5), RetrievedItem("i1", 1.0)], titles, explore),
    ):
        assert _there_and_back(tokenizer, text) == text


def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    text = "History:\n1. Zeta\n<think>\nA thought.\n<|begin_of_preference|>comedy; 1990s<|end_of_preference|>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text), skip_special_tokens=False) == text
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_what_is_not_in_the_catalogue_is_unknown(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("never heard of")) == [UNKNOWN]


@pytest.mark.parametrize("title", ["a\nb", "a; b", "<think>", "a | 12"])
def test_a_title_of_several_pieces_is_refused(explore: ExploreConfig, title: str) -> None:
    with pytest.raises(ProtocolError, match="cannot be one token"):
        build_tokenizer([title], [], [], MARKUP, [], explore)


def test_pieces_join_to_the_text() -> None:
    text = "History:\n1. A, B | 3 (x) | 97\n   comedy, drama\n12. C; d"
    pieces = split_pieces(text, MARKUP)
    assert "".join(pieces) == text
    assert pieces == [
        "History:", "\n1. ", "A, B | 3 (x)", " | 97", "\n   comedy, drama", "\n12. ", "C", "; ", "d",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [32, 24])
def test_titles_start_near_the_trm(tokenizer: Any, width: int) -> None:
    generator = np.random.default_rng(0)
    near = generator.standard_normal(width).astype(np.float32)
    vectors = {"Zeta": near, "Theta": near + 0.01, "Alpha, The": -near}
    model = build_model(tokenizer, TinyConfig(width=32, layers=1, heads=2, inner=32), 0, vectors)
    weights = model.get_input_embeddings().weight.detach()
    rows = weights[tokenizer.convert_tokens_to_ids(list(vectors))]
    assert torch.allclose(rows.norm(dim=1), torch.full((3,), 0.02 * 32**0.5))
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert 0.99 > rows[0] @ rows[1] > 0.2 > 0 > rows[0] @ rows[2]
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_attention_starts_as_a_copy(tokenizer: Any) -> None:
    model = build_model(tokenizer, TinyConfig(width=32, layers=2, heads=2, inner=32), 0)
    for layer in model.model.layers:
        product = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
        assert torch.allclose(product, 0.49 * torch.eye(32), atol=1e-5)


def test_widths_that_do_not_fit_are_refused(tokenizer: Any) -> None:
    with pytest.raises(PolicyError, match="multiple of 12"):
        build_model(tokenizer, TinyConfig(width=32, heads=6), 0)


def test_the_catalogue_may_be_new(explore: ExploreConfig) -> None:
    book = TitleBook(Catalogue((Item("x", "comedy"), Item("y", "anything"))))
    tokenizer = build_tokenizer(book.titles, ["comedy"], [], MARKUP, [], explore)
    assert _there_and_back(tokenizer, "comedy") == "comedy"
    assert _length(tokenizer, "comedy") == 1
