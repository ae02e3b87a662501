"""What only the cluster place has: its tables, its addresses, a Redis that is down or lost something, Feast."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from deeprec.config import FeaturesConfig
from deeprec.doctor import feature_place
from deeprec.errors import ConfigError, FeatureError, StoreError
from deeprec.features.cluster import ClusterPlace
from deeprec.features.events import EventWriter
from deeprec.features.feast_rows import FeastRows
from deeprec.wire.events import Event

Clock = Callable[[], float]


def write(place: Any, clock: Clock, *events: Event) -> list[str]:
    return [outcome.status for outcome in EventWriter(place.open(), clock=clock).write(events)]


def test_tables_are_made_by_one_command_and_only_looked_at_by_others(postgres: Any, cluster_place: Any) -> None:
    os.environ["DEEPREC_TEST_DATABASE"] = postgres.make()
    place = cluster_place.open()
    for use in (cluster_place.publish, place.check, lambda: EventWriter(place)):
        with pytest.raises(FeatureError, match=r"are of version none, .*move them on with deeprec features migrate"):
            use()
    assert place.migrate() == ("none", "2")
    assert place.migrate() == ("2", "2")
    cluster_place.publish()
    with place.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9'")
    with pytest.raises(FeatureError, match=r"of version 9, this deeprec's is 2; install a newer deeprec"):
        place.check()
    with pytest.raises(FeatureError, match="install a newer deeprec"):
        place.migrate()


def test_a_doctor_asks_the_database_and_redis(cluster_place: Any) -> None:
    assert "can be reached, tables of this version" in feature_place(cluster_place.config())
    with pytest.raises(FeatureError, match=r"cannot be asked .*see that features\.redis runs"):
        feature_place(cluster_place.config(redis="127.0.0.1:1"))
    with pytest.raises(StoreError, match="the database"):
        feature_place(cluster_place.config(database="postgresql://a:b@127.0.0.1:1/c"))


def test_addresses_come_from_the_environment_or_a_file(cluster_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = cluster_place.path / "secret"
    secret.write_text(os.environ["DEEPREC_TEST_DATABASE"] + "\n")
    ClusterPlace(cluster_place.config(database=f"file:{secret}")).check()
    with pytest.raises(ConfigError, match=r"features.database names the file .*/nowhere, which cannot be read"):
        ClusterPlace(cluster_place.config(database=f"file:{cluster_place.path}/nowhere"))
    monkeypatch.delenv("DEEPREC_TEST_REDIS")
    with pytest.raises(ConfigError, match=r"features\.redis names the variable DEEPREC_TEST_REDIS, which"):
        cluster_place.open()


@pytest.mark.parametrize("address", ["mysql://a@b/c", "sqlite:///x.db", "nonsense", "postgresql://"])
def test_another_database_is_refused(cluster_place: Any, address: str) -> None:
    with pytest.raises(ConfigError, match=r"features\.database is not postgresql://"):
        ClusterPlace(cluster_place.config(database=address))


def test_a_database_that_cannot_be_reached_is_named_without_its_password(cluster_place: Any) -> None:
    gone = ClusterPlace(cluster_place.config(database="postgresql://deeprec:s3cret@127.0.0.1:1/shop"))
    with pytest.raises(StoreError, match=r"database 127.0.0.1:1/shop cannot be used .*features.database runs") as told:
        gone.check()
    assert "s3cret" not in str(told.value)


def test_a_database_that_was_away_is_used_again(cluster_place: Any, postgres: Any, clock: Clock) -> None:
    published = cluster_place.published()
    writer = EventWriter(cluster_place.open(), clock=clock)
    postgres.stop()
    with pytest.raises(StoreError, match=r"see that features\.database runs"):
        writer.write([Event("e1", "u1", "d")])
    assert published.history("u1") == ("b", "a", "c")  # readers ask Redis alone
    postgres.start()
    assert [outcome.status for outcome in writer.write([Event("e1", "u1", "d")])] == ["accepted"]
    assert published.history("u1") == ("b", "a", "c", "d")


def test_a_redis_that_is_down_or_came_back_empty_says_so(cluster_place: Any, redis_server: Any, clock: Clock) -> None:
    dataset = cluster_place.dataset()
    reader = cluster_place.published(dataset)
    writer = EventWriter(cluster_place.open(), clock=clock)
    assert [outcome.status for outcome in writer.write([Event("e1", "u1", "d")])] == ["accepted"]
    assert reader.history("nobody") is None
    redis_server.stop()
    with pytest.raises(FeatureError, match=r"see that features\.redis runs"):
        reader.history("u1")
    with pytest.raises(FeatureError, match=r"see that features\.redis runs"):
        writer.write([Event("e2", "u1", "a")])
    redis_server.start()
    with pytest.raises(FeatureError, match=r"has lost publication .*publish the features again"):
        reader.history("u1")
    with pytest.raises(FeatureError, match="has lost publication"):
        writer.check()
    cluster_place.publish(dataset)
    assert reader.history("u1") == ("b", "a", "c", "d", "a")
    assert [outcome.status for outcome in writer.write([Event("e2", "u1", "a")])] == ["duplicate"]


def test_events_that_redis_lost_are_shown_by_the_next_publication(
    cluster_place: Any, redis_server: Any, clock: Clock
) -> None:
    dataset = cluster_place.dataset()
    reader = cluster_place.published(dataset)
    client = redis_server.client
    snapshot = {key: client.dump(key) for key in client.scan_iter()}
    write(cluster_place, clock, Event("e2", "u1", "a"), Event("e3", "new", "b"))
    client.flushall()
    for key, value in snapshot.items():
        client.restore(key, 0, value)
    assert reader.histories(["u1", "new"]) == [("b", "a", "c"), None]
    cluster_place.publish(dataset)
    assert reader.histories(["u1", "new"]) == [("b", "a", "c", "a"), ("b",)]


def test_a_writer_that_was_held_up_puts_no_older_row_over_a_newer_one(
    cluster_place: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is gone meanwhile, as that of a machine that slept; what it then writes is older than what is there."""
    reader = cluster_place.published()
    held: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patched:
        patched.setattr(FeastRows, "show", lambda *given: held.append(given))
        assert write(cluster_place, clock, Event("e1", "u1", "d")) == ["accepted"]
    assert write(cluster_place, clock, Event("e2", "u1", "a")) == ["accepted"]
    assert reader.history("u1") == ("b", "a", "c", "d", "a")
    FeastRows.show(*held[0])
    assert reader.history("u1") == ("b", "a", "c", "d", "a")


