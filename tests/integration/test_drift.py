"""Drift on real parts: a run's bundle, events that its feature place accepted, and a log that the servers' log wrote.

The run's users come again under other names, with the same interactions half a year long until now: nothing has moved.
Then others come, who take what nobody took, and are answered by popularity.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.bundle.snapshot import DAY, FILE, Snapshot, read_snapshot
from deeprec.cli import drift
from deeprec.config import RequestLogConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.features.directory import DirectoryPlace
from deeprec.features.events import EventWriter
from deeprec.recommender.observer import AnsweredRequest
from deeprec.release.kfp_server import KfpServer
from deeprec.serving.log.request_log import RequestLog
from deeprec.wire.events import Event
from tests.integration.parts import make_run
from tests.standins.kfp import KfpApi

pytestmark = pytest.mark.heavy

HOUR = 3600
USERS, COPIES = 50, 10


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("drift") / "run")


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpApi]:
    """A server that has the pipeline."""
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/nowhere")
    server, file = KfpApi(), tmp_path / "pipeline.yaml"
    file.write_text("pipelineInfo: {name: training}\n")
    KfpServer(server.url).upload(file, "deeprec-training", "one")
    yield server
    server.close()


def retrained(kfp: KfpApi, *arguments: object) -> str:
    """The last line of what the command says, which ends well."""
    asked = [*map(str, arguments), "--retrain", "--set", f"schedule.host={kfp.url}"]
    result = CliRunner().invoke(app(), asked, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout.splitlines()[-1]


def app() -> typer.Typer:
    made = typer.Typer()
    drift.register(made)
    return made


def looked(*arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit status, and what is printed as JSON."""
    result = CliRunner().invoke(app(), [*map(str, arguments), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def states(found: Mapping[str, Any]) -> dict[str, str]:
    return {figure["key"]: figure["state"] for figure in found["figures"]}


def snapshot_of(bundle: Path) -> Snapshot:
    snapshot = read_snapshot(bundle)
    assert snapshot is not None
    return snapshot


def again(data: Dataset, last: int, now: int, since: int) -> Iterator[tuple[str, str, int]]:
    """What all users took, by namesakes, ten for each of the last half year's; whole days later, the last of it today
    or yesterday."""
    later = (now - last) // DAY * DAY
    for user, items in data.sequences.items():
        for copy in range(COPIES if data.timestamps[user][-1] >= since else 1):
            for item, at in zip(items, data.timestamps[user], strict=True):
                yield f"again-{user}-{copy}", item, at + later


def send(place: DirectoryPlace, rows: Sequence[tuple[str, str, int]], name: str) -> None:
    outcomes = EventWriter(place).write([Event(f"{name}-{number}", *row) for number, row in enumerate(rows)])
    assert {outcome.status for outcome in outcomes} == {"accepted"}


def answer(log: Path, version: str, rows: Sequence[tuple[str, str, int]], path: str, hit_every: int) -> None:
    """An answer an hour before each event; every so many of them hold its item."""
    keeper = RequestLog(RequestLogConfig(path=str(log)))
    for number, (user, item, at) in enumerate(rows):
        items = (item,) if number % hit_every == 0 else ("another",)
        keeper(AnsweredRequest("deeprec", user, path, None, items, (), (), 5.0, (), 1000, 1, version, at - HOUR))
    keeper.close()
    assert keeper.written == len(rows)


def test_ok_then_drifted_and_inconclusive_where_too_few_came(run: Path, tmp_path: Path, kfp: KfpApi) -> None:
    bundle, data, log = run / "bundle", read_dataset(run / "dataset"), tmp_path / "log"
    version, place = Bundle.load(bundle, ()).version, DirectoryPlace(run / "features")
    snapshot, now = snapshot_of(bundle), int(time.time())
    assert snapshot.recent_since is not None
    days = (snapshot.last - snapshot.recent_since) // DAY + 1
    common = [run, "--log", log, "--set", f"drift.days={days}", "--set", "drift.min_users=20"]

    rows = sorted(again(data, snapshot.last, now, snapshot.recent_since), key=lambda row: row[2])
    send(place, rows, "again")
    answer(log, version, rows, "policy", 3)
    status, found = looked(*common, "--out", tmp_path / "out")
    assert set(states(found).values()) == {"ok"}, [(one["key"], one["why"]) for one in found["figures"]]
    assert (status, found["verdict"], found["version"]) == (0, "ok", version)
    by_key = {figure["key"]: figure for figure in found["figures"]}
    assert by_key["popularity"]["value"] < 0.01
    assert by_key["history"]["value"] < 0.05
    assert abs(by_key["hit_loss"]["value"]) < 0.2
    assert "✔ ok" in (tmp_path / "out" / "drift.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "drift.json").read_text(encoding="utf-8")) == found

    status, found = looked(*common[:-1], "drift.min_users=200")
    assert (status, found["verdict"], set(states(found).values())) == (2, "inconclusive", {"inconclusive"})

    groups = zip(data.catalogue.items, snapshot.groups, strict=True)
    rare = [item.item_id for item, group in groups if group == max(snapshot.groups)]
    new = [
        (f"new-{user}", item, (now // HOUR - 30) * HOUR + place_of)
        for user in range(USERS)
        for place_of, item in enumerate(rare[:12])
    ]
    send(place, new, "new")
    answer(log, version, new, "popularity", 1000)
    status, found = looked(*common, "--set", "drift.days=3")
    assert (status, found["verdict"]) == (1, "drifted")
    by_key = {figure["key"]: figure for figure in found["figures"]}
    assert by_key["history"]["bars"]["now"][0] > by_key["history"]["bars"]["training"][0]
    assert by_key["popularity"]["bars"]["now"][-1] > 0.9
    assert states(found) | {"history": ""} == {
        "unknown_items": "ok",
        "popularity": "drifted",
        "history": "",
        "activity": "drifted",
        "popularity_answers": "drifted",
        "policy_answers": "drifted",
        "hit_loss": "drifted",
    }
    place.close()

    again_in_days = [*common, "--set", "drift.days=3"]
    assert "was started: popularity shift" in retrained(kfp, *again_in_days)
    [started] = kfp.runs.values()
    assert started["runtime_config"]["parameters"] == {"data_version": started["display_name"]}
    assert f"{started['display_name']} ({started['run_id']}) is" in retrained(kfp, *again_in_days)
    kfp.end_runs()
    assert "none follows it before" in retrained(kfp, *again_in_days)
    assert len(kfp.runs) == 1
    assert "was started" in retrained(kfp, *again_in_days, "--set", "drift.cooldown_hours=0")
    assert len(kfp.runs) == 2


def test_a_shelfs_live_bundle_is_looked_at_and_one_without_a_snapshot_says_so(run: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(run / "bundle")
    shelf = Shelf.make(tmp_path / "shelf")
    shelf.promote(shelf.push(bundle).version)
    shelved = ["--set", f"bundle.uri={shelf.address}", "--features", run / "features"]
    _, found = looked(*shelved)
    assert found["version"] == bundle.version
    assert states(found)["popularity"] == "inconclusive"
    (tmp_path / "shelf" / bundle.version / FILE).unlink()
    manifest = tmp_path / "shelf" / bundle.version / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["files"][FILE]
    manifest.write_text(json.dumps(record))
    _, found = looked(*shelved)
    figures = {figure["key"]: figure for figure in found["figures"]}
    assert figures["popularity"]["state"] == "not compared"
    assert "published without a snapshot" in figures["popularity"]["why"]
    assert figures["unknown_items"]["state"] == "inconclusive"


def test_an_inconclusive_look_starts_nothing_and_its_status_is_that_of_the_act(run: Path, kfp: KfpApi) -> None:
    assert retrained(kfp, run, "--set", "drift.min_users=100000") == "no training run: the verdict is inconclusive"
    assert not kfp.runs


def test_a_log_that_was_begun_has_no_rows_and_one_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    from deeprec.errors import DataError

    RequestLog(RequestLogConfig(path=str(tmp_path / "log"))).close()
    status, found = looked(run, "--log", tmp_path / "log")
    assert (status, states(found)["policy_answers"]) == (2, "inconclusive")
    with pytest.raises(DataError, match="does not exist"):
        looked(run, "--log", tmp_path / "none")
