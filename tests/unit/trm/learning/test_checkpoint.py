from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import TrmConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import TrmError
from deeprec.trm.learning.checkpoint import (
    Checkpoint,
    read_checkpoint,
    remove_checkpoint,
    training_inputs,
    write_checkpoint,
)

INPUTS = {"seed": "1", "trm.width": "16", "the catalogue": "a"}


def checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(epoch, {"weight": torch.arange(3) * float(epoch)}, {"step": epoch, "large": 2**100})


def test_the_newest_is_read_and_older_ones_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    assert read_checkpoint(place, INPUTS) is None
    for epoch in (9, 10, 11):
        write_checkpoint(place, INPUTS, checkpoint(epoch))
    found = read_checkpoint(place, INPUTS)
    assert found is not None
    assert found.epoch == 11
    assert found.tensors["weight"].tolist() == [0, 11, 22]
    assert found.state == {"step": 11, "large": 2**100}
    assert [entry.name for entry in place.iterdir()] == ["epoch-00011"]
    remove_checkpoint(place)
    assert not place.exists()
    remove_checkpoint(place)


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_checkpoint(tmp_path, INPUTS, checkpoint(1))
    remove_checkpoint(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, INPUTS, checkpoint(1))
    with pytest.raises(
        TrmError, match=r"another training: seed is 1 there and 2 here, the catalogue changed; .*remove"
    ):
        read_checkpoint(tmp_path, {"seed": "2", "trm.width": "16", "the catalogue": "b"})


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "inputs.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_one_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    write_checkpoint(tmp_path, INPUTS, checkpoint(1))
    file = tmp_path / "epoch-00001" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(TrmError, match=r"epoch-00001 cannot be used: .*remove .* to begin anew"):
        read_checkpoint(tmp_path, INPUTS)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"trm": TrmConfig(width=32)}, "trm.width"),
        ({"sequences": {"u1": ("m1", "m3")}}, "the training sequences"),
        ({"sequences": {"u2": ("m1", "m2")}}, "the training sequences"),
        ({"text_identity": "other"}, "the text encoder"),
    ],
)
def test_inputs_tell_trainings_apart(world: Dataset, changes: dict[str, Any], name: str) -> None:
    one: dict[str, Any] = {
        "catalogue": world.catalogue,
        "sequences": {"u1": ("m1", "m2")},
        "trm": TrmConfig(),
        "seed": 0,
        "text_identity": "x",
    }
    before, after = training_inputs(**one), training_inputs(**{**one, **changes})
    assert [key for key in before if before[key] != after[key]] == [name]