def test_connections_that_redis_closed_are_made_again(cluster_place: Any, redis_server: Any, clock: Clock) -> None:
    reader = cluster_place.published()
    writer = EventWriter(cluster_place.open(), clock=clock)
    assert reader.history("u1") == ("b", "a", "c")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert reader.history("u1") == ("b", "a", "c")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert [outcome.status for outcome in writer.write([Event("e1", "u1", "d")])] == ["accepted"]


def test_a_publication_that_is_removed_leaves_nothing_and_nobody_else_s(
    cluster_place: Any, redis_server: Any, clock: Clock
) -> None:
    client = redis_server.client
    client.set("of another application", "stays")
    first = cluster_place.published()
    keys = set(client.scan_iter())
    second = cluster_place.published(cluster_place.dataset({"u9": ["a"]}, items=("a", "z")))
    write(cluster_place, clock, Event("e1", "u9", "z"))
    cluster_place.open().remove(second.publication.name)
    assert {key for key in client.scan_iter() if key not in keys and b"u9" not in key} == set()
    assert first.history("u9") == ("z",)  # accepted events stay
    assert not (cluster_place.path / "offline" / second.publication.name).exists()
    assert first.histories(["u1", "u2"]) == [("b", "a", "c"), ("c", "b")]
    cluster_place.open().remove(first.publication.name)
    assert client.get("of another application") == b"stays"
    assert len(list(client.scan_iter())) == 2


