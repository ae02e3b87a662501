"""What continuing a TRM's training gives beside training afresh: ``python -m benchmarks.retraining`` (MovieLens-1M).

The last tenth of the interactions by time is new; where the data have an order and no times, the last tenth of each
user's. A TRM is trained on the first nine tenths with the ``trm`` section of the profile, from the items that were
there; then the same data with the new tenth are trained on

- continued: from its weights (``trm.continue_from``), with the share of the epochs and of the peak of the learning rate
  that was best on validation,
- afresh: with the profile,
- afresh, as short: with the profile and the epochs of the continued training,

and measured on the last items that lie in the new tenth, beside the TRM of the nine tenths with the new items from
their texts alone, as it would go on serving (as it was).

Leave-one-out, full ranking of the catalogue, items of the history excluded; every training leaves out each user's last
two interactions of its own data, so that none has seen a target. Settings are chosen on the last items but one that lie
in the new tenth; the last are read once, after all trainings. Seconds are wall time of a training, without choosing;
intervals of 95 % are over users, paired.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trm_accuracy import CONFIGS, Clock, open_dataset
from deeprec.config import Config, TrmConfig, load_config
from deeprec.data.dataset import Dataset
from deeprec.data.splits import standalone_sequences, test_examples, validation_examples
from deeprec.evaluation.significance import compare
from deeprec.metrics import metrics_from_ranks
from deeprec.trm.artifact import TrainedTrm
from deeprec.trm.extend import extend
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.trm.training import fit
from deeprec.types import Catalogue, Embedder, Example, Query

SHARE = 0.1
LEAST = 4
"""Interactions of a user that can be split, with one to train on."""
CHOICES = tuple((share, rate) for share in (0.1, 0.2, 0.4) for rate in (1.0, 0.3))
"""Share of the epochs, and of the peak of the learning rate, to choose from."""
RESAMPLES = 2000
AS_IT_WAS, CONTINUED, AFRESH, AS_SHORT = "as it was", "continued", "afresh", "afresh, as short"


@dataclass(frozen=True)
class World:
    """The data before the new tenth and with it, and the targets in the new tenth."""

    before: Dataset
    now: Dataset
    validation: Sequence[Example]
    test: Sequence[Example]


def main() -> None:
    """Train, choose, measure, and print the table."""
    arguments = _arguments()
    config = load_config(CONFIGS / f"{arguments.profile}.yaml", tuple(arguments.set or ()))
    with tempfile.TemporaryDirectory() as scratch:
        world = split(open_dataset(arguments.data, Path(scratch)))
        trainings = Trainings(config, world, arguments.seed, arguments.keep or Path(scratch))
        figures = run(world, trainings)
    print_table(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def split(dataset: Dataset) -> World:
    """The newest ``SHARE`` of the interactions is what is new; items that only it has are new as well."""
    kept = _kept(dataset)
    info = {**dataset.info, "policy_positions": 1}
    old = {user: items[: kept[user]] for user, items in dataset.sequences.items() if kept[user] >= LEAST}
    there = {item for items in old.values() for item in items}
    catalogue = replace(dataset.catalogue, items=tuple(one for one in dataset.catalogue.items if one.item_id in there))
    now = replace(dataset, info=info)

    def new(examples: Sequence[Example]) -> list[Example]:
        return [one for one in examples if len(one.history) >= kept[one.user_id]]

    return World(Dataset(catalogue, old, {}, info), now, new(validation_examples(now)), new(test_examples(now)))


def _kept(dataset: Dataset) -> dict[str, int]:
    """User → how many of the first interactions are not new."""
    if dataset.time_unit == "order":
        return {user: int(len(items) * (1 - SHARE)) for user, items in dataset.sequences.items()}
    times = np.concatenate([np.asarray(own) for own in dataset.timestamps.values()])
    cut = np.quantile(times, 1 - SHARE, method="lower")
    return {user: int(np.searchsorted(own, cut, side="right")) for user, own in dataset.timestamps.items()}


class Trainings:
    """The trainings of one seed; each is kept, gone on with where it was killed, and not done twice."""

    def __init__(self, config: Config, world: World, seed: int, keep: Path) -> None:
        self.trm, self.embedder = config.trm, load_embedder(config.text)
        self._world, self._seed, self._keep = world, seed, keep
        keep.mkdir(parents=True, exist_ok=True)

    def former(self) -> tuple[TrainedTrm, float]:
        """The TRM of the first nine tenths, and its seconds."""
        return self._fit("former", self._world.before, self.trm, None)

    def afresh(self, epochs: int) -> tuple[TrainedTrm, float]:
        """One of all data."""
        return self._fit(f"afresh-{epochs}", self._world.now, self.trm.model_copy(update={"epochs": epochs}), None)

    def continued(self, former: TrainedTrm, share: float, rate: float) -> tuple[TrainedTrm, float]:
        """One of all data that begins with the former's weights."""
        trm = self.trm.model_copy(update={"continue_share": share, "learning_rate": rate * self.trm.learning_rate})
        return self._fit(f"continued-{share:g}-{rate:g}", self._world.now, trm, former)

    def _fit(self, name: str, data: Dataset, trm: TrmConfig, former: TrainedTrm | None) -> tuple[TrainedTrm, float]:
        print(f"{name}:", flush=True)
        clock, done = Clock(self._keep / f"{name}.minutes"), self._keep / f"{name}.seconds"
        trained, _ = fit(
            data.catalogue,
            standalone_sequences(data),
            trm,
            self.embedder,
            self._seed,
            progress=clock.tell,
            checkpoint=self._keep / name,
            former=former,
        )
        if not done.exists():
            done.write_text(str(60 * clock.minutes()))
        return trained, float(done.read_text())


