from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from deeprec.config import TextConfig
from deeprec.errors import TrmError
from deeprec.trm import text as text_module
from deeprec.trm.text import CachedEmbedder, HashingEmbedder, KeptTexts, item_text, load_embedder
from deeprec.types import FloatArray, Item


class Counting(CachedEmbedder):
    """Counts the texts it encodes."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.encoded: list[str] = []

    @property
    def width(self) -> int:
        return 2

    def _encode(self, texts: list[str]) -> FloatArray:
        self.encoded += texts
        return np.array([[len(text), np.nan if text == "bad" else 1] for text in texts], dtype=np.float32)


def test_hashing_rows_have_unit_length_and_shared_words_are_near() -> None:
    vectors = load_embedder(TextConfig(provider="hashing", width=64)).embed(["dark comedy", "comedy", "western"])
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[2] @ vectors[1]


def test_repeated_texts_are_encoded_once_and_come_back_in_order() -> None:
    embedder = Counting()
    first = embedder.embed(["a", "bbb", "a"])
    again = embedder.embed(["bbb", "a"])
    assert embedder.encoded == ["a", "bbb"]
    np.testing.assert_array_equal(first[[1, 0]], again)
    np.testing.assert_array_equal(first[0], first[2])
    assert embedder.embed([]).shape == (0, 2)


def test_primed_texts_are_never_encoded() -> None:
    embedder = Counting()
    embedder.prime(["a"], np.array([[0, 1]], dtype=np.float32))
    assert embedder.embed(["a"]).tolist() == [[0, 1]]
    assert embedder.encoded == []


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "CACHE_ENTRIES", 2)
    embedder = Counting()
    assert len(embedder.embed(["a", "bb", "ccc"])) == 3
    embedder.embed(["ccc"])
    embedder.embed(["a"])
    assert embedder.encoded == ["a", "bb", "ccc", "a"]


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TrmError, match="no finite vector for 'bad'"):
        Counting().embed(["fine", "bad"])


def test_empty_text_gives_a_zero_row() -> None:
    assert HashingEmbedder(8).embed([""]).tolist() == [[0.0] * 8]


def test_missing_sentence_encoder_is_named(tmp_path: object) -> None:
    embedder = load_embedder(TextConfig(provider="sentence-transformers", model=f"{tmp_path}/absent"))
    with pytest.raises(TrmError, match=r"cannot load the sentence encoder .*absent"):
        embedder.embed(["x"])


def test_an_encoder_is_known_by_its_files_not_by_its_path(tmp_path: Path) -> None:
    def identity(place: str, content: str) -> str:
        folder = tmp_path / place / "enc"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(content)
        return load_embedder(TextConfig(provider="sentence-transformers", model=str(folder))).identity

    one, other, moved = identity("a", "{}"), identity("b", "[]"), identity("c", "{}")
    assert one == moved != other


def test_packaged_minilm_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    embedder = load_embedder(TextConfig())
    assert embedder.identity == load_embedder(TextConfig()).identity
    assert re.fullmatch("encoder-[0-9a-f]{16}", embedder.identity)
    vectors = embedder.embed(["a funny film", "comedy", "civil war history"])
    assert vectors.shape == (3, embedder.width) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_item_text_says_each_thing_once() -> None:
    attributes = {"genres": "Comedy|Sci-Fi", "year": 1995, "brand": None, "description": "Two friends travel."}
    item = Item("1", "Star Trip (1995)", attributes, ("comedy", "sci-fi", "1990s"))
    assert item_text(item) == "Star Trip (1995). comedy, sci-fi, 1990s. Two friends travel."
    assert item_text(Item("2", "Bare")) == "Bare"


def test_kept_texts_have_the_encoders_identity_and_never_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(HashingEmbedder, "_encode", load)
    kept = KeptTexts(TextConfig(provider="hashing", width=2))
    assert kept.identity == "hashing-2"
    kept.prime(["comedy"], np.array([[0.6, 0.8]], dtype=np.float32))
    assert (kept.knows("comedy"), kept.knows("drama"), kept.width) == (True, False, 2)
    assert kept.embed(["comedy", "comedy"]).shape == (2, 2)
    with pytest.raises(TrmError, match="'drama' has no vector yet"):
        kept.embed(["comedy", "drama"])
