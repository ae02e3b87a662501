"""A tiny policy that answers: taught in seconds on a tiny run, its answers decoded from retrieved titles."""

from __future__ import annotations

import shutil
from pathlib import Path

from deeprec.checks.gate import Verdict
from deeprec.config import PolicyConfig, TinyConfig, WarmStartConfig
from tests.integration.parts import EXPLORE, KINDS, TEXT

TAUGHT = EXPLORE.model_copy(update={"answers": "retrieved", "prompt": "compact"})
TINY = TinyConfig(width=32, layers=2, heads=2, inner=64)
_LESSONS = WarmStartConfig(trajectories=300, epochs=8, batch_size=8, learning_rate=8e-3)


def teach(run: Path, place: Path, tiny: TinyConfig = TINY) -> Path:
    """A run's directory at ``place`` with ``bundle`` and ``features``, whose policy calls twice and answers validly."""
    from deeprec.bundle.publish import publish
    from deeprec.policy.build import build_policy

    parts = {kind: run / kind for kind in KINDS} | {"policy": place / "policy"}
    policy = PolicyConfig(tiny=tiny, warm_start=_LESSONS)
    build_policy(parts["dataset"], parts["trm"], policy, TAUGHT, TEXT, 0, parts["policy"], progress=lambda line: None)
    passed = Verdict("evaluation", True, "evaluation: passed, 0 of 0 checks", ())
    publish(*parts.values(), TEXT, TAUGHT, passed, place / "bundle")
    shutil.copytree(run / "features", place / "features", symlinks=True)
    return place
