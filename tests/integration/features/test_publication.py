"""A new publication keeps what was accepted, is whole or absent in either store, and leaves nothing behind in Redis."""

from __future__ import annotations

import os
import shutil
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
from deeprec.features import store as store_module
from deeprec.features.events import EventWriter
from deeprec.features.log import write_table
from deeprec.features.online import HistoryStore
from deeprec.features.version import Version
from deeprec.wire.events import Event

START = 1_000_000_000
NOW = START + 500_000_000
Clock = Callable[[], float]


def write(place: Any, clock: Clock, *events: Event) -> list[str]:
    writer = EventWriter(place.features, clock=clock)
    try:
        return [outcome.status for outcome in writer.write(events)]
    finally:
        writer.close()


def versions(place: Any) -> list[str]:
    return sorted(path.name for path in (place.features / "versions").iterdir())


def projects(server: Any) -> set[bytes]:
    """The Feast projects that have rows in Redis: what a key ends with."""
    return {b"deeprec_" + key.rpartition(b"deeprec_")[2] for key in server.client.scan_iter()}


def test_events_outlive_the_next_publication(place: Any, clock: Clock) -> None:
    place.publish()
    events = [Event("e1", "u1", "d"), Event("e2", "new", "a"), Event("e3", "u1", "a", START - 5)]
    assert write(place, clock, *events) == ["accepted"] * 3
    reader = HistoryStore(place.features)
    counts = place.publish()
    assert counts == {"users": 4, "items": 4, "rows": 9, "events": 3, "read_back": 8, "truncated": 0}
    expected = [("a", "b", "a", "c", "d"), ("a",), ("c", "b")]
    assert reader.histories(["u1", "new", "u2"]) == expected
    assert write(place, clock, *events) == ["duplicate"] * 3
    assert reader.histories(["u1", "new", "u2"]) == expected
    [history] = Version((place.features / "current").resolve()).histories(["u1"])
    assert history is not None
    assert history.interactions == 5


def test_what_a_dataset_contains_is_not_entered_again(place: Any, clock: Clock) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d", NOW - 9), Event("e2", "u1", "a", NOW - 5), Event("e3", "u2", "d", NOW))
    newer = place.dataset({"u1": ["b", "a", "c", ("d", NOW - 9)], "u2": ["c", "b", ("d", NOW)]})
    assert place.publish(newer)["events"] == 1
    assert HistoryStore(place.features).histories(["u1", "u2"]) == [("b", "a", "c", "d", "a"), ("c", "b", "d")]
    assert write(place, clock, Event("late", "u2", "b", START + 1)) == ["accepted"]
    assert HistoryStore(place.features).history("u2") == ("c", "b", "d")


