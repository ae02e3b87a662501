"""Training the TRM and its gate.

Every position of a sequence is asked for the next item without a preference, and a share of them a second time with
one, drawn from the target's phrases (or, so that the TRM does not trust blindly, from another's); a few of these are
not shown the history. The loss is a softmax over the whole catalogue, or above ``sampled_above`` items over a sample.
What is measured and kept is a moving average of the weights. A training begins with random weights, or with those of
the TRM that ``trm.continue_from`` names (``former``), and is then shorter. The same seed on the same machine gives the
same weights, also when the training was killed and gone on with from its checkpoint; on a GPU, whose sums come in any
order, the same but for rounding. The gate reads the validation targets; neither ``train`` nor ``train_everything`` sees
a test target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeprec.checks.gate import Verdict, check_metrics
from deeprec.config import TextConfig, TrmConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.splits import standalone_sequences, trm_sequences, validation_examples
from deeprec.errors import TrmError
from deeprec.metrics import metrics_from_ranks
from deeprec.trm.artifact import TrainedTrm, build_vocabulary, write_trm
from deeprec.trm.evaluation import Evaluation, evaluate
from deeprec.trm.learning.batches import Rows, phrase_table
from deeprec.trm.learning.checkpoint import (
    Checkpoint,
    read_checkpoint,
    remove_checkpoint,
    training_inputs,
    write_checkpoint,
)
from deeprec.trm.report import curve_svg, group_figures
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.types import Catalogue, Embedder, Example, FloatArray, Query

if TYPE_CHECKING:
    import torch

    from deeprec.trm.learning.learner import Learner

CURVE_POINTS = 5
CURVE_USERS = 1000
TEXT_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch (1-based): mean loss in nats, wall seconds, positions trained per second, the estimated seconds left of
    the whole training, and NDCG@10 on some validation users where measured.
    """

    epoch: int
    epochs: int
    loss: float
    seconds: float
    ndcg_10: float | None
    positions_per_second: float = 0.0
    seconds_left: float = 0.0

    def __str__(self) -> str:
        measured = "" if self.ndcg_10 is None else f", validation NDCG@10 {self.ndcg_10:.4f}"
        left = "" if self.epoch == self.epochs else f", about {_duration(self.seconds_left)} left"
        return (
            f"TRM epoch {self.epoch}/{self.epochs}: loss {self.loss:.4f}, {self.seconds:.1f} s, "
            f"{self.positions_per_second:,.0f} positions/s{measured}{left}"
        )


Progress = Callable[[EpochReport], None]
Split = Callable[[Dataset], Mapping[str, Sequence[str]]]
"""Gives the sequences of a dataset that a TRM trains on; see ``data.splits``."""


def say(line: EpochReport) -> None:
    """Progress of a pipeline's task: a line of its log."""
    print(line, flush=True)


def train(
    dataset: Path,
    trm: TrmConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    report: Path,
    *,
    checkpoint: Path | None = None,
    begin: Path | None = None,
) -> tuple[Verdict, dict[str, float]]:
    """Train on a dataset's training sequences, measure on its validation targets, write artifact and gate report.

    Args:
        checkpoint: see ``train_trm``.
        begin: see ``train_trm``.

    Raises:
        ArtifactError, DataError: the dataset cannot be read.
        TrmError: training failed.
        StoreError: ``out`` or ``report`` cannot be written.
    """
    evaluation, curves = train_split(
        dataset, trm_sequences, trm, text, seed, out, progress=say, checkpoint=checkpoint, begin=begin
    )
    metrics = dict(evaluation.metrics)
    losses = [(float(point["epoch"]), point["loss"]) for point in curves]
    measured = [(float(point["epoch"]), point["ndcg@10"]) for point in curves if "ndcg@10" in point]
    verdict = check_metrics(
        "trm",
        (
            ("validation NDCG@10", metrics["ndcg@10"], trm.gate.min_ndcg_10),
            ("NDCG@10 over popularity's", metrics["ratio_to_popularity"], trm.gate.min_ratio_to_popularity),
        ),
        Path(report),
        title="The preference-aware TRM",
        intro=_summary(metrics) + (_continued(trm) if begin else ""),
        figures=[
            curve_svg("Training loss", losses),
            curve_svg("NDCG@10 of some validation users", measured),
            *group_figures(evaluation),
        ],
    )
    return verdict, metrics


def train_everything(
    dataset: Path,
    trm: TrmConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    checkpoint: Path | None = None,
    begin: Path | None = None,
) -> dict[str, float]:
    """Train as ``train`` does, but on everything before the validation item, which alone the figures returned measure.

    No policy may learn from such a TRM's lists, so that it is what a policy and its TRM have to beat. It has no gate.

    Raises:
        ArtifactError, DataError, TrmError, StoreError: as ``train``.
    """
    evaluation, _ = train_split(
        dataset, standalone_sequences, trm, text, seed, out, progress=say, checkpoint=checkpoint, begin=begin
    )
    return dict(evaluation.metrics)


