"""The text encoder's process: a text in, its vector out, one after another, and no other model in memory.

Contract: ``run`` is the whole life of the process. It loads the encoder (``make``), encodes a few texts so that no
user's is the first of its length, sends their vectors, and then answers until the connection's other end closes. A text
that cannot be encoded is an answer, not an end. Pickle crosses the connection, between a process and the child it
started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from deeprec.config import TextConfig
from deeprec.errors import DeepRecError
from deeprec.recommender.worker.process import settle_in
from deeprec.types import FloatArray

logger = logging.getLogger(__name__)

WORDS = "films of a kind that no catalogue has yet and that some user may still ask for in words of their own"
WARM: tuple[str, ...] = ("", *(" ".join(WORDS.split()[:count]) for count in (1, 2, 3, 4, 6, 8, 12, 16, 22)))
"""What is encoded before anybody asks. The empty text stands for a catalogue without phrases."""
_NICE = 2
"""Behind the server, which keeps the deadlines, and before the policy."""

Encode = Callable[[Sequence[str]], FloatArray]
"""(texts, width) vectors of texts."""
Make = Callable[[], Encode]
"""Loads the encoder; has to be picklable, since it is called in the process."""


@dataclass(frozen=True, slots=True)
class Text:
    """Encode this."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Vector:
    """The answer: (width,), or None for a text that cannot be encoded, and the seconds of a core that it took."""

    number: int
    vector: FloatArray | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Warm:
    """It is loaded: these texts have (texts, width) vectors, and each took so many seconds of a core on average."""

    texts: tuple[str, ...]
    vectors: FloatArray
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be loaded, and why."""

    sentence: str


Answer = Vector | Warm | Refused


@dataclass(frozen=True)
class LoadText:
    """Loads the encoder of a configuration, with so many of torch's threads."""

    text: TextConfig
    threads: int = 1

    def __call__(self) -> Encode:
        """In the process.

        Raises:
            TrmError: it cannot be loaded.
        """
        from deeprec.trm.text import load_embedder

        embedder = load_embedder(self.text)
        if self.text.provider != "hashing":
            import torch

            torch.set_num_threads(self.threads)
        embedder.embed(["loads the model"])
        return embedder.embed


def run(connection: Connection, make: Make) -> None:
    """Load, answer until the other end closes, and end the process."""
    settle_in(_NICE)
    try:
        encode = make()
        encode(WARM)
        began = time.process_time()
        vectors = encode(WARM)
    except Exception as error:
        if not isinstance(error, DeepRecError):
            logger.exception("the text encoder cannot be loaded")
        connection.send(Refused(str(error) or type(error).__name__))
        return
    connection.send(Warm(WARM, vectors, (time.process_time() - began) / len(WARM)))
    try:
        while True:
            _answer(connection, connection.recv(), encode)
    except (EOFError, OSError):
        return


def _answer(connection: Connection, asked: Text, encode: Encode) -> None:
    began = time.process_time()
    vector: FloatArray | None = None
    try:
        vector = encode([asked.text])[0]
    except Exception as error:
        logger.warning("a phrase cannot be encoded: %s", error)
    connection.send(Vector(asked.number, vector, time.process_time() - began))
