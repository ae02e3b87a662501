"""Fixtures shared by every test: one small generated dataset, read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deeprec.config import DataConfig, SampleConfig
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
def real_data() -> Path:
    """The folder that DEEPREC_TEST_DATA names, with ml-1m/ and ml-latest-small/; skips where it is not set."""
    folder = os.environ.get("DEEPREC_TEST_DATA", "")
    if not folder:
        pytest.skip("DEEPREC_TEST_DATA is not set; it names a folder with ml-1m/ and ml-latest-small/")
    return Path(folder)
