"""What a stage of RL logs: one record per rollout batch, kept in a file, and one printed line."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deeprec.types import EndReason, JsonDict, Trajectory


@dataclass
class Curves:
    """What a stage logs: one dict per finished rollout batch, kept in a file for a resumed stage to go on with."""

    path: Path
    weights: Mapping[str, float]
    group: int
    progress: Callable[[str], None]
    records: list[JsonDict] = field(default_factory=list)
    pending: JsonDict = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    started: float = 0.0

    def resume(self, steps: int) -> None:
        """Keep the records of the first ``steps`` rollout batches that an earlier process logged."""
        if steps and self.path.is_file():
            self.records = json.loads(self.path.read_text(encoding="utf-8"))[:steps]

    def rolled_out(self, step: int, trajectories: Sequence[Trajectory], seconds: float) -> None:
        """Start the record of rollout batch ``step`` (1-based)."""
        self.started = time.perf_counter() - seconds
        self.measured.clear()
        self.pending = {"step": step, **batch_statistics(trajectories, self.group)}
        self.pending["rollout_seconds"] = seconds
        self.pending["rollout_tokens_per_second"] = sum(len(t.completion_ids) for t in trajectories) / seconds

    def updated(self, logs: Mapping[str, float]) -> None:
        """Add one optimiser update's figures from TRL's log."""
        for name in ("loss", "grad_norm", "entropy", "learning_rate", "kl", "clip_ratio/region_mean"):
            value = logs.get(name)
            if value is not None and math.isfinite(value):
                self.measured[name.partition("/")[0]].append(float(value))

    def finish(self) -> None:
        """Close the record, write the file whole, print one line."""
        record = {**self.pending, **{name: float(np.mean(values)) for name, values in self.measured.items()}}
        record["seconds"] = time.perf_counter() - self.started
        self.records.append(record)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.records, indent=1), encoding="utf-8")
        temporary.replace(self.path)
        parts = " ".join(f"{name} {_short(record.get(name))}" for name in self.weights)
        self.progress(
            f"step {record['step']}: reward {record['reward']:.3f} ({parts}) valid {_short(record.get('valid_rate'))} "
            f"calls {record['mean_calls']:.2f} entropy {_short(record.get('entropy'))} "
            f"gap {_short(record.get('logprob_gap'))} {record['seconds']:.1f} s"
        )


def batch_statistics(trajectories: Sequence[Trajectory], group: int) -> JsonDict:
    """Means over a rollout batch whose groups of ``group`` trajectories stand in a row.

    Reward parts are means over the trajectories that were scored for them, unweighted; None when none was.
    """
    rewards = np.array([trajectory.reward for trajectory in trajectories])
    parts: dict[str, list[float | None]] = defaultdict(list)
    for trajectory in trajectories:
        for part in trajectory.rewards:
            parts[part.name].append(part.value)
    record: JsonDict = {name: _mean(values) for name, values in parts.items()}
    record["reward"] = float(rewards.mean())
    record["reward_std"] = float(rewards.std())
    if "format" in parts:
        record["valid_rate"] = _mean([None if value is None else float(value == 0) for value in parts["format"]])
    record["mean_calls"] = float(np.mean([len(trajectory.calls) for trajectory in trajectories]))
    record["answered"] = float(np.mean([trajectory.end == EndReason.ANSWERED for trajectory in trajectories]))
    record["completion_tokens"] = float(np.mean([len(trajectory.completion_ids) for trajectory in trajectories]))
    record["policy_tokens"] = float(np.mean([sum(trajectory.loss_mask) for trajectory in trajectories]))
    record["zero_variance_groups"] = float(np.mean(np.ptp(rewards.reshape(-1, group), axis=1) < 1e-6))
    return record


def _mean(values: Sequence[float | None]) -> float | None:
    scored = [value for value in values if value is not None]
    return float(np.mean(scored)) if scored else None


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
