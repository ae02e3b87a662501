"""Objects by name under one address, a directory or ``s3://bucket/prefix``: written whole, moved by compare-and-set.

``open_objects(address)`` gives them. Every write is whole or not at all; ``swap`` writes an object only where it still
is what the caller has read. A directory does so under a file lock, S3 by a conditional PUT (``If-Match``,
``If-None-Match: *``); a store that ignores the condition is found out by two writes and refused.

S3 takes its endpoint from ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL`` or ``S3_ENDPOINT_URL``, its region from
``AWS_REGION``, certificates from ``AWS_CA_BUNDLE`` or ``SSL_CERT_FILE``, and credentials, in this order, from the
environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``), from the file
``~/.aws/credentials`` and from a web identity (``AWS_WEB_IDENTITY_TOKEN_FILE``, ``AWS_ROLE_ARN``).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from deeprec.errors import ArtifactError, StoreError

_LOCK = ".lock"
_PARTIAL = ".partial-"
_ABANDONED = 86400.0
_PRECONDITION_FAILED = 412
_CONFLICT = 409
_SIGNED_FOR = timedelta(minutes=5)


class MovedError(StoreError):
    """An object is no longer what it was when it was read."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object's content, and the tag that names this state of it."""

    content: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object's name below the address, the seconds since it was written, and what changes with its content."""

    name: str
    age: float
    tag: str = ""


class Objects(ABC):
    """The port. Names are relative POSIX paths. Every method raises ``StoreError`` where the store refuses."""

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def read(self, name: str) -> Found | None:
        """A small object; None where there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a small object."""

    @abstractmethod
    def put(self, name: str, source: Path) -> None:
        """Copy a file to the object ``name``."""

    @abstractmethod
    def put_folder(self, folder: str, source: Path, files: Sequence[str]) -> None:
        """Copy files as a folder, the last one last: where it is there, so are the others."""

    @abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy an object to a file whose directory exists.

        Raises:
            ArtifactError: there is no such object.
        """

    @abstractmethod
    def swap(self, name: str, content: bytes, tag: str | None) -> None:
        """Write a small object where its state is still ``tag``, or where there still is none for None.

        No two writers give the same content.

        Raises:
            MovedError: it is not.
        """

    @abstractmethod
    def names(self, folder: str = "") -> list[Listed]:
        """All objects below a folder but hidden ones, sorted by name."""

    @abstractmethod
    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly below a folder, sorted."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object; none is no error."""


def open_objects(address: str | Path) -> Objects:
    """The objects under a directory, which need not exist, or under ``s3://bucket/prefix``.

    Raises:
        StoreError: the address is neither, or S3 has no credentials.
    """
    text = str(address)
    return S3Objects(text) if is_s3(text) else LocalObjects(text)


def is_s3(address: str) -> bool:
    """
    Raises:
        StoreError: the address is of another scheme.
    """
    if "://" in address and not address.startswith("s3://"):
        raise StoreError(f"{address!r} is neither a local path nor s3://bucket/prefix; give one of the two")
    return address.startswith("s3://")


