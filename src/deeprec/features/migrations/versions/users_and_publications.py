"""Events are numbered by user, users are locked one by one, publications stand beside one another."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Number the events that there are, and make the other tables."""
    op.add_column("events", sa.Column("number", sa.BigInteger))
    op.execute(
        "UPDATE events SET number = counted.number FROM (SELECT position, row_number() OVER "
        "(PARTITION BY user_id ORDER BY position) AS number FROM events) AS counted "
        "WHERE counted.position = events.position"
    )
    with op.batch_alter_table("events", table_kwargs={"sqlite_autoincrement": True}) as events:
        events.alter_column("number", existing_type=sa.BigInteger, nullable=False)
    op.create_index("events_of_user", "events", ["user_id", "number"], unique=True)
    op.create_index("events_by_time", "events", ["user_id", "timestamp"])
    op.create_table(
        "users",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("shown", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO users SELECT user_id, count(*), 0 FROM events GROUP BY user_id")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE INDEX users_to_show ON users (user_id) WHERE shown < events")
    op.create_table(
        "forgotten",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    place = op.create_table(
        "place",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
    )
    op.bulk_insert(place, [{"name": secrets.token_hex(4), "key": secrets.token_hex(32)}])
    op.create_table(
        "publications",
        sa.Column("publication", sa.Text, primary_key=True),
        sa.Column("made", sa.Text, nullable=False),
        sa.Column("history_length", sa.BigInteger, nullable=False),
        sa.Column("time_unit", sa.Text, nullable=False),
        sa.Column("repeats", sa.Text, nullable=False),
        sa.Column("users", sa.BigInteger, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("whole", sa.Integer, nullable=False),
    )
    op.create_table(
        "published_users",
        sa.Column("publication", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("interactions", sa.BigInteger, nullable=False),
        sa.Column("last_timestamp", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "published_items",
        sa.Column("publication", sa.Text, primary_key=True),
        sa.Column("item_id", sa.Text, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("phrases", sa.Text, nullable=False),
    )
