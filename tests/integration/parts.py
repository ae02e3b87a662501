"""Runs made of real, tiny parts: what a server needs, in a second or two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deeprec.checks.gate import Verdict
from deeprec.config import (
    DataConfig,
    ExploreConfig,
    FeaturesConfig,
    PolicyConfig,
    SampleConfig,
    TextConfig,
    TinyConfig,
    TrmConfig,
    WarmStartConfig,
)
from deeprec.store import MANIFEST, file_digest, write_artifact

TEXT = TextConfig(provider="hashing", width=32)
EXPLORE = ExploreConfig(items_per_call=8, answer_size=5, max_calls=3, max_new_tokens=64, max_context=512)
KINDS = ("dataset", "trm", "policy", "evaluation", "published")


def make_run(place: Path, features: FeaturesConfig | None = None) -> Path:
    """``place`` as a run's directory with ``bundle`` and ``features``; the policy is untrained: no valid answer.

    ``features`` is where histories are published, ``place/features`` if not named.
    """
    from deeprec.data.ingest import ingest
    from deeprec.features.publish import publish as publish_features
    from deeprec.policy.build import build_policy
    from deeprec.trm.training import train

    parts = {name: place / name for name in KINDS}
    trm = TrmConfig(width=16, layers=1, heads=1, max_length=20, epochs=1)
    tiny = PolicyConfig(
        tiny=TinyConfig(width=16, layers=1, heads=2, inner=32), warm_start=WarmStartConfig(trajectories=0)
    )
    sample = SampleConfig(users=60, items=50, mean_history=20)
    ingest(DataConfig(source="sample", sample=sample), 0, parts["dataset"])
    publish_features(parts["dataset"], features or FeaturesConfig(path=str(place / "features")), parts["published"])
    train(parts["dataset"], trm, TEXT, 0, parts["trm"], place / "trm.html")
    build_policy(parts["dataset"], parts["trm"], tiny, EXPLORE, TEXT, 0, parts["policy"])
    with write_artifact(parts["evaluation"], "evaluation", parents=[parts["dataset"]]) as work:
        (work / "metrics.json").write_text(json.dumps({"verdict": {"serve": "policy"}}))
    make_bundle(place, place / "bundle")
    return place


def make_bundle(run: Path, out: Path, *, serve: str = "policy", published: Path | None = None, **explore: Any) -> Path:
    """A bundle of the run's parts at ``out``; another ``explore`` or ``published`` gives it another version."""
    from deeprec.bundle.answers import make_answers
    from deeprec.bundle.publish import publish
    from deeprec.data.dataset import read_dataset

    verdict = Verdict("evaluation", serve == "policy", "evaluation: passed, 0 of 0 checks", ())
    parts = [run / kind for kind in KINDS[:-1]]
    settings = EXPLORE.model_copy(update=explore)
    answers = make_answers(read_dataset(parts[0]), parts[1], parts[3] / "trajectories.parquet", settings.answer_size)
    publish(*parts, published or run / KINDS[-1], TEXT, settings, verdict, out, answers)
    return out


def copy_with_another_trm(bundle: Path, out: Path) -> Path:
    """The bundle with whole and well-hashed parts that do not belong together."""
    shutil.copytree(bundle, out)
    _rewrite(out / "policy" / MANIFEST, lambda manifest: manifest["parents"].update(trm="0" * 64))
    names = ["policy/" + MANIFEST]
    digests = {name: file_digest(out / name) for name in names}
    _rewrite(out / MANIFEST, lambda manifest: manifest["files"].update(digests))
    return out


def _rewrite(file: Path, change: Any) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
