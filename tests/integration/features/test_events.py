"""Events are in every history at once, once, whoever writes them and whatever dies on the way; both places."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import textwrap
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from deeprec.errors import FeatureError, StoreError
from deeprec.features.directory import DirectoryPlace
from deeprec.features.events import EventWriter
from deeprec.features.log import LockedUsers
from deeprec.wire.events import Event

START = 1_000_000_000
NOW = START + 500_000_000
Clock = Callable[[], float]


@pytest.fixture
def writer(place: Any, clock: Clock) -> EventWriter:
    place.publish()
    return EventWriter(place.open(), clock=clock)


def statuses(writer: EventWriter, *events: Event) -> list[str]:
    return [outcome.status for outcome in writer.write(events)]


PRELUDE = """
import os, signal
os.environ.update(environ)
from deeprec.config import FeaturesConfig
from deeprec.features.events import EventWriter
from deeprec.features.log import EventLog, LockedUsers
from deeprec.features.places import open_place
from deeprec.wire.events import Event
place = open_place(FeaturesConfig(**config))

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def say(value):
    with open(out, "w") as stream:
        stream.write(repr(value))
"""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["feast", "pandas", "pyarrow", "sqlalchemy", "deeprec.features.places"])


class Process:
    """Code in a process of its own, which has opened ``place`` and may ``say`` one value."""

    def __init__(self, place: Any, code: str, **names: object) -> None:
        self._out = place.path / f"said-{uuid.uuid4().hex}"
        config = place.config().model_dump()
        given = {"config": config, "out": str(self._out), "environ": dict(os.environ), **names}
        self._process = PROCESSES.Process(target=exec, args=(PRELUDE + textwrap.dedent(code), given))
        self._process.start()

    def end(self) -> int | None:
        """The exit code, minus the signal's number where one ended it."""
        self._process.join(120)
        return self._process.exitcode

    def said(self) -> Any:
        assert self.end() == 0
        return ast.literal_eval(self._out.read_text())


def test_what_was_written_is_read_by_every_reader_at_once(place: Any, writer: EventWriter) -> None:
    reader = place.open().newest()
    assert reader.history("u1") == ("b", "a", "c")
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "new", "a")) == ["accepted", "accepted"]
    assert reader.histories(["u1", "new"]) == [("b", "a", "c", "d"), ("a",)]
    elsewhere = Process(place, "say(place.newest().histories(['u1', 'new', 'u2', 'nobody']))")
    assert elsewhere.said() == [("b", "a", "c", "d"), ("a",), ("c", "b"), None]
    assert reader.items(["a", "x"]) == [{"title": "Title a", "phrases": ()}, None]


def test_an_id_is_accepted_once(place: Any, writer: EventWriter) -> None:
    assert statuses(writer, Event("e1", "u1", "d"), Event("e1", "u2", "d")) == ["accepted", "duplicate"]
    assert statuses(writer, Event("e1", "u1", "a"), Event("e2", "u2", "d")) == ["duplicate", "accepted"]
    code = "say([o.status for o in EventWriter(place).write([Event('e2', 'u2', 'd'), Event('e3', 'u2', 'a')])])"
    assert Process(place, code).said() == ["duplicate", "accepted"]
    assert statuses(writer, Event("e3", "u1", "a")) == ["duplicate"]
    assert place.open().newest().histories(["u1", "u2"]) == [("b", "a", "c", "d"), ("c", "b", "d", "a")]


def test_an_id_that_another_writer_keeps_meanwhile_is_a_duplicate(
    cluster_place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another user, so that neither waits for the other: the log's unique ids find it out."""
    cluster_place.publish()
    writer, other = (EventWriter(cluster_place.open(), clock=clock) for _ in range(2))
    known = LockedUsers.known

    def overtaken(users: LockedUsers, event_ids: Any) -> set[str]:
        found = known(users, event_ids)
        monkeypatch.setattr(LockedUsers, "known", known)
        assert statuses(other, Event("e1", "u2", "d")) == ["accepted"]
        return found

    monkeypatch.setattr(LockedUsers, "known", overtaken)
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "u1", "a")) == ["duplicate", "accepted"]
    assert cluster_place.open().newest().histories(["u1", "u2"]) == [("b", "a", "c", "a"), ("c", "b", "d")]


def test_what_cannot_be_kept_is_refused_alone(place: Any, writer: EventWriter) -> None:
    outcomes = writer.write(
        [
            Event("e1", "u1", "nowhere"),
            Event("e2", "u1", "d"),
            Event("e3", "u1", "a", timestamp=NOW * 1000),
            Event("e4", "u1", "a", timestamp=-1),
            Event("e1", "u1", "b"),
        ]
    )
    assert [outcome.status for outcome in outcomes] == ["refused", "accepted", "refused", "refused", "accepted"]
    assert outcomes[0].reason == "item 'nowhere' is in no published catalogue"
    assert f"timestamp {NOW * 1000} is before 1970 or in the future; give Unix seconds" in outcomes[2].reason
    assert place.history("u1") == ("b", "a", "c", "d", "b")
    assert statuses(writer, Event("e3", "u1", "a"), Event("e5", "", "a")) == ["accepted", "refused"]


