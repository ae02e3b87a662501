"""How accurate a TRM is: full-ranking metrics of prediction tasks beside popularity, and how they differ by group.

``measure`` gives the figures that training, its gate and benchmarks read; ``evaluate`` also gives popularity's own
and the groups by popularity of the target and by length of the history; ``evaluate_trm`` does it for artifacts and
writes a report. What a user has had is excluded from every ranking. All draws are from a fixed seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import TrmError
from deeprec.metrics import metrics_from_ranks
from deeprec.store import write_text
from deeprec.types import Catalogue, Example, JsonDict, Query

if TYPE_CHECKING:
    from deeprec.trm.retriever import TrmRetriever

Split = Literal["validation", "test"]
GROUPS = 10
"""Groups by popularity: each holds as near a tenth of the examples as equal counts allow."""


@dataclass(frozen=True, slots=True)
class Group:
    """Accuracy on some of the examples, the TRM's and popularity's. ``label`` is the range the group covers."""

    label: str
    users: int
    ndcg_10: float
    recall_10: float
    popularity_ndcg_10: float
    popularity_recall_10: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one set of examples.

    ``metrics`` is what ``measure`` returns; ``popularity`` has ``recall@…``, ``ndcg@…`` and ``mrr`` of the popularity
    order; ``by_popularity`` groups the examples by the target's training count, in deciles of these counts, least
    popular first; ``by_history`` by the length of the history, in powers of two. Groups without examples are left out.
    """

    users: int
    metrics: Mapping[str, float]
    popularity: Mapping[str, float]
    by_popularity: tuple[Group, ...]
    by_history: tuple[Group, ...]

    def to_json(self) -> JsonDict:
        """Plain values."""
        return asdict(self)


def measure(retriever: TrmRetriever, examples: Sequence[Example]) -> dict[str, float]:
    """Full-ranking metrics of the examples, what a user has had excluded.

    Keys:
        ``recall@1/5/10/20``, ``ndcg@5/10``, ``mrr``: without preference.
        ``preference_recall@10/20``: given all phrases of the target.
        ``half_preference_recall@20``: given half of the target's phrases, rounded up, drawn from a fixed seed.
        ``misled_ndcg@10``: given such a half of another target's phrases (the one half the examples further on).
        ``popularity_ndcg@10``, ``ratio_to_popularity``: of the popularity order, and NDCG@10 over it.
    """
    return dict(evaluate(retriever, examples).metrics)


