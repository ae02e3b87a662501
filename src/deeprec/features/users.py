"""Users by part of their id or by their newest interactions, read from the published histories' offline file.

Feast answers for users that it is named, and cannot list them. The file is scanned, two columns of it, on every call:
memory stays bounded, and a new publication is seen at once. Users who came with events since then are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deeprec.errors import FeatureError
from deeprec.features.online import CURRENT

HISTORIES = Path("offline") / "user_history.parquet"


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user of the published histories and how many interactions they had then."""

    user_id: str
    interactions: int


class UserDirectory:
    """The users of the feature store in a directory. Safe to use from several threads."""

    def __init__(self, features_path: str | Path) -> None:
        self._file = Path(features_path) / CURRENT / HISTORIES

    def find(self, text: str, limit: int) -> tuple[KnownUser, ...]:
        """At most ``limit`` users whose id begins with ``text`` in either case, then those whose id holds it elsewhere.

        In the order of publication each; all users for empty text.

        Raises:
            FeatureError: the file is missing or cannot be read.
        """
        import polars as pl

        wanted = text.strip().lower()
        user = pl.col("user_id").str.to_lowercase()
        begins = user.str.starts_with(wanted)
        with self._reading():
            users = pl.scan_parquet(self._file.resolve(strict=True)).select("user_id", "interactions")
            found = users.filter(begins).head(limit).collect().rows()
            if wanted and len(found) < limit:
                holds = user.str.contains(wanted, literal=True) & ~begins
                found += users.filter(holds).head(limit - len(found)).collect().rows()
        return tuple(KnownUser(user_id, interactions) for user_id, interactions in found)

    def newest(self, limit: int) -> tuple[str, ...]:
        """The ids of at most ``limit`` users, those with the newest interactions first.

        Raises:
            FeatureError: the file is missing or cannot be read.
        """
        import polars as pl

        with self._reading():
            users = pl.scan_parquet(self._file.resolve(strict=True)).select("user_id", "last_timestamp")
            found = users.sort("last_timestamp", descending=True, maintain_order=True).head(limit).collect()
        return tuple(found["user_id"].to_list())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import polars as pl

        try:
            yield
        except (OSError, pl.exceptions.PolarsError) as error:
            raise FeatureError(
                f"the published histories {self._file} cannot be read ({type(error).__name__}); publish the features "
                f"again"
            ) from error
