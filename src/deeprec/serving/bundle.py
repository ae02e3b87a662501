"""The bundle: everything that serves, in one directory that evaluation passed, named by a version and whole or absent.

An artifact of kind ``bundle``:

- ``catalogue.json``: items with attributes and phrases, in the order of every model's rows;
- ``popularity.safetensors``: ``counts`` (items,), of the interactions that the TRM was trained on;
- ``trm/``, ``policy/``: those artifacts, with their manifests; ``trm/vectors.safetensors`` has the items' text vectors
  (the policy was made from this TRM, from one that this TRM extends by new items, or from the one that this TRM names
  as that which it was trained anew for);
- ``explore.json``: the loop's limits and prompt; ``text.json``: the text encoder's configuration and identity;
- ``metrics.json``: the figures of the evaluation, and the seconds each task took;
- ``bundle.json``: version, what is served and why, whether its TRM was trained anew on everything (``refit``), when and
  from what it was made.

User histories are not in it. Nothing is pickled. ``Bundle.load`` refuses changed files and parts of different bundles.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from deeprec.checks.gate import Verdict
from deeprec.config import BundleConfig, ExploreConfig, TextConfig
from deeprec.data.catalogue import FILE, read_catalogue, write_catalogue
from deeprec.errors import ArtifactError
from deeprec.store import MANIFEST, Manifest, file_digest, get_directory, put_directory, read_artifact, write_artifact
from deeprec.trm.artifact import fits_policy_of
from deeprec.types import Catalogue, Item, JsonDict

KIND = "bundle"
PARTS = ("trm", "policy")
Served = Literal["policy", "trm"]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, without its models.

    ``path`` is where its files are; ``counts`` (items,) training interactions; ``serve`` what answers, ``why`` the
    sentence that says so; ``text_identity`` the encoder both TRM and catalogue vectors were made with.
    """

    path: Path
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
    _copy: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, address: str | Path) -> Self:
        """Read and verify a bundle at a local path, which may be read-only, or at ``s3://bucket/prefix``.

        A bundle from object storage is copied to a temporary directory that lives as long as the value returned.

        Raises:
            ArtifactError: no bundle there, a file differs from its hash, or its parts do not belong together.
            StoreError: the store cannot be reached.
        """
        copy = None
        place = Path(address)
        if "://" in str(address):
            copy = tempfile.TemporaryDirectory(prefix="deeprec-bundle-")
            place = get_directory(str(address), Path(copy.name) / "bundle")
        read_artifact(place, KIND)
        try:
            return cls(path=place, _copy=copy, **_read(place))
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise ArtifactError(f"cannot read the bundle {address}: {error}; publish it again") from error

    def popular(self, count: int) -> tuple[str, ...]:
        """Ids of the ``count`` most popular items, the most popular first."""
        rows = (-self.counts).argsort(kind="stable")[:count]
        return tuple(self.catalogue.items[row].item_id for row in rows)


def publish(
    dataset: Path,
    trm: Path,
    policy: Path,
    evaluation: Path,
    features: Path,
    text: TextConfig,
    explore: ExploreConfig,
    bundle: BundleConfig,
    verdict: Verdict,
    out: Path,
) -> None:
    """Assemble the bundle of one run as the artifact ``out``, and copy it to ``bundle.uri`` where that is set.

    Raises:
        ArtifactError: a part is no whole artifact, or the parts do not belong together.
        StoreError: a place cannot be written.
    """
    from deeprec.data.dataset import read_dataset
    from deeprec.data.splits import everything_sequences, interaction_counts, trm_sequences

    kinds = {"dataset": dataset, "trm": trm, "policy": policy, "evaluation": evaluation, "features": features}
    parents = {kind: read_artifact(path, kind) for kind, path in kinds.items()}
    data = read_dataset(dataset)
    _check_together(parents, trm, _ids(data.catalogue), _ids(read_catalogue(trm)))
    metrics = _read_json(evaluation / "metrics.json")
    serve, why = choose(metrics, verdict)
    refit = _is_refit(trm)
    if refit and serve == "policy":
        raise ArtifactError(
            f"{trm} was trained anew on everything, but the policy is to be served, with the TRM it was trained with; "
            f"give that one"
        )
    sections = {"text": text.model_dump(mode="json"), "explore": explore.model_dump(mode="json")}
    with write_artifact(out, KIND, config=sections, parents=list(kinds.values())) as work:
        for name, path in (("trm", trm), ("policy", policy)):
            shutil.copytree(path, work / name, copy_function=shutil.copyfile)
        write_catalogue(work, data.catalogue)
        counted = everything_sequences(data) if refit else trm_sequences(data)
        _save_counts(work, interaction_counts(data.catalogue, counted), parents["dataset"].digest)
        _write_json(work / "explore.json", sections["explore"])
        _write_json(work / "text.json", {"config": sections["text"], "identity": _trm_encoder(trm)})
        _write_json(work / "metrics.json", {**metrics, "seconds": _seconds(metrics, parents, refit)})
        info = {
            "version": _version(work),
            "serve": serve,
            "why": f"{why}; {_of_the_trm(serve, refit)}",
            "refit": refit,
            "gate": verdict.reason,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "example_user": next(iter(data.sequences), None),
            "parents": {kind: manifest.digest for kind, manifest in parents.items()},
        }
        _write_json(work / "bundle.json", info)
    if bundle.uri:
        put_directory(out, bundle.uri)


