"""What every test of the pipelines needs."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def stacks_are_quick(quick_stacks: None) -> None:
    """See ``quick_stacks``."""
