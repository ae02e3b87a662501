"""What the compiled YAML tells Kubernetes of each task's pod, and what is refused before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deeprec.config import Config
from deeprec.errors import ConfigError
from deeprec.pipelines import training

DIGEST = "sha256:" + "0" * 64
POD: dict[str, Any] = {
    "volumes": [{"claim": "shop", "path": "/data", "sub_path": "2026"}],
    "env": {"WHO": "everybody"},
    "secrets": {"store": ["AWS_ACCESS_KEY_ID"], "hub": {"token": "HF_TOKEN"}},
    "labels": {"kueue.x-k8s.io/queue-name": "cpus"},
    "pull_secrets": ["registry"],
    "scratch": "20Gi",
    "timeout_seconds": 3600,
}
STAGE: dict[str, Any] = {
    "env": {"MORE": "1"},
    "secrets": {"hub": {"token": "HUGGING_FACE"}},
    "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
    "volumes": [{"claim": "models", "path": "/models"}],
    "gpus": 1,
    "cpu": 4,
    "timeout_seconds": 0,
    "user": 1234,
}


def config(**changed: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {"source": "table", "path": "/data/shop"},
        "features": {"path": "/data/features"},
        "pipeline": {"image": f"r/deeprec-train@{DIGEST}", "default": POD, "tasks": {"train-stage-1": STAGE}},
    }
    for name, values in changed.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    path = tmp_path_factory.mktemp("compiled") / "train.yaml"
    training.compile(config(), path)
    graph, platforms = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return graph, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def pod_of(compiled: Any, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's container, and what the platform part says of its pod."""
    graph, pods = compiled
    names = {one["taskInfo"]["name"]: one["componentRef"]["name"] for one in graph["root"]["dag"]["tasks"].values()}
    executor = names[task].replace("comp-", "exec-")
    return graph["deploymentSpec"]["executors"][executor]["container"], pods[executor]


def test_a_task_has_the_mounts_credentials_and_limits_of_the_default(compiled: Any) -> None:
    container, pod = pod_of(compiled, "ingest")
    [mount] = pod["pvcMount"]
    assert (mount["constant"], mount["mountPath"], mount["subPath"]) == ("shop", "/data", "2026")
    secrets = {one["secretName"]: one["keyToEnv"] for one in pod["secretAsEnv"]}
    assert secrets == {
        "store": [{"secretKey": "AWS_ACCESS_KEY_ID", "envVar": "AWS_ACCESS_KEY_ID"}],
        "hub": [{"secretKey": "token", "envVar": "HF_TOKEN"}],
    }
    assert pod["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "cpus"}
    assert [one["secretName"] for one in pod["imagePullSecret"]] == ["registry"]
    assert pod["activeDeadlineSeconds"] == "3600"
    assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "0", "runAsNonRoot": True}
    assert pod["emptyDirMounts"] == [{"volumeName": "home", "mountPath": "/home/deeprec", "sizeLimit": "20Gi"}]
    told = {one["name"]: one["value"] for one in container["env"]}
    assert told["WHO"] == "everybody"
    assert told["HF_HUB_DISABLE_TELEMETRY"] == "1", "what a local run's tasks are told"


