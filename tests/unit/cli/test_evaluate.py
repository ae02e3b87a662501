"""``deeprec evaluate shadow``, on logs that a real request log wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.cli.evaluate import app
from deeprec.config import RequestLogConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import ConfigError, DataError, DeepRecError
from deeprec.features.directory import DirectoryPlace
from deeprec.features.log import LoggedEvent
from deeprec.recommender.observer import AnsweredRequest
from deeprec.serving.log.request_log import RequestLog
from deeprec.wire.reason import Reason, ReasonKind

NOON = 1_763_726_400.0


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def served(user: str | None, trm: tuple[str, ...], policy: tuple[str, ...], **other: object) -> AnsweredRequest:
    late = Reason(kind=ReasonKind.LATE, sentence="the policy did not finish within 300 ms")
    values = {"version": "v1", "at": NOON, "turns": (20.0, 30.0) if policy else (), "shadow": True, **other}
    return AnsweredRequest(
        "deeprec",
        user,
        "trm",
        None if policy else late,
        trm,
        trm,
        policy,
        7.5,
        deadline_ms=300,
        k=2,
        **values,  # type: ignore[arg-type]
    )


def write_log(place: Path, *rows: AnsweredRequest, **settings: object) -> Path:
    log = RequestLog(RequestLogConfig(path=str(place), **settings))  # type: ignore[arg-type]
    for row in rows:
        log(row)
    log.close()
    return place


def write_events(place: Path, *rows: tuple[str, str, float]) -> Path:
    lines = (json.dumps({"user_id": user, "item_id": item, "timestamp": at}) for user, item, at in rows)
    place.write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two users whom the policy answered, one twice, and one request that it did not answer in time."""
    rows = (
        served("alice", ("a", "b"), ("b", "a")),
        served("alice", ("a", "b"), ("c", "d"), at=NOON + 60),
        served("bob", ("a", "b"), ("a", "b")),
        served(None, ("a", "b"), ()),
    )
    return write_log(tmp_path / "log", *rows)


def test_it_explains_itself() -> None:
    assert "deeprec evaluate shadow logs/shadow" in run("shadow", "--help").partition("Example")[2]


def test_the_terminal_shows_the_comparison(log: Path) -> None:
    shown = run("shadow", log)
    for line in ("answered by the policy, valid and in time", "3 (75.0%)", "overlap@10", "0.667", "policy, 2 turns"):
        assert line in shown
    assert "the policy did not finish within … ms" in shown
    assert "The policy answered 3 of 4 requests (75.0%) validly and within the deadline." in shown
    assert "need the bundle" in shown


def test_json_holds_the_same_figures(log: Path) -> None:
    found = json.loads(run("shadow", log, "--json", "-k", 1))
    assert (found["requests"], found["users"], found["anonymous"], found["answered"]) == (4, 2, 1, 3)
    assert found["agreement"]["first_item"] == pytest.approx(1 / 3)
    assert found["later"] is None


@pytest.mark.parametrize("hash_ids", [True, False])
def test_later_events_are_joined_whether_or_not_users_are_hashed(tmp_path: Path, hash_ids: bool) -> None:
    row = served("alice", ("a", "b"), ("b", "a"))
    log = write_log(tmp_path / "log", row, served("bob", ("a", "b"), ("b", "a")), hash_ids=hash_ids)
    events = write_events(tmp_path / "events.jsonl", ("alice", "b", NOON + 5), ("carol", "a", NOON + 5))
    later = json.loads(run("shadow", log, "--events", events, "--json"))["later"]
    assert (later["users"], later["requests"], later["taken"]) == (1, 1, 1)
    assert later["metrics"]["ndcg@10"]["policy"]["mean"] == 1
    shown = run("shadow", log, "--events", events)
    assert "What users took afterwards" in shown
    assert "Users saw only the TRM's list" in shown


def test_events_come_from_a_feature_store(log: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    place = DirectoryPlace(features)
    place.prepare()
    with place.log.locked(["alice"]) as users:
        users.append([LoggedEvent("e1", "alice", "c", int(NOON) + 3600)])
    later = json.loads(run("shadow", log, "--events", features, "--json", "--window-hours", 2))["later"]
    assert (later["users"], later["requests"], later["window_hours"]) == (1, 2, 2.0)
    with pytest.raises(DataError, match=r"within 0\.5 hours"):
        run("shadow", log, "--events", features, "--window-hours", 0.5)


def test_a_feature_store_without_events_is_named(log: Path, tmp_path: Path) -> None:
    DirectoryPlace(tmp_path / "features").prepare()
    with pytest.raises(DataError, match="holds no events"):
        run("shadow", log, "--events", tmp_path / "features")


def test_a_bundle_adds_what_the_lists_hold(make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> None:
    items = tuple(item.item_id for item in dataset.catalogue.items[:3])
    bundle = make_bundle(tmp_path / "bundle", [item.title for item in dataset.catalogue.items])
    version = Bundle.load(bundle).version
    own = served("alice", items[:2], items[1:], version=version)
    log = write_log(tmp_path / "log", own, served("bob", ("x", "y"), ("y", "x"), version="older"))
    page = tmp_path / "shadow.html"
    shown = run("shadow", log, "--bundle", bundle, "--out", page)
    assert f"{2 / len(dataset.catalogue):.1%}" in shown
    assert f"report   {page}" in shown
    assert f"by bundle {version}" in page.read_text(encoding="utf-8")
    assert "older" not in shown
    other = write_log(tmp_path / "other", served("bob", ("x",), ("y",), version="older"))
    with pytest.raises(DataError, match="these did: older"):
        run("shadow", other, "--bundle", bundle)


def test_what_cannot_be_compared_is_explained(log: Path, tmp_path: Path) -> None:
    live = write_log(tmp_path / "live", served("alice", ("a",), ("b",), shadow=False))
    cases: tuple[tuple[type[DeepRecError], str, tuple[object, ...]], ...] = (
        (DataError, "does not exist", (tmp_path / "nothing",)),
        (DataError, "none of the log's 1 rows was answered in shadow mode", (live,)),
        (ConfigError, "neither a bundle", (log, "--bundle", tmp_path)),
        (DataError, "does not exist", (log, "--events", tmp_path / "nothing")),
    )
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            run("shadow", *arguments)


def test_a_log_whose_key_is_elsewhere_says_so(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "copy", ignore=shutil.ignore_patterns("key"))
    events = write_events(tmp_path / "events.jsonl", ("alice", "b", NOON + 5))
    assert run("shadow", log, "--events", events)
    with pytest.raises(DataError, match="needs its file `key` beside it"):
        run("shadow", tmp_path / "copy", "--events", events)
