"""Feast definitions: entities user and item, each publication's views, and the events accepted since.

A publication is two views of its own, named after it: users' histories and the catalogue's attributes. Their sources
are the Parquet files that were published. ``user_history_NAME`` holds complete histories, test targets included, for
serving only; training and evaluation read the dataset. The events that servers accept are in one view for all
publications, pushed as whole rows: a user's newest ones in ``user_events``, older ones, ``SEGMENT`` a row, in
``user_event_segments``. Views have no time to live, because a history does not expire.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Int64, String
from feast.value_type import ValueType

USER_HISTORY_FILE = "user_history.parquet"
ITEM_ATTRIBUTES_FILE = "item_attributes.parquet"
SEGMENT = 100
"""Events in one row at most."""

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A user, by its own id")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="An item, by its own id")
segment = Entity(name="segment", join_keys=["segment"], value_type=ValueType.INT64, description="From 0, the oldest")

_EVENT_FIELDS = [
    Field(name="events", dtype=Int64, description="Number of the newest event of this row, from 1"),
    Field(name="event_items", dtype=Array(String), description="Items, in the order of acceptance"),
    Field(name="event_timestamps", dtype=Array(Int64), description="When, in the dataset's time unit"),
]


def _source(name: str, path: str) -> FileSource:
    return FileSource(name=name, path=path, timestamp_field="event_timestamp", created_timestamp_column="created")


def history_view(publication: str) -> str:
    """Name of a publication's view of histories."""
    return f"user_history_{publication}"


def item_view(publication: str) -> str:
    """Name of a publication's view of items."""
    return f"item_attributes_{publication}"


def service(publication: str) -> str:
    """Name of what a recommender reads for a request."""
    return f"recommender_{publication}"


def events(folder: str) -> list:
    """What all publications share; ``folder`` is where Parquet files lie."""
    batch = _source("accepted_events_source", f"{folder}/accepted_events.parquet")
    pushed = PushSource(name="accepted_events", batch_source=batch, description="Events as servers accept them")
    newest = FeatureView(
        name="user_events",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="user_id", dtype=String), *_EVENT_FIELDS],
        source=pushed,
        description="Each user's newest accepted events, and how many there are",
    )
    older = FeatureView(
        name="user_event_segments",
        entities=[user, segment],
        ttl=timedelta(0),
        schema=[Field(name="user_id", dtype=String), Field(name="segment", dtype=Int64), *_EVENT_FIELDS],
        source=pushed,
        description="Each user's accepted events, row by full row",
    )
    return [user, item, segment, pushed, newest, older]


def publication(name: str, folder: str) -> list:
    """The views of the publication ``name``, whose Parquet files lie in ``folder``."""
    histories = FeatureView(
        name=history_view(name),
        entities=[user],
        ttl=timedelta(0),
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="item_ids", dtype=Array(String), description="Items the user interacted with, newest last"),
            Field(name="timestamps", dtype=Array(Int64), description="When, in the dataset's time unit, as item_ids"),
            Field(name="interactions", dtype=Int64, description="Number of interactions, before any limit on item_ids"),
            Field(name="logged", dtype=Int64, description="How many of the user's accepted events are in it"),
        ],
        source=_source(f"{history_view(name)}_source", f"{folder}/{USER_HISTORY_FILE}"),
        description="Each user's history when it was published",
    )
    items = FeatureView(
        name=item_view(name),
        entities=[item],
        ttl=timedelta(0),
        schema=[
            Field(name="item_id", dtype=String),
            Field(name="title", dtype=String),
            Field(name="phrases", dtype=Array(String), description="Lower-case attribute phrases, catalogue order"),
        ],
        source=_source(f"{item_view(name)}_source", f"{folder}/{ITEM_ATTRIBUTES_FILE}"),
        description="The catalogue",
    )
    read = FeatureService(
        name=service(name), features=[histories], description="What the recommender reads per request, with user_events"
    )
    return [histories, items, read]