class LocalObjects(Objects):
    """Files below a directory."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.root = Path(address)

    def read(self, name: str) -> Found | None:
        try:
            content = (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.root / name}: {error.strerror}; check its permissions") from error
        return Found(content, hashlib.sha256(content).hexdigest())

    def write(self, name: str, content: bytes) -> None:
        with self._whole(name) as partial:
            partial.write_bytes(content)

    def put(self, name: str, source: Path) -> None:
        with self._whole(name) as partial:
            shutil.copyfile(source, partial)

    def put_folder(self, folder: str, source: Path, files: Sequence[str]) -> None:
        """In one step; a folder that is there whole is left alone, what a killed process left beside it goes."""
        place = self.root / folder
        draft = place.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
        try:
            for name in files:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, draft / name)
            if place.is_dir() and not (place / files[-1]).is_file():
                shutil.rmtree(place)
            _rename_unless_there(draft, place, files[-1])
        except OSError as error:
            raise StoreError(
                f"cannot write {place}: {error.strerror}; make its directory writable or free some space"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            _remove_drafts(place.parent)

    def get(self, name: str, target: Path) -> None:
        try:
            shutil.copyfile(self.root / name, target)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.root / name} is missing; check the address") from error
        except OSError as error:
            place = self.root / name
            raise StoreError(f"cannot copy {place} to {target}: {error.strerror}; free some space") from error

    def swap(self, name: str, content: bytes, tag: str | None) -> None:
        with self._locked():
            found = self.read(name)
            if (None if found is None else found.tag) != tag:
                raise MovedError(f"{self.root / name} has been moved meanwhile; look again")
            self.write(name, content)

    def names(self, folder: str = "") -> list[Listed]:
        now, listed = time.time(), []
        for place, folders, files in os.walk(self.root / folder):  # which passes over what others remove meanwhile
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(place) / name for name in files if not name.startswith(".")):
                with suppress(FileNotFoundError):
                    state = path.stat()
                    tag = f"{state.st_size}-{state.st_mtime_ns}"
                    listed.append(Listed(path.relative_to(self.root).as_posix(), now - state.st_mtime, tag))
        return sorted(listed, key=lambda one: one.name)

    def folders(self, folder: str = "") -> list[str]:
        place = self.root / folder
        return sorted(_shown(place)) if place.is_dir() else []

    def remove(self, name: str) -> None:
        """Remove a file, and the directories that it leaves empty."""
        place = self.root / name
        with suppress(OSError):
            place.unlink()
            for parent in place.relative_to(self.root).parents:
                (self.root / parent).rmdir()

    @contextmanager
    def _whole(self, name: str) -> Iterator[Path]:
        place = self.root / name
        partial = place.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, place)
        except OSError as error:
            raise StoreError(
                f"cannot write {place}: {error.strerror}; make its directory writable or free some space"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / _LOCK).open("a")
        except OSError as error:
            raise StoreError(f"cannot write in {self.root}: {error.strerror}; make it writable") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _rename_unless_there(draft: Path, place: Path, last: str) -> None:
    """Of several who write the same folder at once the first one's stays."""
    try:
        os.rename(draft, place)
    except OSError:
        if not (place / last).is_file():
            raise


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _shown(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed left half written, a day ago and more."""
    for path in folder.glob(f"{_PARTIAL}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class S3Objects(Objects):
    """Objects of a bucket below a prefix."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._bucket, self._prefix = _split_address(address)
        self._minio, self._http = _s3_client()
        self._conditional = False

    def read(self, name: str) -> Found | None:
        from minio.error import S3Error

        with _s3_errors(self.address):
            try:
                answer = self._minio.get_object(self._bucket, self._key(name))
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return None
                raise
            try:
                return Found(answer.read(), answer.headers["ETag"].strip('"'))
            finally:
                answer.close()
                answer.release_conn()

    def write(self, name: str, content: bytes) -> None:
        with _s3_errors(self.address):
            self._minio.put_object(self._bucket, self._key(name), io.BytesIO(content), len(content))

    def put(self, name: str, source: Path) -> None:
        with _s3_errors(self.address):
            self._minio.fput_object(self._bucket, self._key(name), str(source))

    def put_folder(self, folder: str, source: Path, files: Sequence[str]) -> None:
        for name in files:
            self.put(f"{folder}/{name}", source / name)

    def get(self, name: str, target: Path) -> None:
        with _s3_errors(self.address):
            self._minio.fget_object(self._bucket, self._key(name), str(target))

    def swap(self, name: str, content: bytes, tag: str | None) -> None:
        if not self._conditional:
            self._find_out()
        if self._put_if(name, content, tag):
            return
        now = self.read(name)
        if now is None or now.content != content:  # else it was ours, and the answer was lost
            raise MovedError(f"{self.address}/{name} has been moved meanwhile; look again")

    def names(self, folder: str = "") -> list[Listed]:
        now = datetime.now(UTC)
        with _s3_errors(self.address):
            found = self._minio.list_objects(self._bucket, prefix=self._key(folder, folder=True), recursive=True)
            listed = [(item.object_name, item.last_modified or now, str(item.etag)) for item in found]
        start = len(self._key("", folder=True))
        shown = [
            Listed(key[start:], (now - at).total_seconds(), tag) for key, at, tag in listed if not _hidden(key[start:])
        ]
        return sorted(shown, key=lambda one: one.name)

    def folders(self, folder: str = "") -> list[str]:
        start = self._key(folder, folder=True)
        with _s3_errors(self.address):
            found = [item.object_name for item in self._minio.list_objects(self._bucket, prefix=start) if item.is_dir]
        return sorted(name[len(start) :].rstrip("/") for name in found)

    def remove(self, name: str) -> None:
        with _s3_errors(self.address):
            self._minio.remove_object(self._bucket, self._key(name))

    def _key(self, name: str, *, folder: bool = False) -> str:
        whole = "/".join(part for part in (self._prefix, name) if part)
        return f"{whole}/" if folder else whole

    def _find_out(self) -> None:
        """Refuse a store that lets the second of two writes pass, each of which is to make the object."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            first, second = (self._put_if(probe, b"", None) for _ in range(2))
        finally:
            self.remove(probe)
        if not first or second:
            raise StoreError(
                f"{self.address}: {_s3_endpoint()} ignores the condition of a conditional write (If-None-Match), so "
                f"that two who write at once would undo one another; use a store that obeys it"
            )
        self._conditional = True

    def _put_if(self, name: str, content: bytes, tag: str | None) -> bool:
        """A PUT under a condition, which minio's own cannot have: its address is signed, the header added."""
        headers = {"If-None-Match": "*"} if tag is None else {"If-Match": f'"{tag}"'}
        with _s3_errors(self.address):
            signed = self._minio.get_presigned_url("PUT", self._bucket, self._key(name), expires=_SIGNED_FOR)
            answer = self._http.request("PUT", signed, body=content, headers=headers)
        if answer.status in (_PRECONDITION_FAILED, _CONFLICT):
            return False
        if tag is not None and answer.status == 404:  # what was to be replaced is gone
            return False
        if answer.status >= 300:
            said = answer.data.decode(errors="replace")[:300]
            raise StoreError(f"{self.address}/{name}: {_s3_endpoint()} answered {answer.status}: {said}")
        return True


# ----------------------------------------------------------------------------------------------------------------- S3


def _split_address(address: str) -> tuple[str, str]:
    """Bucket and prefix (without slashes at its ends) of ``s3://bucket/prefix``.

    Raises:
        StoreError: one of them is missing.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not bucket or not prefix:
        raise StoreError(f"{address!r} names no bucket and prefix; write s3://bucket/prefix")
    return bucket, prefix


@contextmanager
def _s3_errors(address: str) -> Iterator[None]:
    """Whatever a client raises becomes one of our errors."""
    import urllib3
    from minio.error import MinioException, S3Error

    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchBucket":
            raise StoreError(
                f"{address}: no such bucket at {_s3_endpoint()}; create it or check the address"
            ) from error
        if error.code == "NoSuchKey":
            missing = f"{error.object_name} is not at {_s3_endpoint()}"
            raise ArtifactError(f"{address}: {missing}; check the address") from error
        answered = f"{_s3_endpoint()} answered {error.code}: {error.message}"
        raise StoreError(f"{address}: {answered}; check credentials") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise StoreError(f"{address}: cannot reach {_s3_endpoint()} ({error}); check AWS_ENDPOINT_URL") from error
    except ValueError as error:
        raise StoreError(f"{address}: {error}; write s3://bucket/prefix") from error


def _s3_endpoint() -> str:
    """The store's address."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "https://s3.amazonaws.com")


def _s3_client() -> tuple[Any, Any]:
    """minio's client and the urllib3 pool below it.

    Raises:
        StoreError: the endpoint is no address, or there are no credentials.
    """
    import certifi
    import urllib3
    from minio import Minio

    endpoint = urllib3.util.parse_url(_s3_endpoint())
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc or (endpoint.path or "/") != "/":
        raise StoreError(f"AWS_ENDPOINT_URL is {_s3_endpoint()!r}; write http(s)://host:port")
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        ca_certs=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )
    client = Minio(
        endpoint=endpoint.netloc,
        credentials=_credentials(),
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        http_client=pool,
    )
    return client, pool


def _credentials() -> Any:
    from minio.credentials import AWSConfigProvider, ChainedProvider, EnvAWSProvider, IamAwsProvider

    providers: list[Any] = [EnvAWSProvider(), AWSConfigProvider()]
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        providers.append(IamAwsProvider())
    chain = ChainedProvider(providers)
    try:
        chain.retrieve()
    except ValueError as error:
        raise StoreError(
            "S3 needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or have them in ~/.aws/credentials"
        ) from error
    return chain
