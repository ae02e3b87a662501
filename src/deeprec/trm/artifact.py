"""The TRM artifact: what a trained TRM consists of, on disk and in memory.

A directory of kind ``trm``: ``model.safetensors`` (parameters), ``vectors.safetensors`` (item_text, phrase_text,
popularity), ``config.json`` (the configuration section and the text encoder's identity), ``item_ids.json`` and
``phrases.json`` (row orders), ``metrics.json`` and ``curves.json``. It can be queried only with the catalogue and the
text encoder it was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeprec.config import TextConfig, TrmConfig
from deeprec.errors import ArtifactError
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.text import item_text
from deeprec.types import Catalogue, Embedder, FloatArray

if TYPE_CHECKING:
    from deeprec.trm.model import Trm

KIND = "trm"


@dataclass(frozen=True)
class Vocabulary:
    """The constants of a TRM, in row order: ids, phrases, their text vectors, training counts, the encoder's identity.

    ``item_text`` is (items, text width), ``phrase_text`` (phrases, text width), ``popularity`` (items,) counts.
    """

    item_ids: tuple[str, ...]
    phrases: tuple[str, ...]
    item_text: FloatArray
    phrase_text: FloatArray
    popularity: NDArray[np.int64]
    text_identity: str


@dataclass(frozen=True)
class TrainedTrm:
    """A network with its constants."""

    model: Trm
    vocabulary: Vocabulary


def build_vocabulary(catalogue: Catalogue, embedder: Embedder, popularity: NDArray[np.int64]) -> Vocabulary:
    """Embed every item and every phrase of the catalogue."""
    return Vocabulary(
        item_ids=tuple(item.item_id for item in catalogue.items),
        phrases=catalogue.phrases,
        item_text=embedder.embed([item_text(item) for item in catalogue.items]),
        phrase_text=embedder.embed(catalogue.phrases),
        popularity=popularity.astype(np.int64),
        text_identity=embedder.identity,
    )


def write_trm(
    out: Path,
    trained: TrainedTrm,
    text: TextConfig,
    metrics: Mapping[str, float],
    curves: Sequence[Mapping[str, float]],
    *,
    parents: Sequence[Path] = (),
    seed: int | None = None,
) -> None:
    """Write the artifact, whole or not at all.

    Raises:
        StoreError: the place cannot be written.
    """
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_tensors

    vocabulary, trm = trained.vocabulary, trained.model.config
    settings = {"trm": trm.model_dump(mode="json"), "text_identity": vocabulary.text_identity}
    parts = {"trm": settings["trm"], "text": text.model_dump(mode="json")}
    with write_artifact(out, KIND, config=parts, parents=parents, seed=seed) as work:
        save_tensors(
            {name: value.contiguous().cpu() for name, value in trained.model.state_dict().items()},
            work / "model.safetensors",
        )
        vectors = {
            "item_text": np.ascontiguousarray(vocabulary.item_text),
            "phrase_text": np.ascontiguousarray(vocabulary.phrase_text),
            "popularity": np.ascontiguousarray(vocabulary.popularity),
        }
        save_file(vectors, work / "vectors.safetensors")
        for name, value in (
            ("config.json", settings),
            ("item_ids.json", vocabulary.item_ids),
            ("phrases.json", vocabulary.phrases),
            ("metrics.json", dict(metrics)),
            ("curves.json", [dict(point) for point in curves]),
        ):
            (work / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_trm(path: Path) -> TrainedTrm:
    """Read an artifact with its hashes checked; the network is in evaluation mode.

    Raises:
        ArtifactError: no TRM there, or it cannot be read.
    """
    import torch
    from safetensors.numpy import load_file
    from safetensors.torch import load_file as load_tensors

    from deeprec.trm.model import Trm

    place = Path(path)
    read_artifact(place, KIND)
    try:
        settings = _read_json(place / "config.json")
        vectors = load_file(place / "vectors.safetensors")
        vocabulary = Vocabulary(
            item_ids=tuple(_read_json(place / "item_ids.json")),
            phrases=tuple(_read_json(place / "phrases.json")),
            text_identity=str(settings["text_identity"]),
            **vectors,
        )
        model = Trm(TrmConfig.model_validate(settings["trm"]), torch.from_numpy(vocabulary.item_text))
        model.load_state_dict(load_tensors(place / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"cannot read the TRM at {place}: {error}; train it again") from error
    return TrainedTrm(model.eval(), vocabulary)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
