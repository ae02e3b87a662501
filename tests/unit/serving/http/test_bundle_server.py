"""A server of a bundle before it is loaded, and what it says of a model that is stuck."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deeprec.config import ServingConfig
from deeprec.serving.http.bundle_server import BundleServer, recommender_service
from deeprec.serving.watcher import BundleWatcher, NotLoaded


def test_a_model_that_is_stuck_ends_life_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = SimpleNamespace(busy_seconds=0.0, ready=False, explorer=SimpleNamespace(available=False))
    serving = ServingConfig(stuck_seconds=3)
    assert recommender_service(str(tmp_path / "nowhere"), serving).alive(), "a server that is loading is alive"
    monkeypatch.setattr(BundleWatcher, "loaded", True)
    monkeypatch.setattr(BundleServer, "served", lambda _: busy)
    service = recommender_service(str(tmp_path / "nowhere"), serving)
    assert service.alive(), "neither a model that is not ready nor a policy that is away ends life"
    busy.busy_seconds = 2.9
    assert service.alive()
    busy.busy_seconds = 3.1
    assert not service.alive()


def test_before_it_is_loaded_nothing_serves_and_metrics_are_there(tmp_path: Path) -> None:
    server = BundleServer(str(tmp_path / "nowhere"), ServingConfig())
    with pytest.raises(NotLoaded, match="loading its bundle"):
        server.served()
    assert NotLoaded.status == 503
    assert server.metrics.registry.get_sample_value("deeprec_queue_depth", {"queue": "trm"}) == 0
    assert server.metrics.registry.get_sample_value("deeprec_restarts_total", {"process": "policy"}) == 0
