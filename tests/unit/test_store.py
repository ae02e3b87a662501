from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deeprec.errors import ArtifactError, StoreError
from deeprec.store import (
    MANIFEST,
    fingerprint,
    get_directory,
    put_directory,
    read_artifact,
    write_artifact,
    write_text,
)


def make(place: Path, text: str = "hello", kind: str = "thing", **settings: object) -> Path:
    with write_artifact(place, kind, **settings) as work:  # type: ignore[arg-type]
        (work / "inner").mkdir()
        (work / "inner" / "a.txt").write_text(text)
        (work / "b.bin").write_bytes(b"\0\1")
    return place


def fail_half_way(place: Path, error: Exception) -> None:
    with write_artifact(place, "thing") as work:
        (work / "half").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every file that this process writes fails beyond ``size`` bytes, as on a disk that fills up half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_text_is_written_in_utf8_and_replaces_the_old(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "Amélie 天.html"
    write_text(place, "old and longer")
    write_text(str(place), "Amélie — 天国と地獄 🎬\n")
    assert place.read_bytes() == "Amélie — 天国と地獄 🎬\n".encode()
    assert names(place.parent) == [place.name]


def test_a_text_that_cannot_be_written_whole_leaves_the_old(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    write_text(place, "old")
    with files_of_at_most(5), pytest.raises(StoreError) as caught:
        write_text(place, "new and longer")
    assert str(caught.value) == (
        f"cannot write {place}: File too large; make its directory writable, free some space, or name another"
    )
    with pytest.raises(UnicodeEncodeError):
        write_text(place, "new \ud800")
    assert place.read_text() == "old"
    assert names(tmp_path) == ["report.html"]


def test_a_text_cannot_take_the_place_of_a_directory_nor_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*/folder: Is a directory; .* or name another$"):
        write_text(tmp_path / "folder", "text")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match=r"cannot write .*/file/report\.html: (File exists|Not a directory); "):
        write_text(tmp_path / "file" / "report.html", "text")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_round_trip_keeps_files_parents_seed_and_configuration(tmp_path: Path) -> None:
    parent = make(tmp_path / "parent", kind="dataset")
    place = make(tmp_path / "child", config={"b": 1, "a": 2}, parents=[parent, parent], seed=7)
    manifest = read_artifact(place, "thing")
    parent_digest = read_artifact(parent).digest
    assert sorted(manifest.files) == ["b.bin", "inner/a.txt"]
    assert dict(manifest.parents) == {"dataset": parent_digest, "dataset-2": parent_digest}
    assert manifest.seed == 7
    assert manifest.seconds > 0
    again = read_artifact(make(tmp_path / "again", config={"a": 2, "b": 1}))
    assert again.config_sha256 == manifest.config_sha256
    assert again.contents == manifest.contents


def test_existing_empty_directory_and_earlier_artifact_are_replaced(tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.mkdir()
    make(place, "one")
    make(place, "two")
    assert (place / "inner" / "a.txt").read_text() == "two"
    assert names(tmp_path) == ["x"]


def test_foreign_directory_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("keep")
    with pytest.raises(StoreError, match="is no artifact"):
        make(place)
    assert names(place) == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="not a directory"):
        make(tmp_path / "file")


def test_exception_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    place = make(tmp_path / "x", "old")
    with pytest.raises(KeyError):
        fail_half_way(place, KeyError("boom"))
    assert names(tmp_path) == ["x"]
    assert (place / "inner" / "a.txt").read_text() == "old"
    read_artifact(place)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed: os error 28")]
)
def test_full_disk_is_one_clear_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StoreError, match="disk is full"):
        fail_half_way(tmp_path / "x", error)
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    import socket

    dead = tmp_path / f".x.tmp-{socket.gethostname()}-999999999-abc"
    dead.mkdir()
    make(tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_damage_is_refused(tmp_path: Path) -> None:
    place = make(tmp_path / "changed")
    (place / "b.bin").write_bytes(b"\0\2")
    with pytest.raises(ArtifactError, match=r"hash of b\.bin differs"):
        read_artifact(place)
    read_artifact(place, verify=False)
    place = make(tmp_path / "missing")
    (place / "b.bin").unlink()
    with pytest.raises(ArtifactError, match=r"b\.bin is missing"):
        read_artifact(place)
    place = make(tmp_path / "extra")
    (place / "c").write_text("x")
    with pytest.raises(ArtifactError, match="c is not in its manifest"):
        read_artifact(place)


def test_wrong_kind_missing_and_unreadable_manifest(tmp_path: Path) -> None:
    place = make(tmp_path / "x")
    with pytest.raises(ArtifactError, match="kind 'thing', not 'trm'"):
        read_artifact(place, "trm")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_artifact(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        read_artifact(tmp_path / "plain")
    (place / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not a manifest"):
        read_artifact(place)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "a\\b", ""])
def test_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    place = make(tmp_path / "x")
    values = json.loads((place / MANIFEST).read_text())
    values["files"][name] = "0" * 64
    (place / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="cannot be part"):
        read_artifact(place)
    with pytest.raises(ArtifactError, match="cannot be part"):
        get_directory(str(place), tmp_path / "y")


def test_local_copy_both_ways(tmp_path: Path) -> None:
    place = make(tmp_path / "x")
    put_directory(place, str(tmp_path / "deep" / "copy"))
    back = get_directory(str(tmp_path / "deep" / "copy"), tmp_path / "back")
    assert read_artifact(back).digest == read_artifact(place).digest
    (tmp_path / "deep" / "copy" / "b.bin").write_bytes(b"bad")
    with pytest.raises(ArtifactError, match="differs"):
        get_directory(str(tmp_path / "deep" / "copy"), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_addresses_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path / "x")
    with pytest.raises(StoreError, match="neither"):
        put_directory(place, "gs://bucket/x")
    with pytest.raises(StoreError, match="names no bucket and prefix"):
        put_directory(place, "s3://bucket")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        put_directory(place, "s3://bucket/x")


def test_a_fingerprint_changes_with_the_files_and_with_where_a_link_points(tmp_path: Path) -> None:
    place, link = tmp_path / "one", tmp_path / "link"
    assert fingerprint(place) == ""
    link.symlink_to(place)
    found = {fingerprint(place)}
    for change in (
        lambda: (place / "part").mkdir(parents=True),
        lambda: (place / "part" / "file").write_text("a"),
        lambda: (place / "part" / "file").write_text("ab"),
        lambda: os.utime(place / "part" / "file", (1, 1)),
        lambda: (place / "manifest.json").write_text("{}"),
        lambda: (shutil.copytree(place, tmp_path / "two"), link.unlink(), link.symlink_to(tmp_path / "two")),
    ):
        change()
        now = fingerprint(link)
        assert now not in found
        assert fingerprint(str(link)) == now
        found.add(now)


SECONDS = """
import os, sys, time
from pathlib import Path
from deeprec.store import read_artifact, write_artifact

place = Path(sys.argv[1])
time.sleep(0.5)
if os.fork() == 0:
    with write_artifact(place / "forked", "thing"):
        time.sleep(0.2)
    os._exit(0)
os.wait()
with write_artifact(place / "first", "thing"):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork counts from its parent's import")
def test_an_artifacts_seconds_count_from_the_start_of_its_own_process(tmp_path: Path) -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", SECONDS, str(tmp_path)], check=True)
    passed = time.monotonic() - began
    forked, first = (read_artifact(tmp_path / name).seconds for name in ("forked", "first"))
    assert 0.7 <= first <= passed + 0.02
    assert 0.15 <= forked <= passed - 0.45
