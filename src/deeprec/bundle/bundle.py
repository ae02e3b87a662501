"""The bundle: all that serves, an index of parts by their digests, named by a version, whole or absent.

The index, small:

- ``bundle.json``: schema, version, what is served and why, whether its TRM was trained anew on everything (``refit``),
  when and from what it was made, and the digest of each part;
- ``catalogue.json``: items with attributes and phrases, in the order of every model's rows;
- ``popularity.safetensors``: ``counts`` (items,), of the interactions that the TRM was trained on;
- ``explore.json``: the loop's limits and prompt; ``text.json``: the text encoder's configuration and identity;
- ``metrics.json``: the figures of the evaluation, and the seconds each task took up to then;
- ``snapshot.json``: what the data looked like (``bundle.snapshot``), and ``answers.json``: what it answered when it was
  published (``bundle.answers``); bundles without them load as well.

The parts, artifacts with manifests of their own:

- ``trm``: its ``vectors.safetensors`` has the items' text vectors; ``policy``: made from this TRM, from one that this
  TRM extends by new items, or from the one that this TRM names as that which it was trained anew for;
- ``encoder``: the text encoder, where it does not come with the package.

A bundle's directory, an artifact of kind ``bundle``, has the index with the parts as folders in it; on a shelf
(``bundle.shelf``) they lie apart. The version is a digest of everything that decides an answer: catalogue, popularity,
exploration and prompt, text encoder, TRM, policy, and which of the two serves. Two bundles that answer alike have one
version. User histories are not in it. Nothing is pickled, and nothing finished is written again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from deeprec.bundle.answers import FILE as ANSWERS
from deeprec.bundle.snapshot import FILE as SNAPSHOT
from deeprec.config import ExploreConfig, TextConfig
from deeprec.data.catalogue import FILE, read_catalogue
from deeprec.errors import ArtifactError
from deeprec.store import Manifest, config_digest, file_digest, read_artifact
from deeprec.trm.artifact import fits_policy_of
from deeprec.types import Catalogue, JsonDict

KIND = "bundle"
SCHEMA = 3
BUNDLE, EXPLORE, TEXT, METRICS, POPULARITY = (
    "bundle.json", "explore.json", "text.json", "metrics.json", "popularity.safetensors"
)  # fmt: skip
INDEX = (BUNDLE, FILE, POPULARITY, EXPLORE, TEXT, METRICS)
"""The index's files, besides those that a bundle may lack."""
VERSION_DIGITS = 16
_FIGURES = frozenset({"metrics.json", "curves.json"})
"""Files of a part that decide no answer."""
_WEIGHTS = (".safetensors", ".bin", ".pt")
Served = Literal["policy", "trm"]
Part = Literal["trm", "policy", "encoder", "tokenizer"]
"""What a server can need of a bundle; ``tokenizer`` is the policy without its weights, for one that runs elsewhere."""
ALL_PARTS: tuple[Part, ...] = ("trm", "policy", "encoder")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, without its models.

    ``index`` is where the index's files are, ``parts`` where the parts that were asked for; ``counts`` (items,)
    training interactions; ``serve`` what answers, ``why`` the sentence that says so; ``text`` opens the encoder of
    ``text_identity``, which TRM and catalogue vectors were made with.
    """

    index: Path
    parts: Mapping[str, Path]
    version: str
    serve: Served
    why: str
    catalogue: Catalogue
    counts: NDArray[np.int64]
    explore: ExploreConfig
    text: TextConfig
    text_identity: str
    info: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def load(cls, place: str | Path, needs: Collection[Part] | None = None) -> Self:
        """Read and verify a bundle's directory, which may be read-only; of the parts those that are needed (all).

        Raises:
            ArtifactError: no bundle there, one of another schema, a file that differs from its hash, or parts that do
                not belong together.
        """
        folder = Path(place)
        manifest = read_artifact(folder, KIND, verify=False)
        wanted = frozenset(ALL_PARTS if needs is None else needs)
        read_artifact(folder, KIND, needed=lambda name: "/" not in name or is_needed(*_split(name), wanted))
        held = {name.partition("/")[0] for name in manifest.files if "/" in name}
        parts: dict[str, Path] = {part: folder / _folder(part) for part in wanted if _folder(part) in held}
        return cls.read(folder, parts, str(place))

    @classmethod
    def read(cls, index: Path, parts: Mapping[str, Path], address: str) -> Self:
        """The bundle of an index and parts whose files have been verified; ``address`` is how errors call it.

        Raises:
            ArtifactError: it cannot be read, is of another schema, or its parts do not belong together.
        """
        try:
            return cls(index=index, parts=parts, **_read(index, parts, address))
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise ArtifactError(f"cannot read the bundle {address}: {error}; make it again with deeprec run") from error

    def part(self, name: Part) -> Path:
        """Where a part is.

        Raises:
            ArtifactError: it was not asked for, or the bundle has none.
        """
        held = "policy" if name == "tokenizer" and "policy" in self.parts else name
        if held not in self.parts:
            raise ArtifactError(f"bundle {self.version} was opened without its {name}; open it with that part")
        return self.parts[held]

    @property
    def publication(self) -> str:
        """The publication of features that it was made with, and that a server of it reads."""
        return str(self.info["publication"])

    def popular(self, count: int) -> tuple[str, ...]:
        """Ids of the ``count`` most popular items, the most popular first."""
        rows = (-self.counts).argsort(kind="stable")[:count]
        return tuple(self.catalogue.items[row].item_id for row in rows)


def index_files(index: Path) -> tuple[str, ...]:
    """The files of an index: ``INDEX``, and those that a bundle may lack where it has them."""
    return (*INDEX, *(name for name in (SNAPSHOT, ANSWERS) if (index / name).is_file()))


def is_needed(folder: str, file: str, wanted: Collection[str]) -> bool:
    """Whether one of the parts ``wanted`` has a part's file."""
    return folder in wanted or (folder == "policy" and "tokenizer" in wanted and not file.endswith(_WEIGHTS))


