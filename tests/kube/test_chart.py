"""The chart: what it renders is valid, safe and whole in every combination; mistakes end with what to set."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube import promtool
from tests.kube.rendered import CHART, Rendered, combined, faults, render, render_values
from tests.kube.tools import refused, run
from tests.kube.valid import definitions, objections

pytestmark = pytest.mark.kube

GOLDEN = Path(__file__).parent / "golden"
PROFILES = ("cpu", "gpu", "dev")


def profile(name: str, *options: object) -> list[Rendered]:
    """What the chart renders with a profile's values, with the defaults where there is no name."""
    return render(*(("--values", CHART / f"values-{name}.yaml") if name else ()), *options)


# ------------------------------------------------------------------------------------------------- valid and safe


@pytest.mark.parametrize("name", PROFILES)
def test_helm_has_nothing_to_say_against_it(name: str) -> None:
    said = run("helm", "lint", "--strict", CHART, "--values", CHART / f"values-{name}.yaml")
    assert "1 chart(s) linted, 0 chart(s) failed" in said


@pytest.mark.parametrize("name", ["", *PROFILES])
def test_a_profile_breaks_no_rule_and_is_valid(name: str) -> None:
    objects = profile(name)
    assert faults(objects) == []
    assert [f"{one}: {said}" for one in objects for said in objections(one.object)] == []


def test_no_combination_of_values_breaks_a_rule_or_is_invalid(tmp_path: Path) -> None:
    assert len(combined()) >= 50
    kinds: set[str] = set()
    for values in combined():
        objects = render_values(values, tmp_path)
        assert faults(objects) == [], values
        assert [f"{one}: {said}" for one in objects for said in objections(one.object)] == [], values
        kinds |= {one.kind for one in objects}
    assert kinds == {
        "ConfigMap", "CronJob", "Deployment", "InferenceService", "Job", "LocalQueue", "NetworkPolicy", "Pod",
        "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "Role", "RoleBinding", "Service", "ServiceAccount",
        "ServingRuntime",
    }  # fmt: skip


@pytest.mark.skipif(definitions() is None, reason="the CustomResourceDefinitions are not at hand")
def test_a_field_that_kserve_does_not_know_is_found() -> None:
    [service] = [one for one in profile("cpu") if one.kind == "InferenceService"]
    wrong = copy.deepcopy(service.object)
    wrong["spec"]["predictor"]["modle"] = {}
    assert any("modle" in said for said in objections(wrong))


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    [deployment] = [one for one in profile("") if one.kind == "Deployment"]
    wrong = copy.deepcopy(deployment.object)
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    assert list(objections(wrong))


def container(one: Rendered) -> dict[str, Any]:
    spec = one.object["spec"]
    found: dict[str, Any] = (spec if "containers" in spec else spec["template"]["spec"])["containers"][0]
    return found


