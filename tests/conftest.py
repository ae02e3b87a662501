"""Fixtures shared by every test: one small generated dataset, read once, and a toy TRM and bundle of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deeprec.config import DataConfig, SampleConfig, TextConfig, TrmConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.ingest import ingest
from deeprec.types import Catalogue

SMALL = DataConfig(sample=SampleConfig(users=150, items=80, mean_history=16))


@pytest.fixture(scope="session")
def sample_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset artifact: 150 users, about 80 items, short histories. Read it, never write into it."""
    place = tmp_path_factory.mktemp("data") / "dataset"
    ingest(SMALL, 0, place)
    return place


@pytest.fixture(scope="session")
def dataset(sample_dataset: Path) -> Dataset:
    """The small dataset in memory."""
    return read_dataset(sample_dataset)


@pytest.fixture(scope="session")
def catalogue(dataset: Dataset) -> Catalogue:
    """The small dataset's catalogue."""
    return dataset.catalogue


@pytest.fixture(scope="session")
def toy_trm(sample_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TRM artifact of the small dataset with the hashing encoder, its weights random. Never write into it."""
    import numpy as np
    import torch

    from deeprec.data.splits import standalone_sequences
    from deeprec.trm.artifact import TrainedTrm, build_vocabulary, write_trm
    from deeprec.trm.model import Trm
    from deeprec.trm.text import load_embedder

    dataset = read_dataset(sample_dataset)
    text = TextConfig(provider="hashing", width=32)
    rows = [dataset.catalogue.index[item] for items in standalone_sequences(dataset).values() for item in items]
    counts = np.bincount(rows, minlength=len(dataset.catalogue))
    vocabulary = build_vocabulary(dataset.catalogue, load_embedder(text), counts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Trm(TrmConfig(width=16, layers=1, heads=2, max_length=12), torch.from_numpy(vocabulary.item_text))
    curves = [{"epoch": float(epoch), "loss": 4.0 - epoch, "ndcg@10": 0.1 * epoch} for epoch in (1, 2, 3)]
    place = tmp_path_factory.mktemp("trm") / "trm"
    trained = TrainedTrm(model.eval(), vocabulary, dataset.catalogue)
    write_trm(place, trained, text, {"ndcg@10": 0.3}, curves, parents=(sample_dataset,), seed=4)
    return place


@pytest.fixture
def make_bundle(toy_trm: Path, sample_dataset: Path) -> Callable[..., Path]:
    """``make_bundle(out, titles, serve="policy")``: a bundle of the toy TRM and a policy that knows these titles.

    The policy is a tokenizer without weights: it can be read, not run.
    """
    from deeprec.checks.gate import Verdict
    from deeprec.config import BundleConfig, ExploreConfig
    from deeprec.markup import MARKUP
    from deeprec.policy.tiny import build_tokenizer
    from deeprec.serving.bundle import publish
    from deeprec.store import write_artifact

    def make(out: Path, titles: Sequence[str], serve: str = "policy") -> Path:
        places = {name: out.parent / f"{out.name}-run" / name for name in ("policy", "evaluation", "features")}
        explore = ExploreConfig(prompt="compact")
        for name, place in places.items():
            parents = [sample_dataset, toy_trm] if name == "policy" else [sample_dataset]
            with write_artifact(place, name, parents=parents) as work:
                (work / "metrics.json").write_text(json.dumps({"serve": serve}))
                if name == "policy":
                    build_tokenizer(titles, ["comedy"], [], MARKUP, ["History:\n1. "], explore).save_pretrained(work)
        text, passed = TextConfig(provider="hashing", width=32), Verdict("evaluation", True, "passed", ())
        publish(
            sample_dataset,
            toy_trm,
            **places,
            text=text,
            explore=explore,
            bundle=BundleConfig(),
            verdict=passed,
            out=out,
        )
        return out

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that DEEPREC_TEST_DATA names, with ml-1m/ and ml-latest-small/; skips where it is not set."""
    folder = os.environ.get("DEEPREC_TEST_DATA", "")
    if not folder:
        pytest.skip("DEEPREC_TEST_DATA is not set; it names a folder with ml-1m/ and ml-latest-small/")
    return Path(folder)
