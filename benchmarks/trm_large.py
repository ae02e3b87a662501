"""Training the TRM on a catalogue of 1,000,000 items within 6 GB: ``python -m benchmarks.trm_large``.

Generated data: items belong to groups of 500, their text vectors are their group's with noise, and a few items of a
group are much more popular than the rest; a user has three groups and moves between them. One epoch with the defaults
of the ``trm`` section, which samples the softmax at this size, then the validation items: Recall@100 of the full
ranking beside chance (100 / items) and beside popularity. Peak memory is that of the whole process, from making the
data to the last query.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeprec.config import TrmConfig
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.training import fit
from deeprec.types import Catalogue, Example, FloatArray, Item, Query

ITEMS, QUICK_ITEMS = 1_000_000, 60_000
USERS, QUICK_USERS = 20_000, 6_000
GROUP, TASTES, MEAN_HISTORY = 500, 3, 30
TEXT_WIDTH, NOISE_ROWS = 384, 65_536
ASKED, BATCH, K = 1000, 32, 100
MEMORY_LIMIT = 6.0


class GroupEmbedder:
    """Text vectors made from the number in ``Item 123`` or ``group 4``: the group's own, for an item with noise."""

    identity = "generated groups"
    width = TEXT_WIDTH

    def __init__(self, groups: int) -> None:
        generator = np.random.default_rng(1)
        self._groups = generator.standard_normal((groups, TEXT_WIDTH), dtype=np.float32)
        self._noise = generator.standard_normal((NOISE_ROWS, TEXT_WIDTH), dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width) unit vectors."""
        words = [text.replace(".", "").split() for text in texts]
        numbers = np.array([int(one[1]) for one in words], dtype=np.int64)
        items = np.array([one[0] == "Item" for one in words])
        vectors = self._groups[np.where(items, numbers // GROUP, numbers)]
        vectors += self._noise[numbers * 2_654_435_761 % NOISE_ROWS] * items[:, None].astype(np.float32)
        unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def main() -> None:
    """Generate, train, ask, print."""
    arguments = _arguments()
    items = arguments.items or (QUICK_ITEMS if arguments.quick else ITEMS)
    users = arguments.users or (QUICK_USERS if arguments.quick else USERS)
    items = items // GROUP * GROUP
    started = time.perf_counter()
    catalogue = make_catalogue(items)
    sequences = make_sequences(items, users)
    embedder = GroupEmbedder(items // GROUP)
    print(f"{items:,} items, {users:,} users, {sum(map(len, sequences.values())):,} interactions", flush=True)
    training = {user: history[:-1] for user, history in sequences.items()}
    trm = TrmConfig(epochs=arguments.epochs)
    trained, curves = fit(catalogue, training, trm, embedder, 0, progress=lambda line: print(f"  {line}", flush=True))
    trained_after, trained_memory = time.perf_counter() - started, _memory()
    recall, popular = measure(TrmRetriever(trained, catalogue, embedder), sequences)
    chance = K / items
    figures = {
        "items": float(items),
        "steps": float(arguments.epochs * -(-users // trm.batch_size)),
        "seconds to train": sum(point["seconds"] for point in curves),
        "positions per second": curves[-1]["positions_per_second"],
        "recall@100": recall,
        "recall@100, popularity": popular,
        "times chance": recall / chance,
        "peak memory of training, GB": trained_memory,
        "peak memory, GB": _memory(),
    }
    print(
        f"{figures['steps']:.0f} steps           {figures['seconds to train']:10.0f} s "
        f"({trained_after:.0f} s with making the data and encoding the texts)\n"
        f"Recall@{K}          {recall:10.4f}   {recall / chance:,.0f} × chance ({chance:.4f}); "
        f"popularity {popular:.4f}\n"
        f"peak memory         {figures['peak memory, GB']:10.2f} GB (at most {MEMORY_LIMIT:.0f}); "
        f"{trained_memory:.2f} GB until training ended"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def make_catalogue(items: int) -> Catalogue:
    """Items with a title that names their number, and their group as a phrase."""
    groups = [(f"group {number}",) for number in range(items // GROUP)]
    return Catalogue(tuple(Item(f"i{row}", f"Item {row}", {}, groups[row // GROUP]) for row in range(items)))


def make_sequences(items: int, users: int) -> dict[str, tuple[str, ...]]:
    """User id → item ids: a user moves on to another of three groups at some steps; items are Zipf within a group."""
    generator = np.random.default_rng(0)
    popular = np.cumsum(1 / (np.arange(GROUP) + 3.0))
    found = {}
    for user in range(users):
        tastes = generator.integers(items // GROUP, size=TASTES)
        length = max(5, generator.poisson(MEAN_HISTORY))
        moves = np.where(generator.random(length) < 0.2, generator.integers(TASTES, size=length), 0).cumsum() % TASTES
        within = np.searchsorted(popular, generator.random(length) * popular[-1])
        rows = dict.fromkeys((tastes[moves] * GROUP + within).tolist())
        found[f"u{user}"] = tuple(f"i{row}" for row in rows)
    return {user: history for user, history in found.items() if len(history) >= 3}


def measure(retriever: TrmRetriever, sequences: dict[str, tuple[str, ...]]) -> tuple[float, float]:
    """Recall@100 of some users' last items, and that of popularity."""
    examples = [Example(user, items[:-1], items[-1]) for user, items in list(sequences.items())[:ASKED]]
    hits = 0
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        found = retriever.retrieve([Query(one.history) for one in part], K)
        hits += sum(one.target in {item.item_id for item in items} for one, items in zip(part, found, strict=True))
    (popular,) = retriever.retrieve([Query(())], K)
    best = {item.item_id for item in popular}
    return hits / len(examples), sum(one.target in best for one in examples) / len(examples)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.trm_large --out large.json\n  python -m benchmarks.trm_large --quick",
    )
    parser.add_argument("--items", type=int, help=f"items (default {ITEMS:,})")
    parser.add_argument("--users", type=int, help=f"users (default {USERS:,})")
    parser.add_argument("--epochs", type=int, default=1, help="epochs (default 1)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS:,} items and {QUICK_USERS:,} users")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
