"""Accuracy of the stand-alone TRM on MovieLens-1M beside published figures: ``python -m benchmarks.trm_accuracy``.

Leave-one-out, full ranking of the catalogue, items of the history excluded (method, section 5). The TRM trains on
everything before the validation item; every setting in the two profiles was chosen on the validation item, and the
test item is read once, after training. Minutes are wall time of the whole training, text encoding included. With
``--keep`` a second call measures what a first one trained, e.g. on test what was chosen on validation.

- ``ml-1m`` (the ten-minute row): the ``trm`` section of ``configs/ml-1m.yaml``, three seeds.
- ``ml-1m-accurate`` (the sixty-minute row): that of ``configs/ml-1m-accurate.yaml``, one seed.

A truthful preference is half of the phrases of the target (rounded up); a misleading one is that of another user.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from deeprec.config import DataConfig, load_config
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import standalone_sequences, test_examples, validation_examples
from deeprec.trm.evaluation import measure
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.trm.training import EpochReport, fit

CONFIGS = Path(__file__).parents[1] / "configs"
PUBLISHED = (
    ("ICSRec, its checkpoint", 0.2007, 0.3368, "measured on these very sequences"),
    ("gSASRec, 256 negatives", 0.1726, 0.3003, "SASRec's data"),
    ("HSTU", 0.1720, 0.3097, "another protocol: other order of ties, the request's time is known"),
    ("HSTU-large", 0.1893, 0.3294, "another protocol: other order of ties, the request's time is known"),
)
"""Name, NDCG@10, Recall@10, and how it was measured."""
ROWS = {"ml-1m": (10.0, 0.16, 0.28), "ml-1m-accurate": (60.0, 0.19, 0.32)}
"""Profile → minutes at most, NDCG@10 and Recall@10 wanted."""
SPLITS = ("validation", "test")


def main() -> None:
    """Train each profile, print a row for each seed, and the published figures below."""
    arguments = _arguments()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(arguments.data, Path(scratch))
        for profile in arguments.profiles:
            for seed in arguments.seeds or ((0, 1, 2) if profile == "ml-1m" else (0,)):
                figures.append(run(dataset, profile, seed, arguments))
                print_row(figures[-1])
    for name, ndcg, recall, protocol in PUBLISHED:
        print(f"{name:32} published: NDCG@10 {ndcg:.4f}, Recall@10 {recall:.4f} ({protocol})")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def open_dataset(path: Path, scratch: Path) -> Dataset:
    """A deeprec dataset as it is, or any MovieLens directory imported the way the profile ``ml-1m`` does."""
    if not (path / "dataset.json").exists():
        data = load_config(CONFIGS / "ml-1m.yaml").data.model_dump() | {"path": str(path)}
        ingest(DataConfig.model_validate(data), 0, scratch / "dataset")
        path = scratch / "dataset"
    return read_dataset(path)


def run(dataset: Dataset, profile: str, seed: int, arguments: argparse.Namespace) -> dict[str, float | str]:
    """Train one profile with one seed; its minutes, and the figures of validation and test."""
    config = load_config(CONFIGS / f"{profile}.yaml", tuple(arguments.set or ()))
    embedder = load_embedder(config.text)
    clock = Clock(arguments.keep and arguments.keep / f"{profile}-{seed}.minutes")
    trained, _ = fit(
        dataset.catalogue,
        standalone_sequences(dataset),
        config.trm,
        embedder,
        seed,
        progress=clock.tell,
        validation=validation_examples(dataset),
        checkpoint=arguments.keep and arguments.keep / f"{profile}-{seed}",
    )
    figures: dict[str, float | str] = {"profile": profile, "seed": float(seed), "minutes": clock.minutes()}
    retriever = TrmRetriever(trained, dataset.catalogue, embedder)
    splits = {"validation": validation_examples(dataset), "test": test_examples(dataset)}
    for split in arguments.splits:
        examples = splits[split]
        figures |= {f"{split} {name}": value for name, value in measure(retriever, examples).items()}
    return figures


class Clock:
    """Minutes of a training, added up over the times it was begun when they are kept in a file."""

    def __init__(self, kept: Path | None) -> None:
        self._kept, self._started = kept, time.perf_counter()
        self._before = float(kept.read_text()) if kept and kept.exists() else 0.0

    def minutes(self) -> float:
        """Since the training was first begun, as long as it ran."""
        return self._before + (time.perf_counter() - self._started) / 60

    def tell(self, line: EpochReport) -> None:
        """Print an epoch, and keep the minutes."""
        print(f"  {line}", flush=True)
        if self._kept:
            self._kept.write_text(str(self.minutes()))


def print_row(row: dict[str, float | str]) -> None:
    """For each split one line for accuracy, one for preferences."""
    minutes, ndcg, recall = ROWS.get(str(row["profile"]), (0.0, 0.0, 0.0))
    print(f"{row['profile']}, seed {row['seed']:.0f}: {row['minutes']:.1f} min (at most {minutes:.0f})")
    for split in SPLITS:
        if f"{split} ndcg@10" not in row:
            continue
        plain, found = float(row[f"{split} ndcg@10"]), float(row[f"{split} recall@20"])
        told = float(row[f"{split} half_preference_recall@20"])
        misled = float(row[f"{split} misled_ndcg@10"])
        print(
            f"  {split}: NDCG@10 {plain:.4f} (wanted {ndcg} on test), Recall@10 {row[f'{split} recall@10']:.4f} "
            f"(wanted {recall} on test)\n"
            f"    half of the target's phrases: Recall@20 {told:.4f}, {told / found:.2f} × that without (wanted 1.25); "
            f"another user's: NDCG@10 {misled / plain:.2f} × that without (wanted 0.6)",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.trm_accuracy --data ml-1m\n"
        "  python -m benchmarks.trm_accuracy --data ml-1m --profiles ml-1m --seeds 0 --out accuracy.json\n"
        "  python -m benchmarks.trm_accuracy --data ml-1m --splits validation --keep runs --set trm.dropout=0.25",
    )
    parser.add_argument("--data", type=Path, required=True, help="a MovieLens-1M directory, or a deeprec dataset")
    parser.add_argument("--profiles", nargs="+", default=list(ROWS), help="profiles to train")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds (default: 0 1 2 for ml-1m, else 0)")
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration, e.g. trm.epochs=2; repeatable")
    parser.add_argument(
        "--splits", nargs="+", default=SPLITS, choices=SPLITS, help="validation alone to choose settings"
    )
    parser.add_argument("--keep", type=Path, help="keep trainings here, so that one that was killed goes on")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
