"""The TrainJob of a stage: what Kubeflow Trainer's schema asks of it, and that it runs the pipeline's own stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import Config, PipelineConfig, load_config
from deeprec.errors import ConfigError
from deeprec.policy.job import StageJob
from deeprec.policy.trainjob import train_job

ROOT = Path(__file__).parents[3]
MADE = {
    "stage": "stage1",
    "dataset": "s3://deeprec/dataset",
    "trm": "s3://deeprec/trm",
    "start": "/mnt/deeprec/start",
    "prompts": "/mnt/deeprec/prompts",
    "out": "s3://deeprec/stage1",
    "report": "/mnt/deeprec/one/report.html",
    "checkpoints": "/mnt/deeprec/one/checkpoints",
    "outcome": "/mnt/deeprec/one",
}


@pytest.fixture(scope="module")
def settings() -> Config:
    return load_config(ROOT / "configs" / "qwen2.5-7b.yaml", ("policy.parallel.nodes=2", "pipeline.default.secrets={}"))


def made(settings: Config, **changed: Any) -> StageJob:
    sections = {name: getattr(settings, name) for name in ("policy", "explore", "rewards", "text", "seed")}
    return StageJob.model_validate({**MADE, **sections, **changed})


def manifest(settings: Config, job: StageJob, **more: Any) -> dict[str, Any]:
    given = {"name": settings.name, "claim": "deeprec-work", "mount": "/mnt/deeprec", "secret": "deeprec-s3"} | more
    return train_job(job, settings.pipeline, **given)


# Fields and kinds of trainer.kubeflow.org/v1alpha1, TrainJob, as far as ours uses them; a list holds its items' schema.
ENV = [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}]
POD = {
    "volumes": [
        {"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str, "sizeLimit": str}}
    ],
    "containers": [{"name": str, "volumeMounts": [{"name": str, "mountPath": str, "subPath": str}]}],
    "securityContext": {"runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool, "fsGroup": int},
    "imagePullSecrets": [{"name": str}],
    "serviceAccountName": str,
    "nodeSelector": dict,
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
}
REPLICATED = [{"name": str, "template": {"spec": {"template": {"spec": POD}}}}]
SCHEMA = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "labels": dict},
    "spec": {
        "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "env": ENV,
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode": {"requests": dict, "limits": dict},
        },
        "runtimePatches": [
            {"manager": str, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": REPLICATED}}}}
        ],
        "activeDeadlineSeconds": int,
    },
}


def check(value: Any, schema: Any, where: str = "") -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert set(value) <= set(schema), where
        for key, inner in value.items():
            check(inner, schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for item in value:
            check(item, schema[0], f"{where}[]")
    else:
        assert type(value) is schema, where


def test_it_is_a_train_job_of_two_machines_with_eight_accelerators(settings: Config) -> None:
    found = manifest(settings, made(settings), deadline_seconds=3600)
    check(found, SCHEMA)
    assert (found["apiVersion"], found["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert found["spec"]["runtimeRef"]["name"] == "torch-distributed"
    trainer = found["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
    assert trainer["image"] == settings.pipeline.image
    assert found["spec"]["activeDeadlineSeconds"] == 3600
    assert all(len(text) <= 65536 for text in trainer["args"])


def test_it_runs_the_stage_that_the_pipeline_runs(settings: Config) -> None:
    job = made(settings)
    trainer = manifest(settings, job)["spec"]["trainer"]
    assert trainer["command"] == ["python", "-m", "torch.distributed.run"]
    assert trainer["args"][:2] == ["-m", "deeprec.policy.job"]
    assert StageJob.model_validate_json(trainer["args"][2]) == job


def test_every_machine_sees_the_volume_and_a_large_shared_memory(settings: Config) -> None:
    [patch] = manifest(settings, made(settings))["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert node["name"] == pod["containers"][0]["name"] == "node"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes["claim-0"]["persistentVolumeClaim"] == {"claimName": "deeprec-work"}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert mounts == {"claim-0": "/mnt/deeprec", "shared-memory": "/dev/shm", "home": "/home/deeprec"}
    assert volumes["home"]["emptyDir"] == {}, "which may hold what it likes"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_it_is_the_pod_that_the_pipeline_gives_the_stage(settings: Config) -> None:
    pod = {
        "env": {"A": "1"},
        "secrets": {"hub": {"token": "HF_TOKEN"}},
        "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
        "pull_secrets": ["registry"],
        "service_account": "trainer",
        "scratch": "50Gi",
        "volumes": [{"claim": "models", "path": "/models", "sub_path": "qwen"}],
    }
    tasks = {"train-stage-1": {**pod, "gpus": 8}}
    pipeline = PipelineConfig.model_validate({"default": {"env": {"B": "2"}}, "tasks": tasks})
    found = train_job(made(settings), pipeline, name="a", claim="work", mount="/mnt/deeprec", secret="s3")
    check(found, SCHEMA)
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    told = {
        one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"] for one in found["spec"]["trainer"]["env"]
    }
    assert told["HF_TOKEN"] == {"name": "hub", "key": "token"}
    assert told["AWS_ACCESS_KEY_ID"] == {"name": "s3", "key": "AWS_ACCESS_KEY_ID"}
    assert (told["A"], told["B"]) == ("1", "2")
    [patch] = found["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec = node["template"]["spec"]["template"]["spec"]
    mounted = {one["mountPath"]: one.get("subPath") for one in spec["containers"][0]["volumeMounts"]}
    assert mounted == {"/dev/shm": None, "/models": "qwen", "/mnt/deeprec": None, "/home/deeprec": None}
    assert spec["securityContext"] == {"runAsUser": 1000, "runAsGroup": 0, "runAsNonRoot": True, "fsGroup": 1000}
    assert (spec["imagePullSecrets"], spec["serviceAccountName"]) == ([{"name": "registry"}], "trainer")


def test_credentials_come_from_the_secret_and_are_nowhere_else(settings: Config) -> None:
    local = {name: f"/mnt/deeprec/{name}" for name in ("dataset", "trm", "out")}
    alone = manifest(settings, made(settings, **local), secret="")["spec"]["trainer"]["env"]
    assert alone == [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    named = manifest(settings, made(settings))["spec"]["trainer"]["env"]
    assert {one["name"] for one in named if "valueFrom" in one} == {
        "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    }  # fmt: skip
    assert {one["valueFrom"]["secretKeyRef"]["name"] for one in named if "valueFrom" in one} == {"deeprec-s3"}


def test_another_configuration_is_another_job(settings: Config) -> None:
    """A TrainJob's trainer cannot be changed."""
    first = manifest(settings, made(settings))["metadata"]["name"]
    assert first == manifest(settings, made(settings))["metadata"]["name"]
    assert first != manifest(settings, made(settings, seed=8))["metadata"]["name"]
    long = manifest(settings, made(settings), name="x" * 80)["metadata"]["name"]
    for name in (first, long):
        assert len(name) <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


