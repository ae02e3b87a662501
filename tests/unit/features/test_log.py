"""The log of accepted events: all or none, unique ids, positions in order, and nothing half-made."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from deeprec.errors import StoreError
from deeprec.features.log import EventLog, LoggedEvent


def event(number: int, user: str = "u") -> LoggedEvent:
    return LoggedEvent(f"e{number}", user, "a", number, None, "ü\x00'")


def test_positions_count_from_one_in_order_of_acceptance(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert (log.end, log.after(0, 9)) == (0, [])
    assert log.append([event(7), event(3)]) == 2
    assert log.append([event(n) for n in range(100, 1400)]) == 1302
    assert log.after(0, 3) == [(1, event(7)), (2, event(3)), (3, event(100))]
    assert log.after(1301, 9) == [(1302, event(1399))]
    assert EventLog(tmp_path).end == 1302


def test_ids_are_found_however_many_are_asked_for(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(n) for n in range(0, 1200, 2)])
    assert log.known([f"e{n}" for n in range(1201)]) == {f"e{n}" for n in range(0, 1200, 2)}
    assert log.known([]) == set()


def test_events_are_kept_all_or_none(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(1)])
    with pytest.raises(StoreError, match="UNIQUE"):
        log.append([event(2), event(1), event(3)])
    assert (log.end, log.known(["e1", "e2", "e3"])) == (1, {"e1"})
    assert log.append([event(2)]) == 2


def test_each_users_events_come_together_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(5, "b"), event(4, "a"), event(3, "b"), event(2, "b")])
    assert list(log.by_user(3)) == [("a", [(4, "a")]), ("b", [(5, "a"), (3, "a")])]
    assert list(log.by_user(0)) == []


def test_one_that_writes_without_a_pause_lets_others_write(tmp_path: Path) -> None:
    """It gives the lock back and asks for it again at once, and who waited has it first."""
    busy, other, order = EventLog(tmp_path), EventLog(tmp_path), []

    def write() -> None:
        with other.locked(60):
            order.append("other")

    thread = threading.Thread(target=write)
    with busy.locked():
        thread.start()
        while _is_free(tmp_path / "events" / "turn"):
            time.sleep(0.005)
    with busy.locked(60):
        order.append("busy")
    thread.join()
    assert order == ["other", "busy"]


def _is_free(place: Path) -> bool:
    with place.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def test_a_log_that_was_closed_says_so(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.close()
    with pytest.raises(StoreError, match="cannot be used"):
        log.append([event(1)])


def test_a_place_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(StoreError, match="log of events"):
        EventLog(tmp_path)
