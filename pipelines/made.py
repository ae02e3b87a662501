"""What a local run has made so far, for commands that go on from it: its artifacts by what they are.

Read from the records of its finished tasks (``records``); nothing is run or changed, and KFP is not imported.
"""

import json
from pathlib import Path

from deeprec.errors import ArtifactError

OUTPUTS = {
    "dataset": ("ingest", "dataset"),
    "trm": ("train-trm", "model"),
    "start": ("build-policy", "start"),
    "prompts": ("select-prompts", "prompts"),
    "stage1": ("train-stage-1", "trained"),
    "stage2": ("train-stage-2", "trained"),
    "trm_everything": ("train-trm-everything", "model"),
    "evaluation": ("evaluate", "results"),
}
"""What it is called here → the task that makes it and the task's output."""

PIPELINE, RECORDS = "pipeline", "cache"


def made(workdir: Path) -> dict[str, Path]:
    """Directories of the artifacts that the run in ``workdir`` has made; of a task that ran twice, the newer one's.

    Raises:
        ArtifactError: there is no run in ``workdir``.
    """
    if not (workdir / RECORDS).is_dir():
        raise ArtifactError(f"{workdir} is not the directory of a run; name one such as runs/quickstart")
    found: dict[tuple[str, str], Path] = {}
    for record in sorted((workdir / RECORDS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            raw = json.loads(record.read_text(encoding="utf-8"))
            places = {name: _place(workdir, value["uri"]) for name, value in raw["outputs"].items() if "uri" in value}
            found |= {(raw["task"], name): place for name, place in places.items() if place.is_dir()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {name: found[output] for name, output in OUTPUTS.items() if output in found}


def _place(workdir: Path, uri: str) -> Path:
    """Where an artifact is, also when the run's directory was moved after it had been made."""
    place = Path(uri)
    parts = place.parts
    if place.is_dir() or PIPELINE not in parts:
        return place
    last = len(parts) - 1 - parts[::-1].index(PIPELINE)
    return workdir / Path(*parts[last:])
