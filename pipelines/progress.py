"""What a person sees of a local run: each task, its state, its time, and the last line of the one that runs.

On a terminal the list is redrawn in place; elsewhere, and with ``verbose``, lines are appended.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

STATES = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "ran": ("✓", "green"),
    "cached": ("✓", "blue"),
    "failed": ("✗", "red"),
    "refused": ("✗", "yellow"),
}


class Progress(Protocol):
    """Port: what the runner tells while it works."""

    def started(self, task: str) -> None: ...

    def line(self, task: str, text: str) -> None:
        """A line of the running task's log."""
        ...

    def finished(self, task: str, status: str, seconds: float) -> None: ...


class Silent:
    """Shows nothing."""

    def started(self, task: str) -> None: ...

    def line(self, task: str, text: str) -> None: ...

    def finished(self, task: str, status: str, seconds: float) -> None: ...


class Display:
    """The list of tasks on a console; a context manager."""

    def __init__(self, tasks: Sequence[str], console: Console, *, verbose: bool = False) -> None:
        self._states: dict[str, tuple[str, float]] = dict.fromkeys(tasks, ("waiting", 0.0))
        self._console = console
        self._verbose = verbose
        self._lock = threading.Lock()
        self._running: tuple[str, float] | None = None
        self._last = ""
        live = console.is_terminal and not verbose
        self._live = (
            Live(self, console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)
            if live
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._last = ""
        if self._live:
            self._live.stop()

    def started(self, task: str) -> None:
        with self._lock:
            self._states[task] = ("running", 0.0)
            self._running, self._last = (task, time.monotonic()), ""
        if not self._live:
            self._console.print(f"[cyan]{task}[/] …", highlight=False)

    def line(self, task: str, text: str) -> None:
        with self._lock:
            self._last = text
        if self._verbose:
            self._console.print(f"[dim]{task} │[/] {escape(text)}", highlight=False)

    def finished(self, task: str, status: str, seconds: float) -> None:
        with self._lock:
            self._states[task] = (status, seconds)
            self._running = None
        if not self._live:
            mark, style = STATES[status]
            self._console.print(f"[{style}]{mark} {task}[/] {status} {_clock(seconds)}", highlight=False)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=False)
        with self._lock:
            states, running, last = dict(self._states), self._running, self._last
        for task, (status, seconds) in states.items():
            mark, style = STATES[status]
            shown = seconds
            if running and running[0] == task:
                shown = time.monotonic() - running[1]
            clock = "" if status == "waiting" else _clock(shown)
            note = Text(last if status == "running" else "cached" if status == "cached" else "", "dim")
            note.no_wrap, note.overflow = True, "ellipsis"
            table.add_row(Text(mark, style), Text(task, style), Text(clock, "dim"), note)
        return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
