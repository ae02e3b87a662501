"""Publications beside one another: each whole or absent, none changed, accepted events in all of them; both places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from deeprec.cli import app
from deeprec.config import DataConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.errors import FeatureError, StoreError
from deeprec.features import publish as publish_module
from deeprec.features.events import EventWriter
from deeprec.features.log import write_table
from deeprec.features.publication import KnownUser, PublishedFeatures
from deeprec.store import read_artifact
from deeprec.wire.events import Event

START = 1_000_000_000
NOW = START + 500_000_000
Clock = Callable[[], float]


def write(place: Any, clock: Clock, *events: Event) -> list[str]:
    return [outcome.status for outcome in EventWriter(place.open(), clock=clock).write(events)]


def names(place: Any) -> list[str]:
    return [publication.name for publication in place.open().publications()]


def test_a_publication_is_whole_and_recorded(place: Any) -> None:
    counts = place.publish()
    assert counts == {"users": 3, "items": 4, "rows": 6, "events": 0, "read_back": 7, "truncated": 0}
    assert read_artifact(place.path / "published", "features").parents.keys() == {"dataset"}
    record = json.loads((place.path / "published" / "record.json").read_text())
    assert record.pop("features") == place.config().model_dump(mode="json")
    assert record == {"publication": names(place)[0], **counts}
    published = place.open().newest()
    assert published.histories(["u1", "u2", "ü/3", "nobody"]) == [("b", "a", "c"), ("c", "b"), ("a",), None]
    assert published.histories([]) == []


def test_users_are_found_by_part_of_their_id(place: Any) -> None:
    ids = ("anna", "Hanna", "ANton", "bob", "a.b", "50%", "a_b")
    published = place.published(place.dataset({user: "abcd"[: n % 4 + 1] for n, user in enumerate(ids)}))

    def found(text: str, limit: int = 9) -> list[str]:
        return sorted((user.user_id for user in published.find(text, limit)), key=str.lower)

    assert found("an") == ["anna", "ANton", "Hanna"]
    assert [user.user_id for user in published.find("an", 9)][-1] == "Hanna"
    assert found(" ANN ") == ["anna", "Hanna"]
    assert found("") == sorted(ids, key=str.lower)
    assert (found("a."), found("%"), found("_"), found(".*")) == (["a.b"], ["50%"], ["a_b"], [])
    assert published.find("ann", 1) == (KnownUser("anna", 1),)
    assert published.newest(2) == ("bob", "ANton")


def test_users_are_found_in_either_case_whatever_the_letter(directory_place: Any) -> None:
    published = directory_place.published(directory_place.dataset({"ÜNAL": ["a"], "łukasz": ["b"]}))
    assert [user.user_id for text in ("ünal", "Ü", "ŁUK") for user in published.find(text, 9)] == [
        "ÜNAL",
        "ÜNAL",
        "łukasz",
    ]


def test_the_same_is_published_once(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = place.dataset()
    counts = place.publish(dataset)
    before = place.open().publications()
    monkeypatch.setattr(type(place.open()), "build", lambda *_: 1 / 0)
    assert place.publish(dataset) == counts
    assert place.open().publications() == before


def test_events_are_in_every_publication(place: Any, clock: Clock) -> None:
    first = place.published()
    events = [Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "a", START - 5)]
    assert write(place, clock, *events) == ["accepted"] * 3
    second = place.published(place.dataset({"u1": ["b", "a", "c"], "u2": ["c"]}))
    assert len(names(place)) == 2
    expected = [("a", "b", "a", "c", "d"), ("a",)]
    assert first.histories(["u1", "new", "u2"]) == [*expected, ("c", "b")]
    assert second.histories(["u1", "new", "u2"]) == [*expected, ("c",)]
    assert write(place, clock, *events, Event("e4", "u2", "a")) == [*["duplicate"] * 3, "accepted"]
    assert first.history("u2") == ("c", "b", "a")
    assert second.history("u2") == ("c", "a")
    [history] = second.read(["u1"])
    assert history.interactions == 5


def test_what_a_dataset_contains_is_not_entered_again(place: Any, clock: Clock) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d", NOW - 9), Event("e2", "u1", "a", NOW - 5), Event("e3", "u2", "d", NOW))
    newer = place.dataset({"u1": ["b", "a", "c", ("d", NOW - 9)], "u2": ["c", "b", ("d", NOW)]})
    assert place.publish(newer)["events"] == 1
    assert place.open().newest().histories(["u1", "u2"]) == [("b", "a", "c", "d", "a"), ("c", "b", "d")]
    assert write(place, clock, Event("late", "u2", "b", START + 1)) == ["accepted"]
    assert place.history("u2") == ("c", "b", "d")


def test_events_accepted_during_a_publication_are_in_it(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    compare = publish_module._difference

    def accept_one(*given: Any) -> str:
        assert write(place, clock, Event("meanwhile", "u1", "d")) == ["accepted"]
        monkeypatch.setattr(publish_module, "_difference", compare)
        return compare(*given)

    monkeypatch.setattr(publish_module, "_difference", accept_one)
    place.publish(place.dataset({"u1": ["b", "c"]}))
    assert place.history("u1") == ("b", "c", "d")


def test_an_event_is_accepted_on_an_item_of_any_publication(place: Any, clock: Clock) -> None:
    first = place.published()
    second = place.published(place.dataset(items=("a", "b", "c")))
    assert write(place, clock, Event("e1", "u1", "d"), Event("e2", "u1", "x")) == ["accepted", "refused"]
    assert first.history("u1") == ("b", "a", "c", "d")
    assert second.history("u1") == ("b", "a", "c", "d")  # which the recommender of its bundle does not know
    place.open().remove(first.publication.name)
    assert write(place, clock, Event("e3", "u1", "d")) == ["refused"]


def test_a_limited_history_has_the_newest_of_dataset_and_events(place: Any, clock: Clock) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d", START - 1), Event("e2", "u2", "d"), Event("e3", "u2", "a"))
    counts = place.publish(history_length=2)
    assert place.open().newest().histories(["u1", "u2"]) == [("a", "c"), ("d", "a")]
    assert (counts["truncated"], counts["events"]) == (2, 2)


def test_publications_that_nobody_names_are_swept(place: Any, clock: Clock) -> None:
    opened = [place.published(place.dataset({"u1": "abcd"[: n + 1]})) for n in range(4)]
    first, second, third, newest = (one.publication.name for one in opened)
    assert place.open().sweep([second]) == []  # all are young
    assert set(place.open().sweep([second], grace=0)) == {first, third}
    assert names(place) == [newest, second]
    assert opened[1].history("u1") == ("a", "b")
    write(place, clock, Event("e1", "u1", "d", START - 1))
    assert [place.open().open(name).history("u1") for name in (second, newest)] == [
        ("d", "a", "b"),
        ("d", "a", "b", "c", "d"),
    ]
    with pytest.raises(FeatureError, match=f"no publication '{first}'; name the place that the bundle was made with"):
        place.open().open(first)
    place.open().remove(first)


@pytest.mark.parametrize("time_unit", ["seconds", "order"])
def test_the_log_can_be_imported_for_retraining(place: Any, clock: Clock, tmp_path: Path, time_unit: str) -> None:
    users = {f"u{n}": [("abcd"[(n + step) % 4], START + step) for step in range(3)] for n in range(8)}
    place.publish(place.dataset(users, time_unit=time_unit))
    events = [Event(f"e{n}", f"u{n}", "abcd"[(n + 3) % 4], rating=4.5, event="play") for n in range(8)]
    assert set(write(place, clock, *events)) == {"accepted"}

    table = tmp_path / "table"
    table.mkdir()
    named = tmp_path / "place.yaml"
    named.write_text(json.dumps({"features": place.config().model_dump()}))
    told = CliRunner().invoke(app, ["data", "events", str(named), str(tmp_path / "events.parquet")])
    assert (told.exit_code, told.output.startswith("events: 8 in ")) == (0, True), told
    accepted = pl.read_parquet(tmp_path / "events.parquet")
    assert accepted.columns == ["user_id", "item_id", "timestamp", "rating", "event", "event_id"]
    assert accepted.row(0) == ("u0", "d", NOW, 4.5, "play", "e0")
    rows = [(user, item, time) for user, history in users.items() for item, time in history]
    before = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
    pl.concat([before, accepted], how="diagonal").write_parquet(table / "interactions.parquet")
    pl.DataFrame({"item_id": list("abcd"), "title": list("ABCD")}).write_parquet(table / "items.parquet")
    config = DataConfig(
        source="table",
        path=str(table),
        time_unit=time_unit,
        text_columns=(),
        min_user_interactions=4,
        min_item_interactions=1,
    )
    ingest(config, 0, tmp_path / "imported")
    assert read_dataset(tmp_path / "imported").timestamps["u0"] == (START, START + 1, START + 2, NOW)
    before_publishing = place.open().newest().histories(sorted(users))
    assert place.publish(tmp_path / "imported")["events"] == 0
    assert place.open().newest().histories(sorted(users)) == before_publishing


def test_a_table_that_cannot_be_written_is_a_clear_error(place: Any) -> None:
    place.publish()
    log = place.open().log
    with pytest.raises(StoreError, match="cannot write"):
        write_table(log, place.path / "nowhere" / "events.parquet")
    with pytest.raises(StoreError, match=r"end it in \.parquet"):
        write_table(log, place.path / "events.csv")


@pytest.mark.parametrize("step", ["build", "_difference", "read_back"])
def test_a_publication_that_fails_leaves_the_others(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d"))
    before = names(place)

    def fail(*_: object) -> None:
        raise FeatureError("stopped")

    with monkeypatch.context() as patched:
        if step == "build":
            patched.setattr(type(place.open()), "build", fail)
        elif step == "_difference":
            patched.setattr(publish_module, "_difference", fail)
        else:
            patched.setattr(PublishedFeatures, "items", lambda _, asked: [None] * len(asked))
        with pytest.raises(FeatureError, match=r"stopped|differs from the dataset; nothing is published"):
            place.publish(place.dataset({"u1": ["a"]}))
    assert step == "_difference" or names(place) == before
    assert place.open().open(before[0]).history("u1") == ("b", "a", "c", "d")
    place.publish(place.dataset({"u1": ["a"]}))
    assert place.history("u1") == ("a", "d")


@pytest.mark.parametrize("start", [-10, 4_000_000_000])
def test_impossible_times_are_refused(place: Any, start: int) -> None:
    with pytest.raises(FeatureError, match="before 1970 or in the future"):
        place.publish(place.dataset({"u1": ["a", "b"]}, start=start))
    assert not (place.path / "published").exists()
    assert names(place) == []
    with pytest.raises(FeatureError, match="nothing is published in"):
        place.open().newest()
