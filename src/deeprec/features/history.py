"""One user's history as a feature place has it, and how an interaction enters it.

Rule: an interaction stands behind all that are as old or older; the newest ``limit`` are kept. The same item at the
same time is the same interaction and enters once, so interactions can be entered again, in the same order, without
changing a history that has them. Another interaction with an item that is there already follows ``repeats``, as the
dataset did: the first of them is kept, or the last, or all. Of a full history, what is as old as its oldest item or
older is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Repeats = Literal["first", "last", "all"]


@dataclass(frozen=True, slots=True)
class UserHistory:
    """``item_ids`` and their ``timestamps``, oldest first, and how many interactions there were before any limit."""

    item_ids: tuple[str, ...] = ()
    timestamps: tuple[int, ...] = ()
    interactions: int = 0

    def with_interactions(self, new: Iterable[tuple[int, str]], limit: int, repeats: Repeats = "all") -> UserHistory:
        """This history with interactions, each (timestamp, item id), entered in the order given."""
        items, times, count = list(self.item_ids), list(self.timestamps), self.interactions
        held = set(items)
        for time, item in new:
            full = len(items) >= limit
            first, behind = bisect_left(times, time), bisect_right(times, time)
            if item in items[first:behind] or (full and time <= times[0]):
                continue
            if repeats != "all" and item in held:
                at = items.index(item)
                if (time > times[at]) == (repeats == "first"):
                    continue
                del items[at], times[at]
                behind -= at < behind
                full = False
            else:
                count += 1
            items.insert(behind, item)
            times.insert(behind, time)
            held.add(item)
            if full:
                held.discard(items[0])
                del items[0], times[0]
        return UserHistory(tuple(items), tuple(times), count)
