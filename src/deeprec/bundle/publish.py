"""From the artifacts of a run to a bundle, and from a bundle to one with new items."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.bundle.answers import FILE as ANSWERS
from deeprec.bundle.answers import CheckAnswer, write_answers
from deeprec.bundle.bundle import (
    ALL_PARTS,
    BUNDLE,
    EXPLORE,
    KIND,
    METRICS,
    POPULARITY,
    SCHEMA,
    TEXT,
    Bundle,
    Served,
    check_together,
    encoder_of,
    ids_of,
    index_files,
    part_digest,
    read_json,
    version_of,
)
from deeprec.bundle.snapshot import make_snapshot, write_snapshot
from deeprec.checks.gate import Verdict
from deeprec.config import ExploreConfig, TextConfig
from deeprec.data.catalogue import FILE, read_catalogue, write_catalogue
from deeprec.errors import ArtifactError
from deeprec.store import Manifest, read_artifact, write_artifact
from deeprec.types import Catalogue, Item, JsonDict


def publish(
    dataset: Path,
    trm: Path,
    policy: Path,
    evaluation: Path,
    features: Path,
    text: TextConfig,
    explore: ExploreConfig,
    verdict: Verdict,
    out: Path,
    answers: Sequence[CheckAnswer] = (),
) -> None:
    """Assemble the bundle of one run as the artifact ``out``; ``answers`` are what its servers are held to.

    Raises:
        ArtifactError: a part is no whole artifact, or the parts do not belong together.
        StoreError: a place cannot be written.
        TrmError: the text encoder cannot be loaded.
    """
    from deeprec.data.dataset import read_dataset
    from deeprec.data.splits import everything_sequences, interaction_counts, trm_sequences
    from deeprec.features.publish import RECORD
    from deeprec.trm.text import encoder_directory

    kinds = {"dataset": dataset, "trm": trm, "policy": policy, "evaluation": evaluation, "features": features}
    parents = {kind: read_artifact(path, kind) for kind, path in kinds.items()}
    data = read_dataset(dataset)
    check_together(parents, trm, ids_of(data.catalogue), ids_of(read_catalogue(trm)))
    metrics = read_json(evaluation / "metrics.json")
    serve, why = choose(metrics, verdict)
    refit = bool(read_json(trm / "config.json").get("refit_of"))
    if refit and serve == "policy":
        raise ArtifactError(
            f"{trm} was trained anew on everything, but the policy is to be served, with the TRM it was trained with; "
            f"give that one"
        )
    sections = {"text": text.model_dump(mode="json"), "explore": explore.model_dump(mode="json")}
    with write_artifact(out, KIND, config=sections, parents=list(kinds.values())) as work:
        for name, path in (("trm", trm), ("policy", policy)):
            shutil.copytree(path, work / name, copy_function=shutil.copyfile)
        if text.provider == "sentence-transformers":
            with write_artifact(work / "encoder", "encoder") as encoder:
                shutil.copytree(encoder_directory(text), encoder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        write_catalogue(work, data.catalogue)
        counted = everything_sequences(data) if refit else trm_sequences(data)
        _save_counts(work, interaction_counts(data.catalogue, counted))
        write_snapshot(work, make_snapshot(data))
        write_answers(work, answers)
        write_json(work / EXPLORE, sections["explore"])
        write_json(work / TEXT, {"config": sections["text"], "identity": encoder_of(trm)})
        write_json(work / METRICS, {**metrics, "seconds": _seconds(metrics, parents, refit)})
        info = {
            "serve": serve,
            "why": f"{why}; {_of_the_trm(serve, refit)}",
            "refit": refit,
            "gate": verdict.reason,
            "example_user": next(iter(data.sequences), None),
            "publication": str(read_json(features / RECORD)["publication"]),
            "parents": {kind: manifest.digest for kind, manifest in parents.items()},
        }
        write_info(work, info)


def extend_bundle(old: Bundle, items: Sequence[Item], out: Path) -> Bundle:
    """Write a bundle, opened with all its parts, with new items as the bundle ``out``, and return it.

    TRM, catalogue and popularity get the items; the policy is copied. A policy that cannot write a new item's title
    would answer lists that it cannot read, so such a bundle serves the TRM, and ``why`` says so.

    Raises:
        ArtifactError: the bundle was not opened with all its parts.
        TrmError: an id is already in the catalogue, or the items cannot be added; see ``trm.extend``.
        StoreError: ``out`` cannot be written.
    """
    from deeprec.trm.extend import extend_trm

    sections = {"text": read_json(old.index / TEXT)["config"], "explore": old.explore.model_dump(mode="json")}
    with write_artifact(out, KIND, config=sections, parents=[old.index]) as work:
        catalogue = extend_trm(old.part("trm"), items, work / "trm").catalogue
        for name in set(old.parts) - {"trm"}:
            shutil.copytree(old.parts[name], work / name, copy_function=shutil.copyfile)
        for name in set(index_files(old.index)) - {BUNDLE, FILE, POPULARITY, ANSWERS}:
            shutil.copyfile(old.index / name, work / name)
        write_catalogue(work, catalogue)
        _save_counts(work, np.concatenate([old.counts, np.zeros(len(items), dtype=old.counts.dtype)]))
        serve, why = _choose_extended(old, catalogue)
        trm = read_artifact(work / "trm", verify=False).digest
        write_info(work, {**old.info, "serve": serve, "why": why, "parents": {**old.info["parents"], "trm": trm}})
    return Bundle.load(out)


def write_info(work: Path, info: Mapping[str, Any], parts: Mapping[str, Path] | None = None) -> JsonDict:
    """Write ``bundle.json``, which closes an index, and return it.

    Args:
        work: where the index's other files are.
        info: what it says besides schema, version, when it was made, and its parts.
        parts: where those are; in ``work`` if not given.
    """
    places = {name: work / name for name in ALL_PARTS} if parts is None else parts
    manifests = {name: read_artifact(path, verify=False) for name, path in places.items() if path.is_dir()}
    whole = {
        **info,
        "schema": SCHEMA,
        "version": version_of(work, manifests, info["serve"], info["publication"]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": {name: part_digest(name, manifest) for name, manifest in manifests.items()},
    }
    write_json(work / BUNDLE, whole)
    return whole


def write_json(path: Path, value: Any) -> None:
    """Write a value for people to read as well."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _choose_extended(old: Bundle, catalogue: Catalogue) -> tuple[Served, str]:
    from deeprec.explore.loading import unwritable
    from deeprec.explore.protocol import TitleBook

    before = set(TitleBook(old.catalogue).titles)
    titles = [title for title in TitleBook(catalogue).titles if title not in before]
    if old.serve == "trm" or not unwritable(old.part("policy"), titles):
        return old.serve, old.why
    added = len(catalogue) - len(old.catalogue)
    return "trm", (
        f"this bundle serves the TRM alone: its policy was built before new items ({added:,}) were added and cannot "
        f"name them; run the pipeline again for a policy that can"
    )


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


def _save_counts(work: Path, counts: NDArray[np.int64]) -> None:
    """Training interactions by item."""
    from safetensors.numpy import save_file

    save_file({"counts": np.ascontiguousarray(counts, dtype=np.int64)}, work / POPULARITY)


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
