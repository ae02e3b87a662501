"""The trajectory browser: rollouts to filter and step through, inside the evaluation report or as a page of their own.

The trajectories stand in the page as JSON in which no markup character is left; the page's script sets text, never
HTML, and loads nothing. A title is kept once. Some 5 kB a trajectory: a few hundred make a page that opens at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deeprec.evaluation.reading import EXTREME_SHARE, ReadAnswer, ReadCall, ReadTrajectory
from deeprec.evaluation.templates import safe_json, template
from deeprec.types import JsonDict

SPREAD = "half are hits, a quarter broke a format rule, the rest are misses, as far as there are, evenly spaced"


@dataclass(frozen=True)
class Browser:
    """What the template of the browser is given.

    ``ends`` are end reasons with their counts, most frequent first; ``data`` is ``payload`` as JSON for the page.
    """

    count: int
    note: str
    ends: tuple[tuple[str, int], ...]
    data: str


def browser(trajectories: Sequence[ReadTrajectory], total: int | None = None, about: str = "") -> Browser:
    """Prepare trajectories for the template.

    Args:
        trajectories: those to browse, as ``reading.choose`` picked them.
        total: of how many they were picked; None: they are all there are.
        about: a sentence that says whose they are.
    """
    ends = Counter(one.end for one in trajectories).most_common()
    note = f"{about} {_note(len(trajectories), total)}".strip()
    return Browser(len(trajectories), note, tuple(ends), safe_json(payload(trajectories)))


def trajectory_page(
    title: str,
    notes: Sequence[str],
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None,
    trajectories: Sequence[ReadTrajectory],
    total: int | None = None,
) -> str:
    """A page of its own, as HTML: a title, sentences, a table (header, rows) where there is one, and the browser."""
    return template("trajectories.html").render(
        title=title, notes=notes, table=table, browser=browser(trajectories, total)
    )


def payload(trajectories: Sequence[ReadTrajectory]) -> JsonDict:
    """``titles``, and ``trajectories`` that name titles by their place.

    An item of a list is (title, score, first call, new, target), a line of an answer (title, call, rank there, rank in
    the TRM's own, target), with 0 for none; a reward part (name, value or null, weight).
    """
    titles: dict[str, int] = {}

    def place(title: str) -> int:
        return titles.setdefault(title, len(titles))

    def call(one: ReadCall) -> JsonDict:
        items = [[place(item.title), item.score, item.first, int(item.new), int(item.target)] for item in one.items]
        return {"thought": one.thought, "preference": one.preference, "items": items}

    def line(one: ReadAnswer) -> list[int]:
        return [place(one.title), one.call or 0, one.rank or 0, one.trm_rank or 0, int(one.target)]

    made = [
        {
            "user": one.user_id,
            "history": [place(title) for title in one.history],
            "earlier": one.earlier,
            "target": place(one.target),
            "found": one.found,
            "answered": one.answered,
            "outcome": one.outcome,
            "summary": one.summary,
            "end": one.end,
            "violations": list(one.violations),
            "reward": _finite(one.reward),
            "rewards": [[part.name, _finite(part.value), part.weight] for part in one.rewards],
            "calls": [call(found) for found in one.calls],
            "thought": one.thought,
            "ending": one.ending,
            "answer": [line(answered) for answered in one.answer],
            "trm": [place(title) for title in one.trm],
        }
        for one in trajectories
    ]
    return {"titles": list(titles), "trajectories": made}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


def _note(count: int, total: int | None) -> str:
    if total is None or total <= count:
        return f"All {count:,} rollouts." if count else "There is no rollout."
    extremes = count // EXTREME_SHARE
    ends = f"the {extremes:,} of highest and the {extremes:,} of lowest reward; of the others, " if extremes else ""
    return f"{count:,} of {total:,} rollouts: {ends}{SPREAD}. Shares among them are not those of all."
