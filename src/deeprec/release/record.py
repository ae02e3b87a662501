"""Records of releases on the shelf: who released what, what each step showed, and how it ended.

``RELEASES/ID.json`` is a release's record; ``release.json`` names the one that is under way, so that of two who begin
at once one is told. Both move by compare-and-set. A record knows nothing that the cluster does not know better: it says
which release a cluster's state belongs to, and what to put back.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from deeprec.bundle.shelf import RELEASES, Shelf, who
from deeprec.errors import ReleaseError
from deeprec.objects import MovedError
from deeprec.types import JsonDict

FOLDER, CURRENT = RELEASES, "release.json"
_ATTEMPTS = 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
Ending = Literal["", "released", "rolled back"]


@dataclass(frozen=True)
class Step:
    """What one step came to: when, its name, ``pass``, ``fail`` or ``inconclusive``, figures, and a sentence."""

    at: str
    name: str
    verdict: Literal["pass", "fail", "inconclusive"]
    sentence: str
    figures: JsonDict = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A release. ``before`` is the version that served when it began, None where none did; ``ending`` is empty while
    it is under way, ``waiting`` while it waits for a person's promotion; ``restore`` are the stable predictors that it
    found, by InferenceService, to put back, ``made`` the InferenceServices that were not there before it."""

    id: str
    version: str
    before: str | None
    namespace: str
    name: str
    by: str
    began: str
    steps: tuple[Step, ...] = ()
    ending: Ending = ""
    reason: str = ""
    ended: str = ""
    waiting: bool = False
    promoted: bool = False
    restore: JsonDict = field(default_factory=dict)
    made: tuple[str, ...] = ()


class Records:
    """The records of a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._objects, self._address = shelf.objects, shelf.address

    def under_way(self) -> Record | None:
        """The release that has begun and not ended."""
        found = self._objects.read(CURRENT)
        name = json.loads(found.content).get("id") if found else None
        record = self.read(name) if name else None
        return record if record is not None and not record.ending else None

    def read(self, name: str) -> Record | None:
        """A release's record; None where there is none."""
        found = self._objects.read(f"{FOLDER}/{name}.json") if _ID.fullmatch(name) else None
        return _parsed(found.content) if found else None

    def all(self) -> list[Record]:
        """All records, the newest first."""
        names = [one.name for one in self._objects.names(FOLDER) if one.name.endswith(".json")]
        found = [self._objects.read(name if "/" in name else f"{FOLDER}/{name}") for name in names]
        return sorted((_parsed(one.content) for one in found if one), key=lambda one: one.began, reverse=True)

    def begin(self, record: Record) -> Record:
        """Write a new record and let it be the one under way; the record itself where it has begun before.

        Raises:
            ReleaseError: another is under way.
        """
        known = self.read(record.id)
        if known is not None and known.ending:
            raise ReleaseError(f"the release {record.id} has ended, {known.ending}; begin another with a new id")
        found = self._objects.read(CURRENT)
        other = self.under_way()
        if other is not None and other.id != record.id:
            raise ReleaseError(
                f"{other.by} has been releasing {other.version} since {other.began} (release {other.id}); wait for it, "
                f"or end it with `deeprec release rollback`"
            )
        if known is None:
            self._write(record, None)
        try:
            content = json.dumps({"id": record.id, "mark": uuid.uuid4().hex}).encode()
            self._objects.swap(CURRENT, content, found.tag if found else None)
        except MovedError as error:
            raise ReleaseError(
                "another release has begun at the same moment; look with `deeprec release status`"
            ) from error
        return known or record

    def change(self, name: str, change: Callable[[Record], Record]) -> Record:
        """Change a record, again where another has changed it meanwhile.

        Raises:
            ReleaseError: there is none of this name.
        """
        for _ in range(_ATTEMPTS):
            found = self._objects.read(f"{FOLDER}/{name}.json")
            if found is None:
                break
            now = change(_parsed(found.content))
            try:
                self._write(now, found.tag)
            except MovedError:
                continue
            return now
        raise ReleaseError(
            f"the shelf {self._address} has no record of a release {name}; see `deeprec release history`"
        )

    def note(self, name: str, step: Step) -> Record:
        """Add what a step came to; a step of the same name takes the place of the one before."""
        return self.change(
            name, lambda record: replace(record, steps=(*(one for one in record.steps if one.name != step.name), step))
        )

    def end(self, name: str, ending: Ending, reason: str) -> Record:
        """Close a record; one that is closed stays as it is."""
        return self.change(
            name,
            lambda record: (
                record if record.ending else replace(record, ending=ending, reason=reason, ended=now(), waiting=False)
            ),
        )

    def _write(self, record: Record, tag: str | None) -> None:
        content = json.dumps(asdict(record), indent=1, ensure_ascii=False).encode()
        self._objects.swap(f"{FOLDER}/{record.id}.json", content, tag)


def new_record(name: str, version: str, before: str | None, namespace: str, service: str) -> Record:
    """A record of a release that begins now.

    Raises:
        ReleaseError: ``name`` cannot be a file's.
    """
    if not _ID.fullmatch(name):
        raise ReleaseError(f"{name!r} cannot name a release; take letters, digits, dots and dashes, 80 at most")
    return Record(name, version, before, namespace, service, who(), now())


def now() -> str:
    """This moment, as a record writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(content: bytes) -> Record:
    raw: dict[str, Any] = json.loads(content)
    return Record(**{**raw, "steps": tuple(Step(**step) for step in raw["steps"]), "made": tuple(raw["made"])})