def train_split(
    dataset: Path,
    split: Split,
    trm: TrmConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    *,
    measure: bool = True,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    begin: Path | None = None,
    refit_of: str | None = None,
    measured: Path | None = None,
) -> tuple[Evaluation, list[dict[str, float]]]:
    """``train_trm`` on the sequences that ``split`` gives of the dataset at ``dataset``.

    Args:
        measure: evaluate on the validation targets; not where they are trained on.

    Raises:
        ArtifactError, DataError: the dataset cannot be read.
        TrmError, StoreError: as ``train_trm``.
    """
    data = read_dataset(dataset)
    return train_trm(
        data,
        split(data),
        trm,
        text,
        load_embedder(text),
        seed,
        Path(out),
        progress=progress,
        validation=validation_examples(data) if measure else (),
        parents=(Path(dataset),),
        checkpoint=checkpoint,
        begin=begin,
        refit_of=refit_of,
        measured=measured,
    )


def train_trm(
    dataset: Dataset,
    sequences: Mapping[str, Sequence[str]],
    trm: TrmConfig,
    text: TextConfig,
    embedder: Embedder,
    seed: int,
    out: Path,
    *,
    progress: Progress | None = None,
    validation: Sequence[Example] | None = None,
    parents: Sequence[Path] = (),
    checkpoint: Path | None = None,
    begin: Path | None = None,
    refit_of: str | None = None,
    measured: Path | None = None,
) -> tuple[Evaluation, list[dict[str, float]]]:
    """Train on ``sequences`` and write the artifact.

    Args:
        checkpoint: directory that keeps the state after every epoch and is removed once the artifact is written. A
            training that finds one goes on from it, to the same weights as if it had never stopped.
        begin: artifact of the TRM whose weights it begins with, that of the bundle which ``trm.continue_from`` names;
            it is to be the same for every training of a run, and one that has seen what ``sequences`` leave out of the
            dataset is refused.
        refit_of: see ``write_trm``, as ``measured``.

    Returns:
        The evaluation of the validation examples, and one point per epoch: ``epoch``, ``loss``, ``seconds``
        and, where measured, ``ndcg@10``.

    Raises:
        TrmError: no sequence has two items, the loss is not finite, the checkpoint is damaged or of other inputs, or
            the training cannot begin with ``begin`` (see ``former``).
        StoreError: the artifact or the checkpoint cannot be written.
    """
    from deeprec.trm.former import read_former

    if trm.continue_from and begin is None:
        raise TrmError(
            f"trm.continue_from is {trm.continue_from!r}, but no TRM was given to begin with; leave it empty to begin "
            f"afresh"
        )
    examples = list(validation or ())
    held_out = _held_out(dataset, sequences)
    trained, curves = fit(
        dataset.catalogue,
        sequences,
        trm,
        embedder,
        seed,
        progress=progress,
        validation=examples,
        checkpoint=checkpoint,
        former=None if begin is None else read_former(begin, held_out),
    )
    retriever = TrmRetriever(trained, dataset.catalogue, embedder)
    evaluation = evaluate(retriever, examples)
    metrics = evaluation.metrics if examples else {}
    write_trm(
        out,
        trained,
        text,
        metrics,
        curves,
        parents=parents if begin is None else (*parents, begin),
        seed=seed,
        refit_of=refit_of,
        held_out=held_out,
        measured=measured,
    )
    if checkpoint is not None:
        remove_checkpoint(checkpoint)
    return evaluation, curves


