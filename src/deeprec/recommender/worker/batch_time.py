"""How long batches take, learnt from those that ended, and which of the waiting requests a batch can still serve.

A batch of n takes a + b·n seconds; both are fitted to the batches seen, the newest weighing most. Under more load than
the policy can take, a batch of all that waits would end after every deadline: nobody would be served, again and again.
So a batch holds only as many as end in time, those with most time left first, since the others are lost soonest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MEMORY = 0.9
"""Weight of a batch relative to the next one's."""
_TOWARDS_NOTHING = 0.01
"""Holds a to 0, and so the time in proportion to n, while all batches were of one size."""
_MARGIN = 1.2
"""Time that a batch has to have left, over what is expected."""
_LONGER = 1.5
"""What a batch that a deadline has ended is taken to need at least, over what it took."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Places of the requests to explore now, to keep for a later batch, and to refuse."""

    now: tuple[int, ...]
    later: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()


class BatchTimeModel:
    """The fit, and what follows from it."""

    def __init__(self) -> None:
        self._normal, self._right = np.zeros((2, 2)), np.zeros(2)
        self._fixed, self._each = 0.0, 0.0

    def saw(self, requests: int, seconds: float, *, cut: bool = False) -> None:
        """A batch of so many took so long; ``cut``: a deadline ended it, so it shows only that it takes longer."""
        row = np.array([1.0, requests])
        seconds = max(_LONGER * seconds, self.seconds(requests)) if cut else seconds
        self._normal = _MEMORY * self._normal + np.outer(row, row)
        self._right = _MEMORY * self._right + row * seconds
        self._fixed, self._each = np.linalg.solve(self._normal + np.diag((_TOWARDS_NOTHING, 0.0)), self._right)
        if self._fixed < 0:
            self._fixed, self._each = 0.0, self._right[1] / self._normal[1, 1]
        elif self._each < 0:
            self._fixed, self._each = self._right[0] / self._normal[0, 0], 0.0

    def seconds(self, requests: int) -> float:
        """What a batch of so many is expected to take; 0 before any was seen."""
        return float(self._fixed + self._each * requests)

    def choose(self, left: Sequence[float], most: int) -> Choice:
        """What to do with requests that have so many seconds left each.

        At least one is explored, hopeless or not: without a batch the times could not be found to have grown.
        """
        order = sorted(range(len(left)), key=lambda place: -left[place])
        fit = 1
        while fit < min(most, len(order)) and left[order[fit]] >= _MARGIN * self.seconds(fit + 1):
            fit += 1
        free = self.seconds(fit) + _MARGIN * self.seconds(1)
        return Choice(
            now=tuple(sorted(order[:fit])),
            later=tuple(sorted(place for place in order[fit:] if left[place] >= free)),
            refused=tuple(sorted(place for place in order[fit:] if left[place] < free)),
        )
