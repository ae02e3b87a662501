"""How a place's tables came to be, step by step, for Alembic; ``deeprec.features.migrate`` takes the steps."""
