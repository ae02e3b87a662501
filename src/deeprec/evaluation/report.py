"""The evaluation report: one HTML file that loads nothing else, light and dark, with plots and trajectories to browse.

Plotly's script is embedded once. The template escapes every text; figures travel as JSON in which no markup character
is left. Every plot has a text alternative and its numbers in a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from deeprec.checks.gate import Verdict
from deeprec.evaluation.behaviour import Behaviour
from deeprec.evaluation.browser import browser
from deeprec.evaluation.charts import (
    NAMES,
    Chart,
    calls_chart,
    curve_chart,
    ends_chart,
    metric_chart,
    number,
    preferences_chart,
    recall_chart,
    valid_chart,
    violations_chart,
)
from deeprec.evaluation.cost import cost_table
from deeprec.evaluation.reading import ReadTrajectory
from deeprec.evaluation.significance import COMPARED
from deeprec.evaluation.templates import safe_json, template
from deeprec.types import JsonDict

METRICS = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr")
BEHAVIOUR_FIGURES = (
    "valid_rate",
    "mean_calls",
    "candidate_recall",
    "tokens_per_user",
    "same_as_trm",
    "top_preference_share",
)
STAGES = {"stage1": "Learning curves of stage 1", "stage2": "Learning curves of stage 2"}
_CURVE_TEXT = "One panel per figure and reward part, by rollout batch; a gap is a part that was not scored."


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows; ``name`` is the run's, or empty.

    ``metrics`` is the evaluation's ``metrics.json``; ``curves`` holds rows per step under ``trm``, ``trm_everything``,
    ``start``, ``stage1`` and ``stage2``; ``trajectories`` are the last policy's, picked by ``reading.choose`` from one
    per user; ``configuration`` is shown as YAML, section by section.
    """

    name: str
    metrics: JsonDict
    verdict: Verdict
    sentences: Sequence[str]
    behaviours: Mapping[str, Behaviour]
    curves: Mapping[str, Sequence[Mapping[str, object]]]
    trajectories: Sequence[ReadTrajectory]
    configuration: Mapping[str, object]


def render(data: ReportData) -> str:
    """The report as HTML."""
    from plotly.offline import get_plotlyjs

    charts = _charts(data)
    return template("report.html").render(
        data=data,
        columns=METRICS,
        table=_metric_rows(data.metrics),
        behaviour_columns=BEHAVIOUR_FIGURES,
        behaviour_table=_behaviour_rows(data.metrics),
        steps=_step_rows(data.metrics),
        cost=cost_table(data.metrics["cost"]) if "cost" in data.metrics else None,
        charts=charts,
        missing_curves=[title for key, title in STAGES.items() if key not in charts],
        figures={key: safe_json(chart.figure) for key, chart in charts.items()},
        plotly=get_plotlyjs(),
        browser=browser(data.trajectories, data.metrics["users_evaluated"], "After stage 2, with its reward."),
        configuration=[
            (name, yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True))
            for name, value in data.configuration.items()
        ],
    )


def _charts(data: ReportData) -> dict[str, Chart]:
    policies = {name: found for name, found in data.behaviours.items() if name != "scripted"}
    last = data.behaviours.get("stage2")
    charts = [
        metric_chart(data.metrics["intervals"]),
        *(curve_chart(key, title, _CURVE_TEXT, data.curves.get(key, ())) for key, title in STAGES.items()),
        valid_chart(policies),
        violations_chart(policies),
        calls_chart(data.behaviours),
        recall_chart(data.behaviours),
        ends_chart(policies),
        preferences_chart(last) if last else None,
        curve_chart(
            "start", "Warm start", "Supervised learning before the stages, by step.", data.curves.get("start", ())
        ),
        curve_chart(
            "trm", "Training of the TRM", "Figures on the validation target by epoch.", data.curves.get("trm", ())
        ),
        curve_chart(
            "trm_everything",
            "Training of the TRM on everything",
            "Everything before the validation item; figures on the validation target by epoch.",
            data.curves.get("trm_everything", ()),
        ),
    ]
    return {chart.key: chart for chart in charts if chart is not None}


def _metric_rows(metrics: JsonDict) -> list[tuple[str, list[tuple[str, str]]]]:
    """Recommender → (mean, interval) of each metric."""
    intervals = metrics["intervals"]
    found = {**metrics["baselines"], **metrics["policy"]}
    return [
        (
            NAMES[name],
            [
                (
                    number(found[name][metric]),
                    f"{number(intervals[name][metric]['low'])} – {number(intervals[name][metric]['high'])}",
                )
                for metric in METRICS
            ],
        )
        for name in NAMES
        if name in intervals
    ]


def _behaviour_rows(metrics: JsonDict) -> list[tuple[str, list[str]]]:
    return [
        (NAMES[name], [number(values.get(figure), 3) for figure in BEHAVIOUR_FIGURES])
        for name, values in metrics["policy"].items()
    ]


def _step_rows(metrics: JsonDict) -> list[tuple[str, list[str]]]:
    """What is compared with what, and the difference in NDCG@10 and in Recall@10 with its interval."""
    return [
        (
            " − ".join(NAMES[name] for name in pair.split("_minus_")),
            [_signed(found[metric]) for metric in COMPARED],
        )
        for pair, found in metrics["steps"].items()
    ]


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