def fit(
    catalogue: Catalogue,
    sequences: Mapping[str, Sequence[str]],
    trm: TrmConfig,
    embedder: Embedder,
    seed: int,
    *,
    progress: Progress | None = None,
    validation: Sequence[Example] = (),
    checkpoint: Path | None = None,
    former: TrainedTrm | None = None,
) -> tuple[TrainedTrm, list[dict[str, float]]]:
    """Train a network; see ``train_trm``. Leaves torch's global random state as it was, and its ``checkpoint``.

    Args:
        former: whose weights it begins with; ``trm.continued_epochs`` are trained then.
    """
    import torch

    from deeprec.trm.former import check_shapes, check_text, digest, take_over
    from deeprec.trm.learning.learner import Learner
    from deeprec.trm.model import Trm

    if former is not None:
        check_shapes(trm, former.model.config)
        check_text(embedder.identity, former.vocabulary.text_identity)
    epochs = trm.epochs if former is None else trm.continued_epochs
    users, rows = _usable(catalogue, sequences)
    counts = np.bincount(np.concatenate(rows), minlength=len(catalogue))
    large = len(catalogue) > trm.sampled_above
    vocabulary = build_vocabulary(catalogue, _HalfEmbedder(embedder) if large else embedder, counts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = trm.bf16 and has_bf16(device)
    some = _some(validation, seed)
    begun = None if former is None else digest(former)
    inputs = training_inputs(catalogue, sequences, trm, seed, embedder.identity, begun) if checkpoint else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Trm(trm, torch.from_numpy(vocabulary.item_text)).to(device)
        if former is not None:
            take_over(model, vocabulary.item_ids, former)
        trained = TrainedTrm(model, vocabulary, catalogue)
        table = phrase_table(catalogue, vocabulary.phrases)
        learner = Learner(model, vocabulary, table, users, rows, seed, low, epochs)
        curves = _resume(learner, checkpoint, inputs)
        started, before = time.perf_counter(), len(curves)
        for epoch in range(before + 1, epochs + 1):
            epoch_started = time.perf_counter()
            loss, positions = learner.epoch(epoch)
            seconds = time.perf_counter() - epoch_started
            ndcg = None
            if some and (epoch == epochs or epoch % math.ceil(epochs / CURVE_POINTS) == 0):
                with learner.optimiser.averaged():
                    ndcg = _quick_ndcg(TrmRetriever(trained, catalogue, embedder), some)
            left = (time.perf_counter() - started) / (epoch - before) * (epochs - epoch)
            line = EpochReport(epoch, epochs, loss, seconds, ndcg, positions / seconds, left)
            curves.append(_point(line))
            if checkpoint is not None:
                state = {**learner.state(), "curves": curves}
                write_checkpoint(checkpoint, inputs, Checkpoint(epoch, learner.tensors(), state))
            if progress is not None:
                progress(line)
        learner.optimiser.keep_average()
    model.eval()
    return trained, curves


def _held_out(dataset: Dataset, sequences: Mapping[str, Sequence[str]]) -> int:
    """How many of each user's newest interactions the sequences leave out at least."""
    return min((len(dataset.sequences[user]) - len(items) for user, items in sequences.items()), default=0)


def _resume(learner: Learner, place: Path | None, inputs: Mapping[str, str]) -> list[dict[str, float]]:
    """Go on from a checkpoint if there is one; the curves so far."""
    found = None if place is None else read_checkpoint(place, inputs)
    if found is None:
        return []
    try:
        learner.load(found.tensors, found.state)
        return [dict(point) for point in found.state["curves"]]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrmError(f"the checkpoint in {place} cannot be used: {error}; remove it to begin anew") from error


class _HalfEmbedder:
    """An encoder whose vectors are float16, encoded a chunk at a time, so that a large catalogue's fit into memory."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def identity(self) -> str:
        return self._embedder.identity

    @property
    def width(self) -> int:
        return self._embedder.width

    def embed(self, texts: Sequence[str]) -> FloatArray:
        vectors = np.empty((len(texts), self.width), dtype=np.float16)
        for start in range(0, len(texts), TEXT_CHUNK):
            vectors[start : start + TEXT_CHUNK] = self._embedder.embed(texts[start : start + TEXT_CHUNK])
        return vectors  # type: ignore[return-value]


def _usable(catalogue: Catalogue, sequences: Mapping[str, Sequence[str]]) -> tuple[list[str], list[Rows]]:
    """Users whose sequences have a transition, and these sequences as rows."""
    index = catalogue.index
    try:
        rows = [np.array([index[item] for item in items], dtype=np.int64) for items in sequences.values()]
    except KeyError as error:
        raise TrmError(f"the training sequences name item {error}, absent from the catalogue; import again") from error
    usable = [(user, one) for user, one in zip(sequences, rows, strict=True) if len(one) >= 2]
    if not usable:
        raise TrmError(
            f"none of {len(rows)} training sequences has two items; bring longer histories, or lower "
            f"data.policy_positions"
        )
    return [user for user, _ in usable], [one for _, one in usable]


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _some(examples: Sequence[Example], seed: int) -> list[Example]:
    """At most ``CURVE_USERS`` examples, drawn apart from all that training draws."""
    drawn = np.random.default_rng([seed, 1]).permutation(len(examples))[:CURVE_USERS]
    return [examples[row] for row in sorted(drawn)]


def _quick_ndcg(retriever: TrmRetriever, examples: Sequence[Example]) -> float:
    ranks = retriever.rank_targets([Query(one.history) for one in examples], [one.target for one in examples])
    return metrics_from_ranks(ranks)["ndcg@10"]


def _point(line: EpochReport) -> dict[str, float]:
    point = {
        "epoch": float(line.epoch),
        "loss": line.loss,
        "seconds": round(line.seconds, 3),
        "positions_per_second": round(line.positions_per_second, 1),
    }
    return point if line.ndcg_10 is None else {**point, "ndcg@10": line.ndcg_10}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _continued(trm: TrmConfig) -> str:
    return (
        f"\n\nThe training began with the weights of {trm.continue_from or 'another TRM'} and took "
        f"{trm.continued_epochs} of {trm.epochs} epochs."
    )


def _summary(metrics: Mapping[str, float]) -> str:
    return (
        f"Full ranking of the catalogue for the validation targets, items of the history excluded. Without preference: "
        f"NDCG@10 {metrics['ndcg@10']:.4f}, Recall@10 {metrics['recall@10']:.4f}. Given the target's own phrases: "
        f"Recall@20 {metrics['preference_recall@20']:.4f}. Popularity: NDCG@10 {metrics['popularity_ndcg@10']:.4f}."
    )