PLANTED: dict[str, tuple[str, Callable[[Rendered], Any]]] = {
    "confined": ("Deployment", lambda one: container(one)["securityContext"].update(readOnlyRootFilesystem=False)),
    "no requests.cpu": ("ServingRuntime", lambda one: container(one)["resources"]["requests"].pop("cpu")),
    "a probe is missing": ("ServingRuntime", lambda one: container(one).pop("startupProbe")),
    "can be moved": ("Job", lambda one: container(one).update(image="r/deeprec-serve:latest")),
    "is a plain value": (
        "Deployment", lambda one: container(one)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    ),
    "may run as root": ("Job", lambda one: one.object["spec"]["template"]["spec"].pop("securityContext")),
    "is given a token": (
        "Deployment", lambda one: one.object["spec"]["template"]["spec"].pop("automountServiceAccountToken"),
    ),
    "is of the node": (
        "Deployment",
        lambda one: one.object["spec"]["template"]["spec"]["volumes"].append({"name": "n", "hostPath": {"path": "/"}}),
    ),
    "may fill the node's disk": (
        "Deployment",
        lambda one: one.object["spec"]["template"]["spec"]["volumes"].append({"name": "n", "emptyDir": {}}),
    ),
    "change with a version": (
        "PodDisruptionBudget",
        lambda one: one.object["spec"]["selector"]["matchLabels"].update({"app.kubernetes.io/version": "0.2.0"}),
    ),
    "selects no pod": (
        "Service", lambda one: one.object["spec"]["selector"].update({"app.kubernetes.io/component": "other"}),
    ),
    "in no table of the chart's README": (
        "Deployment",
        lambda one: container(one)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "deeprec-store", "key": "OTHER"}}}
        ),
    ),
    "there is no ConfigMap": ("ConfigMap", lambda one: one.object["metadata"].update(name="another")),
    "there is no volume": (
        "Job", lambda one: container(one)["volumeMounts"].append({"name": "data", "mountPath": "/data"}),
    ),
    "hands its token to every pod": (
        "ServiceAccount", lambda one: one.object.pop("automountServiceAccountToken"),
    ),
    "an account that the chart does not make": (
        "Deployment", lambda one: one.object["spec"]["template"]["spec"].update(serviceAccountName="default"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_rule_names_the_file_and_the_fault(fault: str) -> None:
    kind, plant = PLANTED[fault]
    objects = profile("cpu")
    planted = next(one for one in objects if one.kind == kind)
    plant(planted)
    found = faults(objects)
    assert found, fault
    assert all(said.startswith("templates/") for said in found)
    assert any(fault in said for said in found), found


def test_the_values_that_the_page_on_installing_shows_are_taken(tmp_path: Path) -> None:
    page = (CHART.parents[1] / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    [values] = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "shop.yaml").write_text(values, encoding="utf-8")
    objects = profile("cpu", "--values", tmp_path / "shop.yaml")
    assert faults(objects) == []
    assert "s3://shop/bundles" in str([one.object for one in objects if one.kind == "InferenceService"])


# ------------------------------------------------------------------------------------------------------- as it is said


def settings_of(objects: list[Rendered]) -> str:
    """The configuration that the servers are given."""
    [found] = [one.object["data"] for one in objects if one.kind == "ConfigMap" and "config.yaml" in one.object["data"]]
    return str(found["config.yaml"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"drain_seconds": 3.5, "max_deadline_ms": 4000}, {"stop_seconds": 12, "port": 9000}, {"admin_port": None}],
)
def test_ports_probes_and_grace_are_those_that_the_servers_print(tmp_path: Path, changes: dict[str, Any]) -> None:
    objects = render_values({"config": {"serving": changes}, "serving": {"bootstrap": {"enabled": True}}}, tmp_path)
    (tmp_path / "config.yaml").write_text(settings_of(objects), encoding="utf-8")
    for server, kind in (("recommender", "ServingRuntime"), ("trm", "ServingRuntime"), ("events", "Deployment")):
        named = [one for one in objects if one.kind == kind and f"-{server}" in one.name]
        bundle = [] if server == "events" else ["/mnt/models"]
        command = [sys.executable, "-m", "deeprec", "serve", server, *bundle, "--config", str(tmp_path / "config.yaml")]
        environment = {**os.environ, "DEEPREC_DATABASE": "postgresql://d", "DEEPREC_REDIS": "r:1"}
        printed = subprocess.run(
            [*command, "--print-pod"], capture_output=True, text=True, check=True, env=environment
        ).stdout
        told = yaml.safe_load(printed)
        [said] = told["containers"]
        assert {key: container(named[0])[key] for key in said} == said, server
        if server != "trm":
            spec = (
                named[0].object["spec"]["template"]["spec"]
                if server == "events"
                else next(one for one in objects if one.kind == "InferenceService").object["spec"]["predictor"]
            )
            assert spec["terminationGracePeriodSeconds"] == told["terminationGracePeriodSeconds"], server


def test_the_servers_take_the_configuration_that_is_rendered(tmp_path: Path) -> None:
    from deeprec.config import load_config

    for name in ("", *PROFILES):
        (tmp_path / "config.yaml").write_text(settings_of(profile(name)), encoding="utf-8")
        found = load_config(tmp_path / "config.yaml")
        assert found.serving.host == "0.0.0.0"
        assert (found.features.place, found.features.offline) == ("cluster", "s3://deeprec/features")


def test_a_digest_wins_over_a_tag_and_a_tag_over_the_version() -> None:
    digest = f"sha256:{'1' * 64}"
    told = render("--set", "images.registry=r.example/", "--set", "images.serve.tag=0.1.9")
    assert container(next(one for one in told if one.kind == "Deployment"))["image"] == "r.example/deeprec-serve:0.1.9"
    told = render("--set", f"images.serve.digest={digest}", "--set", "images.serve.tag=0.1.9")
    assert container(next(one for one in told if one.kind == "Deployment"))["image"] == f"deeprec-serve@{digest}"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("features.secret=", "events.enabled is true, but features.secret is empty"),
        ("features.secret=,events.enabled=false", "migrate.enabled is true, but features.secret is empty"),
        ("features.offline=", "features.offline is empty; set it to"),
        ("events.enabled=false,events.tokenSecret=t", "events.tokenSecret is set, but events.enabled is false"),
        ("serving.bootstrap.enabled=true,serving.bootstrap.bundle=", "serving.bootstrap.bundle is empty; set it to"),
        ("policy.enabled=true,policy.gpus=0", "policy.gpus is 0, and vLLM needs an accelerator; set policy.gpus to 1"),
        ("pipeline.queue.enabled=true", "pipeline.queue.clusterQueue is empty; name the ClusterQueue"),
        ("pipeline.schedule.enabled=true", "pipeline.config is empty; name a ConfigMap whose key config.yaml"),
        ("serving.timeoutSeconds=30", "serving.timeoutSeconds is 30, but a request may ask for 30000 ms"),
        ("config.features.path=/x", "config.features is not the servers' to set"),
        ("config.serving.host=::", "config.serving.host is the chart's to set"),
        ("images.serve.tag=latest", "images.serve.tag is latest, which can be moved"),
        ("images.serve.digest=sha256:12", "'sha256:12' does not match pattern"),
        ("serving.replicas=0", "at '/serving/replicas': minimum: got 0, want 1"),
        ("policy.strategy=none", "value must be one of 'one-gpu', 'rolling'"),
        ("serving.replica=2", "additional properties 'replica' not allowed"),
    ],
)
def test_a_mistake_ends_with_what_to_set(settings: str, complaint: str) -> None:
    assert complaint in refused("helm", "template", "deeprec", CHART, "--set", settings)