def test_an_item_that_was_added_to_the_bundle_that_serves_is_known(place: Any, clock: Clock) -> None:
    place.publish()
    writer = EventWriter(place.open(), clock=clock, serves=lambda item: item == "added")
    assert statuses(writer, Event("e1", "u1", "added"), Event("e2", "u1", "x")) == ["accepted", "refused"]
    assert place.history("u1") == ("b", "a", "c", "added")


def test_an_event_enters_at_its_time(place: Any, writer: EventWriter) -> None:
    events = [Event("e1", "u1", "d", START), Event("e2", "u1", "d", START + 1), Event("e3", "u1", "d", START - 9)]
    assert statuses(writer, *events) == ["accepted"] * 3
    assert place.history("u1") == ("d", "b", "d", "a", "d", "c")
    ahead = Event("e4", "u2", "a", NOW + 200)
    assert statuses(writer, ahead, Event("e5", "u2", "d"), Event("e6", "u2", "d", NOW - 1)) == ["accepted"] * 3
    [history] = place.open().newest().read(["u2"])
    assert history.item_ids == ("c", "b", "d", "a", "d")
    assert history.timestamps == (START, START + 1, NOW - 1, NOW, NOW)
    assert history.interactions == 5


def test_an_event_without_a_time_comes_after_those_of_other_writers(place: Any, writer: EventWriter) -> None:
    behind = EventWriter(place.open(), clock=lambda: NOW - 1000)
    assert statuses(writer, Event("e1", "u1", "d")) == ["accepted"]
    assert statuses(behind, Event("e2", "u1", "a")) == ["accepted"]
    assert place.history("u1") == ("b", "a", "c", "d", "a")


def test_the_same_interaction_under_another_id_enters_once(place: Any, writer: EventWriter) -> None:
    events = [Event("e1", "u1", "b", START), Event("e2", "u1", "d"), Event("e3", "u1", "d")]
    assert statuses(writer, *events) == ["accepted"] * 3
    assert place.history("u1") == ("b", "a", "c", "d")


@pytest.mark.parametrize(("repeats", "expected"), [("first", ("b", "a", "c", "d")), ("last", ("a", "d", "c", "b"))])
def test_a_repeat_follows_the_dataset(place: Any, clock: Clock, repeats: str, expected: tuple[str, ...]) -> None:
    place.publish(place.dataset(repeats=repeats))
    writer = EventWriter(place.open(), clock=clock)
    new = [Event("e1", "u1", "d", NOW - 9), Event("e2", "u1", "c", NOW - 5), Event("e3", "u1", "b", NOW)]
    assert statuses(writer, *new) == ["accepted"] * 3
    assert place.history("u1") == expected
    place.publish(place.dataset({"u1": ["b", "a", "c", ("d", NOW - 9)]}, repeats=repeats))
    assert place.history("u1") == expected


def test_histories_stay_within_their_limit(place: Any, clock: Clock) -> None:
    place.publish(history_length=2)
    writer = EventWriter(place.open(), clock=clock)
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "u1", "a", START)) == ["accepted"] * 2
    [history] = place.open().newest().read(["u1"])
    assert (history.item_ids, history.interactions) == (("c", "d"), 4)


def test_where_timestamps_are_an_order_an_event_comes_last_or_at_its_position(place: Any, clock: Clock) -> None:
    place.publish(place.dataset(time_unit="order", start=3 * NOW))
    writer = EventWriter(place.open(), clock=clock)
    events = [Event("e1", "u1", "d"), Event("e2", "u1", "d", 5), Event("e3", "new", "d", -3)]
    assert statuses(writer, *events) == ["accepted"] * 3
    assert place.open().newest().histories(["u1", "new"]) == [("d", "b", "a", "c", "d"), ("d",)]


def test_a_user_may_have_more_events_than_a_row_holds(place: Any, writer: EventWriter) -> None:
    reader = place.open().newest()
    sizes = (1, 98, 1, 1, 99, 150, 250, 7)
    numbers = iter(range(sum(sizes)))
    expected: list[str] = []
    for size in sizes:
        events = [(n, "abcd"[n % 4]) for n in islice(numbers, size)]
        expected += [item for _, item in events]
        assert set(statuses(writer, *(Event(f"e{n}", "new", item, START + n) for n, item in events))) == {"accepted"}
        assert reader.history("new") == tuple(expected)
    place.publish(place.dataset({"u1": ["a", "b"]}))
    assert statuses(writer, Event("last", "new", "a")) == ["accepted"]
    assert place.history("new") == (*expected, "a")
    assert reader.history("new") == (*expected, "a")


