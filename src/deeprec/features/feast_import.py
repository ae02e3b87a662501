"""Feast without what takes most of its time to start: run-time checks of its own types, and an offline store unread.

Feast decorates its classes with ``typeguard.typechecked``, which reads and compiles each one's source again: 3.4 of 3.9
seconds of a core, in every server and every task that reads features. What we pass to it is checked by mypy and tested.
``tests/unit/features/test_feast_import.py`` pins that it still does so and that it works without. Opening a repository
reads its offline store's settings by the class of that store, which imports Dask: another second and a half, in a
server that reads the online store alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

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


def online_only(path: Path) -> Any:
    """The feature store whose repository is ``path``, for its online store alone: the offline one cannot be used.

    Raises:
        Exception: whatever Feast raises on a repository that it cannot open.
    """
    store = feature_store()
    from feast.repo_config import RepoConfig

    settings = yaml.safe_load(os.path.expandvars((path / "feature_store.yaml").read_text(encoding="utf-8")))
    config = RepoConfig(**{**settings, "offline_store": "unread"})
    config.repo_path = path
    return store(repo_path=str(path), config=config)


def _as_it_is(target: Any = None, **_: Any) -> Any:
    return target if target is not None else _as_it_is