def test_events_accepted_during_a_publication_are_in_it(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    compare = store_module._compare

    def accept_one(*given: Any) -> int:
        assert write(place, clock, Event("meanwhile", "u1", "d")) == ["accepted"]
        return compare(*given)

    monkeypatch.setattr(store_module, "_compare", accept_one)
    place.publish()
    assert HistoryStore(place.features).history("u1") == ("b", "a", "c", "d")


def test_a_read_that_a_publication_overtakes_is_made_again(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    reader, read = HistoryStore(place.features), Version.item_ids
    assert reader.history("u1") == ("b", "a", "c")
    newer = place.dataset({"u1": ["d", "c"]})

    def overtaken(version: Version, user_ids: Any) -> Any:
        monkeypatch.setattr(Version, "item_ids", read)
        place.publish(newer)
        return read(version, user_ids)

    monkeypatch.setattr(Version, "item_ids", overtaken)
    assert reader.histories(["u1", "u2"]) == [("d", "c"), None]


def test_an_item_that_is_gone_is_left_out_until_it_is_back(place: Any, clock: Clock) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d"), Event("e2", "new", "d"))
    assert place.publish(place.dataset(items=("a", "b", "c")))["events"] == 0
    assert HistoryStore(place.features).histories(["u1", "new"]) == [("b", "a", "c"), None]
    assert write(place, clock, Event("e3", "u1", "d")) == ["refused"]
    place.publish()
    assert HistoryStore(place.features).histories(["u1", "new"]) == [("b", "a", "c", "d"), ("d",)]


def test_a_limited_history_has_the_newest_of_dataset_and_events(place: Any, clock: Clock) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d", START - 1), Event("e2", "u2", "d"), Event("e3", "u2", "a"))
    counts = place.publish(history_length=2)
    assert HistoryStore(place.features).histories(["u1", "u2"]) == [("a", "c"), ("d", "a")]
    assert (counts["truncated"], counts["events"]) == (2, 2)


@pytest.mark.parametrize("time_unit", ["seconds", "order"])
def test_the_log_can_be_imported_for_retraining(place: Any, clock: Clock, tmp_path: Path, time_unit: str) -> None:
    users = {f"u{n}": [("abcd"[(n + step) % 4], START + step) for step in range(3)] for n in range(8)}
    place.publish(place.dataset(users, time_unit=time_unit))
    events = [Event(f"e{n}", f"u{n}", "abcd"[(n + 3) % 4], rating=4.5, event="play") for n in range(8)]
    assert set(write(place, clock, *events)) == {"accepted"}

    table = tmp_path / "table"
    table.mkdir()
    told = CliRunner().invoke(app, ["data", "events", str(place.features), str(tmp_path / "events.parquet")])
    assert (told.exit_code, told.output.startswith("events: 8 in ")) == (0, True)
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
    before_publishing = HistoryStore(place.features).histories(sorted(users))
    assert place.publish(tmp_path / "imported")["events"] == 0
    assert HistoryStore(place.features).histories(sorted(users)) == before_publishing


def test_without_events_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="has accepted no events yet"):
        write_table(tmp_path, tmp_path / "events.parquet")


def test_a_table_that_cannot_be_written_is_a_clear_error(place: Any) -> None:
    place.publish()
    with pytest.raises(StoreError, match="cannot write"):
        write_table(place.features, place.path / "nowhere" / "events.parquet")
    with pytest.raises(StoreError, match=r"end it in \.parquet"):
        write_table(place.features, place.path / "events.csv")


def test_a_failed_publication_leaves_the_previous_one(
    place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    write(place, clock, Event("e1", "u1", "d"))
    before = versions(place)

    def fail(*_: object) -> None:
        raise FeatureError("stopped")

    for name in ("_compare", "catch_up", "_turn"):
        with monkeypatch.context() as patched:
            patched.setattr(store_module, name, fail)
            with pytest.raises(FeatureError, match="stopped"):
                place.publish()
        assert versions(place) == before
        assert HistoryStore(place.features).history("u1") == ("b", "a", "c", "d")


def test_redis_holds_the_rows_of_the_current_version_alone(
    redis_place: Any, redis_server: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.client.set("of another application", "stays")
    redis_place.publish()
    first = projects(redis_server)
    write(redis_place, clock, Event("e1", "new", "d"))
    assert len(first) == 2
    redis_place.publish()
    assert first & projects(redis_server) == {b"deeprec_of another application"}
    assert len(projects(redis_server)) == 2
    monkeypatch.setattr(store_module, "_compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        redis_place.publish()
    assert len(projects(redis_server)) == 2
    assert redis_server.client.get("of another application") == b"stays"
    assert HistoryStore(redis_place.features).history("new") == ("d",)


def test_rows_of_a_killed_publication_are_removed_by_the_next(redis_place: Any, redis_server: Any) -> None:
    redis_place.publish()
    [version] = versions(redis_place)
    shutil.copytree(redis_place.features / "versions" / version, redis_place.features / ".building-killed")
    settings = redis_place.features / ".building-killed" / "feature_store.yaml"
    project = version.replace("-", "_")
    settings.write_text(settings.read_text().replace(project, "killed"))
    (redis_place.features / ".building-killed" / "registry.db").unlink()
    from feast import FeatureStore

    from deeprec.feature_repo import definitions

    killed = FeatureStore(repo_path=str(redis_place.features / ".building-killed"))
    killed.apply(list(definitions.OBJECTS))
    Version(redis_place.features / ".building-killed").push({}, 3)
    assert b"deeprec_killed" in projects(redis_server)
    redis_place.publish()
    assert projects(redis_server) == {b"deeprec_" + versions(redis_place)[0].replace("-", "_").encode()}
    assert not (redis_place.features / ".building-killed").exists()


def test_a_publication_without_redis_changes_nothing(redis_place: Any, redis_server: Any) -> None:
    redis_place.publish()
    before = versions(redis_place)
    redis_server.stop()
    with pytest.raises(FeatureError, match="cannot be published"):
        redis_place.publish()
    redis_server.start()
    assert os.readlink(redis_place.features / "current") == f"versions/{before[0]}"
    redis_place.publish()
    assert len(versions(redis_place)) == 1
    assert not list(redis_place.features.glob(".building-*"))
    assert HistoryStore(redis_place.features).history("u1") == ("b", "a", "c")


def test_a_redis_that_is_down_or_came_back_empty_says_so(redis_place: Any, redis_server: Any, clock: Clock) -> None:
    redis_place.publish()
    reader, writer = HistoryStore(redis_place.features), EventWriter(redis_place.features, clock=clock)
    assert [outcome.status for outcome in writer.write([Event("e1", "u1", "d")])] == ["accepted"]
    assert reader.history("nobody") is None
    redis_server.stop()
    with pytest.raises(FeatureError, match="see that Redis runs"):
        reader.history("u1")
    with pytest.raises(FeatureError, match="see that Redis runs"):
        writer.write([Event("e2", "u1", "a")])
    redis_server.start()
    with pytest.raises(FeatureError, match=r"is empty .*publish the features again"):
        reader.history("u1")
    with pytest.raises(FeatureError, match="is empty"):
        writer.write([Event("e2", "u1", "a")])
    redis_place.publish()
    assert reader.history("u1") == ("b", "a", "c", "d")
    assert [outcome.status for outcome in writer.write([Event("e2", "u1", "a")])] == ["accepted"]
    assert reader.history("u1") == ("b", "a", "c", "d", "a")
    writer.close()


def test_connections_that_redis_closed_are_made_again(redis_place: Any, redis_server: Any, clock: Clock) -> None:
    redis_place.publish()
    reader, writer = HistoryStore(redis_place.features), EventWriter(redis_place.features, clock=clock)
    assert reader.history("u1") == ("b", "a", "c")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert reader.history("u1") == ("b", "a", "c")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert [outcome.status for outcome in writer.write([Event("e1", "u1", "d")])] == ["accepted"]
    writer.close()


def test_what_redis_lost_of_its_newest_writes_is_pushed_again(
    redis_place: Any, redis_server: Any, clock: Clock
) -> None:
    redis_place.publish()
    write(redis_place, clock, Event("e1", "u1", "d"))
    client = redis_server.client
    snapshot = {key: client.dump(key) for key in client.scan_iter()}
    write(redis_place, clock, Event("e2", "u1", "a"), Event("e3", "new", "b"))
    client.flushall()
    for key, value in snapshot.items():
        client.restore(key, 0, value)
    assert HistoryStore(redis_place.features).histories(["u1", "new"]) == [("b", "a", "c", "d"), None]
    assert write(redis_place, clock, Event("e4", "u2", "a")) == ["accepted"]
    assert HistoryStore(redis_place.features).histories(["u1", "new"]) == [("b", "a", "c", "d", "a"), ("b",)]


def test_a_store_moves_from_one_kind_to_the_other_with_its_events(
    redis_place: Any, redis_server: Any, clock: Clock
) -> None:
    kinds = [{}, dict(redis_place.online), {}]
    reader = HistoryStore(redis_place.features)
    for number, online in enumerate(kinds):
        redis_place.online = online
        redis_place.publish()
        assert (redis_place.features / "current" / "online" / "online.db").exists() == (not online)
        assert write(redis_place, clock, Event(f"e{number}", "u2", "acd"[number])) == ["accepted"]
        assert reader.history("u2") == ("c", "b", *"acd"[: number + 1])
    assert projects(redis_server) == set()


def test_the_password_is_written_nowhere(redis_place: Any) -> None:
    redis_place.publish()
    written = [path for path in redis_place.path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if b"s3cret" in path.read_bytes()]
