"""From figures to decisions: the evaluation gate, what the bundle serves, and a sentence on whether the policy pays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deeprec.checks.gate import Verdict, check_metrics
from deeprec.config import EvaluationGate
from deeprec.evaluation.charts import NAMES
from deeprec.evaluation.significance import CONFIDENCE, Interval, verdict_sentence
from deeprec.types import JsonDict

GATE = "evaluation"
POLICY = "stage2"
TRMS = ("trm", "trm_everything")
"""What may be served in the policy's place: the second stands for the first, trained anew."""
FEW_MINUTES = 0.25
"""A TRM that had less than this share of the policy's minutes might have done better with more."""
STEPS = (
    ("trm", "popularity"),
    ("trm_everything", "trm"),
    ("fusion", "trm"),
    ("start", "trm"),
    ("stage1", "start"),
    ("stage2", "stage1"),
    ("stage2", "start"),
    ("stage2", "trm"),
    ("stage2", "trm_everything"),
    ("stage2", "fusion"),
)
"""Pairs whose difference is reported: what each step gives, then where the last one stands."""
Served = Literal["policy", "trm"]


def judge(metrics: JsonDict, gate: EvaluationGate, report: Path) -> Verdict:
    """The gate's verdict, with its own small report at ``report`` (the evaluation report replaces it)."""
    rules = [
        ("valid_rate of the policy after stage 2", metrics["policy"][POLICY]["valid_rate"], gate.min_valid_rate),
        ("ndcg@10 of the TRM alone", metrics["baselines"]["trm"]["ndcg@10"], gate.min_ndcg_10_trm),
    ]
    return check_metrics(GATE, rules, report)


def best(baselines: Mapping[str, Mapping[str, float] | None]) -> str:
    """The baseline with the highest NDCG@10, the first of equals."""
    return max((name for name, found in baselines.items() if found), key=lambda name: _ndcg(baselines[name]))


def served(metrics: JsonDict, gate: EvaluationGate) -> Served:
    """``policy`` when its NDCG@10 reaches ``min_ratio_to_trm`` times that of either TRM, else ``trm``.

    Fusion and the long list are no recommenders that serve: they say what the policy's calls and stages are worth.
    """
    return "policy" if _ndcg(metrics["policy"][POLICY]) >= gate.min_ratio_to_trm * _best_trm(metrics) else "trm"


def decide(
    metrics: JsonDict, over: str, ratio: Interval | None, milliseconds: Mapping[str, float], gate: EvaluationGate
) -> JsonDict:
    """``verdict`` of ``metrics.json``: what is served, how it stands over the best baseline, at which cost.

    Args:
        metrics: ``baselines``, ``policy`` and ``minutes``.
        over: the best baseline; ``ratio`` of the policy's NDCG@10 to it, None where that cannot be said.
        milliseconds: a request to the ``policy`` and to the ``trm``.
    """
    verdict: JsonDict = {
        "serve": served(metrics, gate),
        "over": over,
        "ratio": None if ratio is None else ratio.mean,
        "low": None if ratio is None else ratio.low,
        "high": None if ratio is None else ratio.high,
        "ms_per_request": dict(milliseconds),
    }
    parts = (_pays(metrics, verdict), _choice(metrics, verdict["serve"], gate), _few_minutes(metrics))
    return {**verdict, "sentence": " ".join(filter(None, parts))}


def sentences(metrics: JsonDict) -> list[str]:
    """The verdict, then what the stages gave."""
    steps = metrics["steps"]
    return [
        metrics["verdict"]["sentence"],
        verdict_sentence("policy after stage 1", "start", steps["stage1_minus_start"]["ndcg@10"]),
        verdict_sentence("policy after stage 2", "policy after stage 1", steps["stage2_minus_stage1"]["ndcg@10"]),
    ]


def _pays(metrics: JsonDict, verdict: Mapping[str, Any]) -> str:
    policy, other = _ndcg(metrics["policy"][POLICY]), _ndcg(metrics["baselines"][verdict["over"]])
    found = f"NDCG@10 {policy:.4f} against {other:.4f}"
    if verdict["ratio"] is not None:
        found = (
            f"{verdict['ratio']:.3f} × its NDCG@10, {policy:.4f} against {other:.4f}, {CONFIDENCE:.0%} interval "
            f"{verdict['low']:.3f} to {verdict['high']:.3f}"
        )
    low, high = verdict["low"], verdict["high"]
    if low is None:
        stands = "cannot be compared with"
    else:
        stands = "beats" if low > 1 else "is below" if high < 1 else "is level with"
    policy_ms, trm_ms = (f"{verdict['ms_per_request'][name]:.3g}" for name in ("policy", "trm"))
    return (
        f"The policy {stands} the best baseline, {NAMES[verdict['over']]} ({found}), and takes {policy_ms} ms a "
        f"request where the TRM takes {trm_ms}."
    )


def _choice(metrics: JsonDict, serve: Served, gate: EvaluationGate) -> str:
    required = f"required: {gate.min_ratio_to_trm:g} × the better TRM's {_best_trm(metrics):.4f}"
    if serve == "policy":
        return f"The bundle serves the policy, with the TRM it was trained with ({required})."
    anew = "trained anew on everything where bundle.refit is on"
    return f"The bundle serves the TRM alone, not the policy ({required}), {anew}."


def _few_minutes(metrics: JsonDict) -> str:
    """What is to be said where the TRM trained on everything had much less time than the policy."""
    taken = metrics["minutes"]
    if taken["trm_everything"] >= FEW_MINUTES * taken["policy"]:
        return ""
    return (
        f"The TRM trained on everything had {taken['trm_everything']:.1f} minutes, less than a quarter of the policy's "
        f"{taken['policy']:.1f}: a longer training of it may reach more."
    )


def _best_trm(metrics: JsonDict) -> float:
    return max(_ndcg(metrics["baselines"][name]) for name in TRMS)


def _ndcg(found: Mapping[str, float] | None) -> float:
    return float(found["ndcg@10"]) if found else 0.0