def test_twelve_writers_in_three_processes_write_one_users_history(place: Any) -> None:
    """Nothing is lost or doubled, and what came out of order is where it belongs; the user is forgotten on the way."""
    place.publish()
    code = """
        import pathlib, time
        from concurrent.futures import ThreadPoolExecutor
        writer = EventWriter(place)
        pathlib.Path(f"{out}-ready").touch()
        while len(list(pathlib.Path(out).parent.glob("said-*-ready"))) < 3:
            time.sleep(0.005)
        def write(n):
            late, mine = 1400000000 - 10 * n - who, Event(f"{who}-{n}", "u1", "abcd"[who], 1400000000 + n)
            back, shared = Event(f"{who}-{n}-late", "u1", "d", late), Event(f"shared-{n}", "u2", "d")
            erased = Event(f"{who}-{n}-erased", "gone", "a")
            while True:
                try:
                    found = writer.write([mine, back, shared, erased])
                    break
                except Exception as error:
                    print(error)
            if who == 0 and n == 5:
                place.forget("gone")
            return [outcome.status for outcome in found]
        with ThreadPoolExecutor(4) as pool:
            say(sum(status == "accepted" for found in pool.map(write, range(10)) for status in found))
    """
    processes = [Process(place, code, who=who) for who in range(3)]
    assert sum(process.said() for process in processes) == 3 * 10 * 3 + 10
    [history] = place.open().newest().read(["u1"])
    expected = [(START + n, item) for n, item in enumerate("bac")]
    late = [(1_400_000_000 - 10 * n - who, "d") for who in range(3) for n in range(10)]
    mine = [(1_400_000_000 + n, "abc"[who]) for who in range(3) for n in range(10)]
    found = list(zip(history.timestamps, history.item_ids, strict=True))
    # an event at the very moment of another with the same item is the same interaction
    assert sorted(found) == sorted({*expected, *late, *mine})
    assert [time for time, _ in found] == sorted(time for time, _ in found)
    log = place.open().log
    with log.locked([]) as users:
        assert len(users.known([f"shared-{n}" for n in range(10)])) == 10
    [events] = log.since(["u1"], [0])
    assert [number for number, _, _ in events] == list(range(1, 61))
    place.open().forget("gone")
    assert place.history("gone") is None
    assert log.since(["gone"], [0]) == [[]]


@pytest.mark.parametrize(
    ("killed", "accepted"),
    [
        ("type(place).show = die", True),
        ("show = type(place).show; type(place).show = lambda *given: (show(*given), die())", True),
        ("append = LockedUsers.append; LockedUsers.append = lambda *given: (append(*given), die())", False),
        ("LockedUsers.append = die", False),
        ("LockedUsers.newest = die", False),
        ("LockedUsers.mark_shown = die", True),
    ],
    ids=["behind the log", "behind all", "before the commit", "before the log", "with the lock", "before it is marked"],
)
def test_a_writer_that_is_killed_loses_and_doubles_nothing(
    place: Any, clock: Clock, killed: str, accepted: bool
) -> None:
    if "shown" in killed and not place.cluster:
        pytest.skip("in a directory nothing has to be shown")
    place.publish()
    code = f"""
        writer = EventWriter(place)
        {killed}
        writer.write([Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "b")])
    """
    assert Process(place, code).end() == -signal.SIGKILL
    writer = EventWriter(place.open(), clock=clock)
    expected = [("b", "a", "c", "d", "b"), ("a",)]
    if accepted:
        assert place.open().newest().histories(["u1", "new"]) == expected
    again = statuses(writer, Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "b"))
    assert again == ["duplicate" if accepted else "accepted"] * 3
    assert place.open().newest().histories(["u1", "new"]) == expected


def test_what_another_process_left_behind_is_shown_by_the_next_write(place: Any, writer: EventWriter) -> None:
    code = 'writer = EventWriter(place); type(place).show = die; writer.write([Event("e1", "u1", "d")])'
    assert Process(place, code).end() == -signal.SIGKILL
    assert statuses(writer, Event("e2", "u2", "a")) == ["accepted"]
    assert place.open().newest().histories(["u1", "u2"]) == [("b", "a", "c", "d"), ("c", "b", "a")]


def test_an_event_that_cannot_be_shown_is_made_good_when_it_is_sent_again(
    place: Any, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FeatureError("no space left")

    monkeypatch.setattr(type(writer._place), "show", refuse)
    with pytest.raises(FeatureError, match="no space left"):
        writer.write([Event("e1", "u1", "d")])
    monkeypatch.undo()
    assert statuses(writer, Event("e1", "u1", "d")) == ["duplicate"]
    assert place.history("u1") == ("b", "a", "c", "d")


def test_a_log_without_space_accepts_nothing(directory_place: Any) -> None:
    place = directory_place
    place.publish()
    opened = place.open()
    writer = EventWriter(opened)
    with opened.database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    events = [Event(f"e{n}", "u1", "d", NOW - 1000 + n) for n in range(500)]
    with pytest.raises(StoreError, match="full"):
        writer.write(events)
    assert place.history("u1") == ("b", "a", "c")
    with opened.database.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert set(statuses(writer, *events)) == {"accepted"}


def test_a_damaged_log_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.db").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(StoreError, match=r"log of events .*cannot be used"):
        EventWriter(DirectoryPlace(tmp_path))


def test_no_place_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="no feature store at"):
        EventWriter(DirectoryPlace(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
