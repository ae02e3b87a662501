"""The pods of the compiled pipeline: a template becomes what KFP tells Kubernetes, and what cannot work is refused.

KFP 2.16 cannot say an ``fsGroup``, a read-only root or a service account for a task; the last is the run's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kfp import kubernetes

from deeprec.components.boundary import CLAIM, GPUS, KEPT_DAYS
from deeprec.config import GpuPool, PipelineConfig, PodTemplate
from deeprec.config.pods import HOME
from deeprec.errors import ConfigError

CHECKPOINTS = "/mnt/checkpoints"
"""Where their claim is mounted."""
FOREVER = 100 * 365 * 24 * 3600
"""Seconds after the first attempt's start up to which another may begin: KFP's own hour would leave a task that takes
longer without any (kubeflow/pipelines#14245)."""

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


def dress(task: Any, pod: PodTemplate, pool: GpuPool, environment: Mapping[str, str]) -> None:
    """Give a task its pod.

    Raises:
        ValueError: a quantity is none.
    """
    task.set_container_image(pod.image)
    task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    for name, value in {**environment, **pod.env}.items():
        task.set_env_variable(name, value)
    for secret, keys in pod.secrets.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=dict(keys))
    for mount in pod.volumes:
        kubernetes.mount_pvc(task, pvc_name=mount.claim, mount_path=mount.path, sub_path=mount.sub_path)
    if HOME not in {mount.path for mount in pod.volumes}:
        kubernetes.empty_dir_mount(task, volume_name="home", mount_path=HOME, size_limit=pod.scratch or None)
    for key, value in pod.labels.items():
        kubernetes.add_pod_label(task, label_key=key, label_value=value)
    if pod.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pod.pull_secrets))
    if pod.timeout_seconds:
        kubernetes.set_timeout(task, pod.timeout_seconds)
    kubernetes.set_security_context(task, run_as_user=pod.user, run_as_group=pod.group, run_as_non_root=True)
    if pod.retries:
        task.set_retry(num_retries=pod.retries, backoff_duration="60s")
    if pod.gpus:
        _give_accelerators(task, pod.gpus, pool)


def keep_checkpoints(task: Any, settings: PipelineConfig) -> None:
    """Mount the claim for checkpoints, where there is one."""
    if settings.checkpoints_claim:
        kubernetes.mount_pvc(task, pvc_name=settings.checkpoints_claim, mount_path=CHECKPOINTS)
        task.set_env_variable(CLAIM, CHECKPOINTS)
        task.set_env_variable(KEPT_DAYS, str(settings.checkpoints_days))


def lift_retry_limit(graph: Any) -> None:
    """Let tasks of days be tried again: the SDK writes an hour into every retry policy, and takes no more."""
    for task in graph.pipeline_spec.root.dag.tasks.values():
        if task.HasField("retry_policy"):
            task.retry_policy.backoff_max_duration.seconds = FOREVER


def check_images(settings: PipelineConfig, tasks: Iterable[str]) -> None:
    """See that every image is named by digest, unless tags are taken.

    Raises:
        ConfigError: one is not.
    """
    for name in tasks:
        image = settings.pod(name).image
        if not settings.allow_tags and not _DIGEST.fullmatch(image):
            raise ConfigError(
                f"the image of {name} is {image!r}, a tag, which can be moved without KFP's cache seeing it; name "
                f"it by digest (pipeline.image=REGISTRY/deeprec-train@sha256:…), or set pipeline.allow_tags to true"
            )


def _give_accelerators(task: Any, count: int, pool: GpuPool) -> None:
    task.set_accelerator_type(pool.accelerator).set_accelerator_limit(count)
    task.set_env_variable(GPUS, str(count))
    for key, value in pool.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for toleration in pool.tolerations:
        kubernetes.add_toleration(task, **toleration)
    kubernetes.empty_dir_mount(
        task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory", size_limit=pool.shared_memory
    )
