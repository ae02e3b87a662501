"""A small world for the TRM's tests: 40 items in 4 genres and 2 decades, users who walk through the items in order."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.config import TextConfig, TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.trm.artifact import TrainedTrm
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import HashingEmbedder
from deeprec.trm.training import fit
from deeprec.types import Catalogue, Item

GENRES = ("comedy", "horror", "western", "musical")
ITEMS = 40


@pytest.fixture(scope="session")
def world() -> Dataset:
    """Item n is followed by item n + 3 (mod 40), after a random start; every seventh step is a leap."""
    items = tuple(
        Item(
            f"m{row}",
            f"Title number {row}",
            {
                "genres": f"{GENRES[row % 4].title()}|Drama",
                "year": 1980 + row % 20,
                "maker": None if row == 7 else "Acme",
            },
            (GENRES[row % 4], f"{1980 + row % 20 // 10 * 10}s"),
        )
        for row in range(ITEMS)
    )
    generator = np.random.default_rng(5)
    sequences = {}
    for user in range(60):
        place, visited = int(generator.integers(ITEMS)), []
        for step in range(int(generator.integers(6, 20))):
            place = int(generator.integers(ITEMS)) if step % 7 == 6 else (place + 3) % ITEMS
            visited.append(f"m{place}")
        sequences[f"u{user}"] = tuple(visited)
    return Dataset(Catalogue(items), sequences, {}, {"policy_positions": 1})


@pytest.fixture(scope="session")
def trm_config() -> TrmConfig:
    return TrmConfig(
        width=16,
        layers=1,
        heads=2,
        max_length=12,
        dropout=0.1,
        epochs=25,
        batch_size=8,
        learning_rate=5e-3,
        preference_share=1.0,
        preference_weight=3.0,
        false_preference=0.0,
        history_drop=0.3,
        bf16=False,
    )


@pytest.fixture(scope="session")
def text_config() -> TextConfig:
    return TextConfig(provider="hashing", width=48)


@pytest.fixture(scope="session")
def embedder(text_config: TextConfig) -> HashingEmbedder:
    return HashingEmbedder(text_config.width)


@pytest.fixture(scope="session")
def trained(world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder) -> TrainedTrm:
    return fit(world.catalogue, world.sequences, trm_config, embedder, seed=3)[0]


@pytest.fixture(scope="session")
def retriever(trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder) -> TrmRetriever:
    return TrmRetriever(trained, world.catalogue, embedder)
