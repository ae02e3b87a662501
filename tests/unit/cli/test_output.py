"""What commands share when they speak and when they are told to end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from deeprec.cli.output import end_on_sigterm, print_json


@pytest.fixture
def handler() -> Iterator[None]:
    """SIGTERM's handler is put back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_json_is_printed_whole_and_readable(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"title": "Amélie [red]天国", "items": list(range(100)), "none": None}
    print_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert "Amélie [red]天国" in shown


def test_a_terminated_command_puts_away_what_it_holds(handler: None) -> None:
    put_away = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            put_away.append("what it held")

    end_on_sigterm()
    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 128 + signal.SIGTERM
    assert put_away
