"""A stage on several machines: the Kubeflow TrainJob (``trainer.kubeflow.org/v1alpha1``) that runs ``policy.job``.

Kubeflow Trainer 2.2 or later starts one pod per machine and tells torchrun in each (``PET_*`` in its environment) how
to find the others. A TrainJob cannot be changed, so that its name holds a hash of what it runs: another configuration
is another job. Given again under the same name and with the same volume, a stage goes on from its newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath

from deeprec.config import ClaimMount, GpuPool, PipelineConfig, PodTemplate
from deeprec.config.pods import HOME
from deeprec.errors import ConfigError
from deeprec.policy.job import StageJob
from deeprec.types import JsonDict

API = "trainer.kubeflow.org/v1alpha1"
RUNTIME = "torch-distributed"
"""The ClusterTrainingRuntime that Kubeflow Trainer brings along."""
MANAGER = "deeprec/policy-trainjob"
_CONTAINER = "node"
_CREDENTIALS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_LONGEST_ARGUMENT = 65536
_TASKS = {"stage1": "train-stage-1", "stage2": "train-stage-2"}


def train_job(
    job: StageJob,
    pipeline: PipelineConfig,
    *,
    name: str,
    claim: str,
    mount: str,
    secret: str = "",
    deadline_seconds: int = 0,
    runtime: str = RUNTIME,
) -> JsonDict:
    """The manifest, as plain data.

    Args:
        job: what to run; its machines and processes are those of ``job.policy.parallel``.
        pipeline: image, and the pod that the pipeline gives this stage.
        name: beginning of the TrainJob's name.
        claim: a PersistentVolumeClaim that all machines mount for writing; checkpoints and outcome are kept there.
        mount: where it is mounted; every path of ``job`` that is no address lies below it.
        secret: a Secret with ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, for ``s3://``.
        deadline_seconds: the job fails after so long; 0 never.
        runtime: name of the ClusterTrainingRuntime.

    Raises:
        ConfigError: a path is not on the volume, an ``s3://`` address has no secret, or the pods' accelerators are not
            as many as processes.
    """
    pod = pipeline.pod(_TASKS[job.stage])
    if secret:
        credentials = {secret: {key: key for key in _CREDENTIALS}}
        pod = PodTemplate(secrets=credentials).over(pod)
    pod = PodTemplate(volumes=(ClaimMount(claim=claim, path=mount),)).over(pod)
    _check(job, pod)
    parallel = job.policy.parallel
    if pod.gpus not in (0, parallel.per_node):
        raise ConfigError(
            f"pipeline.tasks.{_TASKS[job.stage]}.gpus is {pod.gpus}, but policy.parallel.per_node is "
            f"{parallel.per_node}; each process needs an accelerator, so make them equal"
        )
    text = job.model_dump_json()
    if len(text) > _LONGEST_ARGUMENT:
        raise ConfigError(f"the job takes {len(text)} characters; a TrainJob's arguments have {_LONGEST_ARGUMENT}")
    spec: JsonDict = {
        "runtimeRef": {"apiGroup": API.partition("/")[0], "kind": "ClusterTrainingRuntime", "name": runtime},
        "trainer": {
            "image": pod.image,
            "command": ["python", "-m", "torch.distributed.run"],
            "args": ["-m", "deeprec.policy.job", text],
            "env": _environment(pod),
            "numNodes": parallel.nodes,
            "numProcPerNode": parallel.per_node,
            "resourcesPerNode": _resources(pod, pipeline.gpu_pool),
        },
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(pod, pipeline.gpu_pool)}],
    }
    if deadline_seconds:
        spec["activeDeadlineSeconds"] = deadline_seconds
    metadata = {"name": _name(name, job, spec), "labels": {"app.kubernetes.io/part-of": "deeprec", **pod.labels}}
    return {"apiVersion": API, "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _check(job: StageJob, pod: PodTemplate) -> None:
    told = {variable for keys in pod.secrets.values() for variable in keys.values()} | set(pod.env)
    artifacts = {name: str(getattr(job, name)) for name in ("dataset", "trm", "start", "prompts", "out")}
    files = {name: str(getattr(job, name)) for name in ("report", "checkpoints", "outcome")}
    for name, place in (artifacts | files).items():
        remote = place.startswith("s3://") and name in artifacts
        if remote and "AWS_ACCESS_KEY_ID" not in told:
            raise ConfigError(f"{name} is at {place}; name the Secret that holds the store's address and credentials")
        if not remote and not any(PurePosixPath(place).is_relative_to(one.path) for one in pod.volumes):
            choice = " or at s3://bucket/prefix" if name in artifacts else ""
            raise ConfigError(
                f"{name} is {place!r}, which the job's machines do not share; put it below "
                f"{', '.join(one.path for one in pod.volumes)}{choice}"
            )


def _name(name: str, job: StageJob, spec: JsonDict) -> str:
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return f"{name[:40].strip('-')}-{job.stage}-{digest[:8]}"


def _environment(pod: PodTemplate) -> list[JsonDict]:
    plain = {"HF_HUB_OFFLINE": "1", **pod.env}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, keys in pod.secrets.items()
        for key, variable in keys.items()
    ]


def _resources(pod: PodTemplate, pool: GpuPool) -> JsonDict:
    wanted = {"cpu": pod.cpu, "memory": pod.memory}
    if pod.gpus:
        wanted[pool.accelerator] = str(pod.gpus)
    return {"requests": wanted, "limits": dict(wanted)}


def _patch(pod: PodTemplate, pool: GpuPool) -> JsonDict:
    """Volumes, identity and placement; anything else of a pod is the runtime's."""
    volumes: list[JsonDict] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shared_memory}}
    ]
    mounts: list[JsonDict] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if HOME not in {one.path for one in pod.volumes}:
        volumes.append({"name": "home", "emptyDir": {"sizeLimit": pod.scratch} if pod.scratch else {}})
        mounts.append({"name": "home", "mountPath": HOME})
    for number, one in enumerate(pod.volumes):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": one.claim}})
        folder = {"subPath": one.sub_path} if one.sub_path else {}
        mounts.append({"name": f"claim-{number}", "mountPath": one.path, **folder})
    template: JsonDict = {
        "volumes": volumes,
        "containers": [{"name": _CONTAINER, "volumeMounts": mounts}],
        "securityContext": {
            "runAsUser": pod.user,
            "runAsGroup": pod.group,
            "runAsNonRoot": True,
            "fsGroup": pod.group or pod.user,
        },
    }
    if pod.pull_secrets:
        template["imagePullSecrets"] = [{"name": name} for name in pod.pull_secrets]
    if pod.service_account:
        template["serviceAccountName"] = pod.service_account
    if pod.gpus:
        template |= {"nodeSelector": dict(pool.node_selector), "tolerations": [dict(one) for one in pool.tolerations]}
    job = {"name": _CONTAINER, "template": {"spec": {"template": {"spec": template}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
