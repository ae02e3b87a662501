"""A shelf: the place of bundles under one address, a directory or ``s3://bucket/prefix``.

- ``PARTS/DIGEST/``: a part (TRM, policy, text encoder), an artifact; several versions share it.
- ``VERSION/``: a bundle's index (``bundle.index_files``), an artifact, small.
- ``candidate.json``, ``live.json``: pointers, each the version it names and a record of its moves.
- ``shelf.json``: says that this is a shelf.
- ``RELEASES/``, ``release.json``: what was released on a cluster, see ``release.record``.

Parts and versions are written once, their manifests last, and never changed; one without a manifest is none. A pointer
moves by compare-and-set (``objects.Objects.swap``), so that of two who move it at once one is told. Pushing sets
``candidate``, and nothing but promoting and rolling back moves ``live``, which is what servers follow. A push that
fails or is killed leaves every version and pointer as it was; parts that no version names are swept a day later.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from deeprec.bundle.bundle import (
    BUNDLE,
    KIND,
    METRICS,
    VERSION_DIGITS,
    Bundle,
    Part,
    Served,
    index_files,
    is_needed,
)
from deeprec.bundle.publish import write_info
from deeprec.errors import ArtifactError, StoreError
from deeprec.objects import LocalObjects, MovedError, Objects, open_objects
from deeprec.store import MANIFEST, Manifest, parse_manifest, read_artifact, write_artifact
from deeprec.types import JsonDict

MARK = "shelf.json"
PARTS = "PARTS"
RELEASES = "RELEASES"
SCHEMA = 1
GRACE_SECONDS = 86400.0
"""Parts and versions that are not whole, or that nothing names, are left alone for this long."""
KEPT_MOVES = 200
ATTEMPTS = 50
"""Of setting ``candidate`` while others do."""
VERSION = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")

Pointer = Literal["candidate", "live"]
POINTERS: tuple[Pointer, ...] = ("candidate", "live")


@dataclass(frozen=True)
class Move:
    """That a pointer was moved: when, by whom, from which version (None: it named none) to which, and why."""

    at: str
    by: str
    before: str | None
    after: str
    why: str


@dataclass(frozen=True)
class Shelved:
    """A version on the shelf, and the pointers that name it."""

    version: str
    info: JsonDict
    metrics: JsonDict
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class Pushed:
    """What a push came to; ``written`` is false where the version was there."""

    version: str
    written: bool


class Shelf:
    """The bundles under an address.

    Raises:
        ArtifactError: there is no shelf.
        StoreError: the store cannot be reached, or holds a shelf of a newer schema.
    """

    def __init__(self, address: str | Path) -> None:
        self.objects = open_objects(address)
        found = self.objects.read(MARK)
        if found is None:
            raise ArtifactError(
                f"{self.address} is no shelf: it has no {MARK}; `deeprec bundle push BUNDLE {self.address}` makes one"
            )
        schema = _parsed(found.content, f"{self.address}/{MARK}").get("schema")
        if schema != SCHEMA:
            raise StoreError(
                f"the shelf {self.address} has schema {schema}, this version of deeprec reads {SCHEMA}; install the "
                f"deeprec that wrote it"
            )

    @classmethod
    def make(cls, address: str | Path) -> Shelf:
        """The shelf at the address, made where there is none.

        Raises:
            StoreError: there is something else, or it cannot be written.
        """
        objects = open_objects(address)
        if objects.read(MARK) is None:
            if objects.names() and objects.read(MARK) is None:
                raise StoreError(f"{address} holds something and is no shelf; name an empty or absent place")
            content = {"kind": "shelf", "schema": SCHEMA, "made": _now(), "id": uuid.uuid4().hex}
            with suppress(MovedError):
                objects.swap(MARK, json.dumps(content).encode(), None)
        return cls(address)

    @property
    def address(self) -> str:
        """Where it is."""
        return self.objects.address

    # ------------------------------------------------------------------------------------------------------- reading

    def pointer(self, name: Pointer) -> str | None:
        """The version that a pointer names, by one small read; None where it names none yet."""
        return self._state(name)[0]

    def moves(self, name: Pointer) -> list[Move]:
        """A pointer's moves, the oldest first."""
        return self._state(name)[1]

    def versions(self) -> list[Shelved]:
        """All whole versions, the newest first."""
        named = {name: self.pointer(name) for name in POINTERS}
        shelved = []
        for version in self._whole_versions():
            pointers = tuple(name for name in POINTERS if named[name] == version)
            info, metrics = (self._json(f"{version}/{file}") for file in (BUNDLE, METRICS))
            shelved.append(Shelved(version, info, metrics, pointers))
        return sorted(shelved, key=lambda one: str(one.info.get("created")), reverse=True)

    def publications(self) -> tuple[set[str], set[str]]:
        """The publications of features that bundles here were made with: those in use, and all.

        In use are those of ``live``, ``candidate``, and what ``live`` named before, which a rollback goes back to.
        """
        moves = self.moves("live")
        pointed = {self.pointer("live"), self.pointer("candidate"), *(move.before for move in moves[-1:])}
        named = {shelved.version: str(shelved.info.get("publication", "")) for shelved in self.versions()}
        return {name for version, name in named.items() if version in pointed}, set(named.values())

    def check(self, version: str) -> None:
        """
        Raises:
            ArtifactError: there is no such version.
        """
        if not VERSION.fullmatch(version) or self.objects.read(f"{version}/{MANIFEST}") is None:
            there = self._whole_versions()
            known = f"it has {', '.join(there)}" if there else "it has none yet"
            raise ArtifactError(f"the shelf {self.address} has no version {version!r}; {known}")

    def live(self) -> str:
        """The version that serves.

        Raises:
            ArtifactError: none does yet.
        """
        version = self.pointer("live")
        if version is None:
            raise ArtifactError(
                f"nothing is live on the shelf {self.address}; promote a version with `deeprec bundle promote`"
            )
        return version

    def open(self, version: str, needs: Callable[[Served], Collection[Part]], cache: Path) -> Bundle:
        """A version's bundle with the parts that are needed, verified; each is fetched once into ``cache``.

        A shelf in a directory is read where it is.

        Raises:
            ArtifactError: there is no such version, or a file differs from its hash.
        """
        self.check(version)
        index = self._folder(version, KIND, cache / version)
        info = json.loads((index / BUNDLE).read_text(encoding="utf-8"))
        parts: dict[str, Path] = {}
        for need in needs(info.get("serve", "trm")):
            folder = "policy" if need == "tokenizer" else need
            digest = info.get("parts", {}).get(folder)
            if digest is None:
                continue
            kept = cache / PARTS / (f"{digest}-tokenizer" if need == "tokenizer" else digest)
            parts[need] = self._folder(f"{PARTS}/{digest}", folder, kept, partial(is_needed, folder, wanted={need}))
        return Bundle.read(index, parts, f"{self.address}@{version}")

    # ------------------------------------------------------------------------------------------------------- writing

    def push(self, bundle: Bundle, serve: Served | None = None) -> Pushed:
        """Put a bundle, opened with all its parts, on the shelf, and let ``candidate`` name it.

        What is there is not written again. ``serve`` publishes the same parts under this decision, which is another
        version.

        Raises:
            ArtifactError: the bundle cannot be served so.
            StoreError: the shelf cannot be written; its versions and pointers are as they were.
        """
        with tempfile.TemporaryDirectory(prefix="deeprec-") as scratch:
            index = Path(scratch) / "index"
            version = _write_index(bundle, serve, index)
            written = self.objects.read(f"{version}/{MANIFEST}") is None
            if written:
                info = json.loads((index / BUNDLE).read_text(encoding="utf-8"))
                for name, digest in info["parts"].items():
                    self._put(f"{PARTS}/{digest}", bundle.parts[name])
                self._put(version, index)
        self._set_candidate(version)
        with suppress(StoreError, ArtifactError):  # what cannot be removed, or another removes, is no fault of a push
            self.sweep()
        return Pushed(version, written)

    def promote(self, version: str) -> Move:
        """Let ``live`` name a version; where it does already, nothing is written.

        Raises:
            ArtifactError: there is no such version.
            MovedError: another has moved the pointer meanwhile.
        """
        self.check(version)
        now, moves, tag = self._state("live")
        if now == version:
            return Move(_now(), who(), version, version, "promote")
        return self._move("live", Move(_now(), who(), now, version, "promote"), moves, tag)

    def rollback(self) -> Move:
        """Let ``live`` name the version that served before the one that does now was promoted.

        Raises:
            ArtifactError: there is none.
            MovedError: another has moved the pointer meanwhile.
        """
        live, moves, tag = self._state("live")
        now = live or self.live()
        promotions = [move for move in moves if move.after == now and move.why == "promote"]
        promoted = promotions[-1] if promotions else None
        if promoted is None or promoted.before is None:
            raise ArtifactError(f"nothing was live on the shelf {self.address} before {now}; promote another version")
        self.check(promoted.before)
        return self._move("live", Move(_now(), who(), now, promoted.before, "rollback"), moves, tag)

    def sweep(self, grace: float = GRACE_SECONDS) -> list[str]:
        """Remove parts that no version names, and what is not whole, when it is older than ``grace`` seconds."""
        named = {
            f"{PARTS}/{digest}"
            for version in self._whole_versions()
            for digest in self._json(f"{version}/{BUNDLE}").get("parts", {}).values()
        }
        whole = {*named, *self._whole_versions(), PARTS, RELEASES}
        there = [f"{PARTS}/{digest}" for digest in self.objects.folders(PARTS)] + self.objects.folders()
        removed = []
        for folder in there:
            files = self.objects.names(folder) if folder not in whole else []
            if files and min(file.age for file in files) >= grace:
                for file in sorted(files, key=lambda one: not one.name.endswith(f"/{MANIFEST}")):
                    self.objects.remove(file.name)
                removed.append(folder)
        return removed

    # ------------------------------------------------------------------------------------------------------- details

    def _whole_versions(self) -> list[str]:
        folders = [name for name in self.objects.folders() if VERSION.fullmatch(name)]
        return [name for name in folders if self.objects.read(f"{name}/{MANIFEST}") is not None]

    def _json(self, name: str) -> JsonDict:
        found = self.objects.read(name)
        if found is None:
            raise ArtifactError(f"{self.address}/{name} is missing; push the bundle again")
        return _parsed(found.content, f"{self.address}/{name}")

    def _state(self, name: Pointer) -> tuple[str | None, list[Move], str | None]:
        """The version that a pointer names, its moves, and the tag of this state; by one small read."""
        found = self.objects.read(f"{name}.json")
        if found is None:
            return None, [], None
        where = f"{self.address}/{name}.json"
        raw = _parsed(found.content, where)
        try:
            return str(raw["version"]), [Move(**one) for one in raw["moves"]], found.tag
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{where} is no pointer ({error}); restore it, or push to another shelf") from error

    def _put(self, folder: str, source: Path) -> None:
        """Copy a verified artifact; one that is there gets young, lest a sweep take it before it is named."""
        there = self.objects.read(f"{folder}/{MANIFEST}")
        if there is None:
            files = sorted(read_artifact(source, verify=False).files)
            self.objects.put_folder(folder, source, [*files, MANIFEST])
        else:
            self.objects.write(f"{folder}/{MANIFEST}", there.content)

    def _folder(self, folder: str, kind: str, kept: Path, needed: Callable[[str], bool] = lambda name: True) -> Path:
        """An artifact of the shelf as a verified directory: where it is, or fetched into ``kept``."""
        if isinstance(self.objects, LocalObjects):
            place = self.objects.root / folder
            read_artifact(place, kind, needed=needed)
            return place.resolve()
        if (kept / MANIFEST).is_file():
            try:
                read_artifact(kept, kind, needed=needed)
                return kept
            except ArtifactError:  # damaged here, not where it comes from
                shutil.rmtree(kept, ignore_errors=True)
        return _fetch(self.objects, folder, kind, kept, needed)

    def _set_candidate(self, version: str) -> None:
        for attempt in range(ATTEMPTS):
            now, moves, tag = self._state("candidate")
            if now == version:
                return
            try:
                self._move("candidate", Move(_now(), who(), now, version, "push"), moves, tag)
            except MovedError:
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    def _move(self, name: Pointer, move: Move, before: Sequence[Move], tag: str | None) -> Move:
        """Make a pointer's next move, after those ``before``, from the state with this tag (None: it named nothing)."""
        moves = [vars(one) for one in (*before, move)][-KEPT_MOVES:]
        content = {"version": move.after, "id": uuid.uuid4().hex, "moves": moves}
        try:
            self.objects.swap(f"{name}.json", json.dumps(content, indent=1).encode(), tag)
        except MovedError as error:
            now = self.moves(name)[-1:]
            by = f": {now[0].by} let it name {now[0].after} at {now[0].at}" if now else ""
            raise MovedError(f"{name} of {self.address} moved meanwhile{by}; look with `bundle list`") from error
        return move


