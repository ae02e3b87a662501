"""Where the seconds of rollouts go: engine, retriever, parsing, and the rest of the environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Part = Literal["engine", "retrieval", "parsing", "total"]


@dataclass
class RolloutClock:
    """Seconds of wall time, added up over every ``rollout`` that it is passed to."""

    engine: float = 0.0
    """Generating, and reading prompts and lists: the calls of ``start``, ``generate`` and ``append``."""
    retrieval: float = 0.0
    """The calls of the retriever."""
    parsing: float = 0.0
    """Turning what the policy wrote into text, and reading it."""
    total: float = 0.0
    """From beginning to end."""

    @property
    def environment(self) -> float:
        """What is left: prompts and lists written and tokenised, ids, masks and trajectories kept."""
        return self.total - self.engine - self.retrieval - self.parsing

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Add the seconds of the block to one part, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - started)
