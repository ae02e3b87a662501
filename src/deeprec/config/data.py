"""Sections of the data: source and cleaning, the gate on it, the feature store, and the encoder of texts."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from deeprec.config.section import Positive, Section, Share


class SampleConfig(Section):
    """The generated sample data."""

    users: Positive = 1500
    """Number of users."""
    items: Positive = 800
    """Number of items."""
    mean_history: Positive = 40
    """Mean number of interactions per user."""


class DataConfig(Section):
    """Where interactions and the catalogue come from, how they are cleaned and split."""

    source: Literal["sample", "movielens", "recbole", "table"] = "sample"
    """``sample`` generates data; ``movielens`` and ``recbole`` read a directory; ``table`` reads CSV or Parquet."""
    path: str = ""
    """Directory of the source, or ``s3://bucket/prefix``, from where it is fetched; for ``table`` the directory that
    holds ``interactions`` and ``items``."""
    interactions: str = "interactions.parquet"
    """``table`` only: file name of the interactions (.csv or .parquet)."""
    items: str = "items.parquet"
    """``table`` only: file name of the catalogue (.csv or .parquet)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """``table`` only: our column name → the file's, for user_id, item_id, timestamp, rating, title and text columns."""
    time_unit: Literal["seconds", "order"] = "seconds"
    """``table`` only: whether ``timestamp`` is Unix seconds or just an order."""
    text_columns: tuple[str, ...] = ("genres",)
    """Catalogue columns whose values describe an item; several values in one cell are joined by ``|``."""
    year_column: str | None = "year"
    """Catalogue column with a year, turned into a decade phrase; MovieLens titles give it. None or "": no decades."""
    repeats: Literal["first", "last"] = "first"
    """Which of a user's interactions with one item is kept, here and of the events that servers accept."""
    events: bool = False
    """Add the events that servers have accepted in the feature place to the source's interactions."""
    min_rating: float = 0.0
    """Interactions rated below this are dropped; 0 keeps all."""
    min_user_interactions: Positive = 5
    """k-core: users with fewer interactions are dropped (at least 4 are needed to split)."""
    min_item_interactions: Positive = 5
    """k-core: items with fewer interactions are dropped."""
    policy_positions: Positive = 1
    """How many items before the validation target are the policy's targets, hidden from the TRM's training."""
    sample: SampleConfig = SampleConfig()

    @field_validator("year_column")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _enough_positions(self) -> Self:
        needed = self.policy_positions + 3
        if self.min_user_interactions < needed:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but policy_positions="
                f"{self.policy_positions} needs at least {needed} (test, validation, policy targets and one to train "
                f"on); raise min_user_interactions or lower policy_positions"
            )
        return self


class ChecksConfig(Section):
    """Thresholds of the data gate."""

    min_users: Positive = 100
    """Fewest users."""
    min_items: Positive = 100
    """Fewest items."""
    min_interactions: Positive = 1000
    """Fewest interactions."""
    max_missing_titles: Share = 0.05
    """Largest share of items whose title was missing at the source."""
    max_duplicate_interactions: Share = 0.0
    """Largest share of repeated (user, item, timestamp) rows after cleaning."""
    earliest: str = "1990-01-01"
    """Earliest timestamp allowed (ISO date, UTC); not checked when ``time_unit`` is ``order``."""


class FeaturesConfig(Section):
    """The feature store."""

    place: Literal["directory", "cluster"] = "directory"
    """``directory``: SQLite files in ``path``, for one machine; ``cluster``: Feast, PostgreSQL and Redis, for many."""
    path: str = ""
    """``directory`` only; `deeprec run` fills it with ``WORKDIR/features``."""
    database: str = ""
    """``cluster`` only: ``postgresql://USER:PASSWORD@HOST:PORT/NAME``, for the log of accepted events and Feast's
    registry. Like ``redis`` it may name variables, ``${DATABASE_URL}``, or be ``file:/path``: they are read where the
    place is opened, so that a password is written nowhere."""
    redis: str = ""
    """``cluster`` only, the online store: ``host:port``, then parameters of the connection:
    ``redis:6379,db=1,password=${REDIS_PASSWORD}``."""
    offline: str = ""
    """``cluster`` only: where the published tables lie as Parquet, a directory or ``s3://bucket/prefix``."""
    history_length: Positive = 100_000
    """Online histories keep this many newest items; the default is longer than any real history, so none is cut."""

    @model_validator(mode="after")
    def _addresses_of_the_place(self) -> Self:
        if self.place == "cluster":
            if missing := [name for name in ("database", "redis", "offline") if not getattr(self, name)]:
                raise ValueError(f"place is 'cluster', but {missing[0]} is empty; set features.{missing[0]}")
            return self
        if foreign := [name for name in ("database", "redis", "offline") if getattr(self, name)]:
            raise ValueError(
                f"{foreign[0]} is set, but place is 'directory', which has none; set features.place=cluster, or leave "
                f"features.{foreign[0]} out"
            )
        return self


class TextConfig(Section):
    """The sentence encoder behind item texts and preferences."""

    provider: Literal["minilm", "sentence-transformers", "hashing"] = "minilm"
    """``minilm`` ships in a package; ``sentence-transformers`` loads ``model``; ``hashing`` is for tests."""
    model: str = "BAAI/bge-large-en-v1.5"
    """Name or path for ``sentence-transformers``."""
    width: Positive = 256
    """Vector width of ``hashing`` only."""
