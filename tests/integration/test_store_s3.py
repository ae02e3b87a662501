"""The store against a real S3 server process (moto) on a local port."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from deeprec.errors import ArtifactError, StoreError
from deeprec.store import MANIFEST, get_directory, put_directory, read_artifact, write_artifact


def make(place: Path, files: dict[str, bytes]) -> Path:
    with write_artifact(place, "thing") as work:
        for name, content in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
    return place


def keys(client: Any, prefix: str) -> list[str]:
    return sorted(item.object_name for item in client.list_objects("models", prefix=prefix, recursive=True))


def test_round_trip(client: Any, tmp_path: Path) -> None:
    place = make(tmp_path / "x", {"a.txt": b"a", "deep/er/b.bin": bytes(range(256)) * 1000})
    put_directory(place, "s3://models/round/trip/")
    back = get_directory("s3://models/round/trip", tmp_path / "back")
    assert read_artifact(back).digest == read_artifact(place).digest
    assert (back / "deep/er/b.bin").read_bytes() == (place / "deep/er/b.bin").read_bytes()


def test_replacing_removes_what_is_no_longer_there(client: Any, tmp_path: Path) -> None:
    put_directory(make(tmp_path / "one", {"a": b"1", "old": b"1"}), "s3://models/replaced")
    put_directory(make(tmp_path / "two", {"a": b"2"}), "s3://models/replaced")
    folder = read_artifact(tmp_path / "two").digest[:16]
    assert keys(client, "replaced/") == sorted([f"replaced/{folder}/a", "replaced/manifest.json"])
    assert (get_directory("s3://models/replaced", tmp_path / "back") / "a").read_bytes() == b"2"


def test_changed_object_is_refused(client: Any, tmp_path: Path) -> None:
    import io

    put_directory(make(tmp_path / "x", {"a": b"1"}), "s3://models/changed")
    name = f"changed/{read_artifact(tmp_path / 'x').digest[:16]}/a"
    client.put_object("models", name, io.BytesIO(b"2"), 1)
    with pytest.raises(ArtifactError, match=r"s3://models/changed .*hash of a differs"):
        get_directory("s3://models/changed", tmp_path / "back")
    client.remove_object("models", name)
    with pytest.raises(ArtifactError, match=r"changed/.*/a is not at"):
        get_directory("s3://models/changed", tmp_path / "back")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x"]


def test_failed_upload_leaves_no_artifact(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minio import Minio

    upload = Minio.fput_object

    def broken(self: Minio, bucket: str, name: str, path: str) -> Any:
        if name.endswith("z"):
            raise OSError("cable cut")
        return upload(self, bucket, name, path)

    place = make(tmp_path / "x", {"a": b"1", "z": b"2"})
    monkeypatch.setattr(Minio, "fput_object", broken)
    with pytest.raises(OSError, match="cable cut"):
        put_directory(place, "s3://models/failed")
    assert keys(client, "failed/") == []


def test_a_replacement_that_fails_leaves_what_was_there(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minio import Minio

    put_directory(make(tmp_path / "one", {"a": b"1", "z": b"1"}), "s3://models/served")
    before, upload = keys(client, "served/"), Minio.fput_object

    def broken(self: Minio, bucket: str, name: str, path: str) -> Any:
        if name.endswith(MANIFEST):
            raise OSError("cable cut")
        return upload(self, bucket, name, path)

    with monkeypatch.context() as cut:
        cut.setattr(Minio, "fput_object", broken)
        with pytest.raises(OSError, match="cable cut"):
            put_directory(make(tmp_path / "two", {"a": b"2"}), "s3://models/served")
    assert keys(client, "served/") == before
    assert (get_directory("s3://models/served", tmp_path / "back") / "a").read_bytes() == b"1"


def test_manifest_is_uploaded_last(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minio import Minio

    upload, order = Minio.fput_object, []

    def noted(self: Minio, bucket: str, name: str, path: str) -> Any:
        order.append(name)
        return upload(self, bucket, name, path)

    monkeypatch.setattr(Minio, "fput_object", noted)
    put_directory(make(tmp_path / "x", {"a": b"1", "z": b"2"}), "s3://models/order")
    folder = f"order/{read_artifact(tmp_path / 'x').digest[:16]}"
    assert order == [f"{folder}/a", f"{folder}/z", f"order/{MANIFEST}"]


def test_missing_bucket_prefix_and_server(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path / "x", {"a": b"1"})
    with pytest.raises(StoreError, match="no such bucket"):
        put_directory(place, "s3://nowhere/x")
    with pytest.raises(ArtifactError, match=r"absent/manifest\.json"):
        get_directory("s3://models/absent", tmp_path / "back")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free}")
    with pytest.raises(StoreError, match="cannot reach"):
        get_directory("s3://models/x", tmp_path / "back")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1")
    with pytest.raises(StoreError, match="write http"):
        get_directory("s3://models/x", tmp_path / "back")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x"]


def test_a_doctor_writes_reads_and_writes_on_condition(client: Any) -> None:
    from deeprec.doctor import store

    assert "can be written, read, and written on condition" in store("s3://models/doctor")
    assert keys(client, "doctor/") == []
    with pytest.raises(StoreError, match="no-such-bucket"):
        store("s3://no-such-bucket/doctor")
