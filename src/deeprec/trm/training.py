"""Training the TRM and its gate.

Every position of a sequence predicts the next item under a softmax over the whole catalogue. A share of the positions
is given a truthful preference drawn from the target's phrases, and of these a few are not shown the history; the rest
has none, so one network answers with and without. The same seed on the same machine gives the same weights. The gate
reads the validation targets; ``training.train`` never sees a test target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeprec.checks.gate import Verdict, check_metrics
from deeprec.config import TextConfig, TrmConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.splits import trm_sequences, validation_examples
from deeprec.errors import TrmError
from deeprec.metrics import metrics_from_ranks
from deeprec.trm.artifact import TrainedTrm, Vocabulary, build_vocabulary, write_trm
from deeprec.trm.batches import Batch, Rows, draw_batches, draw_preferences, draw_windows, phrase_table
from deeprec.trm.report import curve_svg
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.types import Catalogue, Embedder, Example, Query

if TYPE_CHECKING:
    import torch

    from deeprec.trm.model import Trm

CURVE_POINTS = 5
CURVE_USERS = 1000
_FINAL_RATE = 0.01


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch (1-based): mean loss in nats, wall seconds, and NDCG@10 on some validation users where measured."""

    epoch: int
    epochs: int
    loss: float
    seconds: float
    ndcg_10: float | None

    def __str__(self) -> str:
        measured = "" if self.ndcg_10 is None else f", validation NDCG@10 {self.ndcg_10:.4f}"
        return f"TRM epoch {self.epoch}/{self.epochs}: loss {self.loss:.4f}, {self.seconds:.1f} s{measured}"


Progress = Callable[[EpochReport], None]


