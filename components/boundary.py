"""Where a task ends: an error of ours becomes one last line and an exit status.

The line reads ``error: CLASS: MESSAGE``; the local runner reads it back from the task's log (``read_error``), and in a
cluster it is the last line of the pod's log. Any other exception passes through with its traceback.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec import errors
from deeprec.errors import ConfigError, DeepRecError, PipelineError, StoreError
from deeprec.extras import missing

if TYPE_CHECKING:
    from deeprec.checks.gate import Verdict

CHECKPOINTS = "DEEPREC_CHECKPOINTS"
"""Environment variable: directory in which this training task keeps checkpoints between attempts; unset in pods."""

CLAIM = "DEEPREC_CHECKPOINTS_CLAIM"
"""Environment variable: directory that outlives a pod, in which training tasks of all runs keep theirs."""

KEPT_DAYS = "DEEPREC_CHECKPOINTS_DAYS"
"""Environment variable: after so many days without a change the claim's checkpoints are those of a dead run."""

RUNNER = "DEEPREC_LOCAL_RUNNER"
"""Environment variable: set by the local runner, whose tasks end when it is gone; unset in pods."""

GPUS = "DEEPREC_GPUS"
"""Environment variable: accelerators the pod asked for. Old KFP backends drop the request without a word, so the task
counts them."""

_CHECKPOINTS = re.compile(r"[0-9a-f]{32}")
_LINE = re.compile(r"^error: (\w+): (.+)$")


@contextmanager
def reported() -> Iterator[None]:
    """Run a task's body; exit with the error's own status after one line that says what was wrong."""
    from pydantic import ValidationError

    _end_with_runner()
    try:
        _count_accelerators()
        yield
    except DeepRecError as error:
        raise SystemExit(_report(error)) from None
    except ModuleNotFoundError as error:
        cure = missing(error)
        if cure is None:
            raise
        raise SystemExit(_report(PipelineError(cure))) from None
    except ValidationError as error:
        raise SystemExit(_report(ConfigError(f"{error.title}: {error.errors(include_url=False)}"))) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        raise SystemExit(_report(StoreError(f"the disk is full{where}; free some space and run again"))) from None


def read_error(line: str) -> DeepRecError | None:
    """The error that a task's last line names, or None when the line is something else."""
    match = _LINE.match(line.strip())
    kind = getattr(errors, match.group(1), None) if match else None
    if match is None or not (isinstance(kind, type) and issubclass(kind, DeepRecError)):
        return None
    return kind(match.group(2))


def checkpoints(*inputs: Any) -> Path | None:
    """The directory for checkpoints, or None where the task has none.

    On a claim it is named by ``inputs``: what tells this task from every other and is the same for its next attempt.
    """
    if os.environ.get(CHECKPOINTS):
        return Path(os.environ[CHECKPOINTS])
    if not os.environ.get(CLAIM):
        return None
    claim = Path(os.environ[CLAIM])
    name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    sweep_checkpoints(claim, float(os.environ.get(KEPT_DAYS) or 14), name)
    return claim / name


def sweep_checkpoints(claim: Path, days: float, spared: str = "") -> None:
    """Remove the checkpoints of runs that have ended: those of which no file was written for so many days."""
    oldest = time.time() - 86400 * days
    for place in claim.iterdir() if claim.is_dir() else ():
        if place.name == spared or not _CHECKPOINTS.fullmatch(place.name):
            continue
        if _newest(place) < oldest:
            print(f"removing checkpoints of {days:g} days and more: {place}", flush=True)
            shutil.rmtree(place, ignore_errors=True)


def _newest(place: Path) -> float:
    """When something below a directory was last written; now where it changes while it is looked at."""
    try:
        return max(path.stat().st_mtime for path in (place, *place.rglob("*")))
    except OSError:
        return time.time()


def show(verdict: "Verdict", artifact: Any) -> None:
    """A gate's verdict as an artifact that KFP shows, with ``gate`` and ``passed`` in its metadata."""
    Path(artifact.path).write_text(verdict.to_markdown(), encoding="utf-8")
    artifact.metadata |= {"gate": verdict.gate, "passed": verdict.passed}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping under dotted names, as KFP's Metrics take them; anything else is left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _report(error: DeepRecError) -> int:
    print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    return error.exit_code


def _count_accelerators() -> None:
    wanted = int(os.environ.get(GPUS) or 0)
    if not wanted:
        return
    import torch

    if torch.cuda.device_count() < wanted:
        raise PipelineError(
            f"the task asked for {wanted} accelerators and sees {torch.cuda.device_count()}; check that the node has "
            f"them and that the KFP backend passes the request on"
        )


def _end_with_runner() -> None:
    """End when the local runner is gone, so that a killed run leaves no task behind that still writes.

    The runner holds the other end of standard input and never writes to it.
    """
    if os.environ.get(RUNNER):
        threading.Thread(target=_wait_for_end_of_input, daemon=True).start()


def _wait_for_end_of_input() -> None:
    if not os.read(0, 1):
        os._exit(143)