def evaluate(retriever: TrmRetriever, examples: Sequence[Example]) -> Evaluation:
    """Metrics, popularity's metrics, and the groups; see ``Evaluation`` and ``measure``."""
    targets = [example.target for example in examples]
    histories = [example.history for example in examples]
    phrases = [retriever.catalogue[target].phrases for target in targets]
    halves = half_phrases(phrases)
    others = [halves[(row + len(halves) // 2) % len(halves)] for row in range(len(halves))]

    def ranks(preferences: Sequence[tuple[str, ...]]) -> NDArray[np.int64]:
        asked = [Query(history, preference) for history, preference in zip(histories, preferences, strict=True)]
        return retriever.rank_targets(asked, targets)

    plain = ranks([()] * len(examples))
    told = ranks(phrases)
    popular = retriever.rank_targets([Query((), exclude=frozenset(history)) for history in histories], targets)
    metrics, baseline = metrics_from_ranks(plain), metrics_from_ranks(popular)
    metrics |= {
        "recall@20": _recall(plain, 20),
        "preference_recall@10": _recall(told, 10),
        "preference_recall@20": _recall(told, 20),
        "half_preference_recall@20": _recall(ranks(halves), 20),
        "misled_ndcg@10": metrics_from_ranks(ranks(others))["ndcg@10"],
        "popularity_ndcg@10": baseline["ndcg@10"],
        "ratio_to_popularity": metrics["ndcg@10"] / max(baseline["ndcg@10"], 1e-9),
    }
    counts = _counts(retriever.catalogue, retriever.popularity, targets)
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    return Evaluation(
        users=len(examples),
        metrics=metrics,
        popularity=baseline,
        by_popularity=_groups(*popularity_deciles(counts), plain, popular),
        by_history=_groups(*history_bins(lengths), plain, popular),
    )


def half_phrases(phrases: Sequence[tuple[str, ...]], seed: int = 0) -> list[tuple[str, ...]]:
    """Half of each tuple, rounded up, drawn at random without changing the order."""
    generator = np.random.default_rng(seed)
    found = []
    for own in phrases:
        kept = np.sort(generator.permutation(len(own))[: (len(own) + 1) // 2])
        found.append(tuple(own[place] for place in kept))
    return found


def popularity_deciles(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) group of each count, least first, and the groups' labels such as ``12–40``; equal counts share a group."""
    if len(counts) == 0:
        return np.zeros(0, dtype=np.int64), []
    edges = np.unique(np.quantile(counts, np.arange(1, GROUPS) / GROUPS, method="lower"))
    groups = np.searchsorted(edges, counts, side="left")
    _, groups = np.unique(groups, return_inverse=True)
    spans = [counts[groups == group] for group in range(int(groups.max()) + 1)]
    return groups.astype(np.int64), [_span(int(span.min()), int(span.max())) for span in spans]


def history_bins(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) group of each length, shortest first, and the labels: ``0``, ``1``, ``2–3``, ``4–7``, ``8–15``, …"""
    exponents = np.array([int(length).bit_length() for length in lengths], dtype=np.int64)
    present, groups = np.unique(exponents, return_inverse=True)
    labels = ["0" if power == 0 else _span(2 ** (power - 1), 2**power - 1) for power in map(int, present)]
    return groups.astype(np.int64), labels


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _counts(catalogue: Catalogue, popularity: NDArray[np.int64], targets: Sequence[str]) -> NDArray[np.int64]:
    return np.array([popularity[catalogue.index[target]] for target in targets], dtype=np.int64)


def _groups(
    groups: NDArray[np.int64], labels: Sequence[str], plain: NDArray[np.int64], popular: NDArray[np.int64]
) -> tuple[Group, ...]:
    found = []
    for group, label in enumerate(labels):
        own, baseline = metrics_from_ranks(plain[groups == group]), metrics_from_ranks(popular[groups == group])
        found.append(
            Group(
                label=label,
                users=int((groups == group).sum()),
                ndcg_10=own["ndcg@10"],
                recall_10=own["recall@10"],
                popularity_ndcg_10=baseline["ndcg@10"],
                popularity_recall_10=baseline["recall@10"],
            )
        )
    return tuple(found)


def _recall(ranks: NDArray[np.int64], k: int) -> float:
    return float(((ranks >= 0) & (ranks < k)).mean()) if len(ranks) else 0.0


# --------------------------------------------------------------------------------------------------------- artifacts


def evaluate_trm(trm: Path, dataset: Path, report: Path | None = None, split: Split = "validation") -> Evaluation:
    """Evaluate a TRM artifact on the targets of a dataset.

    Args:
        report: where to write an HTML report; the figures go beside it as JSON, with the suffix ``.json``.
        split: ``test`` reads the test target, which no choice may depend on.

    Raises:
        ArtifactError, DataError: an artifact cannot be read.
        TrmError: a target is unknown to the TRM, the split is none of the two, or the text encoder cannot be loaded.
        StoreError: the report cannot be written.
    """
    from deeprec.data.dataset import read_dataset
    from deeprec.data.splits import test_examples, validation_examples
    from deeprec.trm.artifact import read_record
    from deeprec.trm.recommender import TrmRecommender, trm_directory
    from deeprec.trm.report import write_trm_report

    splits = {"validation": validation_examples, "test": test_examples}
    if split not in splits:
        raise TrmError(f"there is no split {split!r}; evaluate on validation or test")
    if report is not None and report.suffix == ".json":
        raise TrmError(f"{report} is where the figures go; name the report with another suffix, such as .html")
    retriever = TrmRecommender.load(trm).retriever
    data = read_dataset(dataset)
    examples = splits[split](data)
    unknown = next((example.target for example in examples if example.target not in retriever.catalogue), None)
    if unknown is not None:
        raise TrmError(
            f"the TRM {trm} does not know item {unknown!r} of {dataset}; evaluate it on the dataset it was trained on"
        )
    evaluation = evaluate(retriever, examples)
    if report is not None:
        figures = {"split": split, **evaluation.to_json()}
        write_text(report.with_suffix(".json"), json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        write_trm_report(report, evaluation, read_record(trm_directory(trm)).curves, split)
    return evaluation
