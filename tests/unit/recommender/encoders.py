"""Text encoders without a model, made in a process of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeprec.errors import TrmError
from deeprec.recommender.worker.texts import Encode
from deeprec.types import FloatArray


@dataclass(frozen=True)
class FakeText:
    """Vectors of a text's length and its process's id; some texts do what they say.

    Args:
        broken: a file; while it is there, nothing can be loaded.
    """

    broken: Path | None = None

    def __call__(self) -> Encode:
        if self.broken is not None and self.broken.exists():
            raise TrmError("there is no encoder here")
        return _encode


def _encode(texts: Sequence[str]) -> FloatArray:
    for text in texts:
        if text == "raise":
            raise ValueError("not this one")
        if text == "die":
            os._exit(3)
        if text == "hang":
            time.sleep(60)
    return np.array([[len(text), os.getpid()] for text in texts], dtype=np.float32)
