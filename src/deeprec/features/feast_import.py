"""Feast without what takes most of its time to start: run-time checks of its own types, and an offline store unread.

Feast decorates its classes with ``typeguard.typechecked``, which reads and compiles each one's source again: 3.4 of 3.9
seconds of a core, in every server and every task that reads features. What we pass to it is checked by mypy and tested.
``tests/unit/features/test_feast_import.py`` pins that it still does so and that it works without. Opening a store reads
its offline store's settings by the class of that store, which imports Dask: another second and a half, in a
server that reads the online store alone.
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


def open_store(settings: dict[str, Any], *, offline: bool = False) -> Any:
    """The feature store of these settings, as ``feature_store.yaml`` has them; with its offline half if told so.

    Raises:
        Exception: whatever Feast raises on what it cannot open.
    """
    store = feature_store()
    from feast.repo_config import RepoConfig

    config = RepoConfig(**{**settings, "offline_store": "file" if offline else "unread"})
    return store(config=config)


def _as_it_is(target: Any = None, **_: Any) -> Any:
    return target if target is not None else _as_it_is
