"""What an API server keeps: objects with versions, who owns which field, and what has changed since.

Server-side apply, merge patch and watch as Kubernetes has them, as far as releases can see: lists are owned whole but
those that a schema calls a map, which are merged by their keys.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]
Thing = dict[str, Any]
KEPT_CHANGES = 500
"""A watch from before these gets 410, and has to list again."""
MAPS = {("env",): "name"}
"""Ends of paths of lists that are maps → the key of their items."""


class Refused(Exception):
    """An answer of the API server other than 2xx."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


@dataclass(frozen=True)
class Key:
    """Where an object is: ``serving.kserve.io/v1beta1``, ``inferenceservices``, namespace, name."""

    group: str
    plural: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Change:
    """``ADDED``, ``MODIFIED`` or ``DELETED``, at a version of the store."""

    version: int
    kind: str
    key: Key
    thing: Thing


@dataclass
class Objects:
    """The store. ``admit`` may refuse a write (old, new); ``watchers`` are told of one, and return at once."""

    admit: Callable[[Key, Thing | None, Thing], None] = lambda key, old, new: None
    watchers: list[Callable[[Change], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._things: dict[Key, Thing] = {}
        self._owners: dict[Key, dict[Path, set[str]]] = {}
        self._changes: list[Change] = []
        self._version = 1
        self._changed = threading.Condition(threading.RLock())

    # ------------------------------------------------------------------------------------------------------- reading

    @property
    def version(self) -> int:
        """Of the whole store."""
        return self._version

    def get(self, key: Key) -> Thing:
        """
        Raises:
            Refused: 404.
        """
        with self._changed:
            if key not in self._things:
                raise Refused(404, "NotFound", f'{key.plural} "{key.name}" not found')
            return copy.deepcopy(self._things[key])

    def list(self, group: str, plural: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Thing]:
        """All of a kind whose labels are these."""
        with self._changed:
            return [
                copy.deepcopy(thing)
                for key, thing in sorted(self._things.items(), key=lambda one: one[0].name)
                if (key.group, key.plural, key.namespace) == (group, plural, namespace)
                and (labels or {}).items() <= thing["metadata"].get("labels", {}).items()
            ]

    def owners(self, key: Key) -> dict[str, list[str]]:
        """Dotted field → the managers that own it."""
        with self._changed:
            return {".".join(path): sorted(names) for path, names in self._owners.get(key, {}).items()}

    def changes(self, since: int, seconds: float, of: Callable[[Key], bool]) -> Iterator[Change]:
        """Changes after a version, as they come.

        Raises:
            Refused: 410, that version is forgotten.
        """
        until = time.monotonic() + seconds
        while True:
            with self._changed:
                if self._changes and since + 1 < self._changes[0].version and len(self._changes) == KEPT_CHANGES:
                    raise Refused(410, "Expired", f"too old resource version: {since} ({self._version})")
                found = [change for change in self._changes if change.version > since and of(change.key)]
                since = self._version
                if not found:
                    left = until - time.monotonic()
                    if left <= 0:
                        return
                    self._changed.wait(left)
            yield from found

    def forget(self) -> None:
        """Let every watch from before now get 410."""
        with self._changed:
            self._version += KEPT_CHANGES + 1
            last = self._changes[-1] if self._changes else None
            if last is not None:
                self._changes = [
                    Change(self._version - KEPT_CHANGES + count, last.kind, last.key, last.thing)
                    for count in range(KEPT_CHANGES)
                ]

    # ------------------------------------------------------------------------------------------------------- writing

    def create(self, key: Key, thing: Thing, manager: str) -> Thing:
        """
        Raises:
            Refused: 409, it is there; what ``admit`` refuses.
        """
        with self._changed:
            if key in self._things:
                raise Refused(409, "AlreadyExists", f'{key.plural} "{key.name}" already exists')
            owned = {path: {manager} for path in leaves(_without_status(thing))}
            return self._write(key, None, thing, owned)

    def apply(self, key: Key, thing: Thing, manager: str, *, force: bool) -> tuple[Thing, bool]:
        """Server-side apply: what ``manager`` wants of its fields; also whether it was made.

        Raises:
            Refused: 409 where another manager owns a field with another value, unless ``force``.
        """
        with self._changed:
            old = self._things.get(key)
            now = copy.deepcopy(old) if old else {"apiVersion": thing["apiVersion"], "kind": thing["kind"]}
            owners = copy.deepcopy(self._owners.get(key, {}))
            wanted = leaves(_without_status(thing))
            conflicts = [
                (path, sorted(others))
                for path, value in wanted.items()
                if (others := owners.get(path, set()) - {manager}) and value_at(now, path) != value
            ]
            if conflicts and not force:
                told = ", ".join(f'conflict with "{names[0]}": .{".".join(path)}' for path, names in conflicts)
                raise Refused(409, "Conflict", f"Apply failed with {len(conflicts)} conflicts: {told}")
            for path, _ in conflicts:
                owners[path] = set()
            for path in [path for path, names in owners.items() if manager in names and path not in wanted]:
                owners[path].discard(manager)
                if not owners[path]:
                    del owners[path]
                    remove(now, path)
            for path, value in wanted.items():
                put(now, path, value)
                owners.setdefault(path, set()).add(manager)
            return self._write(key, old, now, owners), old is None

    def merge(self, key: Key, patch: Mapping[str, Any], manager: str, *, status: bool = False) -> Thing:
        """A JSON merge patch; the fields that it changes are the manager's alone."""
        with self._changed:
            old = self.get(key)
            told = patch.get("metadata", {}).get("resourceVersion")
            if told is not None and told != old["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", "the object has been modified; please apply your changes to it")
            now = merged(old, {name: value for name, value in patch.items() if (name == "status") == status})
            owners = copy.deepcopy(self._owners.get(key, {}))
            if not status:
                before, after = leaves(_without_status(old)), leaves(_without_status(now))
                for path in before.keys() - after.keys():
                    owners.pop(path, None)
                for path, value in after.items():
                    if path not in before or before[path] != value:
                        owners[path] = {manager}
            return self._write(key, old, now, owners)

    def delete(self, key: Key) -> Thing:
        """
        Raises:
            Refused: 404.
        """
        with self._changed:
            gone = self.get(key)
            del self._things[key]
            self._owners.pop(key, None)
            change = self._noted("DELETED", key, gone)
        self._tell(change)
        return gone

    def _write(self, key: Key, old: Thing | None, now: Thing, owners: dict[Path, set[str]]) -> Thing:
        now = copy.deepcopy(now)
        metadata = now.setdefault("metadata", {})
        metadata |= {"name": key.name, "namespace": key.namespace}
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        before = old["metadata"].get("generation", 1) if old else 0
        metadata["generation"] = before + (old is None or old.get("spec") != now.get("spec"))
        if old is not None and _bare(old) == _bare(now):
            self._owners[key] = owners
            return copy.deepcopy(old)
        self.admit(key, old, now)
        self._owners[key] = owners
        change = self._noted("MODIFIED" if old else "ADDED", key, now)
        self._tell(change)
        return self.get(key) if key in self._things else copy.deepcopy(now)

    def _noted(self, kind: str, key: Key, thing: Thing) -> Change:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        if kind != "DELETED":
            self._things[key] = thing
        change = Change(self._version, kind, key, copy.deepcopy(thing))
        self._changes = [*self._changes, change][-KEPT_CHANGES:]
        self._changed.notify_all()
        return change

    def _tell(self, change: Change) -> None:
        for watcher in self.watchers:
            watcher(change)


def leaves(thing: Any, path: Path = ()) -> dict[Path, Any]:
    """The fields that somebody can own: path → value. Identity is nobody's."""
    if isinstance(thing, dict) and (thing or not path):
        found = {}
        for name, value in thing.items():
            if path == () and name in ("apiVersion", "kind"):
                continue
            if path == ("metadata",) and name not in ("labels", "annotations"):
                continue
            found |= leaves(value, (*path, name))
        return found
    key = MAPS.get(path[-1:])
    if key and isinstance(thing, list):
        return {p: v for item in thing for p, v in leaves(item, (*path, f"{key}={item[key]}")).items()}
    return {path: thing}


def value_at(thing: Any, path: Path) -> Any:
    """What stands at a path; None where nothing does."""
    for name in path:
        key, sign, value = name.partition("=")
        if sign and isinstance(thing, list):
            thing = next((item for item in thing if item.get(key) == value), None)
        else:
            thing = thing.get(name) if isinstance(thing, dict) else None
        if thing is None:
            return None
    return thing


def put(thing: Any, path: Path, value: Any) -> None:
    """Set what stands at a path, making what leads there."""
    for name, after in zip(path, (*path[1:], ""), strict=True):
        key, sign, told = name.partition("=")
        if sign and isinstance(thing, list):
            item = next((item for item in thing if item.get(key) == told), None)
            if item is None:
                item = {key: told}
                thing.append(item)
            thing = item
        elif not after:
            thing[name] = copy.deepcopy(value)
        else:
            thing = thing.setdefault(name, [] if "=" in after else {})


def remove(thing: Any, path: Path) -> None:
    """Take away what stands at a path, and what is empty then."""
    above = value_at(thing, path[:-1]) if path[:-1] else thing
    key, sign, told = path[-1].partition("=")
    if isinstance(above, dict):
        above.pop(path[-1], None)
    elif sign and isinstance(above, list):
        above[:] = [item for item in above if item.get(key) != told]
    left = above
    if len(path) > 1 and (not left or (isinstance(left, dict) and set(left) == {"name"} and "=" in path[-2])):
        remove(thing, path[:-1])


def merged(thing: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    now = dict(thing) if isinstance(thing, dict) else {}
    for name, value in patch.items():
        if value is None:
            now.pop(name, None)
        else:
            now[name] = merged(now.get(name), value)
    return now


def _without_status(thing: Mapping[str, Any]) -> Thing:
    return {name: value for name, value in thing.items() if name != "status"}


def _bare(thing: Mapping[str, Any]) -> Thing:
    return {**thing, "metadata": {**thing["metadata"], "resourceVersion": None}}
