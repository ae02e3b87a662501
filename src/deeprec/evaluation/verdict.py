"""From figures to decisions: the evaluation gate, what the bundle serves, and the sentences that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from deeprec.checks.gate import Verdict, check_metrics
from deeprec.config import EvaluationGate
from deeprec.evaluation.significance import verdict_sentence
from deeprec.types import JsonDict

GATE = "evaluation"
POLICY = "stage2"
Served = Literal["policy", "trm"]


def judge(metrics: JsonDict, gate: EvaluationGate, report: Path) -> Verdict:
    """The gate's verdict, with its own small report at ``report`` (the evaluation report replaces it)."""
    rules = [
        ("valid_rate of the policy after stage 2", metrics["policy"][POLICY]["valid_rate"], gate.min_valid_rate),
        ("ndcg@10 of the TRM alone", metrics["baselines"]["trm"]["ndcg@10"], gate.min_ndcg_10_trm),
    ]
    return check_metrics(GATE, rules, report)


def served(metrics: JsonDict, gate: EvaluationGate) -> Served:
    """``policy`` when its NDCG@10 reaches ``min_ratio_to_trm`` times the TRM's, else ``trm``; no gate fails by it."""
    policy, trm = metrics["policy"][POLICY]["ndcg@10"], metrics["baselines"]["trm"]["ndcg@10"]
    return "policy" if policy >= gate.min_ratio_to_trm * trm else "trm"


def sentences(metrics: JsonDict, gate: EvaluationGate) -> list[str]:
    """Whether the policy beats the TRM alone and its stage 1, and what the bundle serves for what reason."""
    policy, trm = metrics["policy"][POLICY]["ndcg@10"], metrics["baselines"]["trm"]["ndcg@10"]
    differences = metrics["significance"]["differences"]
    beside, before = differences[f"{POLICY}_minus_trm"], differences[f"{POLICY}_minus_stage1"]
    figures = f"NDCG@10 {policy:.4f} against {trm:.4f}, required: {gate.min_ratio_to_trm:g} × the TRM's"
    choice = (
        f"The bundle serves the policy: {figures}."
        if served(metrics, gate) == "policy"
        else f"The bundle serves the TRM alone, not the policy: {figures}."
    )
    return [
        verdict_sentence("policy after stage 2", "TRM alone", beside["ndcg@10"], "NDCG@10"),
        verdict_sentence("policy after stage 2", "TRM alone", beside["recall@10"], "Recall@10"),
        verdict_sentence("policy after stage 2", "policy after stage 1", before["ndcg@10"], "NDCG@10"),
        choice,
    ]
