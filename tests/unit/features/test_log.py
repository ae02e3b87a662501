"""The log of accepted events in SQLite: all or none, unique ids, users' events numbered, and nothing half-made."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deeprec.errors import StoreError
from deeprec.features.database import Database, sqlite_url
from deeprec.features.log import EventLog, LoggedEvent
from deeprec.features.migrate import migrate


def event(number: int, user: str = "u") -> LoggedEvent:
    return LoggedEvent(f"e{number}", user, "a", number, None, "ü'")


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return opened(tmp_path)


def opened(place: Path) -> EventLog:
    database = Database(sqlite_url(place / "events.db"), "the log", "free space")
    migrate(database)
    return EventLog(database)


def known(log: EventLog, event_ids: list[str]) -> set[str]:
    with log.locked([]) as users:
        return users.known(event_ids)


def append(log: EventLog, *events: LoggedEvent) -> None:
    with log.locked({one.user_id for one in events}) as users:
        users.append(events)


def test_a_users_events_are_numbered_in_the_order_of_acceptance(log: EventLog, tmp_path: Path) -> None:
    append(log, event(7), event(3), event(9, "v"))
    append(log, *(event(n) for n in range(100, 1400)))
    assert log.since(["u", "v", "w"], [0, 0, 0])[0][:3] == [(1, 7, "a"), (2, 3, "a"), (3, 100, "a")]
    assert opened(tmp_path).since(["v", "u"], [0, 1301]) == [[(1, 9, "a")], [(1302, 1399, "a")]]
    assert [(user, len(events)) for user, events in log.by_user()] == [("u", 1302), ("v", 1)]


def test_ids_are_found_however_many_are_asked_for(log: EventLog) -> None:
    append(log, *(event(n) for n in range(0, 1200, 2)))
    assert known(log, [f"e{n}" for n in range(1201)]) == {f"e{n}" for n in range(0, 1200, 2)}
    assert known(log, []) == set()


def test_events_are_kept_all_or_none(log: EventLog) -> None:
    append(log, event(1))
    with pytest.raises(StoreError, match="UNIQUE"):
        append(log, event(2), event(1), event(3))
    assert known(log, ["e1", "e2", "e3"]) == {"e1"}
    append(log, event(2))
    assert log.since(["u"], [0]) == [[(1, 1, "a"), (2, 2, "a")]]


def test_who_is_not_there_is_locked_without_a_row_where_told_so(log: EventLog) -> None:
    append(log, event(1, "ann"))
    with log.locked(["ann", "gone"], new=False) as users:
        assert users.events == {"ann": 1}
    with log.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT user_id FROM users").all() == [("ann",)]


def test_many_users_are_locked_at_once(log: EventLog) -> None:
    append(log, *(event(n, f"u{n}") for n in range(1300)))
    with log.locked([f"u{n}" for n in range(1300)]) as users:
        assert set(users.events.values()) == {1}
        assert users.newest()["u1299"] == 1299
        assert set(users.shown.values()) == {0}
        assert users.since({"u5": 0, "u6": 1}) == {"u5": [(1, 5, "a")], "u6": []}
        users.mark_shown(users.events)
    assert log.not_shown(10) == []
    append(log, event(5000, "u7"))
    assert log.not_shown(10) == ["u7"]
    log.show_again()
    assert len(log.not_shown(2000)) == 1300


def test_a_writer_waits_for_another(log: EventLog) -> None:
    order: list[str] = []

    def write() -> None:
        with log.locked(["u"]):
            order.append("second")

    thread = threading.Thread(target=write)
    with log.locked(["u"]):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_one_that_waits_too_long_says_so(log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.features.database.WAIT_SECONDS", 0.1)
    other = EventLog(Database(sqlite_url(tmp_path / "events.db"), "the log", "try again"))
    with log.locked(["u"]), pytest.raises(StoreError, match=r"the log cannot be used \(database is locked\); try"):  # noqa: SIM117
        with other.locked(["u"]):
            pass


def test_who_was_forgotten_is_known_by_a_hash_alone(log: EventLog, tmp_path: Path) -> None:
    append(log, event(1, "ann"), event(2, "bob"), event(3, "ann"))
    with log.locked(["ann"]) as users:
        assert users.forget() == 2
    assert log.forgotten(["ann", "bob", "cid"]) == {"ann"}
    assert log.since(["ann", "bob"], [0, 0]) == [[], [(1, 2, "a")]]
    assert b"ann" not in (tmp_path / "events.db").read_bytes()
    with log.locked(["ann"]) as users:
        assert users.forget() == 0
    append(log, event(1, "ann"))
    assert log.since(["ann"], [0]) == [[(1, 1, "a")]]
    assert opened(tmp_path).forgotten(["ann"]) == {"ann"}
