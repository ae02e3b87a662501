"""The TRM artifact: what a trained TRM consists of, on disk and in memory.

A directory of kind ``trm``: ``model.safetensors`` (parameters), ``vectors.safetensors`` (item_text, phrase_text,
popularity), ``config.json`` (the ``trm`` and ``text`` sections, the text encoder's identity, and by the digests of
their manifests the TRMs it extends and the one it was trained anew for), ``catalogue.json`` (the items in row order),
``phrases.json`` (in row order), ``metrics.json`` and ``curves.json``. It answers by itself: catalogue and encoder
configuration are its own, and no other fit.

``item_text`` may be float16, in memory and on disk; it is read as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeprec.config import TextConfig, TrmConfig
from deeprec.data.catalogue import read_catalogue, write_catalogue
from deeprec.errors import ArtifactError, TrmError
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.text import item_text
from deeprec.types import Catalogue, Embedder, FloatArray

if TYPE_CHECKING:
    from deeprec.trm.model import Trm

KIND = "trm"


@dataclass(frozen=True)
class Vocabulary:
    """The constants of a TRM, in row order: ids, phrases, their text vectors, training counts, the encoder's identity.

    ``item_text`` is (items, text width) float32 or float16, ``phrase_text`` (phrases, text width) float32,
    ``popularity`` (items,) counts.
    """

    item_ids: tuple[str, ...]
    phrases: tuple[str, ...]
    item_text: FloatArray
    phrase_text: FloatArray
    popularity: NDArray[np.int64]
    text_identity: str


@dataclass(frozen=True)
class TrainedTrm:
    """A network with its constants, and the catalogue whose rows they are."""

    model: Trm
    vocabulary: Vocabulary
    catalogue: Catalogue


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
    extends: Sequence[str] = (),
    refit_of: str | None = None,
) -> None:
    """Write the artifact, whole or not at all.

    Args:
        extends: digests of the manifests of the TRMs this one was made from by adding items, oldest first.
        refit_of: digest of the manifest of the TRM that it, or the first it extends, was trained anew to stand in for.

    Raises:
        TrmError: the catalogue's items are not those of the vocabulary.
        StoreError: the place cannot be written.
    """
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_tensors

    vocabulary, trm = trained.vocabulary, trained.model.config
    if vocabulary.item_ids != tuple(item.item_id for item in trained.catalogue.items):
        raise TrmError(
            f"the TRM has {len(vocabulary.item_ids)} items and its catalogue {len(trained.catalogue)}, or in another "
            f"order; give the catalogue it was trained with"
        )
    parts = {"trm": trm.model_dump(mode="json"), "text": text.model_dump(mode="json")}
    lineage = {"extends": list(extends), "refit_of": refit_of}
    settings = {**parts, "text_identity": vocabulary.text_identity, **lineage}
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
        write_catalogue(work, trained.catalogue)
        for name, value in (
            ("config.json", settings),
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
    catalogue = read_catalogue(place)
    try:
        settings = _read_json(place / "config.json")
        vectors = load_file(place / "vectors.safetensors")
        vocabulary = Vocabulary(
            item_ids=tuple(item.item_id for item in catalogue.items),
            phrases=tuple(_read_json(place / "phrases.json")),
            text_identity=str(settings["text_identity"]),
            **vectors,
        )
        if not len(catalogue) == len(vocabulary.item_text) == len(vocabulary.popularity):
            raise ValueError(f"{len(catalogue)} items, {len(vocabulary.item_text)} text vectors")
        model = Trm(TrmConfig.model_validate(settings["trm"]), torch.from_numpy(vocabulary.item_text))
        model.load_state_dict(load_tensors(place / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"cannot read the TRM at {place}: {error}; train it again") from error
    return TrainedTrm(model.eval(), vocabulary, catalogue)


def read_text_config(path: Path) -> TextConfig:
    """The configuration of the text encoder that the artifact at ``path`` was made with.

    Raises:
        ArtifactError: no TRM there, or it does not say.
    """
    settings = _part(Path(path), "config.json")
    try:
        return TextConfig.model_validate(settings["text"])
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path} does not say which text encoder it was made with; train it again") from error


@dataclass(frozen=True)
class TrmRecord:
    """How a TRM came about: what an artifact keeps besides the TRM itself.

    ``metrics`` and ``curves`` are those of the training; ``extends`` names, by the digests of their manifests and
    oldest first, the TRMs it was made from by adding items, ``refit_of`` the one that it, or the first of these, was
    trained anew to stand in for; ``digest`` is its own manifest's, None where it has none.
    """

    text: TextConfig
    text_identity: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Sequence[Mapping[str, float]] = ()
    seed: int | None = None
    extends: tuple[str, ...] = ()
    refit_of: str | None = None
    digest: str | None = None

    def extended(self) -> TrmRecord:
        """The record of what is made from it by adding items."""
        parents = self.extends if self.digest is None else (*self.extends, self.digest)
        return replace(self, extends=parents, digest=None)


def read_record(path: Path) -> TrmRecord:
    """How the artifact at ``path`` came about; its weights are neither read nor checked.

    Raises:
        ArtifactError: no TRM there, or it cannot be read.
    """
    place = Path(path)
    manifest = read_artifact(place, KIND, verify=False)
    settings = _part(place, "config.json")
    return TrmRecord(
        text=read_text_config(place),
        text_identity=str(settings.get("text_identity", "")),
        metrics=_part(place, "metrics.json"),
        curves=_part(place, "curves.json"),
        seed=manifest.seed,
        extends=tuple(map(str, settings.get("extends", ()))),
        refit_of=settings.get("refit_of"),
        digest=manifest.digest,
    )


def fits_policy_of(path: Path, trm: str | None) -> bool:
    """Whether the TRM at ``path`` may stand beside a policy that was made from the TRM whose manifest has this digest.

    It may when it is that one, extends it by new items, or names it as the one it was trained anew to stand in for.

    Raises:
        ArtifactError: no TRM there, or it cannot be read.
    """
    settings = _part(Path(path), "config.json")
    own = read_artifact(path, KIND, verify=False).digest
    return trm is not None and trm in (own, *settings.get("extends", ()), settings.get("refit_of"))


def _part(place: Path, name: str) -> Any:
    read_artifact(place, KIND, verify=False)
    try:
        return _read_json(place / name)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {place / name}: {error}; train the TRM again") from error


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
