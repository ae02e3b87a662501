"""Doors of a server: what is offered beside the models, on which port, under which name, and to whom."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deeprec.config import ServingConfig
from deeprec.features.directory import DirectoryPlace
from deeprec.serving.http.bundle_server import recommender_service, trm_service
from deeprec.serving.http.service import Service
from tests import forkserver
from tests.integration.servers import Hosted, hosted

PAGE = ("/v1/items", "/v1/facets", "/v1/overview")
DOORS = {"page": PAGE, "users": ("/v1/users",), "history": ("/v1/history?user_id=1",), "metrics": ("/metrics",)}


@contextmanager
def recommender(run: Path, **serving: object) -> Iterator[Hosted]:
    def make() -> Service:
        return recommender_service(
            str(run / "bundle"), ServingConfig(prepare=0, **serving), DirectoryPlace(run / "features")
        )

    with forkserver.routed(), hosted(make) as server:
        yield server


def status(server: Hosted, path: str, **more: object) -> int:
    return httpx.get(server.url + path, timeout=60, **more).status_code  # type: ignore[arg-type]


def send(server: Hosted, path: str = "/v1/events", **headers: str) -> int:
    event = {"event_id": "e", "user_id": "u", "item_id": "i"}
    bodies: dict[str, object] = {"/v1/events": {"events": [event]}}
    body = bodies.get(path, {"instances": [event]})
    return httpx.post(server.url + path, json=body, headers=headers, timeout=60).status_code


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_a_door_that_is_shut_is_not_there(small_run: Path) -> None:
    shut = dict.fromkeys([*DOORS, "events"], False)
    with recommender(small_run, doors=shut, name="shop") as server:
        assert server.ready()
        assert httpx.get(f"{server.url}/v1/models", timeout=60).json() == {"models": ["shop", "shop-trm"]}
        for path in (path for paths in DOORS.values() for path in paths):
            assert status(server, path) == 404, path
        assert send(server) == 404
        assert send(server, "/v1/models/shop-events:predict") == 404
        assert httpx.get(server.url, timeout=60).json() == {"status": "alive"}
        answer = httpx.post(f"{server.url}/v1/models/shop:predict", json={"instances": [{"history": []}]}, timeout=60)
        assert answer.status_code == 200


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_each_door_is_a_switch_of_its_own(small_run: Path) -> None:
    for name, paths in DOORS.items():
        service = recommender_service(
            str(small_run / "bundle"), ServingConfig(doors={name: False}), DirectoryPlace(small_run / "features")
        )
        from deeprec.serving.http.application import routes

        there = set(routes(service, service.public).openapi()["paths"])
        everything = {path.partition("?")[0] for found in DOORS.values() for path in found}
        assert everything - there == {path.partition("?")[0] for path in paths}


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_on_an_admin_port_the_doors_are_not_on_the_public_one(small_run: Path) -> None:
    from deeprec.serving.http.application import routes

    serving = ServingConfig(admin_port=0)
    service = recommender_service(str(small_run / "bundle"), serving, DirectoryPlace(small_run / "features"))
    assert service.admin is not None
    public, admin = routes(service, service.public), routes(service, service.admin)
    inner = {"/v1/users", "/v1/history", "/metrics", "/v1/events", "/v1/explore", *PAGE}
    assert not inner & set(public.openapi()["paths"])
    assert inner <= set(admin.openapi()["paths"])
    assert [model.name for model in service.public.models] == ["deeprec", "deeprec-trm"]
    assert [model.name for model in service.admin.models] == ["deeprec-events"]
    trm = trm_service(str(small_run / "bundle"), serving, None)
    assert [model.name for model in trm.models] == ["deeprec-trm"]
    assert trm.admin is not None
    assert trm.admin.metrics
    assert not trm.public.metrics


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_events_ask_for_the_token_in_the_file(small_run: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    features = shutil.copytree(small_run / "features", tmp_path / "features", symlinks=True)

    def make() -> Service:
        serving = ServingConfig(prepare=0, events_token=str(token), origins=("https://shop.example",))
        return recommender_service(str(small_run / "bundle"), serving, DirectoryPlace(features))

    with forkserver.routed(), hosted(make) as server:
        for path in ("/v1/events", "/v1/models/deeprec-events:predict"):
            for wrong in (
                {},
                {"Authorization": "Bearer x"},
                {"Authorization": "s3cret"},
                {"Authorization": "Basic s3cret"},
            ):
                assert send(server, path, **wrong) == 401
            assert send(server, path, Authorization="Bearer s3cret") in (200, 400)  # the item may be unknown
        token.write_text("another")
        assert send(server, Authorization="Bearer s3cret") == 401
        token.unlink()
        assert send(server, Authorization="Bearer another") == 503
        assert status(server, "/v2/health/ready") == 200
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(f"{server.url}/v1/models/deeprec:predict", headers=asked, timeout=60)
        assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
        refused = httpx.post(f"{server.url}/v1/models/deeprec:predict", headers=asked, content=b"", timeout=60)
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"
        assert refused.status_code == 415
        other = httpx.get(f"{server.url}/v2", headers={"Origin": "https://other.example"}, timeout=60)
        assert "access-control-allow-origin" not in other.headers
        assert status(server, "/v2", headers={"Host": "rebound.example"}) == 421
        assert server.metric("deeprec_http_requests_total", route="/v1/events", status="401") == 5
        predict = "/v1/models/{model_name}:predict"
        assert server.metric("deeprec_http_requests_total", route=predict, status="415") == 1
        assert server.metric("deeprec_http_requests_total", route=predict, status="401") == 4
        assert server.metric("deeprec_http_requests_total", route="/v2/health/ready", status="200") >= 1
        assert server.metric("deeprec_http_requests_total", route="none", status="421") == 1