def extend_bundle(bundle: Path, items: Sequence[Item], out: Path) -> Bundle:
    """Write the bundle at ``bundle`` with new items as the bundle ``out``, and return it.

    TRM, catalogue and popularity get the items; the policy is copied. A policy that cannot write a new item's title
    would answer lists that it cannot read, so such a bundle serves the TRM, and ``why`` says so.

    Raises:
        ArtifactError: there is no whole bundle at ``bundle``.
        TrmError: an id is already in the catalogue, or the items cannot be added; see ``trm.extend``.
        StoreError: ``out`` cannot be written.
    """
    from deeprec.trm.extend import extend_trm

    old = Bundle.load(bundle)
    sections = {"text": old.text.model_dump(mode="json"), "explore": old.explore.model_dump(mode="json")}
    with write_artifact(out, KIND, config=sections, parents=[old.path]) as work:
        catalogue = extend_trm(old.path / "trm", items, work / "trm").catalogue
        shutil.copytree(old.path / "policy", work / "policy", copy_function=shutil.copyfile)
        for name in ("explore.json", "text.json", "metrics.json"):
            shutil.copyfile(old.path / name, work / name)
        write_catalogue(work, catalogue)
        counts = np.concatenate([old.counts, np.zeros(len(items), dtype=old.counts.dtype)])
        _save_counts(work, counts, old.info["parents"].get("dataset", ""))
        serve, why = _choose_extended(old, catalogue)
        info = {
            **old.info,
            "version": _version(work),
            "serve": serve,
            "why": why,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": {**old.info["parents"], "trm": read_artifact(work / "trm", verify=False).digest},
        }
        _write_json(work / "bundle.json", info)
    return Bundle.load(out)


def _choose_extended(old: Bundle, catalogue: Catalogue) -> tuple[Served, str]:
    from deeprec.explore.loading import unwritable
    from deeprec.explore.protocol import TitleBook

    before = set(TitleBook(old.catalogue).titles)
    titles = [title for title in TitleBook(catalogue).titles if title not in before]
    if old.serve == "trm" or not unwritable(old.path / "policy", titles):
        return old.serve, old.why
    added = len(catalogue) - len(old.catalogue)
    return "trm", (
        f"this bundle serves the TRM alone: its policy was built before new items ({added:,}) were added and cannot "
        f"name them; run the pipeline again for a policy that can"
    )


def choose(metrics: Mapping[str, Any], verdict: Verdict) -> tuple[Served, str]:
    """What a bundle serves and the sentence that says why.

    The evaluation's own choice (``verdict.serve`` in its metrics) stands; a gate that did not pass serves the TRM.

    Raises:
        ArtifactError: the metrics name no choice.
    """
    chosen, figures = chosen_by(metrics), _figures(metrics)
    if not verdict.passed:
        return "trm", f"this bundle serves the TRM alone: {verdict.reason}"
    if chosen == "policy":
        return "policy", f"this bundle serves the policy: {figures}"
    return "trm", f"this bundle serves the TRM alone, because the policy did not do well enough: {figures}"


def chosen_by(metrics: Mapping[str, Any]) -> Served:
    """What an evaluation wants served, by its ``metrics.json``.

    Raises:
        ArtifactError: it does not say.
    """
    verdict = metrics.get("verdict")
    serve = verdict.get("serve") if isinstance(verdict, Mapping) else None
    if serve == "policy":
        return "policy"
    if serve == "trm":
        return "trm"
    raise ArtifactError(f"the evaluation's verdict.serve is {serve!r}, neither 'policy' nor 'trm'; evaluate again")


def _figures(metrics: Mapping[str, Any]) -> str:
    policy, baselines = metrics.get("policy", {}).get("stage2", {}), metrics.get("baselines", {})
    named = {
        "of the policy": policy,
        "of the TRM alone": baselines.get("trm", {}),
        "of the TRM trained on everything before each user's last two items": baselines.get("trm_everything"),
    }
    found = {name: values.get("ndcg@10", 0.0) for name, values in named.items() if values is not None}
    return "NDCG@10 " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())


