"""Artifacts and object storage: directories written whole or not at all, read with their hashes checked.

An artifact is a directory with ``manifest.json``, which names its kind, the sha256 of every other file, what it was
made from (configuration, parents, seed) and by which package version. ``write_artifact`` builds it in a hidden
directory beside its place and moves it there in one step; ``read_artifact`` refuses a directory whose files are not
exactly those of the manifest. ``put_directory`` and ``get_directory`` copy artifacts to and from a local path or
``s3://bucket/prefix`` (see ``objects`` for its settings); there files lie in a folder of their own, and writing the
manifest, last, is the turn, so that a failed copy leaves what was there. ``write_text`` writes a single file, such as a
report, that is no artifact.

Limits: one writer per place; who reads an artifact on S3 while it is replaced may find files gone, and reads again;
symbolic links inside an artifact are read through, and copied as files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from deeprec import __version__
from deeprec.errors import ArtifactError, StoreError
from deeprec.objects import is_s3, open_objects

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_IMPORTED = time.monotonic()
_START_TIME = 19
"""Place of ``starttime`` in ``/proc/PID/stat``, counted from behind the process's name (proc_pid_stat(5))."""
_FULL_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``manifest.json`` says.

    ``files`` maps relative POSIX paths to sha256; ``parents`` maps a parent's kind (``policy-2`` for the second of one
    kind) to the sha256 of its manifest. ``seconds`` is the wall time from the start of the writing process to the
    moment of writing; of a training that was killed and gone on with, that of its last process alone. ``accelerators``
    are those that the process asked for or used. ``digest`` is the sha256 of the manifest file itself; it differs
    between two runs that wrote equal files, ``contents`` does not.
    """

    kind: str
    schema_version: int
    files: Mapping[str, str]
    config_sha256: str | None
    parents: Mapping[str, str]
    seed: int | None
    package_version: str
    created: str
    seconds: float
    digest: str
    accelerators: int = 0

    @property
    def contents(self) -> str:
        """sha256 over the kind and the files' names and hashes: equal files give an equal value."""
        return config_digest({"kind": self.kind, "files": dict(self.files)})


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of all files below a directory; "" where there is nothing."""
    if not path.is_dir():
        return file_digest(path) if path.exists() else ""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return config_digest({"files": [(name, file_digest(path / name)) for name in names]})


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of a configuration part: its JSON with sorted keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write one UTF-8 file that is no artifact, whole or not at all; missing directories are made.

    Raises:
        StoreError: it cannot be written; what was there is untouched.
    """
    place = Path(path)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, place)
    except OSError as error:
        raise StoreError(
            f"cannot write {place}: {error.strerror}; make its directory writable, free some space, or name another"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


# ---------------------------------------------------------------------------------------------------------- artifacts


@contextmanager
def write_artifact(
    path: str | Path,
    kind: str,
    *,
    config: Mapping[str, Any] | None = None,
    parents: Sequence[str | Path] = (),
    seed: int | None = None,
) -> Iterator[Path]:
    """Yield an empty directory to fill; on a clean exit add the manifest and put it at ``path``.

    ``path`` may be absent, an empty directory, or an earlier artifact, which is replaced. After an exception nothing
    is left behind and what was at ``path`` is untouched.

    Raises:
        StoreError: the place cannot be written, the disk is full, or ``path`` holds something that is no artifact.
        ArtifactError: a parent has no readable manifest.
    """
    place = Path(path)
    digests = _parent_digests(parents)
    with _replacing(place) as work:
        yield work
        manifest = {
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            "files": {name: file_digest(work / name) for name in _file_names(work)},
            "config_sha256": None if config is None else config_digest(config),
            "parents": digests,
            "seed": seed,
            "package_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(_process_seconds(), 3),
            "accelerators": _accelerators(),
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_artifact(
    path: str | Path,
    kind: str | None = None,
    *,
    verify: bool = True,
    needed: Callable[[str], bool] = lambda name: True,
) -> Manifest:
    """The manifest of the artifact at ``path``, after checking its kind and (``verify``) the files' hashes.

    Args:
        needed: whether a file is looked at; those that are not may be missing.

    Raises:
        ArtifactError: no such artifact, unreadable manifest, another kind or schema, a missing, extra or changed file.
    """
    place = Path(path)
    manifest = _read_manifest(place)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{place} is an artifact of kind {manifest.kind!r}, not {kind!r}; name the right directory")
    if verify:
        _verify(place, manifest, needed)
    return manifest


def _read_manifest(place: Path) -> Manifest:
    file = place / MANIFEST
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        state = "does not exist" if not place.exists() else f"has no {MANIFEST}"
        raise ArtifactError(f"{place} {state}, so it is no artifact; name a directory that a run finished") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    return parse_manifest(raw, str(file))


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """
    Raises:
        ArtifactError: ``raw`` is no manifest, or of another schema; ``where`` is how the error calls it.
    """
    try:
        values = json.loads(raw)
        manifest = Manifest(
            kind=str(values["kind"]),
            schema_version=int(values["schema_version"]),
            files=MappingProxyType({_safe_name(name, where): str(digest) for name, digest in values["files"].items()}),
            config_sha256=values["config_sha256"],
            parents=MappingProxyType(dict(values["parents"])),
            seed=values["seed"],
            package_version=str(values["package_version"]),
            created=str(values["created"]),
            seconds=float(values["seconds"]),
            accelerators=int(values.get("accelerators", 0)),
            digest=hashlib.sha256(raw).hexdigest(),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{where} is not a manifest ({type(error).__name__}: {error}); make it again") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where} has schema version {manifest.schema_version}, this version of deeprec reads {SCHEMA_VERSION}; "
            f"make it again with deeprec {__version__}"
        )
    return manifest


def _safe_name(name: str, where: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or name == MANIFEST:
        raise ArtifactError(f"{where} names the file {name!r}, which cannot be part of an artifact; do not use it")
    return name


def _verify(place: Path, manifest: Manifest, needed: Callable[[str], bool]) -> None:
    present, named = set(_file_names(place)), set(filter(needed, manifest.files))
    missing = sorted(named - present)
    extra = sorted(present - set(manifest.files))
    if missing or extra:
        found = [f"{name} is missing" for name in missing] + [f"{name} is not in its manifest" for name in extra]
        raise ArtifactError(f"{place} is not as it was written: {_first(found)}; copy it or make it again")
    try:
        changed = [name for name in named if file_digest(place / name) != manifest.files[name]]
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error
    if changed:
        found = [f"the hash of {name} differs from its manifest" for name in sorted(changed)]
        raise ArtifactError(f"{place} is not as it was written: {_first(found)}; copy it or make it again")


def _first(found: list[str], limit: int = 3) -> str:
    more = len(found) - limit
    return ", ".join(found[:limit]) + (f" and {more} more" if more > 0 else "")


def _file_names(place: Path) -> list[str]:
    """Relative POSIX paths of all files but the manifest, sorted."""
    names = (file.relative_to(place).as_posix() for file in place.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name != MANIFEST)


def _parent_digests(parents: Sequence[str | Path]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for parent in parents:
        manifest = read_artifact(parent, verify=False)
        name, count = manifest.kind, 1
        while name in digests:
            count += 1
            name = f"{manifest.kind}-{count}"
        digests[name] = manifest.digest
    return digests


def _process_seconds() -> float:
    """Wall seconds since this process started, a forked one when it was forked.

    Where there is no ``/proc``, since this module was imported.
    """
    if sys.platform != "linux":
        return time.monotonic() - _IMPORTED
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    started = int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def _accelerators() -> int:
    """Those that this process's pod has asked for, used or not; elsewhere those that it sees, if it has used any."""
    asked = os.environ.get("DEEPREC_GPUS")
    if asked:
        return int(asked)
    torch = sys.modules.get("torch")
    return int(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else 0


# ------------------------------------------------------------------------------------------------- replacing a place


@contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """Yield a new directory beside ``place``, which takes its place on a clean exit and vanishes after an exception."""
    place = place.absolute()
    work = place.parent / f".{place.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _check_replaceable(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
        work.mkdir()
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error.strerror}; name another place or free some space") from error
    try:
        yield work
        _check_replaceable(place)
        _move(work, place)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if _is_full(error):
            raise StoreError(f"the disk is full while writing {place}; free some space or name another disk") from error
        raise


def _check_replaceable(place: Path) -> None:
    if place.is_dir():
        if any(place.iterdir()) and not (place / MANIFEST).is_file():
            raise StoreError(f"{place} exists and is no artifact; name an empty or absent directory")
    elif place.exists() or place.is_symlink():
        raise StoreError(f"{place} exists and is not a directory; name an empty or absent directory")


def _move(work: Path, place: Path) -> None:
    old: Path | None = None
    try:
        if place.is_dir() and any(place.iterdir()):
            old = work.with_name(work.name + "-old")
            os.replace(place, old)
        os.replace(work, place)
    except OSError as error:
        if old is not None and old.exists() and not place.exists():
            os.replace(old, place)
        raise StoreError(f"cannot put {place} in its place: {error.strerror}; check its permissions") from error
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    """Remove what killed processes of this machine left of ``place``."""
    start = f".{place.name}.tmp-{socket.gethostname()}-"
    for entry in place.parent.iterdir():
        if entry.name.startswith(start):
            pid = entry.name.removeprefix(start).partition("-")[0]
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(entry, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_CODES:
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__
    return False


# ------------------------------------------------------------------------------------------------------------ copying


def put_directory(local: str | Path, uri: str) -> None:
    """Copy the artifact at ``local`` to ``uri``: a local path or ``s3://bucket/prefix``. What was there is replaced.

    Raises:
        ArtifactError: ``local`` is no whole artifact.
        StoreError: the place refuses the write; nothing incomplete is left that a reader would take for an artifact.
    """
    source = Path(local)
    manifest = read_artifact(source)
    if is_s3(uri):
        _put_s3(source, manifest, uri)
        return
    with _replacing(Path(uri)) as work:
        _copy_files(source, work, manifest)


def get_directory(uri: str, local: str | Path) -> Path:
    """Copy the artifact at ``uri`` to ``local``, check every hash, and return ``local``.

    Raises:
        ArtifactError: no whole artifact there, or a file's hash differs.
        StoreError: the store cannot be reached or refuses the read, or ``local`` cannot be written.
    """
    place = Path(local)
    if not is_s3(uri):
        manifest = read_artifact(uri, verify=False)
    with _replacing(place) as work:
        if is_s3(uri):
            _get_s3(uri, work)
        else:
            _copy_files(Path(uri), work, manifest)
        try:
            read_artifact(work)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(work), uri)) from error
    return place


def fingerprint(place: str | Path) -> str:
    """A value that changes with the files in a directory, read from their listing alone; empty when there are none."""
    listed: list[tuple[object, ...]] = []
    for file in Path(place).resolve().rglob("*"):
        with suppress(OSError):
            state = file.stat()
            listed.append((file, state.st_ino, state.st_size, state.st_mtime_ns))
    return config_digest({"files": sorted(map(str, listed))}) if listed else ""


def _copy_files(source: Path, target: Path, manifest: Manifest) -> None:
    for name in [*manifest.files, MANIFEST]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / name, target / name)
        except FileNotFoundError as error:
            raise ArtifactError(f"{source} is not as it was written: {name} is missing; make it again") from error


def _put_s3(source: Path, manifest: Manifest, uri: str) -> None:
    """The files go to a folder named by the manifest's digest; putting the manifest is the turn, old ones go after."""
    place, folder = open_objects(uri), _folder(manifest)
    before = {listed.name for listed in place.names()}
    try:
        for name in sorted(manifest.files):
            place.put(f"{folder}/{name}", source / name)
        place.put(MANIFEST, source / MANIFEST)
    except BaseException:
        with suppress(Exception):
            now = place.read(MANIFEST)
            if now is None or hashlib.sha256(now.content).hexdigest() != manifest.digest:
                for listed in place.names(folder):
                    place.remove(listed.name)
        raise
    for name in before - {MANIFEST} - {f"{folder}/{name}" for name in manifest.files}:
        place.remove(name)


def _get_s3(uri: str, work: Path) -> None:
    place = open_objects(uri)
    place.get(MANIFEST, work / MANIFEST)
    manifest = _read_manifest(work)
    for name in manifest.files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        place.get(f"{_folder(manifest)}/{name}", work / name)


def _folder(manifest: Manifest) -> str:
    return manifest.digest[:16]
