"""The tiny policy: a tokenizer that holds the protocol's vocabulary, and a Qwen2 model of a few million parameters.

A title is one token, and so is a line number with its newline (``"\\n12. "``), a match score (``" | 97"``), a phrase, a
line of phrases, a sentence of the prompt or of a thought; a line of a list costs two or three tokens. Whatever else is
written becomes the unknown token: the policy can only say what the catalogue and the protocol hold. The model's title
embeddings start from the TRM's item embeddings, so that similar items look alike to both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprec.config import ExploreConfig, TinyConfig
from deeprec.errors import PolicyError, ProtocolError
from deeprec.explore.prompt import NEXT
from deeprec.policy.upper import start_at_no_change
from deeprec.types import ANYTHING, FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<|pad|>", "<|end_of_text|>", "<|unknown|>"
MAX_POSITIONS = 4096
"""Longest sequence of the tiny model, in tokens."""

PIECES = r"\nNext: |\n[0-9]{1,4}\. | \| [0-9]{1,3}$|; |\n   [^\n]+|\n"
"""Text is cut at these, each a piece of its own: line number, score at a line's end, separator, phrases, newline."""

INITIAL_DEVIATION = 0.02
"""Standard deviation of the first weights; a title's first embedding is as long as any other token's."""
TITLE_NOISE = 0.5
"""Share of a title's first embedding that is its own random direction, which tells near twins apart."""
COPY_GAIN = 0.7
"""Size of the first value and output projections, each a scaled orthogonal matrix."""


def build_tokenizer(
    titles: Sequence[str],
    phrases: Iterable[str],
    phrase_lines: Iterable[str],
    markup: Sequence[str],
    texts: Iterable[str],
    explore: ExploreConfig,
) -> PreTrainedTokenizerFast:
    """A tokenizer whose ``decode(encode(text)) == text`` for every text of the protocol.

    Args:
        titles: the items' unique, neutralised titles.
        phrases: every phrase a preference may hold, ``anything`` besides.
        phrase_lines: the phrases of items as a list prints them (``comedy, 1990s``); used with ``show_phrases`` only.
        markup: the protocol's strings, each of which becomes one special token.
        texts: further text whose pieces must be known: thoughts, the prompt of some history.
        explore: gives the largest line number and whether scores and phrases are printed.

    Raises:
        ProtocolError: a title or phrase is not one piece of the protocol.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    _refuse_split(titles, "title", markup)
    phrases = [ANYTHING, *phrases]
    _refuse_split(phrases, "phrase", markup)
    largest = max(explore.items_per_call, explore.answer_size, explore.prompt_history)
    words = [f"\n{line}. " for line in range(1, largest + 1)] + ["\n", "; ", NEXT]
    words += [f" | {score}" for score in range(101)] if explore.show_scores else []
    words += [f"\n   {line}" for line in phrase_lines] if explore.show_phrases else []
    words += [*phrases, *titles]
    words += [piece for text in texts for piece in split_pieces(text, markup)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([PAD, EOS, UNKNOWN, *markup, *words]))}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (PAD, EOS, UNKNOWN)])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in markup])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens=list(markup),
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def split_pieces(text: str, markup: Sequence[str]) -> list[str]:
    """The pieces the tokenizer cuts ``text`` into, markup left out; joined they are the text between markup."""
    chunks = re.split("|".join(map(re.escape, markup)), text) if markup else [text]
    return [piece for chunk in chunks for piece in _split_chunk(chunk)]


def build_model(
    tokenizer: PreTrainedTokenizerFast, tiny: TinyConfig, seed: int, title_vectors: dict[str, FloatArray] | None = None
) -> PreTrainedModel:
    """A Qwen2 causal language model with tied embeddings, float32, in training mode.

    Args:
        tokenizer: made by :func:`build_tokenizer`.
        tiny: width, layers, heads and feed-forward width. Upper layers start at no change: what they add to what they
            are given is 0.
        seed: of the first weights.
        title_vectors: title → its TRM item embedding, (TRM width,), projected at random where the widths differ; a
            title's first embedding mixes it with its own random direction (see ``TITLE_NOISE``).

    Raises:
        PolicyError: the width is not a multiple of twice the heads.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if tiny.width % (2 * tiny.heads):
        raise PolicyError(
            f"policy.tiny.width is {tiny.width}, which {tiny.heads} heads do not split into even parts; "
            f"make it a multiple of {2 * tiny.heads}"
        )
    torch.manual_seed(seed)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=tiny.width,
            intermediate_size=tiny.inner,
            num_hidden_layers=tiny.layers + tiny.upper_layers,
            num_attention_heads=tiny.heads,
            num_key_value_heads=tiny.heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            use_sliding_window=False,
            initializer_range=INITIAL_DEVIATION,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    _start_attention(model, tiny.width)
    start_at_no_change(model, tiny.upper_layers)
    if title_vectors:
        _start_titles(model, tokenizer, title_vectors, tiny.width, seed)
    return model  # type: ignore[no-any-return]


def _start_attention(model: Any, width: int) -> None:
    """Let every layer's values and outputs cancel to a multiple of the identity: W_o W_v = ``COPY_GAIN``² · I.

    What a head attends to is then copied as it is, which is what answering from a list takes; learning it from nothing
    costs a tiny model most of its warm start. After Trockman and Kolter, Mimetic Initialization (2023).
    """
    import torch

    with torch.no_grad():
        for layer in model.model.layers:
            basis, _ = torch.linalg.qr(torch.randn(width, width))
            layer.self_attn.v_proj.weight.copy_(COPY_GAIN * basis)
            layer.self_attn.o_proj.weight.copy_(COPY_GAIN * basis.T)


def _start_titles(
    model: Any, tokenizer: PreTrainedTokenizerFast, vectors: dict[str, FloatArray], width: int, seed: int
) -> None:
    import torch

    generator = np.random.default_rng(seed)
    table = np.stack(list(vectors.values())).astype(np.float32)
    if table.shape[1] != width:
        table = table @ generator.standard_normal((table.shape[1], width), dtype=np.float32)
    noise = generator.standard_normal((len(table), width), dtype=np.float32)
    mixed = _unit(table - table.mean(axis=0)) * (1 - TITLE_NOISE) + _unit(noise) * TITLE_NOISE
    rows = _unit(mixed) * INITIAL_DEVIATION * width**0.5
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(vectors)))
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] = torch.from_numpy(rows)


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8), dtype=np.float32)


def _split_chunk(chunk: str) -> list[str]:
    pieces, position = [], 0
    for match in re.finditer(PIECES, chunk, flags=re.MULTILINE):
        pieces += [chunk[position : match.start()], match.group()]
        position = match.end()
    return [piece for piece in [*pieces, chunk[position:]] if piece]


def _refuse_split(words: Iterable[str], what: str, markup: Sequence[str]) -> None:
    for word in words:
        if any(text in word for text in markup) or _split_chunk(word) != [word]:
            raise ProtocolError(
                f"the {what} {word!r} holds a line break, a separator or markup of the protocol, so it cannot be one "
                f"token; neutralise it before the tokenizer is built"
            )
