"""Feast definitions: entities user and item, each user's history, and the catalogue's attributes.

Sources are Parquet files named relative to the feature repository that the definitions are applied in, so that one
definition serves every published store. ``user_history`` is the narrow view on the serving path: complete histories,
test targets included, for serving only; training and evaluation read the dataset. New interactions come in through its
push source, as whole rows. Every row carries the time of its newest event and, in ``created``, the time it was
published or pushed: a point-in-time join must filter by both. Views have no time to live, because a history does not
expire.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Int64, String
from feast.value_type import ValueType

USER_HISTORY_FILE = "offline/user_history.parquet"
ITEM_ATTRIBUTES_FILE = "offline/item_attributes.parquet"
USER_HISTORY_PUSH = "user_history_push"

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A user, by its own id")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="An item, by its own id")

user_history_source = FileSource(
    name="user_history_source",
    path=USER_HISTORY_FILE,
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)
user_history_push = PushSource(
    name=USER_HISTORY_PUSH, batch_source=user_history_source, description="Histories with events of now"
)
item_attributes_source = FileSource(
    name="item_attributes_source",
    path=ITEM_ATTRIBUTES_FILE,
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)

user_history = FeatureView(
    name="user_history",
    entities=[user],
    ttl=timedelta(0),
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="item_ids", dtype=Array(String), description="Items the user interacted with, newest last"),
        Field(name="timestamps", dtype=Array(Int64), description="When, in the dataset's time unit, as item_ids"),
        Field(name="interactions", dtype=Int64, description="Number of interactions, before any limit on item_ids"),
        Field(name="last_timestamp", dtype=Int64, description="Timestamp of the newest, in the dataset's time unit"),
    ],
    source=user_history_push,
    description="Each user's history",
)
item_attributes = FeatureView(
    name="item_attributes",
    entities=[item],
    ttl=timedelta(0),
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="title", dtype=String),
        Field(name="phrases", dtype=Array(String), description="Lower-case attribute phrases, catalogue order"),
    ],
    source=item_attributes_source,
    description="The catalogue",
)
recommender = FeatureService(
    name="recommender", features=[user_history[["item_ids"]]], description="What the recommender reads per request"
)

OBJECTS = (user, item, user_history_push, user_history, item_attributes, recommender)