def train(
    dataset: Path, trm: TrmConfig, text: TextConfig, seed: int, out: Path, report: Path
) -> tuple[Verdict, dict[str, float]]:
    """Train on a dataset's training sequences, measure on its validation targets, write artifact and gate report.

    Raises:
        ArtifactError, DataError: the dataset cannot be read.
        TrmError: training failed.
        StoreError: ``out`` or ``report`` cannot be written.
    """
    data = read_dataset(dataset)
    metrics, curves = train_trm(
        data,
        trm_sequences(data),
        trm,
        text,
        load_embedder(text),
        seed,
        Path(out),
        progress=lambda line: print(line, flush=True),
        validation=validation_examples(data),
        parents=(Path(dataset),),
    )
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
        intro=_summary(metrics),
        figures=[curve_svg("Training loss", losses), curve_svg("NDCG@10 of some validation users", measured)],
    )
    return verdict, metrics


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
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train on ``sequences`` and write the artifact.

    Returns:
        Metrics of the validation examples (empty without), and one point per epoch: ``epoch``, ``loss``, ``seconds``
        and, where measured, ``ndcg@10``.

    Raises:
        TrmError: no sequence has two items, or the loss is not finite.
    """
    examples = list(validation or ())
    trained, curves = fit(dataset.catalogue, sequences, trm, embedder, seed, progress=progress, validation=examples)
    retriever = TrmRetriever(trained, dataset.catalogue, embedder)
    metrics = measure(retriever, examples) if examples else {}
    write_trm(out, trained, text, metrics, curves, parents=parents, seed=seed)
    return metrics, curves


def measure(retriever: TrmRetriever, examples: Sequence[Example]) -> dict[str, float]:
    """Full-ranking metrics of the examples, what a user has had excluded.

    ``recall@…``, ``ndcg@…``, ``mrr`` without preference; ``preference_recall@10/20`` given all phrases of the target;
    ``popularity_ndcg@10`` and ``ratio_to_popularity`` of NDCG@10.
    """
    targets = [example.target for example in examples]
    plain = retriever.rank_targets([Query(example.history) for example in examples], targets)
    told = retriever.rank_targets(
        [Query(example.history, retriever.catalogue[example.target].phrases) for example in examples], targets
    )
    popular = retriever.rank_targets([Query((), exclude=frozenset(example.history)) for example in examples], targets)
    metrics = metrics_from_ranks(plain)
    baseline = metrics_from_ranks(popular)["ndcg@10"]
    return {
        **metrics,
        "preference_recall@10": _recall(told, 10),
        "preference_recall@20": _recall(told, 20),
        "popularity_ndcg@10": baseline,
        "ratio_to_popularity": metrics["ndcg@10"] / max(baseline, 1e-9),
    }


def fit(
    catalogue: Catalogue,
    sequences: Mapping[str, Sequence[str]],
    trm: TrmConfig,
    embedder: Embedder,
    seed: int,
    *,
    progress: Progress | None = None,
    validation: Sequence[Example] = (),
) -> tuple[TrainedTrm, list[dict[str, float]]]:
    """Train a network; see ``train_trm``. Leaves torch's global random state as it was."""
    import torch

    from deeprec.trm.model import Trm

    rows = _usable(catalogue, sequences)
    counts = np.bincount(np.concatenate(rows), minlength=len(catalogue))
    vocabulary = build_vocabulary(catalogue, embedder, counts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = np.random.default_rng(seed)
    some = [validation[row] for row in sorted(generator.permutation(len(validation))[:CURVE_USERS])]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Trm(trm, torch.from_numpy(vocabulary.item_text)).to(device)
        trained = TrainedTrm(model, vocabulary)
        run = _Run(model, vocabulary, phrase_table(catalogue, vocabulary.phrases), trm, generator, len(rows))
        curves = []
        for epoch in range(1, trm.epochs + 1):
            started = time.perf_counter()
            loss = run.epoch(rows, epoch)
            seconds = time.perf_counter() - started
            ndcg = None
            if some and (epoch == trm.epochs or epoch % math.ceil(trm.epochs / CURVE_POINTS) == 0):
                ndcg = _quick_ndcg(TrmRetriever(trained, catalogue, embedder), some)
            line = EpochReport(epoch, trm.epochs, loss, seconds, ndcg)
            curves.append(_point(line))
            if progress is not None:
                progress(line)
    model.eval()
    return trained, curves


class _Run:
    """The state of one training: network, optimiser, schedule and the generator of all its draws."""

    def __init__(
        self,
        model: Trm,
        vocabulary: Vocabulary,
        table: Rows,
        trm: TrmConfig,
        generator: np.random.Generator,
        sequences: int,
    ) -> None:
        import torch

        self.model, self.trm, self.table, self.generator = model, trm, table, generator
        self.device = model.item_text.device
        self.phrase_text = torch.from_numpy(vocabulary.phrase_text).to(self.device)
        self.low = trm.bf16 and has_bf16(self.device)
        self.steps = trm.epochs * math.ceil(sequences / trm.batch_size)
        self.step = 0
        matrices = [value for value in model.parameters() if value.dim() > 1]
        others = [value for value in model.parameters() if value.dim() <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": trm.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=trm.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def epoch(self, sequences: Sequence[Rows], number: int) -> float:
        """One pass; the mean loss over its batches."""
        self.model.train()
        windows = draw_windows(sequences, self.trm.max_length, self.generator)
        losses = []
        for index, batch in enumerate(draw_batches(windows, self.trm.batch_size, self.generator)):
            loss = self._update(batch)
            if not math.isfinite(loss):
                raise TrmError(
                    f"the loss is {loss} at epoch {number}, batch {index} of {len(batch.inputs)} sequences of up to "
                    f"{batch.inputs.shape[1]} items; lower trm.learning_rate, or set trm.bf16 to false"
                )
            losses.append(loss)
        return float(np.mean(losses))

    def _update(self, batch: Batch) -> float:
        import torch

        for group in self.optimiser.param_groups:
            group["lr"] = self.trm.learning_rate * schedule(self.step, self.steps, self.trm.warmup)
        self.step += 1
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.trm.clip_norm)
        self.optimiser.step()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> torch.Tensor:
        import torch

        from deeprec.trm.loss import catalogue_loss
        from deeprec.trm.model import mean_phrases

        targets = batch.targets[batch.real]
        drawn = draw_preferences(targets, self.table, len(self.phrase_text), self.trm, self.generator)
        told = (drawn >= 0).any(axis=1)
        blind = told & (self.generator.random(len(targets)) < self.trm.history_drop)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low):
            table = self.model.item_table()
            states = self.model.encode(self._tensor(batch.inputs), table)[self._tensor(batch.real)]
            states = states.masked_fill(self._tensor(blind)[:, None], 0.0)
            if told.any():
                adapted = self.model.phrase_adaptor(self.phrase_text)
                chosen = self._tensor(np.flatnonzero(told))
                states = states.index_add(0, chosen, mean_phrases(self._tensor(drawn[told]), adapted))
        users = self.model.user(states)
        items = torch.nn.functional.normalize(table, dim=-1)
        return catalogue_loss(users, items, self._tensor(targets), self.trm.temperature, low=self.low)

    def _tensor(self, values: NDArray[np.int64] | NDArray[np.bool_]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values).to(self.device)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a 0-based step: a linear rise, then a half cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def _usable(catalogue: Catalogue, sequences: Mapping[str, Sequence[str]]) -> list[Rows]:
    index = catalogue.index
    try:
        rows = [np.array([index[item] for item in items], dtype=np.int64) for items in sequences.values()]
    except KeyError as error:
        raise TrmError(f"the training sequences name item {error}, absent from the catalogue; import again") from error
    usable = [one for one in rows if len(one) >= 2]
    if not usable:
        raise TrmError(
            f"none of {len(rows)} training sequences has two items; bring longer histories, or lower "
            f"data.policy_positions"
        )
    return usable


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _quick_ndcg(retriever: TrmRetriever, examples: Sequence[Example]) -> float:
    ranks = retriever.rank_targets([Query(one.history) for one in examples], [one.target for one in examples])
    return metrics_from_ranks(ranks)["ndcg@10"]


def _recall(ranks: NDArray[np.int64], k: int) -> float:
    return float(((ranks >= 0) & (ranks < k)).mean())


def _point(line: EpochReport) -> dict[str, float]:
    point = {"epoch": float(line.epoch), "loss": line.loss, "seconds": round(line.seconds, 3)}
    return point if line.ndcg_10 is None else {**point, "ndcg@10": line.ndcg_10}


def _summary(metrics: Mapping[str, float]) -> str:
    return (
        f"Full ranking of the catalogue for the validation targets, items of the history excluded. Without preference: "
        f"NDCG@10 {metrics['ndcg@10']:.4f}, Recall@10 {metrics['recall@10']:.4f}. Given the target's own phrases: "
        f"Recall@20 {metrics['preference_recall@20']:.4f}. Popularity: NDCG@10 {metrics['popularity_ndcg@10']:.4f}."
    )