@pytest.mark.parametrize("step", ["define", "write_histories", "write_items", "show"])
def test_what_a_killed_publication_left_is_swept(
    cluster_place: Any, redis_server: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    first = cluster_place.published()
    write(cluster_place, clock, Event("e1", "u2", "d"))
    keys = set(redis_server.client.scan_iter())
    another = cluster_place.dataset({"u9": ["a"]}, items=("a", "z"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FeastRows, step, killed)
        with pytest.raises(KeyboardInterrupt):
            cluster_place.publish(another)
    place = cluster_place.open()
    assert [one.name for one in place.publications()] == [first.publication.name]
    assert place.known_items(["z"]) == set()
    assert len(place.unfinished()) == (step != "show")
    assert place.sweep([]) == []  # it may be under way
    assert len(place.sweep([], grace=0)) == (step != "show")
    assert set(redis_server.client.scan_iter()) == keys
    assert [path.name for path in (cluster_place.path / "offline").iterdir()] == [first.publication.name]
    cluster_place.publish(another)
    assert cluster_place.history("u9") == ("a",)


def test_a_removal_that_fails_is_done_by_the_next(
    cluster_place: Any, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cluster_place.published(), cluster_place.published(cluster_place.dataset({"u9": ["a"]}))
    redis_server.stop()
    with pytest.raises(FeatureError, match=r"see that features\.redis runs"):
        cluster_place.open().remove(first.publication.name)
    redis_server.start()
    cluster_place.publish(cluster_place.dataset({"u9": ["a"]}))
    place = cluster_place.open()
    assert [one.name for one in place.unfinished()] == [first.publication.name]
    assert place.sweep([], grace=0) == [first.publication.name]
    assert (place.unfinished(), [one.name for one in place.publications()]) == ([], [second.publication.name])


def test_two_places_share_a_redis(cluster_place: Any, postgres: Any, clock: Clock) -> None:
    reader = cluster_place.published()
    os.environ["DEEPREC_TEST_DATABASE"] = postgres.make()
    other = cluster_place.open()
    other.migrate()
    mine = cluster_place.published(cluster_place.dataset({"u1": ["d"]}))
    write(cluster_place, clock, Event("e1", "u1", "a"))
    assert (mine.history("u1"), reader.history("u1")) == (("d", "a"), ("b", "a", "c"))


def test_feast_reads_what_is_published(cluster_place: Any, clock: Clock) -> None:
    """By its own calls, of the service that a publication has; and the Parquet files are where the registry says."""
    from feast import FeatureStore, RepoConfig

    published = cluster_place.published()
    write(cluster_place, clock, Event("e1", "u1", "d"))
    place = cluster_place.open()
    config = RepoConfig(
        project=place._new_rows()._project,
        provider="local",
        registry={"registry_type": "sql", "path": place.database.address},
        online_store={"type": "redis", "connection_string": place._redis},
        entity_key_serialization_version=3,
    )
    store, name = FeatureStore(config=config), published.publication.name
    found = store.get_online_features(
        features=store.get_feature_service(f"recommender_{name}"), entity_rows=[{"user_id": "u1"}]
    ).to_dict()
    assert found["item_ids"] == [["b", "a", "c"]]
    found = store.get_online_features(["user_events:event_items"], [{"user_id": "u1"}]).to_dict()
    assert found["event_items"] == [["d"]]
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    asked = pl.DataFrame({"user_id": ["u1", "u2"], "event_timestamp": [moment] * 2}).to_pandas()
    joined = store.get_historical_features(asked, [f"user_history_{name}:interactions"]).to_df()
    assert sorted(joined["interactions"]) == [2, 3]


def test_the_password_is_written_nowhere(cluster_place: Any) -> None:
    cluster_place.publish()
    written = [path for path in cluster_place.path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if b"s3cret" in path.read_bytes()]


def test_the_offline_tables_may_lie_on_s3(cluster_place: Any, client: Any) -> None:
    from deeprec.objects import open_objects

    config = cluster_place.config(offline="s3://models/features")
    from deeprec.features.places import open_place
    from deeprec.features.publish import publish

    publish(cluster_place.dataset(), config, cluster_place.path / "published")
    place = open_place(config)
    name = place.publications()[0].name
    found = {file.name for file in open_objects("s3://models/features").names(name)}
    assert found == {f"{name}/user_history.parquet", f"{name}/item_attributes.parquet"}
    assert place.forget("u1") == {"events": 0, "publications": 1}
    place.remove(name)
    assert open_objects("s3://models/features").names(name) == []
    place.close()


def test_a_configuration_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"place is 'cluster', but database is empty; set features\.database"):
        FeaturesConfig(place="cluster")
    with pytest.raises(ValueError, match="redis is set, but place is 'directory'"):
        FeaturesConfig(path="x", redis="redis:6379")
