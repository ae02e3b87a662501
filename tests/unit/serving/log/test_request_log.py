"""The request log: what its files hold and never hold, who is sampled, and what happens when the disk does not obey."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.config import RequestLogConfig
from deeprec.errors import ConfigError, DataError, StoreError
from deeprec.recommender.observer import AnsweredRequest
from deeprec.serving.log import request_log
from deeprec.serving.log.request_log import SCHEMA, RequestLog, read_log
from deeprec.serving.log.user_hash import KEY, UserHash, own_hash, read_hash
from deeprec.wire.reason import Reason, ReasonKind

NOON = 1_763_726_400.0
"""2025-11-21 12:00:00 UTC."""
ANSWER = AnsweredRequest(
    model="deeprec",
    user_id="alice@example.org",
    path="policy",
    reason=None,
    items=("i1", "i2"),
    trm_items=("i2", "i3"),
    policy_items=("i1", "i2"),
    milliseconds=12.5,
    turns=(4.0, 6.5),
    deadline_ms=1000,
    k=2,
    version="abc",
    at=NOON,
)
HASH = UserHash(bytes(range(32)))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[..., RequestLog]]:
    """``log(**settings)``: an open log in ``tmp_path / "log"``, closed at the end."""
    opened: list[RequestLog] = []

    def open_log(**settings: object) -> RequestLog:
        opened.append(RequestLog(RequestLogConfig(path=str(tmp_path / "log"), **settings)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_log
    for one in opened:
        one.close()


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.parquet"))


NO_HISTORY = Reason(kind=ReasonKind.NO_HISTORY, sentence="no history")


# ---------------------------------------------------------------------------------------------------------- the rows


def test_rows_come_back_as_they_were_served(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log()
    late = replace(
        ANSWER, model="deeprec-trm", user_id=None, path="popularity", reason=NO_HISTORY, policy_items=(), turns=()
    )
    kept(replace(late, at=NOON + 1, shadow=True))
    kept(ANSWER)
    kept.close()
    rows = read_log(tmp_path / "log")
    assert rows.columns == SCHEMA.names
    first, second = rows.rows(named=True)
    assert first["at"].isoformat() == "2025-11-21T12:00:00+00:00"
    user = read_hash(tmp_path / "log")
    assert user is not None
    expected = {name: getattr(ANSWER, name) for name in SCHEMA.names if name not in ("at", "user")}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in first.items()} == {
        "at": first["at"],
        "user": user("alice@example.org"),
        **expected,
    }
    assert (second["user"], second["reason"], second["policy_items"], second["shadow"]) == (
        None,
        "no history",
        [],
        True,
    )
    assert kept.written == 2
    assert kept.dropped == 0


def test_any_reader_of_parquet_sees_the_schema(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log()
    kept(ANSWER)
    kept.close()
    [file] = _files(tmp_path / "log")
    assert pq.read_schema(file).equals(SCHEMA)
    assert file.parent.name == "2025-11-21"
    assert file.name.startswith("120000-")


def test_no_user_id_is_in_any_byte_of_the_directory(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(rows=100)
    users = [f"customer-{number:05d}@example.org" for number in range(200)]
    for user in users:
        kept(replace(ANSWER, user_id=user))
    kept.close()
    files = [path for path in (tmp_path / "log").rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            # what compression hides is looked for as well
            content += repr(pq.read_table(path).to_pydict()).encode()
        assert b"customer-" not in content
        assert b"example.org" not in content
        assert not any(user in str(path) for user in users)
    assert read_log(tmp_path / "log")["user"].n_unique() == 200


def test_ids_are_kept_where_that_is_asked_for(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(hash_ids=False)
    kept(ANSWER)
    kept(replace(ANSWER, user_id="lone \ud800 surrogate"))
    kept.close()
    assert read_log(tmp_path / "log")["user"].to_list() == ["alice@example.org", "lone ? surrogate"]


@given(st.text(), st.text())
def test_hashes_join_equal_users_only(one: str, other: str) -> None:
    assert HASH(one) == UserHash(HASH.key)(one)
    assert len(HASH(one)) == 32
    assert (HASH(one) == HASH(other)) == (one == other)
    assert UserHash(bytes(32))(one) != HASH(one)


def test_the_hash_is_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    assert UserHash(b"Jefe")("what do ya want for nothing?") == "5bdcc146bf60754e6a042426089575c7"


# ---------------------------------------------------------------------------------------------------------- sampling


@given(st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_a_sample_is_a_share_of_the_users(sample: float, seed: int) -> None:
    user_hash = UserHash(random.Random(seed).randbytes(32))
    users = 2000
    share = sum(user_hash.share(f"u{number}") < sample for number in range(users)) / users
    assert abs(share - sample) < 6 * (0.25 / users) ** 0.5


def test_all_or_none_of_a_users_requests_are_kept(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    first, second = log(sample=0.3, hash_ids=False), log(sample=0.3, hash_ids=False)
    for repeat in range(6):
        for number in range(500):
            (first if repeat % 2 else second)(replace(ANSWER, user_id=f"u{number}"))
    first.close()
    second.close()
    counts = read_log(tmp_path / "log").group_by("user").len()
    assert set(counts["len"]) == {6}
    assert 100 < len(counts) < 200


def test_a_smaller_sample_is_within_a_larger_one() -> None:
    small = {number for number in range(1000) if HASH.share(str(number)) < 0.1}
    assert small < {number for number in range(1000) if HASH.share(str(number)) < 0.5}


def test_anonymous_requests_are_drawn_one_by_one(log: Callable[..., RequestLog]) -> None:
    kept = log(sample=0.5)
    for _ in range(2000):
        kept(replace(ANSWER, user_id=None))
    kept.close()
    assert 850 < kept.written < 1150


def test_a_sample_of_nobody_writes_nothing(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(sample=0.0)
    for number in range(100):
        kept(replace(ANSWER, user_id=f"u{number}"))
        kept(replace(ANSWER, user_id=None))
    kept.close()
    assert _files(tmp_path / "log") == []


# --------------------------------------------------------------------------------------------------------- the files


def test_a_file_is_finished_after_its_rows(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(rows=10, seconds=3600)
    for number in range(9):
        kept(replace(ANSWER, k=number))
    time.sleep(0.2)
    assert _files(tmp_path / "log") == []
    kept(replace(ANSWER, k=9))
    _until(lambda: len(_files(tmp_path / "log")) == 1)
    assert read_log(tmp_path / "log")["k"].to_list() == list(range(10))


def test_a_file_is_finished_after_its_seconds(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(seconds=1)
    kept(ANSWER)
    _until(lambda: len(_files(tmp_path / "log")) == 1)
    assert kept.written == 1


def test_rows_are_kept_in_order_and_once(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log(rows=300)
    for number in range(2750):
        _until(lambda: len(kept._waiting) < 600)
        kept(replace(ANSWER, k=number, at=NOON + number))
    kept.close()
    assert kept.dropped == 0
    assert read_log(tmp_path / "log")["k"].to_list() == list(range(2750))
    assert all(pq.read_metadata(file).num_rows <= 300 for file in _files(tmp_path / "log"))


def test_closing_twice_is_closing_once_and_later_rows_are_dropped(
    log: Callable[..., RequestLog], tmp_path: Path
) -> None:
    kept = log()
    kept(ANSWER)
    kept.close()
    kept(ANSWER)
    kept.close()
    assert (kept.written, kept.dropped) == (1, 1)
    assert len(read_log(tmp_path / "log")) == 1


def test_several_threads_and_logs_share_a_directory(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    logs = [log(rows=40) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: logs[number % 4](replace(ANSWER, user_id=f"u{number % 10}")), range(120)))
    for one in logs:
        one.close()
    rows = read_log(tmp_path / "log")
    assert len(rows) == 120
    assert rows["user"].n_unique() == 10


def test_processes_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from deeprec.serving.log.user_hash import own_hash;"
        "print(own_hash(pathlib.Path(sys.argv[1]))('alice'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1
    assert stat.S_IMODE((tmp_path / "log" / KEY).stat().st_mode) == 0o600


def test_a_killed_process_leaves_whole_files(tmp_path: Path) -> None:
    place = tmp_path / "log"
    code = (
        "import sys; from dataclasses import replace; from deeprec.config import RequestLogConfig;"
        "from deeprec.serving.log.request_log import RequestLog\n"
        "from deeprec.recommender.observer import AnsweredRequest as Row\n"
        "log = RequestLog(RequestLogConfig(path=sys.argv[1], rows=200, seconds=3600))\n"
        "row = Row('deeprec', None, 'trm', None, ('i1',) * 50, ('i2',) * 50, (), 1.0, (), 10, 50, 'v', 1e9)\n"
        "number = 0\n"
        "while True:\n"
        "    if len(log._waiting) < 399:\n"
        "        log(replace(row, k=number)); number += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(place)])
    try:
        _until(lambda: len(_files(place)) >= 5, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = read_log(place)
    files = _files(place)
    assert len(rows) == 200 * len(files)
    assert sorted(rows["k"].to_list()) == list(range(len(rows)))


# ------------------------------------------------------------------------------------------------- a disk that refuses


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "_RETRY_SECONDS", 0.05)


def test_a_full_disk_is_told_once_and_the_log_recovers(
    log: Callable[..., RequestLog],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quick: None,
) -> None:
    caplog.set_level(logging.WARNING)
    fsync, full, attempts = os.fsync, threading.Event(), []

    def refuse(stream: int) -> None:
        attempts.append(stream)
        if full.is_set():
            raise OSError(28, "No space left on device")
        fsync(stream)

    kept = log(rows=10, seconds=1)
    monkeypatch.setattr(os, "fsync", refuse)
    full.set()
    for number in range(25):
        kept(replace(ANSWER, k=number, at=NOON + number))
    _until(lambda: len(attempts) > 3)
    assert kept.dropped == 5
    assert _files(tmp_path / "log") == []
    full.clear()
    _until(lambda: kept.written == 20)
    kept(replace(ANSWER, k=99, at=NOON + 99))
    kept.close()
    assert list((tmp_path / "log").rglob("*.partial")) == []
    assert read_log(tmp_path / "log")["k"].to_list() == [*range(20), 99]
    told = [record.message for record in caplog.records]
    assert sum("No space left on device" in line for line in told) == 1
    assert sum("does not keep up" in line for line in told) == 1
    assert sum("is written to" in line for line in told) == 1
    assert sum("5 rows of the request log were dropped, 5 since the start" in line for line in told) == 1


def test_a_directory_that_vanished_comes_back_with_the_same_key(
    log: Callable[..., RequestLog], tmp_path: Path, quick: None
) -> None:
    place = tmp_path / "log"
    kept = log(rows=1, seconds=1)
    kept(ANSWER)
    _until(lambda: kept.written == 1)
    [before] = read_log(place)["user"]
    shutil.rmtree(place)
    kept(ANSWER)
    _until(lambda: kept.written == 2)
    assert read_log(place)["user"].to_list() == [before]
    user_hash = read_hash(place)
    assert user_hash is not None
    assert user_hash("alice@example.org") == before


def test_a_place_that_cannot_be_a_directory_for_a_while(
    log: Callable[..., RequestLog], tmp_path: Path, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    place = tmp_path / "log"
    kept = log(rows=1, seconds=1)
    shutil.rmtree(place)
    place.write_text("in the way")
    kept(ANSWER)
    _until(lambda: "trying again" in caplog.text)
    place.unlink()
    _until(lambda: kept.written == 1)
    assert len(read_log(place)) == 1


def test_a_slow_disk_never_holds_up_the_caller(log: Callable[..., RequestLog], monkeypatch: pytest.MonkeyPatch) -> None:
    hold, entered = threading.Event(), threading.Event()

    def wait(stream: int) -> None:
        entered.set()
        hold.wait(30)

    kept = log(rows=10)
    monkeypatch.setattr(os, "fsync", wait)
    try:
        for _ in range(10):
            kept(ANSWER)
        assert entered.wait(20)
        started = time.monotonic()
        for _ in range(990):
            kept(ANSWER)
        assert time.monotonic() - started < 5
        assert len(kept._waiting) == 20
        assert kept.dropped == 980
    finally:
        hold.set()


def test_a_row_that_no_file_can_hold_costs_its_file_only(
    log: Callable[..., RequestLog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = log(rows=1)
    kept(replace(ANSWER, k="many"))  # type: ignore[arg-type]
    _until(lambda: kept.dropped == 1)
    kept(ANSWER)
    kept.close()
    assert len(read_log(tmp_path / "log")) == 1
    assert "cannot be written and are dropped" in caplog.text


def test_what_a_killed_process_left_half_written_is_removed_when_old(tmp_path: Path) -> None:
    day = tmp_path / "log" / "2025-11-21"
    day.mkdir(parents=True)
    old, fresh = day / ".120000-a.parquet.partial", day / ".120000-b.parquet.partial"
    for path in (old, fresh):
        path.write_bytes(b"PAR1")
    os.utime(old, (NOON, NOON))
    RequestLog(RequestLogConfig(path=str(tmp_path / "log"))).close()
    assert list(day.iterdir()) == [fresh]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_log_without_a_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serving\.log\.path"):
        RequestLog(RequestLogConfig())


def test_a_place_that_is_a_file_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(StoreError, match="log"):
        RequestLog(RequestLogConfig(path=str(tmp_path / "log")))


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31, "ü"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY).write_text(content)
    with pytest.raises(StoreError, match="is not the key of a request log"):
        own_hash(tmp_path)


def test_a_key_is_found_from_a_day_and_from_a_file(log: Callable[..., RequestLog], tmp_path: Path) -> None:
    kept = log()
    kept(ANSWER)
    kept.close()
    [file] = _files(tmp_path / "log")
    [user] = read_log(file)["user"]
    for place in (tmp_path / "log", file.parent, file):
        found = read_hash(place)
        assert found is not None
        assert found(ANSWER.user_id or "") == user
        assert read_log(place)["user"].to_list() == [user]
    assert read_hash(tmp_path / "elsewhere") is None


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing does not exist.*--log"):
        read_log(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no request log"):
        read_log(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet is no file of a request log"):
        read_log(tmp_path)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"other\.parquet is no file of a request log"):
        read_log(tmp_path)


def test_files_of_a_server_before_a_column_came_are_read_with_nulls(tmp_path: Path) -> None:
    log = RequestLog(RequestLogConfig(path=str(tmp_path)))
    log(ANSWER)
    log.close()
    [file] = tmp_path.rglob("*.parquet")
    older = pq.read_table(file).drop_columns(["request_id"])
    pq.write_table(older, file.with_name("000000-older.parquet"))
    assert read_log(tmp_path)["request_id"].to_list().count(None) == 1
    pq.write_table(older.drop_columns(["version"]), file.with_name("000000-other.parquet"))
    with pytest.raises(DataError, match=r"other\.parquet is no file of a request log"):
        read_log(tmp_path)
