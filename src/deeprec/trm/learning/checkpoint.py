"""Checkpoints of a training of the TRM: a directory with one artifact per epoch, of which only the newest is kept.

Each is written whole or not at all and holds tensors (safetensors) and JSON, nothing pickled; reading one checks its
hashes and that it was made from the same inputs. An older epoch is removed after the newer one is in place, so that a
process may be killed at any moment. One process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec import __version__
from deeprec.config import TrmConfig
from deeprec.errors import ArtifactError, StoreError, TrmError
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.text import item_text
from deeprec.types import Catalogue, JsonDict

if TYPE_CHECKING:
    from torch import Tensor

KIND = "trm-checkpoint"
_PREFIX = "epoch-"
_DIGESTS = ("the catalogue", "the training sequences", "the TRM it begins with")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after ``epoch`` epochs: ``tensors`` by name, and ``state``, what else the next epoch depends on."""

    epoch: int
    tensors: Mapping[str, Tensor]
    state: JsonDict


def training_inputs(
    catalogue: Catalogue,
    sequences: Mapping[str, Sequence[str]],
    trm: TrmConfig,
    seed: int,
    text_identity: str,
    former: str | None = None,
) -> dict[str, str]:
    """Everything that decides the weights, by the name a reader knows it by; long values as their sha256.

    ``former`` is the digest of the weights that the training begins with, where it continues from another.
    """
    unused = {"gate", "index", "new_item_score", "continue_from"} | ({"continue_share"} if former is None else set())
    settings = trm.model_dump(mode="json", exclude=unused)
    items, histories = hashlib.sha256(), hashlib.sha256()
    for item in catalogue.items:
        items.update(json.dumps([item.item_id, item_text(item), item.phrases]).encode())
    for user, history in sequences.items():
        histories.update(json.dumps([user, *history]).encode())
    return {
        "the version of deeprec": __version__,
        "seed": str(seed),
        "the text encoder": text_identity,
        **{f"trm.{name}": json.dumps(value) for name, value in settings.items()},
        _DIGESTS[0]: items.hexdigest(),
        _DIGESTS[1]: histories.hexdigest(),
        **({} if former is None else {_DIGESTS[2]: former}),
    }


def write_checkpoint(place: Path, inputs: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Put a checkpoint into the directory ``place``, made if needed, and remove older ones.

    Raises:
        StoreError: it cannot be written.
    """
    from safetensors.torch import save_file

    with write_artifact(place / f"{_PREFIX}{checkpoint.epoch:05d}", KIND, config=inputs) as work:
        save_file(
            {name: value.contiguous().cpu() for name, value in checkpoint.tensors.items()}, work / "state.safetensors"
        )
        for name, value in (("inputs.json", dict(inputs)), ("state.json", checkpoint.state)):
            (work / name).write_text(json.dumps(value) + "\n", encoding="utf-8")
    for epoch, older in _epochs(place):
        if epoch < checkpoint.epoch:
            shutil.rmtree(older, ignore_errors=True)


def read_checkpoint(place: Path, inputs: Mapping[str, str]) -> Checkpoint | None:
    """The newest checkpoint in ``place``, None where there is none.

    Raises:
        TrmError: it is damaged, or was made from other inputs.
    """
    from safetensors.torch import load_file

    found = _epochs(place)
    if not found:
        return None
    epoch, newest = found[-1]
    try:
        read_artifact(newest, KIND)
        theirs = json.loads((newest / "inputs.json").read_text(encoding="utf-8"))
        differing = _differing(theirs, inputs)
        if differing:
            raise TrmError(
                f"the checkpoint {newest} is of another training: {', '.join(differing)}; train with the same inputs "
                f"to go on from it, or remove {place} to begin anew"
            )
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(epoch, load_file(newest / "state.safetensors"), state)
    except (ArtifactError, OSError, ValueError, AttributeError) as error:
        raise TrmError(f"the checkpoint {newest} cannot be used: {error}; remove {place} to begin anew") from error


def remove_checkpoint(place: Path) -> None:
    """Remove the checkpoints in ``place``, and the directory if nothing else is in it.

    Raises:
        StoreError: it cannot be removed.
    """
    try:
        for _, entry in _epochs(place):
            os.replace(entry, entry.with_name(f".{entry.name}.removed-{uuid.uuid4().hex[:8]}"))
        for left in place.glob(f".{_PREFIX}*"):
            shutil.rmtree(left)
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    except OSError as error:
        raise StoreError(f"cannot remove the checkpoint {place}: {error.strerror}; remove it by hand") from error


def _epochs(place: Path) -> list[tuple[int, Path]]:
    entries = place.glob(f"{_PREFIX}*") if place.is_dir() else ()
    numbered = [(entry.name.removeprefix(_PREFIX), entry) for entry in entries]
    return sorted((int(number), entry) for number, entry in numbered if number.isdigit())


def _differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        there, here = theirs.get(name), ours.get(name)
        if there != here:
            found.append(f"{name} changed" if name in _DIGESTS else f"{name} is {there} there and {here} here")
    return found