@pytest.mark.parametrize(
    ("changed", "more", "message"),
    [
        (
            {"start": "runs/start"},
            {},
            r"start is 'runs/start', which the job's machines do not share; put it below /mnt/deeprec",
        ),
        ({"checkpoints": "s3://deeprec/c"}, {}, r"checkpoints is 's3://deeprec/c'.*put it below /mnt/deeprec$"),
        ({}, {"secret": ""}, "dataset is at s3://deeprec/dataset; name the Secret"),
    ],
)
def test_what_machines_do_not_share_is_refused(settings: Config, changed: Any, more: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        manifest(settings, made(settings, **changed), **more)


def test_each_process_needs_its_accelerator(settings: Config) -> None:
    one = load_config(ROOT / "configs" / "qwen2.5-7b.yaml", ("pipeline.tasks.train-stage-1.gpus=1",))
    with pytest.raises(ConfigError, match=r"train-stage-1\.gpus is 1, but policy\.parallel\.per_node is 8"):
        train_job(made(settings), one.pipeline, name="a", claim="c", mount="/mnt/deeprec", secret="s")


def test_the_command_prints_it_or_writes_it(tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from deeprec.cli.policy import app

    command = [
        "trainjob", "--stage", "2", "--config", str(ROOT / "configs" / "qwen2.5-7b.yaml"),
        "--set", "policy.parallel.nodes=4", "--dataset", "s3://b/dataset", "--trm", "s3://b/trm", "--policy",
        "/mnt/deeprec/stage1", "--prompts", "/mnt/deeprec/prompts", "--out", "/mnt/deeprec/stage2",
        "--claim", "work", "--secret", "s3",
    ]  # fmt: skip
    printed = CliRunner().invoke(app, command, catch_exceptions=False)
    assert printed.exit_code == 0
    found = yaml.safe_load(printed.output)
    check(found, SCHEMA)
    assert found["spec"]["trainer"]["numNodes"] == 4
    job = json.loads(found["spec"]["trainer"]["args"][2])
    assert (job["stage"], job["checkpoints"]) == ("stage2", "/mnt/deeprec/qwen2-5-7b-stage2/checkpoints")
    CliRunner().invoke(app, [*command, "-o", str(tmp_path / "job.yaml")], catch_exceptions=False)
    assert yaml.safe_load((tmp_path / "job.yaml").read_text()) == found
