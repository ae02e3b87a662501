"""What a stage of RL logs: one record per rollout batch, kept in a file, and one printed line.

With several processes each hands in its own trajectories, every one keeps the same records, and one of them writes.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.explore.summary import preference_key
from deeprec.types import EndReason, JsonDict, Trajectory

LOGGED = ("loss", "grad_norm", "entropy", "learning_rate", "kl", "clip_ratio/region_mean")
"""Figures of an optimiser update that are kept of the trainer's own log."""


@dataclass
class Curves:
    """What a stage logs: one dict per finished rollout batch, kept in a file for a resumed stage to go on with.

    ``gather`` brings together what the processes hand in; with ``writes`` off neither file nor line is written.
    """

    path: Path
    weights: Mapping[str, float]
    group: int
    progress: Callable[[str], None]
    gather: Callable[[list[Any]], list[Any]] = list
    writes: bool = True
    records: list[JsonDict] = field(default_factory=list)
    pending: JsonDict = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    started: float = 0.0
    trained_tokens: int = 0

    def resume(self, steps: int) -> None:
        """Keep the records of the first ``steps`` rollout batches that an earlier process logged."""
        if steps and self.path.is_file():
            self.records = json.loads(self.path.read_text(encoding="utf-8"))[:steps]

    def rolled_out(
        self, step: int, trajectories: Sequence[Trajectory], seconds: float, kl: float | None = None
    ) -> None:
        """Start the record of rollout batch ``step`` (1-based); ``kl`` is the divergence from the stage's start."""
        self.started = time.perf_counter() - seconds
        self.measured.clear()
        shares = self.gather([(list(map(trajectory_figures, trajectories)), seconds, kl)])
        figures = [row for rows, _, _ in shares for row in rows]
        slowest = max(seconds for _, seconds, _ in shares)
        self.trained_tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in figures)
        self.pending = {"step": step, **batch_statistics(figures, self.group), "rollout_seconds": slowest}
        self.pending["rollout_tokens_per_second"] = sum(row["policy_tokens"] for row in figures) / slowest
        divergence = _mean([kl for _, _, kl in shares])
        if divergence is not None:
            self.pending["kl"] = divergence

    def updated(self, logs: Mapping[str, float]) -> None:
        """Add one optimiser update's figures from TRL's log."""
        for name in LOGGED:
            value = logs.get(name)
            if value is not None and math.isfinite(value):
                self.measured[name.partition("/")[0]].append(float(value))

    def finish(self) -> None:
        """Close the record, write the file whole, print one line."""
        record = {**self.pending, **{name: float(np.mean(values)) for name, values in self.measured.items()}}
        record["seconds"] = time.perf_counter() - self.started
        training = max(record["seconds"] - record["rollout_seconds"], 1e-9)
        record["training_tokens_per_second"] = self.trained_tokens / training
        self.records.append(record)
        if not self.writes:
            return
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.records, indent=1), encoding="utf-8")
        temporary.replace(self.path)
        self.progress(self._line(record))

    def _line(self, record: JsonDict) -> str:
        parts = " ".join(f"{name} {_short(record.get(name))}" for name in self.weights)
        figures = " ".join(f"{title} {_short(record.get(name))}" for name, title in SHOWN)
        speeds = "/".join(f"{record[f'{kind}_tokens_per_second']:.0f}" for kind in ("rollout", "training"))
        return (
            f"step {record['step']}: reward {record['reward']:.3f} ({parts}) {figures} {speeds} tokens/s "
            f"{record['seconds']:.1f} s"
        )


SHOWN = (
    ("valid_rate", "valid"),
    ("mean_calls", "calls"),
    ("policy_tokens", "length"),
    ("entropy", "entropy"),
    ("kl", "KL"),
    ("logprob_gap", "gap"),
    ("zero_variance_groups", "flat"),
    ("repeated_preferences", "repeated"),
    ("top_preference_share", "top"),
)
"""Figures of the printed line and what they are called in it."""


def trajectory_figures(trajectory: Trajectory) -> JsonDict:
    """What a batch's statistics need to know of one trajectory: a few numbers, and its preferences after the first."""
    asked = [tuple(sorted(preference_key(call))) for call in trajectory.calls]
    return {
        "reward": trajectory.reward,
        "parts": {part.name: part.value for part in trajectory.rewards},
        "calls": len(asked),
        "repeated": len(asked) - len(set(asked)),
        "later": set(asked[1:]),
        "answered": trajectory.end == EndReason.ANSWERED,
        "prompt_tokens": len(trajectory.prompt_ids),
        "completion_tokens": len(trajectory.completion_ids),
        "policy_tokens": sum(trajectory.loss_mask),
    }


def batch_statistics(figures: Sequence[JsonDict], group: int) -> JsonDict:
    """Means over a rollout batch, from ``trajectory_figures``, whose groups of ``group`` trajectories stand in a row.

    Reward parts are means over the trajectories that were scored for them, unweighted; None when none was.
    ``repeated_preferences`` is the share, among calls after a trajectory's first, of those that ask what an earlier
    call of it asked, None without such calls; ``top_preference_share`` the largest share of trajectories that ask one
    same thing after their first call.
    """
    rewards = np.array([row["reward"] for row in figures])
    names = list(dict.fromkeys(name for row in figures for name in row["parts"]))
    parts = {name: [row["parts"].get(name) for row in figures] for name in names}
    record: JsonDict = {name: _mean(values) for name, values in parts.items()}
    record["reward"] = float(rewards.mean())
    record["reward_std"] = float(rewards.std())
    if "format" in parts:
        record["valid_rate"] = _mean([None if value is None else float(value == 0) for value in parts["format"]])
    for name, source in (("mean_calls", "calls"), *((name, name) for name in ("answered", *_LENGTHS))):
        record[name] = float(np.mean([row[source] for row in figures]))
    record["zero_variance_groups"] = float(np.mean(np.ptp(rewards.reshape(-1, group), axis=1) < 1e-6))
    later = sum(max(row["calls"] - 1, 0) for row in figures)
    record["repeated_preferences"] = sum(row["repeated"] for row in figures) / later if later else None
    shared = Counter(preference for row in figures for preference in row["later"])
    record["top_preference_share"] = max(shared.values(), default=0) / len(figures)
    return record


_LENGTHS = ("completion_tokens", "policy_tokens")


def _mean(values: Sequence[float | None]) -> float | None:
    scored = [value for value in values if value is not None]
    return float(np.mean(scored)) if scored else None


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
