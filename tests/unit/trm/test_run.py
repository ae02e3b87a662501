from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config import TextConfig, TrmConfig
from deeprec.errors import StoreError
from deeprec.store import write_artifact
from deeprec.trm.run import check_output, checkpoint_path, train_directory


def test_the_checkpoint_is_beside_the_output() -> None:
    assert checkpoint_path(Path("models/trm.v2")) == Path("models/trm.v2.checkpoint")


def test_places_that_cannot_be_written_are_refused_before_training(sample_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for name in ("file", "full"):
        with pytest.raises(StoreError, match=f"{name} exists and is no artifact"):
            train_directory(sample_dataset, TrmConfig(epochs=10_000), TextConfig(), 0, tmp_path / name)


def test_empty_absent_and_earlier_ones_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with write_artifact(tmp_path / "earlier", "trm"):
        pass
    for name in ("empty", "absent", "earlier"):
        check_output(tmp_path / name)
