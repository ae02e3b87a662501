from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deeprec.data.catalogue import write_catalogue
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, TrmError
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.artifact import TrainedTrm, read_record, read_text_config, read_trm, write_trm
from deeprec.trm.model import Trm
from deeprec.types import Catalogue


def test_it_carries_catalogue_and_encoder(toy_trm: Path, dataset: Dataset) -> None:
    trained = read_trm(toy_trm)
    assert trained.catalogue == dataset.catalogue
    assert trained.vocabulary.item_ids == tuple(item.item_id for item in dataset.catalogue.items)
    assert trained.vocabulary.phrases == dataset.catalogue.phrases
    text = read_text_config(toy_trm)
    assert (text.provider, text.width) == ("hashing", 32)
    record = read_record(toy_trm)
    assert record.text_identity == "hashing-32"
    assert record.metrics == {"ndcg@10": 0.3}
    assert [point["loss"] for point in record.curves] == [3, 2, 1]
    assert (record.seed, record.extends) == (4, ())
    assert record.digest == read_artifact(toy_trm).digest
    assert record.extended().extends == (record.digest,)
    assert record.extended().extended().extends == (record.digest,)


def test_writing_again_gives_the_same_files(toy_trm: Path, tmp_path: Path) -> None:
    record = read_record(toy_trm)
    write_trm(tmp_path / "trm", read_trm(toy_trm), record.text, record.metrics, record.curves)
    assert read_artifact(tmp_path / "trm").files == read_artifact(toy_trm).files


def test_half_precision_text_stays_so(toy_trm: Path, tmp_path: Path) -> None:
    trained = read_trm(toy_trm)
    vocabulary = replace(trained.vocabulary, item_text=trained.vocabulary.item_text.astype(np.float16))
    model = Trm(trained.model.config, torch.from_numpy(vocabulary.item_text))
    write_trm(tmp_path / "trm", TrainedTrm(model, vocabulary, trained.catalogue), read_text_config(toy_trm), {}, [])
    found = read_trm(tmp_path / "trm").vocabulary.item_text
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, vocabulary.item_text)


def test_a_catalogue_of_other_items_is_refused(toy_trm: Path, tmp_path: Path) -> None:
    trained = read_trm(toy_trm)
    other = replace(trained, catalogue=Catalogue(trained.catalogue.items[:-1]))
    with pytest.raises(TrmError, match="give the catalogue it was trained with"):
        write_trm(tmp_path / "trm", other, read_text_config(toy_trm), {}, [])
    assert not (tmp_path / "trm").exists()


def test_parts_that_do_not_fit_are_refused(toy_trm: Path, dataset: Dataset, tmp_path: Path) -> None:
    def rewritten(name: str, **changes: object) -> Path:
        with write_artifact(tmp_path / name, "trm") as work:
            for file in read_artifact(toy_trm).files:
                (work / file).write_bytes((toy_trm / file).read_bytes())
            settings = json.loads((work / "config.json").read_text())
            (work / "config.json").write_text(json.dumps({**settings, **changes}))
            if name == "short":
                write_catalogue(work, Catalogue(dataset.catalogue.items[:3]))
        return tmp_path / name

    with pytest.raises(ArtifactError, match="3 items"):
        read_trm(rewritten("short"))
    with pytest.raises(ArtifactError, match="does not say which text encoder"):
        read_text_config(rewritten("textless", text={"provider": "morse"}))
    with pytest.raises(ArtifactError, match="does not exist"):
        read_record(tmp_path / "absent")