def _write_index(bundle: Bundle, serve: Served | None, index: Path) -> str:
    """The index of a bundle as an artifact of its own, with the decision ``serve`` where one is given; its version."""
    info: JsonDict = {**bundle.info}
    if serve is not None and serve != bundle.serve:
        if serve == "policy" and info.get("refit"):
            raise ArtifactError(
                "this bundle's TRM was trained anew on everything, and a policy serves with the TRM it was trained "
                "with; publish the policy from a run with bundle.refit off"
            )
        which = "the TRM alone" if serve == "trm" else "the policy"
        info |= {"serve": serve, "why": f"this bundle serves {which}, as {who()} decided: pushed with --serve {serve}"}
    with write_artifact(index, KIND, parents=()) as work:
        for name in index_files(bundle.index):
            shutil.copyfile(bundle.index / name, work / name)
        if info["serve"] != bundle.serve:
            info = write_info(work, info, bundle.parts)
    return str(info["version"])


def _fetch(objects: Objects, folder: str, kind: str, kept: Path, needed: Callable[[str], bool]) -> Path:
    found = objects.read(f"{folder}/{MANIFEST}")
    if found is None:
        raise ArtifactError(f"{objects.address}/{folder} is missing; push the bundle again")
    manifest: Manifest = parse_manifest(found.content, f"{objects.address}/{folder}/{MANIFEST}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=kept.parent))
    except OSError as error:
        raise StoreError(f"cannot write {kept.parent}: {error.strerror}; name another with serving.cache") from error
    try:
        for name in filter(needed, manifest.files):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            objects.get(f"{folder}/{name}", draft / name)
        (draft / MANIFEST).write_bytes(found.content)
        try:
            read_artifact(draft, kind, needed=needed)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(draft), f"{objects.address}/{folder}")) from error
        with suppress(OSError):  # another process was first
            draft.rename(kept)
    except OSError as error:
        raise StoreError(f"cannot write {kept}: {error.strerror}; free some space for serving.cache") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return kept


def _parsed(content: bytes, where: str) -> JsonDict:
    try:
        whole = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON ({error}); restore it, or push to another shelf") from error
    if not isinstance(whole, dict):
        raise ArtifactError(f"{where} is no JSON object; restore it, or push to another shelf")
    return whole


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """Who does this: user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
