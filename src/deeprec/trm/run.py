"""One training on its own: from a dataset directory to a TRM artifact, gone on with where it was killed.

While it runs, its state is kept beside the output in ``OUT.checkpoint``; calling it again with the same arguments goes
on from there, and the weights come out the same. It is removed when the artifact is written. A stand-alone TRM trains
on everything before the validation item and is the one whose figures compare with papers; one for a policy leaves out
the policy's targets, as the pipeline does (``data.splits``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import TextConfig, TrmConfig
from deeprec.errors import StoreError
from deeprec.store import MANIFEST

if TYPE_CHECKING:
    from deeprec.trm.training import Progress


def train_directory(
    dataset: Path,
    trm: TrmConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    standalone: bool = True,
    fresh: bool = False,
    begin: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train on a dataset, write the artifact ``out``, and return the metrics of its validation targets.

    Args:
        fresh: begin again even where a killed training left its state.
        begin: the TRM of the bundle that ``trm.continue_from`` names; see ``train_trm``.

    Raises:
        ArtifactError, DataError: the dataset cannot be read.
        TrmError: training failed, or the state that is there is of another training.
        StoreError: ``out`` cannot be written.
    """
    from deeprec.data.splits import standalone_sequences, trm_sequences
    from deeprec.trm.learning.checkpoint import remove_checkpoint
    from deeprec.trm.training import train_split

    check_output(out)
    if fresh:
        remove_checkpoint(checkpoint_path(out))
    split = standalone_sequences if standalone else trm_sequences
    evaluation, _ = train_split(
        dataset, split, trm, text, seed, out, progress=progress, checkpoint=checkpoint_path(out), begin=begin
    )
    return dict(evaluation.metrics)


def checkpoint_path(out: Path) -> Path:
    """Where the state of a training of ``out`` is kept."""
    return out.with_name(f"{out.name}.checkpoint")


def check_output(out: Path) -> None:
    """
    Raises:
        StoreError: ``out`` is taken by something that is no artifact; better said before an hour of training.
    """
    taken = out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()
    if taken or (out.exists() and not out.is_dir()):
        raise StoreError(f"{out} exists and is no artifact; name an empty or absent directory")
