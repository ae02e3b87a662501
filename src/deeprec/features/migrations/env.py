"""What Alembic runs: the steps, on the connection that ``deeprec.features.migrate`` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
