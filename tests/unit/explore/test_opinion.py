"""Opening a start's opinion: with its weights after the histories, where it kept them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deeprec.config import ExploreConfig, TinyConfig
from deeprec.errors import PolicyError
from deeprec.explore.opinion import HISTORIES, open_opinion
from deeprec.explore.protocol import TitleBook
from deeprec.markup import MARKUP
from deeprec.policy.tiny import build_model, build_tokenizer
from deeprec.store import write_artifact
from deeprec.types import Catalogue, Example, Item

TITLES = ("First Film", "Second Film")
BOOK = TitleBook(Catalogue(tuple(Item(f"i{row}", title) for row, title in enumerate(TITLES))))
EXPLORE = ExploreConfig(prompt="compact")
EXAMPLE = Example("u", ("i0",), "i1")


def written(path: Path, seed: int, kept: int | None = None) -> Path:
    """A policy of random weights by ``seed``, with those of the seed ``kept`` as its weights after histories."""
    tokenizer = build_tokenizer(TITLES, ["comedy"], [], MARKUP, ["History:\n1. "], EXPLORE)
    model, other = (
        build_model(tokenizer, TinyConfig(width=16, layers=1, heads=2, inner=16), seed=one) for one in (seed, kept or 0)
    )
    with write_artifact(path, "policy") as work:
        tokenizer.save_pretrained(work)
        model.save_pretrained(work)
        if kept is not None:
            save_file(dict(other.named_parameters()), work / HISTORIES)
    return path


def asked(policy: Path) -> list[float]:
    [found] = open_opinion(policy, BOOK, EXPLORE)([EXAMPLE], [["i0", "i1"]])
    return found


def test_the_kept_weights_are_asked_and_those_of_the_policy_where_none_are_kept(tmp_path: Path) -> None:
    first, second = (asked(written(tmp_path / str(seed), seed)) for seed in (1, 2))
    assert first != second
    assert all(value < 0 for value in first)
    assert asked(written(tmp_path / "kept", 1, kept=2)) == second


def test_only_a_compact_prompt_leaves_a_line_for_the_next_title(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="only the compact one leaves a line open"):
        open_opinion(tmp_path, BOOK, ExploreConfig(prompt="full"))


def test_titles_of_several_tokens_have_no_opinion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Letters:
        model: Any = torch.nn.Linear(1, 1)

        class tokenizer:
            @staticmethod
            def encode(text: str, add_special_tokens: bool) -> list[int]:
                return [ord(letter) for letter in text]

    monkeypatch.setattr("deeprec.explore.opinion.load_policy", lambda *_, **__: Letters())
    with pytest.raises(PolicyError, match="titles are one token each"):
        open_opinion(tmp_path, BOOK, EXPLORE)
