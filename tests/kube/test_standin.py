"""The stand-in for the cluster behaves as KServe's source and Kubernetes' rules say, asked by the official clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve as kserve_types
import pytest
import yaml
from kserve import KServeClient
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

from tests.kube.valid import definitions, installed
from tests.standins.api import ApiServer
from tests.standins.kserve import SERVICES, SERVING, Controller, Plan, Server
from tests.standins.objects import Key, Objects

pytestmark = [pytest.mark.kube, pytest.mark.skipif(definitions() is None, reason="there are no definitions at hand")]

GROUP, VERSION = SERVING.split("/")
OLD, NEW = "0" * 16, "1" * 16


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    found = Controller(Objects(), {version: Server(f"http://{version}", "") for version in (OLD, NEW)})
    api = ApiServer(found.objects, definitions=installed(), route=found.route)
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(api.kubeconfig), encoding="utf-8")
    config.load_kube_config(str(tmp_path / "kubeconfig"))
    yield found
    api.close()
    found.close()


@pytest.fixture
def kserve(controller: Controller, tmp_path: Path) -> KServeClient:
    return KServeClient(config_file=str(tmp_path / "kubeconfig"))


def predictor(version: str, **more: Any) -> dict[str, Any]:
    model = {"name": "kserve-container", "modelFormat": {"name": "deeprec"}, "storageUri": f"s3://shop/{version}"}
    return {"name": f"r-{version}", "model": model, **more}


def service(stable: str, *canaries: tuple[str, int], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": SERVING,
        "kind": "InferenceService",
        "metadata": {
            "name": "deeprec",
            "namespace": "shop",
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {
            "predictor": predictor(stable, **more),
            "canary": [{"trafficPercent": weight, "predictor": predictor(version)} for version, weight in canaries],
        },
    }


def typed(thing: dict[str, Any]) -> Any:
    """The same as KServe's own types have it, which its client takes."""
    spec = thing["spec"]
    canaries = [
        kserve_types.V1beta1CanarySpec(traffic_percent=one["trafficPercent"], predictor=_predictor(one["predictor"]))
        for one in spec["canary"]
    ]
    return kserve_types.V1beta1InferenceService(
        api_version=thing["apiVersion"],
        kind=thing["kind"],
        metadata=client.V1ObjectMeta(**thing["metadata"]),
        spec=kserve_types.V1beta1InferenceServiceSpec(predictor=_predictor(spec["predictor"]), canary=canaries),
    )


def _predictor(thing: dict[str, Any]) -> Any:
    model = thing["model"]
    form = kserve_types.V1beta1ModelFormat(name=model["modelFormat"]["name"])
    spec = kserve_types.V1beta1ModelSpec(name=model["name"], model_format=form, storage_uri=model["storageUri"])
    return kserve_types.V1beta1PredictorSpec(name=thing["name"], model=spec)


def routes(controller: Controller) -> dict[str, int]:
    return {server.url.removeprefix("http://"): weight for server, weight in controller.backends("deeprec")}


def test_kserves_own_client_makes_waits_for_and_deletes_a_service(kserve: KServeClient, controller: Controller) -> None:
    made = kserve.create(typed(service(OLD)), namespace="shop")
    assert made["metadata"]["generation"] == 1
    kserve.wait_isvc_ready("deeprec", namespace="shop", timeout_seconds=10, polling_interval=0.1)
    assert routes(controller) == {OLD: 100}
    kserve.delete("deeprec", namespace="shop")
    with pytest.raises(RuntimeError, match="not found"):
        kserve.get("deeprec", namespace="shop")
    controller.settled()
    assert not controller.workloads


