"""What a local run remembers of its finished tasks, so that ``--resume`` returns them instead of running them again.

A record is one JSON file named by the task's key: the hash of everything that determines the task's result (code,
image, parameters, the contents of its input artifacts). It is written after the task succeeded, whole or not at all,
and counts only while the artifacts it names exist unchanged.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl import executor

from deeprec import __version__
from deeprec.errors import ArtifactError, PipelineError
from deeprec.store import content_digest, read_artifact

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Record:
    """A finished task: its outputs (parameters, and KFP artifacts) and the seconds it took."""

    outputs: dict[str, Any]
    seconds: float


class Records:
    """The records of one run's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, key: str) -> Record | None:
        """The record of a task, or None when there is none, or its artifacts are gone or changed."""
        try:
            raw = json.loads((self._directory / f"{key}.json").read_text(encoding="utf-8"))
            outputs = {name: _restore(value) for name, value in raw["outputs"].items()}
            return Record(outputs, float(raw["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, ArtifactError):
            return None

    def keep(self, key: str, task: str, outputs: Mapping[str, Any], seconds: float) -> None:
        """Write a task's record.

        Raises:
            PipelineError: it cannot be written.
        """
        kept = {name: _keep(value) for name, value in outputs.items()}
        text = json.dumps({"task": task, "seconds": seconds, "outputs": kept}, indent=1)
        partial = self._directory / f".{key}.partial"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self._directory / f"{key}.json")
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise PipelineError(
                f"cannot record the finished task {task} in {self._directory}: {error.strerror}; free some space or "
                f"name another --workdir, then start again with --resume"
            ) from error


def task_key(task: str, executor_spec: Any, arguments: Mapping[str, Any]) -> str:
    """The hash of what determines a task's result: its name, the package, code and image, parameters, input artifacts.

    Tasks of one pipeline never share a key, even where they would compute the same.
    """
    container = executor_spec.container
    inputs = {
        name: {"type": value.schema_title, "digest": path_digest(Path(value.path))}
        if isinstance(value, dsl.Artifact)
        else value
        for name, value in arguments.items()
    }
    whole = [task, __version__, container.image, list(container.command), list(container.args), inputs]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def path_digest(path: Path) -> str:
    """What tells an artifact from any other: its manifest's hash, or that of all its files where it has none."""
    return content_digest(path / MANIFEST if (path / MANIFEST).is_file() else path)


def _keep(value: Any) -> dict[str, Any]:
    if not isinstance(value, dsl.Artifact):
        return {"parameter": value}
    return {
        "name": value.name,
        "uri": value.uri,
        "metadata": value.metadata,
        "type": {"schemaTitle": value.schema_title},
        "digest": path_digest(Path(value.path)),
    }


def _restore(raw: dict[str, Any]) -> Any:
    if "parameter" in raw:
        return raw["parameter"]
    artifact = executor.create_artifact_instance(raw)
    path = Path(artifact.path)
    if path_digest(path) != raw["digest"]:
        raise ArtifactError(f"{path} is gone or changed; run the task that writes it again")
    if (path / MANIFEST).is_file():
        read_artifact(path)
    return artifact