def needs_of(serve: Served, *, policy: bool = True, remote: bool = False) -> frozenset[Part]:
    """The parts that a recommender runs.

    Args:
        serve: what the bundle serves, or is made to.
        policy: whether it is run at all where it serves.
        remote: the policy runs elsewhere.
    """
    if serve == "trm" or not policy:
        return frozenset({"trm", "encoder"})
    return frozenset({"trm", "encoder", "tokenizer" if remote else "policy"})


def read_info(index: Path, address: str) -> JsonDict:
    """``bundle.json``.

    Raises:
        ArtifactError: there is none, or it is of another schema.
    """
    found: JsonDict = read_json(index / BUNDLE)
    schema = found.get("schema", 1)
    if schema == SCHEMA:
        return found
    if isinstance(schema, int) and schema > SCHEMA:
        raise ArtifactError(
            f"the bundle {address} has schema {schema}, this version of deeprec reads {SCHEMA}; install a newer deeprec"
        )
    raise ArtifactError(
        f"the bundle {address} is of an older schema ({schema}) than this version of deeprec reads ({SCHEMA}); make a "
        f"new one with deeprec run --resume"
    )


def version_of(index: Path, parts: Mapping[str, Manifest], serve: Served, publication: str) -> str:
    """Sixteen hexadecimal digits over everything that decides an answer."""
    deciding = {
        "serve": serve,
        "publication": publication,
        "text": read_json(index / TEXT)["identity"],
        "files": {name: file_digest(index / name) for name in (FILE, POPULARITY, EXPLORE)},
        "parts": {
            name: {file: digest for file, digest in manifest.files.items() if file not in _FIGURES}
            for name, manifest in parts.items()
            if name != "encoder"
        },
    }
    return config_digest(deciding)[:VERSION_DIGITS]


