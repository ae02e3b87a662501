"""What every test of the pipelines needs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_stacks() -> Iterator[None]:
    """Stacks without lines of source: KFP asks 50 times who called it, and pytest's stack is deep."""
    with mock.patch.object(inspect, "stack", functools.partial(inspect.stack, 0)):
        yield
