"""Events enter the online histories at once, once, whoever writes them and whatever dies on the way; both stores."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deeprec.errors import FeatureError, StoreError
from deeprec.features.events import EventWriter
from deeprec.features.log import EventLog
from deeprec.features.online import HistoryStore
from deeprec.features.version import Version
from deeprec.wire.events import Event

START = 1_000_000_000
NOW = START + 500_000_000
Clock = Callable[[], float]


@pytest.fixture
def writer(place: Any, clock: Clock) -> Iterator[EventWriter]:
    place.publish()
    writer = EventWriter(place.features, clock=clock)
    yield writer
    writer.close()


def statuses(writer: EventWriter, *events: Event) -> list[str]:
    return [outcome.status for outcome in writer.write(events)]


PRELUDE = """
import os, signal
os.environ.update(environ)
from deeprec.features.events import EventWriter
from deeprec.wire.events import Event
from deeprec.features.log import EventLog
from deeprec.features.online import HistoryStore
from deeprec.features.version import Version

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def say(value):
    with open(out, "w") as stream:
        stream.write(repr(value))
"""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["feast", "pandas", "pyarrow", "deeprec.features.version"])


class Process:
    """Code in a process of its own, which knows ``path`` and may ``say`` one value."""

    def __init__(self, path: Path, code: str, **names: object) -> None:
        self._out = path.parent / f"said-{uuid.uuid4().hex}"
        given = {"path": str(path), "out": str(self._out), "environ": dict(os.environ), **names}
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
    reader = HistoryStore(place.features)
    assert reader.history("u1") == ("b", "a", "c")
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "new", "a")) == ["accepted", "accepted"]
    assert reader.histories(["u1", "new"]) == [("b", "a", "c", "d"), ("a",)]
    elsewhere = Process(place.features, "say(HistoryStore(path).histories(['u1', 'new', 'u2']))")
    assert elsewhere.said() == [("b", "a", "c", "d"), ("a",), ("c", "b")]
    assert HistoryStore(place.features).items(["a"]) == [{"title": "Title a", "phrases": ()}]


def test_an_id_is_accepted_once(place: Any, writer: EventWriter) -> None:
    assert statuses(writer, Event("e1", "u1", "d"), Event("e1", "u2", "d")) == ["accepted", "duplicate"]
    assert statuses(writer, Event("e1", "u1", "a"), Event("e2", "u2", "d")) == ["duplicate", "accepted"]
    code = "say([o.status for o in EventWriter(path).write([Event('e2', 'u2', 'd'), Event('e3', 'u2', 'a')])])"
    assert Process(place.features, code).said() == ["duplicate", "accepted"]
    assert statuses(writer, Event("e3", "u1", "a")) == ["duplicate"]
    assert HistoryStore(place.features).histories(["u1", "u2"]) == [("b", "a", "c", "d"), ("c", "b", "d", "a")]


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
    assert outcomes[0].reason == "item 'nowhere' is not in the catalogue that was published last"
    assert f"timestamp {NOW * 1000} is before 1970 or in the future; give Unix seconds" in outcomes[2].reason
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c", "d", "b")
    assert statuses(writer, Event("e3", "u1", "a"), Event("e5", "", "a")) == ["accepted", "refused"]


def test_an_event_enters_at_its_time(place: Any, writer: EventWriter) -> None:
    events = [Event("e1", "u1", "d", START), Event("e2", "u1", "d", START + 1), Event("e3", "u1", "d", START - 9)]
    assert statuses(writer, *events) == ["accepted"] * 3
    assert HistoryStore(place.features).history("u1") == ("d", "b", "d", "a", "d", "c")
    ahead = Event("e4", "u2", "a", NOW + 200)
    assert statuses(writer, ahead, Event("e5", "u2", "d"), Event("e6", "u2", "d", NOW - 1)) == ["accepted"] * 3
    assert HistoryStore(place.features).history("u2") == ("c", "b", "d", "a", "d")
    [history] = Version((place.features / "current").resolve()).histories(["u2"])
    assert history is not None
    assert history.timestamps == (START, START + 1, NOW - 1, NOW, NOW)
    assert history.interactions == 5


def test_the_same_interaction_under_another_id_enters_once(place: Any, writer: EventWriter) -> None:
    assert (
        statuses(writer, Event("e1", "u1", "b", START), Event("e2", "u1", "d"), Event("e3", "u1", "d"))
        == ["accepted"] * 3
    )
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c", "d")


def test_histories_stay_within_their_limit(place: Any, clock: Clock) -> None:
    place.publish(history_length=2)
    writer = EventWriter(place.features, clock=clock)
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "u1", "a", START)) == ["accepted"] * 2
    assert HistoryStore(place.features).history("u1") == ("c", "d")
    [history] = Version((place.features / "current").resolve()).histories(["u1"])
    assert history is not None
    assert history.interactions == 4
    writer.close()


def test_where_timestamps_are_an_order_an_event_comes_last_or_at_its_position(place: Any, clock: Clock) -> None:
    place.publish(place.dataset(time_unit="order", start=3 * NOW))
    writer = EventWriter(place.features, clock=clock)
    assert (
        statuses(writer, Event("e1", "u1", "d"), Event("e2", "u1", "d", 5), Event("e3", "new", "d", -3))
        == ["accepted"] * 3
    )
    assert HistoryStore(place.features).histories(["u1", "new"]) == [("d", "b", "a", "c", "d"), ("d",)]
    writer.close()


def test_many_events_are_one_push(writer: EventWriter, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = []
    push = Version.push
    monkeypatch.setattr(Version, "push", lambda *given: pushes.append(list(given[1])) or push(*given))
    events = [Event(f"e{n}", f"user {n % 3}", "abcd"[n % 4], NOW - 60 + n) for n in range(60)]
    assert set(statuses(writer, *events)) == {"accepted"}
    assert pushes == [["user 0", "user 1", "user 2"]]
    expected = [tuple("abcd"[n % 4] for n in range(user, 60, 3)) for user in range(3)]
    assert HistoryStore(place.features).histories(["user 0", "user 1", "user 2"]) == expected


def test_several_processes_and_threads_write_one_users_history(place: Any) -> None:
    """Each waits for its turn for as long as a loaded machine takes."""
    place.publish()
    code = """
        import pathlib, time
        from concurrent.futures import ThreadPoolExecutor
        EventLog.locked.__wrapped__.__defaults__ = (100.0,)
        writer = EventWriter(path)
        pathlib.Path(f"{out}-ready").touch()
        while len(list(pathlib.Path(path).parent.glob("said-*-ready"))) < 3:
            time.sleep(0.005)
        def write(n):
            mine, shared = Event(f"{who}-{n}", "u1", "abcd"[who], 1400000000 + n), Event(f"shared-{n}", "u2", "d")
            return [outcome.status for outcome in writer.write([mine, shared])]
        with ThreadPoolExecutor(2) as pool:
            say(sum(status == "accepted" for found in pool.map(write, range(8)) for status in found))
    """
    processes = [Process(place.features, code, who=who) for who in range(3)]
    assert sum(process.said() for process in processes) == 3 * 8 + 8
    found = HistoryStore(place.features).history("u1")
    assert found is not None
    assert found[:3] == ("b", "a", "c")
    assert sorted(found[3:]) == sorted("abc" * 8)
    log = EventLog(place.features)
    assert log.end == 32
    log.close()


@pytest.mark.parametrize(
    ("killed", "accepted"),
    [
        ("Version.push = die", True),
        ("push = Version.push; Version.push = lambda *given: (push(*given), die())", True),
        ("EventLog.append = die", False),
    ],
    ids=["between log and push", "behind the push", "before the log"],
)
def test_a_writer_that_is_killed_loses_and_doubles_nothing(
    place: Any, clock: Clock, killed: str, accepted: bool
) -> None:
    place.publish()
    code = f"""
        writer = EventWriter(path)
        {killed}
        writer.write([Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "b")])
    """
    assert Process(place.features, code).end() == -signal.SIGKILL
    writer = EventWriter(place.features, clock=clock)
    expected = [("b", "a", "c", "d", "b"), ("a",)]
    if accepted:
        assert HistoryStore(place.features).histories(["u1", "new"]) == expected
    again = statuses(writer, Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "b"))
    assert again == ["duplicate" if accepted else "accepted"] * 3
    assert HistoryStore(place.features).histories(["u1", "new"]) == expected
    writer.close()


def test_what_another_process_left_behind_is_pushed_by_the_next_write(place: Any, writer: EventWriter) -> None:
    code = 'writer = EventWriter(path); Version.push = die; writer.write([Event("e1", "u1", "d")])'
    assert Process(place.features, code).end() == -signal.SIGKILL
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c")
    assert statuses(writer, Event("e2", "u2", "a")) == ["accepted"]
    assert HistoryStore(place.features).histories(["u1", "u2"]) == [("b", "a", "c", "d"), ("c", "b", "a")]


def test_a_push_that_fails_is_made_good_when_the_events_are_sent_again(
    place: Any, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FeatureError("no space left")

    monkeypatch.setattr(Version, "push", refuse)
    with pytest.raises(FeatureError, match="no space left"):
        writer.write([Event("e1", "u1", "d")])
    monkeypatch.undo()
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c")
    assert statuses(writer, Event("e1", "u1", "d")) == ["duplicate"]
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c", "d")


def test_a_log_without_space_accepts_nothing(place: Any, writer: EventWriter) -> None:
    [(pages,)] = writer._log._database.execute("PRAGMA page_count").fetchall()
    writer._log._database.execute(f"PRAGMA max_page_count = {pages}")
    events = [Event(f"e{n}", "u1", "d", NOW - 1000 + n) for n in range(500)]
    with pytest.raises(StoreError, match="full"):
        writer.write(events)
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c")
    writer._log._database.execute("PRAGMA max_page_count = 1000000")
    assert set(statuses(writer, *events)) == {"accepted"}


def test_a_writer_that_never_gets_its_turn_says_so(place: Any, writer: EventWriter) -> None:
    other = EventLog(place.features)
    with other.locked():
        with pytest.raises(FeatureError, match="written by another"), EventLog(place.features).locked(0.05):
            pass
        with pytest.raises(FeatureError, match="written by another"), other.locked(0.05):
            pass
    assert statuses(writer, Event("e1", "u1", "d")) == ["accepted"]
    other.close()


def test_a_store_whose_log_was_lost_goes_on(
    place: Any, writer: EventWriter, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert statuses(writer, Event("e1", "u1", "d"), Event("e2", "u1", "a")) == ["accepted"] * 2
    for file in (place.features / "events").iterdir():
        file.unlink()
    second = EventWriter(place.features, clock=clock)
    with monkeypatch.context() as patched:
        patched.setattr(Version, "push", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            second.write([Event("e1", "u2", "d")])
    assert statuses(second, Event("e1", "u2", "d")) == ["duplicate"]
    assert HistoryStore(place.features).histories(["u1", "u2"]) == [("b", "a", "c", "d", "a"), ("c", "b", "d")]
    second.close()


def test_a_damaged_log_is_one_clear_error(place: Any) -> None:
    place.publish()
    (place.features / "events" / "events.db").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(StoreError, match=r"log of events in .*cannot be used"):
        EventWriter(place.features)


def test_a_store_that_does_not_say_how_it_was_published_takes_no_events(place: Any) -> None:
    place.publish()
    (place.features / "current" / "publication.json").unlink()
    with pytest.raises(FeatureError, match=r"no readable publication\.json"):
        EventWriter(place.features)
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c")


def test_no_store_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="no feature store at"):
        EventWriter(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
