"""What commands have in common when they speak: tables, JSON, progress, and an end that a signal asks for."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table


def print_tables(*tables: Table) -> None:
    """Print tables, as wide as the terminal is."""
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))


def say(line: object) -> None:
    """Print a line of progress."""
    typer.echo(str(line))


def end_on_sigterm() -> None:
    """Let SIGTERM end the process in order, so that what it holds is put away and nothing is left half-written."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: Any) -> NoReturn:
    raise SystemExit(143)