def test_what_a_task_names_is_laid_over_the_default(compiled: Any) -> None:
    container, pod = pod_of(compiled, "train-stage-1")
    assert {one["mountPath"]: one["constant"] for one in pod["pvcMount"]} == {"/data": "shop", "/models": "models"}
    secrets = {one["secretName"]: one["keyToEnv"] for one in pod["secretAsEnv"]}
    assert secrets["hub"] == [{"secretKey": "token", "envVar": "HUGGING_FACE"}]
    assert "store" in secrets
    assert pod["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert "activeDeadlineSeconds" not in pod
    assert pod["securityContext"]["runAsUser"] == "1234"
    told = {one["name"]: one["value"] for one in container["env"]}
    assert (told["WHO"], told["MORE"], told["DEEPREC_GPUS"]) == ("everybody", "1", "1")
    assert container["resources"]["resourceCpuRequest"] == "4"


def test_every_pod_can_write_in_its_home_alone(compiled: Any) -> None:
    """Where a cluster makes roots read-only: the commands of KFP's components make a directory first of all."""
    _, pods = compiled
    for name, pod in pods.items():
        assert "/home/deeprec" in {one["mountPath"] for one in pod["emptyDirMounts"]}, name


def test_a_claim_may_be_the_home(tmp_path: Path) -> None:
    volumes = [*POD["volumes"], {"claim": "home", "path": "/home/deeprec"}]
    training.compile(config(pipeline={"default": {**POD, "volumes": volumes}}), tmp_path / "train.yaml")
    _, platforms = yaml.safe_load_all((tmp_path / "train.yaml").read_text(encoding="utf-8"))
    pod = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-ingest"]
    assert "emptyDirMounts" not in pod
    assert "/home/deeprec" in {one["mountPath"] for one in pod["pvcMount"]}


def test_what_stands_behind_a_gate_gets_neither_volumes_nor_credentials(compiled: Any) -> None:
    container, pod = pod_of(compiled, "require-trm")
    assert not {"pvcMount", "secretAsEnv", "activeDeadlineSeconds"} & set(pod)
    assert pod["emptyDirMounts"] == [{"volumeName": "home", "mountPath": "/home/deeprec"}]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "cpus"}
    assert container["image"].endswith(DIGEST)


def test_the_tasks_that_read_a_sections_path_are_those_that_are_given_it(compiled: Any) -> None:
    graph, _ = compiled
    for section, tasks in training.READERS.items():
        given = {
            task["taskInfo"]["name"]
            for task in graph["root"]["dag"]["tasks"].values()
            for parameter in task["inputs"].get("parameters", {}).values()
            if section
            in (
                parameter.get("componentInputParameter"),
                parameter.get("taskOutputParameter", {}).get("outputParameterKey"),
            )
        }
        beside = {"refit", "preflight", "select-prompts"}  # which are given sections whose paths they do not touch
        assert given - beside == set(tasks) - beside, section
        assert set(tasks) <= given


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"data": {"path": "/elsewhere/shop"}},
            r"data\.path is '/elsewhere/shop', which lies on no volume of the pod of",
        ),
        ({"data": {"path": "shop"}}, r"data\.path is 'shop', which lies on no volume of the pod of preflight; name"),
        ({"data": {"path": "/database"}}, r"data\.path is '/database'"),
        ({"data": {"path": "/data/../shop"}}, r"data\.path is '/data/\.\./shop', which lies on no volume"),
        ({"features": {"path": "/features"}}, r"features\.path is '/features'.*\{claim: NAME, path: /features\}"),
        ({"features": {"path": ""}}, r"features\.path is empty, so that histories would end with a pod"),
        ({"bundle": {"uri": "/shelf"}}, r"bundle\.uri is '/shelf', .* of the pod of preflight"),
        ({"trm": {"continue_from": "/shelf"}}, r"trm\.continue_from is '/shelf', .* of the pod of preflight"),
        ({"text": {"model": "/models/bge"}}, r"text\.model is '/models/bge', .* of the pod of train-trm"),
        ({"policy": {"model": "/models/qwen"}}, r"policy\.model is '/models/qwen', .* of the pod of build-policy"),
    ],
)
def test_a_path_that_no_volume_holds_is_refused(tmp_path: Path, changed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training.compile(config(**changed), tmp_path / "train.yaml")
    assert not (tmp_path / "train.yaml").exists()


def test_addresses_and_names_of_models_need_no_volume(tmp_path: Path) -> None:
    named = config(bundle={"uri": "s3://b/shelf"}, policy={"model": "Qwen/Qwen2.5-7B"}, text={"model": "BAAI/bge"})
    training.compile(named, tmp_path / "train.yaml")
    assert "s3://b/shelf" in (tmp_path / "train.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("image", ["r/deeprec-train:0.2.0", "deeprec-train", f"r/deeprec-train@{DIGEST[:-1]}"])
def test_an_image_by_tag_is_refused_unless_tags_are_taken(tmp_path: Path, image: str) -> None:
    named = {"tasks": {"evaluate": {"image": image}}}
    with pytest.raises(ConfigError, match=r"the image of evaluate is .*, a tag, .*pipeline\.allow_tags"):
        training.compile(config(pipeline=named), tmp_path / "train.yaml")
    training.compile(config(pipeline={**named, "allow_tags": True}), tmp_path / "train.yaml")
