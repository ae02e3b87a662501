"""What each part of the TRM gives, on the validation target: ``python -m benchmarks.trm_ablation --data DIR``.

From the ``trm`` section of ``configs/ml-1m.yaml``, one part is switched off at a time; everything else, the seed too,
stays. Parts of the network are switched off by holding their parameters at the value that does nothing. The test target
is not read. ``docs/explanation/trm.md`` says what the parts are for.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.trm_accuracy import CONFIGS, open_dataset
from deeprec.config import TrmConfig, load_config
from deeprec.data.splits import standalone_sequences, validation_examples
from deeprec.trm.evaluation import measure
from deeprec.trm.model import Trm
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import load_embedder
from deeprec.trm.training import fit

ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "everything": ((), {}),
    "no bias by distance": (("nearness",), {}),
    "no short convolution": (("taps",), {}),
    "what has been had stays in the softmax": ((), {"skip_seen": False}),
    "no false preferences": ((), {"false_preference": 0.0}),
    "no preferences at all": ((), {"preference_share": 0.0}),
    "every item keeps its ID": ((), {"id_drop": 0.0}),
    "no moving average": ((), {"average": 0.0}),
}
"""Name → parts of the names of parameters that stay at zero, and changes of the section."""
SHOWN = ("ndcg@10", "recall@10", "half_preference_recall@20", "misled_ndcg@10")


def main() -> None:
    """Train each row and print its figures."""
    arguments = _arguments()
    config = load_config(CONFIGS / "ml-1m.yaml", tuple(arguments.set or ()))
    embedder = load_embedder(config.text)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(arguments.data, Path(scratch))
    examples = validation_examples(dataset)
    print(f"{'validation, ' + str(config.trm.epochs) + ' epochs':42}" + "".join(f"{name:>28}" for name in SHOWN))
    figures = {}
    for name in arguments.rows or ROWS:
        held, changes = ROWS[name]
        trm = TrmConfig.model_validate(config.trm.model_dump() | changes)
        with holding(held):
            trained, _ = fit(dataset.catalogue, standalone_sequences(dataset), trm, embedder, config.seed)
        found = measure(TrmRetriever(trained, dataset.catalogue, embedder), examples)
        figures[name] = found
        print(f"{name:42}" + "".join(f"{found[one]:28.4f}" for one in SHOWN), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@contextmanager
def holding(held: tuple[str, ...]) -> Iterator[None]:
    """Networks made inside do not train the parameters so named, which begin at zero."""
    make = Trm.__init__

    def made(model: Trm, *arguments: Any) -> None:
        make(model, *arguments)
        for name, value in model.named_parameters():
            if any(part in name for part in held):
                value.requires_grad_(False)

    with mock.patch.object(Trm, "__init__", made):
        yield


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.trm_ablation --data ml-1m --out ablation.json\n"
        "  python -m benchmarks.trm_ablation --data ml-1m --rows everything 'no short convolution' --set trm.epochs=12",
    )
    parser.add_argument("--data", type=Path, required=True, help="a MovieLens-1M directory, or a deeprec dataset")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="only these rows (default: all)")
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration, e.g. trm.epochs=2; repeatable")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
