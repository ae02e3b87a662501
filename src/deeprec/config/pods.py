"""Section of the pods that the pipeline's tasks run in: one template each, and the nodes that carry accelerators."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from deeprec.config.section import Section

Quantity = Annotated[
    str,
    BeforeValidator(
        lambda value: str(value) if isinstance(value, int | float) else value, json_schema_input_type=str | int | float
    ),
]
"""An amount as Kubernetes writes it: ``500m``, ``8Gi``; a number is one too."""

HOME = "/home/deeprec"
"""Where a pod of our images writes: home, temporary files, caches."""


class GpuPool(Section):
    """The nodes that carry accelerators: the one place where they are described."""

    accelerator: str = "nvidia.com/gpu"
    """Resource name."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the pool's nodes."""
    tolerations: tuple[dict[str, str], ...] = ()
    """Tolerations (key, operator, value, effect)."""
    shared_memory: Quantity = "8Gi"
    """Size of /dev/shm for tasks with accelerators."""


class ClaimMount(Section):
    """A PersistentVolumeClaim, to be there before the run, and where a pod sees it."""

    claim: str = Field(min_length=1)
    """Its name."""
    path: str = Field(pattern="^/")
    """Where it is mounted. User 1000 or group 0 must be able to write there: KFP sets no ``fsGroup``."""
    sub_path: str = ""
    """Folder of the volume that is mounted; empty is all of it."""


class PodTemplate(Section):
    """One pod: what it asks for, what is mounted into it, what it is told, and as whom it runs.

    Rendered for a task of the pipeline (``pipelines.pods``) and for a TrainJob (``policy.trainjob``) alike.
    """

    image: str = ""
    """Overrides ``pipeline.image``."""
    cpu: Quantity = "2"
    """CPU request and limit."""
    memory: Quantity = "8Gi"
    """Memory request and limit."""
    gpus: int = Field(0, ge=0)
    """Accelerators from the GPU pool."""
    scratch: Quantity = ""
    """Most that may be written to the pod's own disk, below its home directory, such as ``50Gi``; empty: no bound. The
    home is a volume of the pod's in any case, so that its root may be read-only."""
    retries: int = Field(2, ge=0)
    """Times KFP starts the task again after a failure. What a gate refused is never started again."""
    timeout_seconds: int = Field(0, ge=0)
    """The task fails after so long; 0 never."""
    volumes: tuple[ClaimMount, ...] = ()
    """Claims; every path of the configuration that this task reads or writes has to lie on one."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables."""
    secrets: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Environment from Secrets: a Secret's name → its key → the variable; a list of keys names variables alike."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the pod, or of the TrainJob, such as Kueue's ``kueue.x-k8s.io/queue-name``."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets for the registry."""
    service_account: str = ""
    """Of TrainJobs. A KFP run has one for all of its pods, which is named when it is started."""
    user: int = Field(1000, ge=1)
    """User that the pod runs as, never root."""
    group: int = Field(0, ge=0)
    """Its group."""

    @field_validator("secrets", mode="before", json_schema_input_type=dict[str, dict[str, str] | list[str]])
    @classmethod
    def _keys_as_variables(cls, secrets: Any) -> Any:
        if not isinstance(secrets, dict):
            return secrets
        lists = {name: keys for name, keys in secrets.items() if isinstance(keys, list | tuple)}
        return {**secrets, **{name: {str(key): str(key) for key in keys} for name, keys in lists.items()}}

    def over(self, default: PodTemplate) -> PodTemplate:
        """What this one names, and for the rest the default: mappings key by key, volumes by path."""
        named = {key: getattr(self, key) for key in self.model_fields_set}
        for key in ("env", "labels"):
            if key in named:
                named[key] = {**getattr(default, key), **named[key]}
        if "secrets" in named:
            names = (*default.secrets, *named["secrets"])
            named["secrets"] = {
                name: {**default.secrets.get(name, {}), **named["secrets"].get(name, {})} for name in names
            }
        if "volumes" in named:
            named["volumes"] = tuple({one.path: one for one in (*default.volumes, *named["volumes"])}.values())
        return default.model_copy(update=named)


class PipelineConfig(Section):
    """How the pipeline runs in pods."""

    image: str = "deeprec-train:0.2.0"
    """Container image of every task, by digest (``…@sha256:…``): KFP's cache does not see that a tag was moved."""
    allow_tags: bool = False
    """Take images by tag all the same, such as where one is being tried out."""
    default: PodTemplate = PodTemplate()
    tasks: dict[str, PodTemplate] = Field(default_factory=dict)
    """Overrides by task name; what one does not name is that of ``default``, mappings key by key, volumes by path."""
    gpu_pool: GpuPool = GpuPool()
    checkpoints_claim: str = ""
    """A PersistentVolumeClaim for the checkpoints of the training tasks, to be there before the run. Without one a task
    that is started again begins anew. Those that nobody has written to for ``checkpoints_days`` are removed from it."""
    checkpoints_days: int = Field(14, ge=1)
    """After so many days checkpoints are those of a dead run."""

    @field_validator("tasks")
    @classmethod
    def _over_the_default(cls, tasks: dict[str, PodTemplate], info: ValidationInfo) -> dict[str, PodTemplate]:
        default: PodTemplate | None = info.data.get("default")
        return tasks if default is None else {name: task.over(default) for name, task in tasks.items()}

    def pod(self, task: str) -> PodTemplate:
        """A task's pod, its image named."""
        found = self.tasks.get(task, self.default)
        return found if found.image else found.model_copy(update={"image": self.image})
