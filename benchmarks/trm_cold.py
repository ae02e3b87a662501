"""Items and users that training never saw: ``python -m benchmarks.trm_cold --data DIR`` (MovieLens-1M).

One training with the ``trm`` section of ``configs/ml-1m.yaml`` that sees neither 5 % of the items (drawn at random,
taken out of every sequence) nor 10 % of the users. Then the items are added from their text alone, as
``deeprec trm add-items`` does, without training.

- New items: Recall@50 of the test users whose target is one of them, beside chance (50 / catalogue); and NDCG@10 of
  the other test users with the new items in the catalogue, beside the same without them.
- New users: the unseen users after their first 1, 2 and 5 items, NDCG@10 of the next item beside popularity; without
  any history, given half of the phrases of their test target; and with nothing at all, which must be popularity.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.trm_accuracy import CONFIGS, open_dataset
from deeprec.config import load_config
from deeprec.data.dataset import Dataset
from deeprec.data.splits import standalone_sequences, test_examples, validation_examples
from deeprec.metrics import metrics_from_ranks
from deeprec.trm.extend import extend
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.trm.training import fit
from deeprec.types import Catalogue, Example, Query

ITEMS, USERS, SEED = 0.05, 0.10, 20
HISTORIES = (1, 2, 5)


def main() -> None:
    """Train once, then print the two tables."""
    arguments = _arguments()
    config = load_config(CONFIGS / "ml-1m.yaml", tuple(arguments.set or ()))
    embedder = load_embedder(config.text)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(arguments.data, Path(scratch))
    generator = np.random.default_rng(SEED)
    items = dataset.catalogue.items
    new_items = set(generator.choice(len(items), round(ITEMS * len(items)), replace=False).tolist())
    users = list(dataset.sequences)
    new_users = {users[row] for row in generator.choice(len(users), round(USERS * len(users)), replace=False)}
    known = Catalogue(tuple(item for row, item in enumerate(items) if row not in new_items))
    added = [item for row, item in enumerate(items) if row in new_items]
    sequences = {
        user: tuple(item for item in sequence if item in known)
        for user, sequence in standalone_sequences(dataset).items()
        if user not in new_users
    }
    trained, _ = fit(
        known,
        sequences,
        config.trm,
        embedder,
        arguments.seed,
        progress=lambda line: print(f"  {line}", flush=True),
        checkpoint=arguments.keep,
    )
    before = TrmRetriever(trained, known, embedder)
    extended = extend(trained, added, embedder)
    after = TrmRetriever(extended, extended.catalogue, embedder)
    examples = validation_examples(dataset) if arguments.split == "validation" else test_examples(dataset)
    figures = {**new_item_figures(before, after, examples), **new_user_figures(after, dataset, new_users)}
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def new_item_figures(before: TrmRetriever, after: TrmRetriever, examples: Sequence[Example]) -> dict[str, float]:
    """Recall@50 of new targets over chance, and what the others lose."""
    fresh = [one for one in examples if one.target not in before.catalogue]
    others = [one for one in examples if one.target in before.catalogue]
    ranks = after.rank_targets([Query(one.history) for one in fresh], [one.target for one in fresh])
    recall, chance = float(((ranks >= 0) & (ranks < 50)).mean()), 50 / len(after.catalogue)
    was, now = (_ndcg(retriever, others) for retriever in (before, after))
    print(
        f"new items: {len(after.catalogue) - len(before.catalogue)} of {len(after.catalogue)}, target of {len(fresh)} "
        f"users: Recall@50 {recall:.4f}, {recall / chance:.1f} × chance (wanted 5)\n"
        f"the {len(others)} others: NDCG@10 {was:.4f} before they were added, {now:.4f} after, {now / was - 1:+.2%} "
        f"(wanted above −2 %)"
    )
    return {"recall@50": recall, "over chance": recall / chance, "others before": was, "others after": now}


def new_user_figures(retriever: TrmRetriever, dataset: Dataset, users: set[str]) -> dict[str, float]:
    """NDCG@10 after 1, 2 and 5 items, and without history, beside popularity."""
    figures: dict[str, float] = {}
    sequences = {user: items for user, items in dataset.sequences.items() if user in users}
    for length in HISTORIES:
        examples = [Example(user, items[:length], items[length]) for user, items in sequences.items()]
        figures[f"history {length}"] = _ndcg(retriever, examples)
        figures[f"popularity {length}"] = _popularity(retriever, examples)
        print(
            f"{len(examples)} new users with {length} item{'s' if length > 1 else ''}: NDCG@10 "
            f"{figures[f'history {length}']:.4f}, popularity {figures[f'popularity {length}']:.4f}"
        )
    examples = [Example(user, (), items[-1]) for user, items in sequences.items()]
    told = [
        Query((), tuple(phrases[: math.ceil(len(phrases) / 2)]))
        for phrases in (retriever.catalogue[one.target].phrases for one in examples)
    ]
    ranks = retriever.rank_targets(told, [one.target for one in examples])
    figures["preference alone"] = metrics_from_ranks(ranks)["ndcg@10"]
    figures["popularity alone"] = _popularity(retriever, examples)
    order = [retriever.catalogue.index[one.item_id] for one in retriever.retrieve([Query(())], 100)[0]]
    counts = retriever.popularity
    assert list(counts[order]) == sorted(counts, reverse=True)[:100]
    print(
        f"no history, half of the target's phrases: NDCG@10 {figures['preference alone']:.4f}, popularity "
        f"{figures['popularity alone']:.4f}\nnothing at all: the 100 most popular items, in their order"
    )
    return figures


def _ndcg(retriever: TrmRetriever, examples: Sequence[Example]) -> float:
    ranks = retriever.rank_targets([Query(one.history) for one in examples], [one.target for one in examples])
    return metrics_from_ranks(ranks)["ndcg@10"]


def _popularity(retriever: TrmRetriever, examples: Sequence[Example]) -> float:
    queries = [Query((), exclude=frozenset(one.history)) for one in examples]
    return metrics_from_ranks(retriever.rank_targets(queries, [one.target for one in examples]))["ndcg@10"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.trm_cold --data ml-1m --out cold.json",
    )
    parser.add_argument("--data", type=Path, required=True, help="a MovieLens-1M directory, or a deeprec dataset")
    parser.add_argument("--seed", type=int, default=0, help="of the training; what is held out does not change")
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration, e.g. trm.epochs=2; repeatable")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="validation to choose settings")
    parser.add_argument("--keep", type=Path, help="keep the training here, and go on from one that is there")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
