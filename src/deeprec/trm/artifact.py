"""The TRM artifact: what a trained TRM consists of, on disk and in memory.

A directory of kind ``trm``: ``model.safetensors`` (parameters), ``vectors.safetensors`` (item_text, phrase_text,
popularity), ``config.json`` (the ``trm`` and ``text`` sections, the text encoder's identity, how many of each user's
newest interactions its training was held away from, and by the digests of their manifests the TRMs it extends and the
one it was trained anew for), ``catalogue.json`` (the items in row order), ``phrases.json`` (in row order),
``metrics.json`` and ``curves.json``. It answers by itself: catalogue and encoder configuration are its own, and no
other fit.

One that was trained anew on everything has seen what every later split holds out of users who have not come back. So it
keeps beside its own parameters those of the TRM that it stands in for, ``measured.safetensors``: figures are of them,
and a later training begins with them (``read_measured``).

``item_text`` may be float16, in memory and on disk; it is read as it was written.
"""

from __future__ import annotations

import json
import shutil
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
WEIGHTS = "model.safetensors"
MEASURED = "measured.safetensors"
_ITEM_ROWS = "item_ids.weight"
_HELD_OUT = "held_out"


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
    held_out: int | None = None,
    measured: Path | None = None,
) -> None:
    """Write the artifact, whole or not at all.

    Args:
        extends: digests of the manifests of the TRMs this one was made from by adding items, oldest first.
        refit_of: digest of the manifest of the TRM that it, or the first it extends, was trained anew to stand in for.
        held_out: newest interactions of each user that its training was held away from; None where that is not known.
        measured: artifact of the TRM that is measured in its place, whose parameters it keeps beside its own.

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
    lineage = {"extends": list(extends), "refit_of": refit_of, _HELD_OUT: held_out}
    settings = {**parts, "text_identity": vocabulary.text_identity, **lineage}
    with write_artifact(out, KIND, config=parts, parents=parents, seed=seed) as work:
        save_tensors(
            {name: value.contiguous().cpu() for name, value in trained.model.state_dict().items()},
            work / WEIGHTS,
        )
        if measured is not None:
            _keep_measured(measured, work)
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
    return _read(Path(path), WEIGHTS)


def read_measured(path: Path) -> tuple[TrainedTrm, int | None]:
    """The TRM that figures are of, and how many of each user's newest interactions its training was held away from.

    It is the artifact's own, or where that was trained anew on everything the one it stands in for; the number is None
    where an artifact does not say. Items added since, or of which it saw no interaction, have their text alone.

    Raises:
        ArtifactError: no TRM there, it cannot be read, or it was trained anew and keeps no parameters from before.
    """
    place = Path(path)
    settings = _part(place, "config.json")
    if not (place / MEASURED).is_file():
        if settings.get("refit_of"):
            raise ArtifactError(
                f"the TRM at {place} was trained anew on everything and keeps no weights that were held away from what "
                f"is measured; name one that a newer run has made"
            )
        held_out = settings.get(_HELD_OUT)
        return read_trm(place), None if held_out is None else int(held_out)
    trained, held_out = _read(place, MEASURED), _said_in(place / MEASURED)
    vocabulary = trained.vocabulary
    seen = trained.model.item_ids.weight.detach().any(1).numpy()
    counts = np.where(seen, vocabulary.popularity, 0)
    return replace(trained, vocabulary=replace(vocabulary, popularity=counts)), held_out


def keeps_measured(path: Path) -> bool:
    """Whether ``read_measured`` finds a TRM that was held away from what is measured.

    Raises:
        ArtifactError: no TRM there, or it cannot be read.
    """
    return (Path(path) / MEASURED).is_file() or not _part(Path(path), "config.json").get("refit_of")


def _keep_measured(source: Path, work: Path) -> None:
    """Copy the parameters that are measured of the artifact ``source``, with what they were held away from."""
    from safetensors.torch import load_file, save_file

    if (source / MEASURED).is_file():
        shutil.copyfile(source / MEASURED, work / MEASURED)
        return
    read_artifact(source, KIND)
    said = _part(source, "config.json").get(_HELD_OUT)
    metadata = {} if said is None else {_HELD_OUT: str(said)}
    save_file(load_file(source / WEIGHTS), work / MEASURED, metadata=metadata)


def _said_in(file: Path) -> int | None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        said = (opened.metadata() or {}).get(_HELD_OUT)
    return None if said is None else int(said)


def _read(place: Path, weights: str) -> TrainedTrm:
    import torch
    from safetensors.numpy import load_file
    from safetensors.torch import load_file as load_tensors

    from deeprec.trm.model import Trm

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
        state = load_tensors(place / weights)
        rows = state[_ITEM_ROWS]
        if weights == MEASURED and len(rows) < len(catalogue):  # items that were added since
            state[_ITEM_ROWS] = torch.cat([rows, rows.new_zeros(len(catalogue) - len(rows), rows.shape[1])])
        model.load_state_dict(state)
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
    trained anew to stand in for; ``held_out`` is how many of each user's newest interactions its training was held away
    from, where that is known; ``digest`` is its own manifest's, None where it has none.
    """

    text: TextConfig
    text_identity: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Sequence[Mapping[str, float]] = ()
    seed: int | None = None
    extends: tuple[str, ...] = ()
    refit_of: str | None = None
    held_out: int | None = None
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
        held_out=settings.get(_HELD_OUT),
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