def test_a_canary_gets_traffic_when_it_is_ready_and_is_promoted_without_new_pods(
    kserve: KServeClient, controller: Controller
) -> None:
    controller.plans[NEW] = Plan(ready_after=0.5)
    kserve.create(typed(service(OLD)), namespace="shop")
    kserve.patch("deeprec", typed(service(OLD, (NEW, 10))), namespace="shop")
    controller.settled()
    assert routes(controller) == {OLD: 100}, "it is not ready yet"
    assert kserve.get("deeprec", namespace="shop")["status"]["canaryStatuses"][0]["ready"] is False
    time.sleep(0.8)
    assert routes(controller) == {OLD: 90, NEW: 10}
    began = controller.workloads[f"deeprec-r-{NEW}-predictor"].made
    kserve.patch("deeprec", typed(service(NEW, (OLD, 0))), namespace="shop")
    controller.settled()
    assert routes(controller) == {NEW: 100}
    assert controller.workloads[f"deeprec-r-{NEW}-predictor"].made == began, "its pods were there"
    assert controller.workloads[f"deeprec-r-{OLD}-predictor"].replicas == 0, "a weight of 0 alone means no pods"
    kserve.patch("deeprec", typed(service(NEW)), namespace="shop")
    controller.settled()
    assert set(controller.workloads) == {f"deeprec-r-{NEW}-predictor"}, "what is not named is an orphan"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({**service(OLD, (NEW, 10)), "metadata": {"name": "deeprec", "namespace": "shop"}}, "deploymentMode: Standard"),
        (service(OLD, (OLD, 10)), "names must be unique"),
        (service(OLD, (NEW, 101)), "trafficPercent"),
        (service(OLD, (NEW, 60), ("2" * 16, 50)), "above 100"),
    ],
)
def test_what_kserve_would_not_admit_is_refused(
    kserve: KServeClient, controller: Controller, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        kserve.create(typed(wrong), namespace="shop")


def test_a_name_changes_only_with_its_storage(kserve: KServeClient, controller: Controller) -> None:
    kserve.create(typed(service(OLD)), namespace="shop")
    renamed = service(OLD)
    renamed["spec"]["predictor"]["name"] = "another"
    with pytest.raises(RuntimeError, match=r"predictor\.name may change only with the storage URI"):
        kserve.patch("deeprec", typed(renamed), namespace="shop")


def test_a_pod_that_crashes_after_it_was_ready_is_noticed_at_the_next_look(
    kserve: KServeClient, controller: Controller
) -> None:
    controller.plans[NEW] = Plan(crash_after=0.3)
    kserve.create(typed(service(OLD)), namespace="shop")
    kserve.patch("deeprec", typed(service(OLD, (NEW, 10))), namespace="shop")
    time.sleep(0.8)
    assert routes(controller) == {OLD: 100}
    assert kserve.get("deeprec", namespace="shop")["status"]["canaryStatuses"][0]["ready"] is False


def test_server_side_apply_gives_each_field_its_owner(controller: Controller) -> None:
    objects, key = controller.objects, Key(SERVING, SERVICES, "shop", "deeprec")
    objects.apply(key, service(OLD, minReplicas=1), "deeprec", force=False)
    objects.merge(key, {"spec": {"predictor": {"minReplicas": 3}}}, "kubectl-edit")
    with pytest.raises(Exception, match=r'conflict with "kubectl-edit": \.spec\.predictor\.minReplicas'):
        objects.apply(key, service(OLD, minReplicas=1), "deeprec", force=False)
    objects.apply(key, service(OLD, minReplicas=3), "deeprec", force=False)
    assert objects.owners(key)["spec.predictor.minReplicas"] == ["deeprec", "kubectl-edit"], "equal values are shared"
    objects.apply(key, service(OLD, minReplicas=1), "deeprec", force=True)
    assert objects.owners(key)["spec.predictor.minReplicas"] == ["deeprec"]
    objects.apply(key, service(OLD), "deeprec", force=False)
    assert "minReplicas" not in objects.get(key)["spec"]["predictor"], "what nobody wants any more goes"


def test_a_write_from_an_old_state_conflicts_and_an_old_watch_is_gone(controller: Controller) -> None:
    custom = client.CustomObjectsApi()
    made = custom.create_namespaced_custom_object(GROUP, VERSION, "shop", SERVICES, service(OLD))
    with pytest.raises(ApiException) as twice:
        custom.create_namespaced_custom_object(GROUP, VERSION, "shop", SERVICES, service(OLD))
    assert twice.value.status == 409
    patch = {"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}}
    with pytest.raises(ApiException) as stale:
        custom.patch_namespaced_custom_object(GROUP, VERSION, "shop", SERVICES, "deeprec", patch)
    assert stale.value.status == 409
    controller.objects.forget()
    listing = custom.list_namespaced_custom_object
    version = made["metadata"]["resourceVersion"]
    with pytest.raises(ApiException) as gone:
        list(
            watch.Watch().stream(listing, GROUP, VERSION, "shop", SERVICES, resource_version=version, timeout_seconds=1)
        )
    assert gone.value.status == 410


def test_a_watch_tells_what_changes(controller: Controller) -> None:
    custom = client.CustomObjectsApi()
    made = custom.create_namespaced_custom_object(GROUP, VERSION, "shop", SERVICES, service(OLD))
    found = []
    stream = watch.Watch().stream(
        custom.list_namespaced_custom_object, GROUP, VERSION, "shop", SERVICES,
        resource_version=made["metadata"]["resourceVersion"], timeout_seconds=5,
    )  # fmt: skip
    for event in stream:
        found.append(event["type"])
        if found == ["MODIFIED"]:
            controller.objects.delete(Key(SERVING, SERVICES, "shop", "deeprec"))
        if event["type"] == "DELETED":
            break
    assert found[-1] == "DELETED"
    assert "MODIFIED" in found
