"""How an exploration looks in a terminal: turn by turn, the answer beside the TRM's own list, and why it ended.

Titles, preferences and thoughts are untrusted: they come through ``evaluation.reading``, which leaves printable
characters only, and are set as text, in which Rich reads no markup. What colour says is said by a sign or a word too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deeprec.types import EndReason

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from deeprec.evaluation.reading import ReadAnswer, ReadCall, ReadTrajectory
    from deeprec.types import Catalogue

NEWEST = 8
"""Items of a history shown."""

ENDS = {
    EndReason.ANSWERED: "the policy answered",
    EndReason.EMPTY_PREFERENCE: "a preference names nothing",
    EndReason.CALL_LIMIT: "it called more often than explore.max_calls allows",
    EndReason.CONTEXT_LIMIT: "prompt and completion would outgrow explore.max_context",
    EndReason.SEGMENT_LIMIT: "one turn outgrew explore.max_new_tokens",
    EndReason.OUTSIDE_PROTOCOL: "the text ended with neither a call nor an answer",
    EndReason.DEADLINE: "the deadline passed",
}


def terminal() -> Console:
    """Standard output, in colour where it is a terminal and NO_COLOR is not set; nothing is read as markup."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def show_history(console: Console, catalogue: Catalogue, history: Sequence[str], name: str) -> None:
    """The newest items of a history."""
    from deeprec.evaluation.reading import title_of
    from deeprec.explore.written import plain

    console.print(_text((f"{plain(name)}: {len(history):,} items, newest first", "bold")))
    for item_id in list(reversed(history))[:NEWEST]:
        phrases = plain(", ".join(catalogue[item_id].phrases))
        console.print(_text(("  " + title_of(catalogue, item_id), ""), ("  " + phrases, "dim")), soft_wrap=True)


def show_call(console: Console, call: ReadCall, phrases: Mapping[str, str]) -> None:
    """One turn: the thought, the preference, and the list; ``phrases`` maps item ids to what describes them."""
    from rich.table import Table
    from rich.text import Text

    console.print()
    _show_thought(console, call.thought)
    found = f"  {len(call.items)} items, {call.new_items} new"
    console.print(_text((f"turn {call.number}  ", "bold"), (f"“{call.preference}”", "bold cyan"), (found, "dim")))
    table = Table.grid(padding=(0, 1))
    for justify in ("right", "left", "left", "right", "left"):
        table.add_column(justify=justify)  # type: ignore[arg-type]
    for rank, item in enumerate(call.items, 1):
        note = phrases.get(item.item_id, "") if item.new else f"also turn {item.first}"
        style = _style(item.target, item.new)
        cells = (f"{rank:>4}", "+" if item.new else "·", _marked(item.title, item.target), str(item.score))
        table.add_row(*(Text(cell, style=style) for cell in cells), Text(note, style="dim"))
    console.print(table)


def show_answer(console: Console, thought: str, answer: Sequence[ReadAnswer], trm: Sequence[str]) -> None:
    """The answer with the origin of each item, beside the TRM's own list (titles)."""
    from rich.table import Table
    from rich.text import Text

    console.print()
    _show_thought(console, thought)
    table = Table("", "answer", "first found by", "rank there", "TRM rank", "TRM alone", box=None, pad_edge=False)
    for column, justify in ((0, "right"), (3, "right"), (4, "right")):
        table.columns[column].justify = justify  # type: ignore[assignment]
    for place in range(max(len(answer), len(trm))):
        line = answer[place] if place < len(answer) else None
        own = trm[place] if place < len(trm) else ""
        cells = [Text(str(place + 1))]
        if line is None:
            cells += [Text("")] * 4
        else:
            origin = f"turn {line.call} “{line.preference}”" if line.call else "no turn"
            cells += [
                Text(_marked(line.title, line.target), style=_style(line.target, True)),
                Text(origin, style="cyan"),
                Text(str(line.rank or "–")),
                Text(str(line.trm_rank or "–")),
            ]
        table.add_row(*cells, Text(own, style="dim"))
    console.print(table)


def show_end(console: Console, end: EndReason, calls: int, violations: Sequence[str], seconds: float | None) -> None:
    """Why it ended, and whether the format holds."""
    took = "" if seconds is None else f", {seconds:.1f} s"
    count = f"{calls} call" if calls == 1 else f"{calls} calls"
    console.print()
    console.print(_text((f"ended: {end.value}: {ENDS[end]}; {count}{took}", "")))
    if violations:
        console.print(_text(("the format is broken: " + ", ".join(violations), "bold red")))
    else:
        console.print(_text(("the format holds", "bold green")))


def show_trajectory(console: Console, one: ReadTrajectory) -> None:
    """A finished rollout of an evaluation, whose target is known, with its reward."""
    console.print()
    console.rule(_text((f"user {one.user_id}: {one.outcome}", "bold")), align="left")
    console.print(_text((f"target: {one.target}; {one.summary}", "")))
    for call in one.calls:
        show_call(console, call, {})
    show_answer(console, one.thought, one.answer, one.trm)
    show_end(console, EndReason(one.end), len(one.calls), one.violations, None)
    if one.rewards:
        parts = (
            f"{part.name} {'not scored' if part.value is None else f'{part.value:.3g} × {part.weight:g}'}"
            for part in one.rewards
        )
        console.print(_text(("reward: " + ", ".join(parts), "dim")))


def _show_thought(console: Console, thought: str) -> None:
    for line in thought.split("\n") if thought else ():
        for piece in textwrap.wrap(line, max(20, console.width - 2)):
            console.print(_text(("  " + piece, "italic")), soft_wrap=True)


def _text(*pieces: tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*pieces)


def _marked(title: str, target: bool) -> str:
    return f"◎ {title}" if target else title


def _style(target: bool, new: bool) -> str:
    return "bold green" if target else "" if new else "dim"