def part_digest(name: str, manifest: Manifest) -> str:
    """What names a part on a shelf: an encoder's files, the manifest of another, which policies name their TRM by."""
    return manifest.contents if name == "encoder" else manifest.digest


def check_together(
    parts: Mapping[str, Manifest], trm: Path, catalogue: tuple[str, ...], trm_ids: tuple[str, ...]
) -> None:
    """
    Raises:
        ArtifactError: policy, TRM, catalogue and what else was made from a dataset are not of one run.
    """
    if "policy" in parts and not fits_policy_of(trm, parts["policy"].parents.get("trm")):
        raise ArtifactError(
            "the policy was not made from this TRM; parts of different runs cannot be used together, use those of one"
        )
    dataset = parts.get("dataset")
    for kind, manifest in parts.items():
        if dataset is not None and manifest.parents.get("dataset", dataset.digest) != dataset.digest:
            raise ArtifactError(f"the {kind} was not made from this dataset; use the parts of one run")
    if catalogue != trm_ids:
        raise ArtifactError(
            f"the TRM was trained on another catalogue ({len(trm_ids)} items, the catalogue has {len(catalogue)}); "
            f"use the parts of one run"
        )


def ids_of(catalogue: Catalogue) -> tuple[str, ...]:
    """Its items' ids, in order."""
    return tuple(item.item_id for item in catalogue.items)


def encoder_of(trm: Path) -> str:
    """Identity of the text encoder that a TRM was trained with."""
    return str(read_json(trm / "config.json")["text_identity"])


def read_json(path: Path) -> Any:
    """
    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; make it again") from error


def _read(index: Path, parts: Mapping[str, Path], address: str) -> JsonDict:
    from safetensors.numpy import load_file

    info = read_info(index, address)
    text = read_json(index / TEXT)
    catalogue = read_catalogue(index)
    _check_parts(index, parts, info, text, catalogue, address)
    if info["serve"] not in ("policy", "trm"):
        raise ValueError(f"serve is {info['serve']!r}")
    counts = load_file(index / POPULARITY)["counts"]
    if counts.shape != (len(catalogue),):
        raise ValueError(f"popularity has {counts.shape} counts for {len(catalogue)} items")
    config = TextConfig.model_validate(text["config"])
    if "encoder" in parts:
        config = config.model_copy(update={"model": str(parts["encoder"])})
    return {
        "version": str(info["version"]),
        "serve": info["serve"],
        "why": str(info["why"]),
        "catalogue": catalogue,
        "counts": counts,
        "explore": ExploreConfig.model_validate(read_json(index / EXPLORE)),
        "text": config,
        "text_identity": str(text["identity"]),
        "info": info,
        "metrics": read_json(index / METRICS),
    }


def _check_parts(
    index: Path, parts: Mapping[str, Path], info: JsonDict, text: JsonDict, catalogue: Catalogue, address: str
) -> None:
    """The parts are those that the index names, and belong together."""
    found = {_folder(name): (_folder(name), path) for name, path in parts.items()}
    manifests = {name: read_artifact(path, kind, verify=False) for name, (kind, path) in found.items()}
    for name, manifest in manifests.items():
        if info["parts"].get(name) != part_digest(name, manifest):
            raise ArtifactError(f"{address}: its {name} is not the one it was made with; make the bundle again")
    if "trm" not in parts:
        return
    trm = parts["trm"]
    same = file_digest(index / FILE) == file_digest(trm / FILE)
    check_together(manifests, trm, ids_of(catalogue), ids_of(catalogue if same else read_catalogue(trm)))
    if encoder_of(trm) != text["identity"]:
        raise ArtifactError(
            f"{address}: the TRM was trained with the text encoder {encoder_of(trm)}, the bundle names "
            f"{text['identity']}; parts of different bundles cannot be used together, make it again"
        )


def _folder(part: str) -> str:
    return "policy" if part == "tokenizer" else part


def _split(name: str) -> tuple[str, str]:
    folder, _, file = name.partition("/")
    return folder, file