def test_what_is_generated_is_as_the_values_say_and_every_value_is_explained() -> None:
    sys.path.insert(0, str(CHART.parent))
    try:
        import values
    finally:
        sys.path.pop(0)
    for path, content in values.written().items():
        assert path.read_text(encoding="utf-8") == content, f"python helm/values.py writes {path.name} anew"
    for group in values.read((CHART / "values.yaml").read_text(encoding="utf-8")):
        assert all(leaf.text for _, leaf in values.leaves(group)), group.name


def test_the_chart_is_of_the_packages_version() -> None:
    from deeprec import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


# --------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_profile_is_its_golden_file(name: str) -> None:
    found = [one.object for one in profile(name)]
    check_golden(f"{name}.yaml", found)


def test_what_no_definition_is_at_hand_for_is_its_golden_file() -> None:
    options = ("--set", "monitoring.kind=podMonitor", "--set", "monitoring.rules=true")
    found = [one.object for one in profile("gpu", *options) if one.object["apiVersion"].startswith("monitoring.")]
    check_golden("monitoring.yaml", found)


def check_golden(name: str, found: list[dict[str, Any]]) -> None:
    """After an intended change: DEEPREC_UPDATE_GOLDEN=1, and read the diff."""
    path = GOLDEN / name
    if os.environ.get("DEEPREC_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump_all(found, sort_keys=True, width=120), encoding="utf-8")
    assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) == found


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    promtool.check(profile("", "--set", "monitoring.rules=true"), tmp_path)