def _of_the_trm(serve: Served, refit: bool) -> str:
    """What ``why`` says of the bundle's TRM."""
    if refit:
        return "the TRM was trained anew on everything, the last items included"
    if serve == "policy":
        return "the TRM stays the one that the policy was trained with"
    return "the TRM is the one that was evaluated"


def restate_metrics(place: Path, metrics: Mapping[str, Any]) -> None:
    """Give a bundle that is not yet in use the whole run's figures; its version names everything else and stays.

    A task inside the pipeline cannot know the seconds of the run it belongs to; whoever ran it does.
    """
    _write_json(place / "metrics.json", metrics)
    manifest = _read_json(place / MANIFEST)
    manifest["files"]["metrics.json"] = file_digest(place / "metrics.json")
    _write_json(place / MANIFEST, manifest)


# ---------------------------------------------------------------------------------------------------------- reading


def _read(place: Path) -> JsonDict:
    from safetensors.numpy import load_file

    info = _read_json(place / "bundle.json")
    text = _read_json(place / "text.json")
    catalogue, trm = read_catalogue(place), place / "trm"
    parts = {kind: read_artifact(place / kind, kind, verify=False) for kind in PARTS}
    same = file_digest(place / FILE) == file_digest(trm / FILE)
    _check_together(parts, trm, _ids(catalogue), _ids(catalogue if same else read_catalogue(trm)))
    if _trm_encoder(trm) != text["identity"]:
        raise ArtifactError(
            f"{place}: the TRM was trained with the text encoder {_trm_encoder(trm)}, the bundle names "
            f"{text['identity']}; parts of different bundles cannot be used together, publish it again"
        )
    for kind, manifest in parts.items():
        if info["parents"][kind] != manifest.digest:
            raise ArtifactError(f"{place}: its {kind} is not the one it was published with; publish it again")
    if info["serve"] not in ("policy", "trm"):
        raise ValueError(f"serve is {info['serve']!r}")
    counts = load_file(place / "popularity.safetensors")["counts"]
    if counts.shape != (len(catalogue),):
        raise ValueError(f"popularity has {counts.shape} counts for {len(catalogue)} items")
    return {
        "version": str(info["version"]),
        "serve": info["serve"],
        "why": str(info["why"]),
        "catalogue": catalogue,
        "counts": counts,
        "explore": ExploreConfig.model_validate(_read_json(place / "explore.json")),
        "text": TextConfig.model_validate(text["config"]),
        "text_identity": str(text["identity"]),
        "info": info,
        "metrics": _read_json(place / "metrics.json"),
    }


def _check_together(
    parts: Mapping[str, Manifest], trm: Path, catalogue: tuple[str, ...], trm_ids: tuple[str, ...]
) -> None:
    if not fits_policy_of(trm, parts["policy"].parents.get("trm")):
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


def _ids(catalogue: Catalogue) -> tuple[str, ...]:
    return tuple(item.item_id for item in catalogue.items)


def _is_refit(trm: Path) -> bool:
    return bool(_read_json(trm / "config.json").get("refit_of"))


def _trm_encoder(trm: Path) -> str:
    return str(_read_json(trm / "config.json")["text_identity"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; make it again") from error


# ---------------------------------------------------------------------------------------------------------- writing


def _save_counts(work: Path, counts: NDArray[np.int64], dataset: str) -> None:
    """Training interactions by item, and the digest of the dataset they were counted in."""
    from safetensors.numpy import save_file

    whole = np.ascontiguousarray(counts, dtype=np.int64)
    save_file({"counts": whole}, work / "popularity.safetensors", metadata={"dataset": dataset})


def _seconds(metrics: Mapping[str, Any], parents: Mapping[str, Manifest], refit: bool) -> dict[str, float]:
    """Seconds by task, process start included, from the artifacts' manifests; ``total`` is the sum of those listed."""
    tasks = {
        "dataset": "ingest",
        "features": "publish-features",
        "trm": "refit" if refit else "train-trm",
        "policy": "train-stage-2",
        "evaluation": "evaluate",
    }
    seconds = {task: float(value) for task, value in metrics.get("seconds", {}).items() if task != "total"}
    seconds |= {tasks[kind]: round(manifest.seconds, 2) for kind, manifest in parents.items()}
    return {**seconds, "total": round(sum(seconds.values()), 2)}


def _version(work: Path) -> str:
    """Twelve hexadecimal digits over the names and contents of all files but the figures'."""
    digest = hashlib.sha256()
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.is_file() and name != "metrics.json":
            digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()[:12]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
