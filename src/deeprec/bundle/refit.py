"""The TRM of a bundle: trained anew on everything where it is what serves, else the one that the policy learned from.

Every TRM that is measured was held away from each user's last items. Where the TRM serves, one trained by the same
recipe on all of them takes its place and is never measured. A policy learned from the lists of its own TRM, so that
under a policy that one stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deeprec.bundle.former import former_trm
from deeprec.config import BundleConfig, TextConfig, TrmConfig
from deeprec.evaluation.verdict import Served
from deeprec.store import put_directory, read_artifact


def say(line: str) -> None:
    """Progress of a pipeline's task: a line of its log."""
    print(line, flush=True)


def refit(
    dataset: Path,
    trm: Path,
    serve: Served,
    settings: TrmConfig,
    text: TextConfig,
    bundle: BundleConfig,
    seed: int,
    out: Path,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = say,
) -> None:
    """Write the bundle's TRM to ``out``: trained on everything, or a copy of ``trm`` with an equal digest.

    One that was trained anew names ``trm`` as that which it stands in for, so that the policy keeps its place beside
    it, and keeps its weights, with which a later training may begin and which a later bundle is compared with.

    Args:
        serve: what the evaluation found is to serve. Nothing else of it is asked for, so that another evaluation with
            the same outcome trains nothing anew.
        settings: those that ``trm`` was trained with, as are ``text`` and ``seed``.
        checkpoint: see ``train_trm``.

    Raises:
        ArtifactError, DataError: an input cannot be read.
        TrmError: training failed.
        StoreError: ``out`` cannot be written.
    """
    from deeprec.data.splits import everything_sequences
    from deeprec.trm.training import train_split

    if serve == "policy" or not bundle.refit:
        off = "bundle.refit is off"
        reason = "the policy serves, with the TRM that it was trained with" if serve == "policy" else off
        progress(f"the TRM is handed on as it is: {reason}")
        put_directory(trm, str(out))
        return
    progress("the TRM serves: it is trained anew on everything, the last items included")
    train_split(
        dataset,
        everything_sequences,
        settings,
        text,
        seed,
        out,
        measure=False,
        progress=lambda line: progress(str(line)),
        checkpoint=checkpoint,
        begin=former_trm(settings),
        refit_of=read_artifact(trm, "trm").digest,
        measured=trm,
    )
