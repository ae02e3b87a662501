"""Importing Feast without the run-time checks of its own types, which take most of its import.

Feast decorates its classes with ``typeguard.typechecked``, which reads and compiles each one's source again: 3.4 of 3.9
seconds of a core, in every server and every task that reads features. What we pass to it is checked by mypy and tested.
``tests/unit/features/test_feast_import.py`` pins that it still does so and that it works without.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()


@contextmanager
def unchecked_types() -> Iterator[None]:
    """Within this block, what is imported for the first time has no run-time checks of its types."""
    import typeguard

    with _lock:
        checked = typeguard.typechecked
        typeguard.typechecked = _as_it_is
        try:
            yield
        finally:
            typeguard.typechecked = checked


def feature_store() -> Any:
    """Feast's class ``FeatureStore``, imported now where it was not."""
    if "feast" not in sys.modules:
        with unchecked_types():
            import feast  # noqa: F401
    from feast import FeatureStore

    return FeatureStore


def _as_it_is(target: Any = None, **_: Any) -> Any:
    return target if target is not None else _as_it_is