def run(world: World, trainings: Trainings) -> dict[str, Any]:
    """Every training, the choice on validation, and the figures of the test targets."""
    embedder = trainings.embedder
    former, former_seconds = trainings.former()
    tried = {choice: trainings.continued(former, *choice) for choice in CHOICES}
    chosen_by = {choice: ndcg(ranks(trained, embedder, world.validation)) for choice, (trained, _) in tried.items()}
    share, rate = max(chosen_by, key=lambda choice: chosen_by[choice])
    short = trainings.trm.model_copy(update={"continue_share": share}).continued_epochs
    rows = {
        AS_IT_WAS: (extend(former, _new_items(former.catalogue, world.now.catalogue), embedder), 0.0),
        CONTINUED: tried[share, rate],
        AFRESH: trainings.afresh(trainings.trm.epochs),
        AS_SHORT: trainings.afresh(short),
    }
    found = {name: ranks(trained, embedder, world.test) for name, (trained, _) in rows.items()}
    pairs = [(CONTINUED, other) for other in (AFRESH, AS_SHORT, AS_IT_WAS)]
    compared = compare(found, pairs, RESAMPLES, seed=0)
    return {
        "users": len(world.test),
        "new tenth": "of each user's" if world.now.time_unit == "order" else "by time",
        "users of validation": len(world.validation),
        "new items": len(world.now.catalogue) - len(world.before.catalogue),
        "former seconds": former_seconds,
        "chosen": {"share of epochs": share, "epochs": short, "share of learning rate": rate},
        "validation ndcg@10": {f"{one:g} of the epochs, {two:g} of the rate": v for (one, two), v in chosen_by.items()},
        "seconds": {name: seconds for name, (_, seconds) in rows.items()},
        "intervals": {name: compared["intervals"][name]["ndcg@10"] for name in rows},
        "differences": {name: compared["differences"][f"{CONTINUED}_minus_{name}"]["ndcg@10"] for _, name in pairs},
    }


def ranks(trained: TrainedTrm, embedder: Embedder, examples: Sequence[Example]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(examples,) ranks of the targets in the whole catalogue, histories excluded."""
    retriever = TrmRetriever(trained, trained.catalogue, embedder)
    return retriever.rank_targets([Query(one.history) for one in examples], [one.target for one in examples])


def ndcg(found: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """NDCG@10."""
    return metrics_from_ranks(found)["ndcg@10"]


def _new_items(known: Catalogue, all_items: Catalogue) -> list[Any]:
    return [item for item in all_items.items if item.item_id not in known]


def print_table(figures: Mapping[str, Any]) -> None:
    """Seconds and NDCG@10 of each, and what the continued training gains or loses."""
    print(
        f"{figures['users']:,} users whose last item is in the new tenth ({figures['new tenth']}), "
        f"{figures['users of validation']:,} whose last but one is; {figures['new items']} items that only it has; the "
        f"TRM of the first nine tenths took {figures['former seconds']:.0f} s"
    )
    for name, value in figures["validation ndcg@10"].items():
        print(f"  validation, {name}: NDCG@10 {value:.4f}")
    print(f"chosen: {figures['chosen']}")
    for name, found in figures["intervals"].items():
        print(
            f"{name:18} {figures['seconds'][name]:7.0f} s   NDCG@10 {found['mean']:.4f} "
            f"({found['low']:.4f} to {found['high']:.4f})"
        )
    for name, found in figures["differences"].items():
        print(f"continued minus {name}: {found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.retraining --data ml-1m --keep runs/retraining\n"
        "  python -m benchmarks.retraining --data ml-1m --set trm.epochs=2 --out retraining.json",
    )
    parser.add_argument("--data", type=Path, required=True, help="a MovieLens-1M directory, or a deeprec dataset")
    parser.add_argument("--profile", default="ml-1m", help="profile whose sections trm and text are used")
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration, e.g. trm.epochs=2; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of every training")
    parser.add_argument("--keep", type=Path, help="keep trainings here, so that one that was killed goes on")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
