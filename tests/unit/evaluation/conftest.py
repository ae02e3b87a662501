"""A small world for evaluation: a dataset, a real TRM, and policy artifacts without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deeprec.config import TextConfig, TrmConfig
from deeprec.data.dataset import write_dataset
from deeprec.store import write_artifact
from deeprec.trm.run import train_directory
from deeprec.trm.training import train

USERS, ITEMS = 30, 40
TEXT = TextConfig(provider="hashing", width=32)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, two TRMs of one epoch, rollouts, prompts, and three policy artifacts, the last two equal."""
    root = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1_000_000 + place)
        for user in range(USERS)
        for place, item in enumerate(generator.permutation(ITEMS)[:9])
    ]
    write_dataset(
        root / "dataset",
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"),
        pl.DataFrame(
            {
                "item_id": [f"i{item}" for item in range(ITEMS)],
                "title": [f"<b>Film</b> {item}" for item in range(ITEMS)],
                "genres": [["Comedy", "Drama|War", "Drama"][item % 3] for item in range(ITEMS)],
                "year": [1980 + item for item in range(ITEMS)],
            }
        ),
        source="test",
        time_unit="seconds",
        text_columns=["genres"],
        year_column="year",
        policy_positions=1,
    )
    trm = TrmConfig(width=16, layers=1, heads=2, max_length=16, epochs=1, batch_size=16, bf16=False)
    train(root / "dataset", trm, TEXT, 0, root / "trm", root / "trm.html")
    train_directory(root / "dataset", trm, TEXT, 0, root / "trm_everything")
    for name, kind in (("candidates", "rollouts"), ("prompts", "prompts")):
        with write_artifact(root / name, kind) as work:
            (work / "rows.parquet").write_bytes(b"")
    for name, weights in (("start", "a"), ("stage1", "b"), ("stage2", "b")):
        with write_artifact(root / name, "policy") as work:
            (work / "weights.txt").write_text(weights, encoding="utf-8")
            curve = [{"step": 1, "format": -0.5, "diversity": 0.1}, {"step": 2, "format": -0.2, "diversity": None}]
            (work / "curves.json").write_text(json.dumps(curve if name == "stage1" else []), encoding="utf-8")
    return root
