"""A user is forgotten everywhere the place reaches, stays out of later trainings, and what still names it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.cli import app
from deeprec.config import DataConfig, RequestLogConfig, SampleConfig
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.features import publish as publish_module
from deeprec.features.events import EventWriter
from deeprec.features.places import accepted_in, accepted_position, forgotten_digest, forgotten_in
from deeprec.serving.log.request_log import SCHEMA, RequestLog
from deeprec.wire.events import Event

Clock = Callable[[], float]


def forget(place: Any, user: str, *options: object) -> str:
    named = place.path / "place.yaml"
    named.write_text(json.dumps({"features": place.config().model_dump()}))
    told = CliRunner().invoke(app, ["data", "forget", user, "--features", str(named), *map(str, options)])
    assert told.exit_code == 0, told
    return told.output


def test_nothing_of_the_user_is_left_and_the_others_stay(place: Any, clock: Clock) -> None:
    first, second = place.published(), place.published(place.dataset({"u1": ["d"], "u2": ["a"]}))
    writer = EventWriter(place.open(), clock=clock)
    writer.write([Event(f"e{n}", "u1", "abcd"[n % 4]) for n in range(250)] + [Event("x", "u2", "d")])
    told = forget(place, "u1")
    assert "250 accepted events and 2 published histories removed" in told
    assert "later trainings leave the user out" in told
    assert first.histories(["u1", "u2"]) == [None, ("c", "b", "d")]
    assert second.histories(["u1", "u2"]) == [None, ("a", "d")]
    assert [user.user_id for user in first.find("", 9)] == ["u2", "ü/3"]
    for file in place.path.rglob("*"):
        if file.is_file() and "dataset-" not in str(file):
            assert b"u1" not in file.read_bytes(), file
    assert "0 accepted events and 0 published histories removed" in forget(place, "u1")
    assert [one.status for one in writer.write([Event("back", "u1", "d")])] == ["accepted"]
    assert first.history("u1") == ("d",)


def test_nothing_of_the_user_is_left_in_redis(cluster_place: Any, redis_server: Any, clock: Clock) -> None:
    cluster_place.publish(cluster_place.dataset({"someone": ["a"], "u2": ["a"]}))
    writer = EventWriter(cluster_place.open(), clock=clock)
    writer.write([Event(f"e{n}", "someone", "abcd"[n % 4]) for n in range(250)])
    assert [key for key in redis_server.client.scan_iter() if b"someone" in key]
    forget(cluster_place, "someone")
    assert [key for key in redis_server.client.scan_iter() if b"someone" in key] == []


def test_a_writer_that_is_late_leaves_no_name_of_who_was_forgotten(cluster_place: Any, clock: Clock) -> None:
    cluster_place.publish()
    place = cluster_place.open()
    EventWriter(place, clock=clock).write([Event("e1", "u1", "d")])
    place.forget("u1")
    place.show({"u1"})
    with place.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT user_id FROM users").all() == []


def test_later_trainings_leave_the_user_out(place: Any, tmp_path: Path) -> None:
    config = DataConfig(sample=SampleConfig(users=60, items=40, mean_history=12))
    forgotten = partial(forgotten_in, place.config())
    ingest(config, 0, tmp_path / "before", forgotten)
    users = list(read_dataset(tmp_path / "before").sequences)
    place.publish(tmp_path / "before")
    assert forgotten_digest(place.config()) == ""
    forget(place, users[3])
    digest = forgotten_digest(place.config())
    report = ingest(config, 0, tmp_path / "after", forgotten)
    assert any(line.endswith("interactions: the user was forgotten") for line in report.lines)
    assert users[3] not in read_dataset(tmp_path / "after").sequences
    forget(place, users[4])
    assert len({"", digest, forgotten_digest(place.config())}) == 3
    place.publish(tmp_path / "before")  # of a dataset that was made before
    assert place.history(users[3]) is None
    assert place.history(users[5]) is not None


def test_later_trainings_read_what_servers_have_accepted(place: Any, tmp_path: Path, clock: Clock) -> None:
    """Where ``data.events`` says so; and the data has another name with each event."""
    config = DataConfig(sample=SampleConfig(users=60, items=40, mean_history=12), events=True)
    beside = {"forgotten": partial(forgotten_in, place.config()), "accepted": partial(accepted_in, place.config())}
    ingest(config, 0, tmp_path / "before", **beside)
    before = read_dataset(tmp_path / "before")
    user, other = list(before.sequences)[:2]
    new = next(item.item_id for item in before.catalogue.items if item.item_id not in before.sequences[user])
    place.publish(tmp_path / "before")
    assert accepted_position(place.config()) == ""
    EventWriter(place.open(), clock=clock).write([Event("e1", user, new), Event("e2", other, new)])
    position = accepted_position(place.config())
    report = ingest(config, 0, tmp_path / "after", **beside)
    assert any(line.startswith("added 2 interactions: events") for line in report.lines)
    after = read_dataset(tmp_path / "after").sequences
    assert after[user] == (*before.sequences[user], new)
    forget(place, other)
    assert accepted_position(place.config()) not in ("", position)
    ingest(config, 0, tmp_path / "forgotten", **beside)
    assert other not in read_dataset(tmp_path / "forgotten").sequences
    ingest(config.model_copy(update={"events": False}), 0, tmp_path / "without", **beside)
    assert read_dataset(tmp_path / "without").sequences[user] == before.sequences[user]


def test_a_user_who_is_forgotten_while_features_are_published_is_not_in_them(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish()
    rows = publish_module._rows

    def forgotten_meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(publish_module, "_rows", rows)
        found = list(rows(*given))
        forget(place, "u1")
        return iter(found)

    monkeypatch.setattr(publish_module, "_rows", forgotten_meanwhile)
    place.publish(place.dataset({"u1": ["d"], "u2": ["a"]}))
    assert place.open().newest().histories(["u1", "u2"]) == [None, ("a",)]


@pytest.mark.parametrize("hashed", [True, False])
def test_the_request_logs_rows_go_by_the_users_hash(directory_place: Any, tmp_path: Path, hashed: bool) -> None:
    directory_place.publish()
    log = tmp_path / "log"
    kept = RequestLog(RequestLogConfig(path=str(log), hash_ids=hashed))
    name = kept._hash if hashed else str
    kept.close()
    (log / "day").mkdir(parents=True)
    blank = {field.name: None for field in SCHEMA}
    for number, users in enumerate((["u1", "u2", None, "u1"], ["u1"], ["u2"])):
        rows = [{**blank, "user": None if user is None else name(user), "k": number} for user in users]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), log / "day" / f"{number}.parquet")
    assert f"{log}: 3 rows removed" in forget(directory_place, "u1", "--log", log)
    left = [row["user"] for file in sorted((log / "day").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert left == [name("u2"), None, name("u2")]
    assert f"{log}: 0 rows removed" in forget(directory_place, "u1", "--log", log)
    told = CliRunner().invoke(
        app,
        ["data", "forget", "u1", "--features", str(directory_place.path / "features"), "--log", str(tmp_path / "x")],
    )
    assert told.exit_code == 1
    assert "is no directory of a request log" in str(told.exception)


def test_what_still_names_the_user_is_told(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run / "features", run / "features")
    bundle = Bundle.load(small_run / "bundle")
    version = Shelf.make(run / "shelf").push(bundle).version
    (run / "config.yaml").write_text("")
    user = bundle.info["example_user"]
    pl.DataFrame({"user_id": [user, "x", user]}).write_parquet(run / "rollouts.parquet")
    told = CliRunner().invoke(app, ["data", "forget", user, "--features", str(run / "features")]).output
    assert f"still trained with the user: {run / 'shelf'}@{version} (candidate)" in told
    assert f"still named: {run / 'shelf'}@{version} (candidate) gives the user as its example" in told
    assert f"still named: {run / 'rollouts.parquet'} (2 rows)" in told
    assert "train again without the user" in told
    told = CliRunner().invoke(app, ["data", "forget", "stranger", "--features", str(run / "features")]).output
    assert told.endswith("nothing that was looked through names the user\n")
