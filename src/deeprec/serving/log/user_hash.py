"""The keyed hash that stands for a user in the request log, and the file that keeps its key.

A user's id becomes HMAC-SHA256 under the key in the log directory's own file ``key`` (64 hexadecimal digits, readable
by its owner only, made once by whichever process comes first), cut to 32 hexadecimal digits. Whoever has the key can
tell whether an id is in the log; without it nobody can, and rows of one user still belong together.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deeprec.errors import StoreError

KEY = "key"
_KEY_BYTES = 32
_HASH_DIGITS = 32
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class UserHash:
    """The keyed hash of user ids."""

    key: bytes = field(repr=False)

    def __call__(self, user_id: str) -> str:
        """What the log holds in place of the id."""
        return self._digest(user_id).hex()[:_HASH_DIGITS]

    def share(self, user_id: str) -> float:
        """A number in [0, 1), always the same for a user and evenly spread over users."""
        return int.from_bytes(self._digest(user_id)[-6:], "big") / 2**48

    def _digest(self, user_id: str) -> bytes:
        return hmac.digest(self.key, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256)


def own_hash(directory: Path, known: UserHash | None = None) -> UserHash:
    """The hash under the directory's key; where it has none, the key of ``known`` or a new one is put there.

    Raises:
        StoreError: the key cannot be read or made.
    """
    place = directory / KEY
    key = _read_key(place)
    if key is not None:
        return UserHash(key)
    made = known.key if known else secrets.token_bytes(_KEY_BYTES)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        if isinstance(error, FileExistsError) and place.exists():
            return UserHash(_key_of_another(place))
        raise StoreError(
            f"cannot write the request log to {directory}: {error.strerror}; make it writable, or name another"
        ) from error
    try:
        os.write(stream, made.hex().encode() + b"\n")
        os.fsync(stream)
    except OSError as error:
        with suppress(OSError):
            place.unlink()
        raise StoreError(f"cannot write {place}: {error.strerror}; free some space, or name another disk") from error
    finally:
        os.close(stream)
    return UserHash(made)


def read_hash(log: str | Path) -> UserHash | None:
    """The hash under a log's key, to join other tables with the log; None where there is no key.

    Args:
        log: the log's directory, one of its days, or one file.

    Raises:
        StoreError: the key cannot be read, or is none.
    """
    place = Path(log).absolute()
    found = (_read_key(folder / KEY) for folder in (place, *place.parents[:2]))
    key = next((key for key in found if key is not None), None)
    return None if key is None else UserHash(key)


def _key_of_another(place: Path) -> bytes:
    """The key that another process is writing at this moment."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            key = _read_key(place)
            if key is None:
                raise StoreError(f"another process made {place} and removed it again; free some space on its disk")
            return key
        except StoreError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _read_key(place: Path) -> bytes | None:
    try:
        key = bytes.fromhex(place.read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        key = b""
    except OSError as error:
        raise StoreError(f"cannot read {place}: {error.strerror}; only the log's owner may read its key") from error
    if len(key) != _KEY_BYTES:
        raise StoreError(
            f"{place} is not the key of a request log; put the right one there, or remove it: a new one is then made, "
            f"under which users have other hashes"
        )
    return key
