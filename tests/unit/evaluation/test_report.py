"""The report: every section is there, it loads nothing, and hostile text stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.evaluation.behaviour import behaviour
from deeprec.evaluation.charts import curve_chart, label, metric_chart
from deeprec.evaluation.reading import read
from deeprec.evaluation.report import ReportData, render
from deeprec.evaluation.significance import compare
from deeprec.metrics import metrics_from_ranks
from deeprec.types import Call, Catalogue, EndReason, Example, Item, RetrievedItem, Trajectory

HOSTILE = "</script><script>alert('owned')</script><img src=x onerror=alert(1)>"
CATALOGUE = Catalogue((Item("a", HOSTILE), Item("b", "Plain"), Item("c", "Third")))
EXAMPLE = Example(f"user {HOSTILE}", ("a", "b"), "c")
TRAJECTORY = Trajectory(
    EXAMPLE.key,
    EXAMPLE.user_id,
    (),
    (),
    (),
    (),
    f"thought {HOSTILE}",
    (
        Call("anything", (), (RetrievedItem("a", 0.9), RetrievedItem("c", 0.5))),
        Call(HOSTILE, (HOSTILE,), (RetrievedItem("c", 0.7),)),
    ),
    ("c", "a"),
    EndReason.ANSWERED,
)
BASELINES = ("popularity", "trm", "trm_everything", "one_list", "scripted")
POLICIES = ("start", "stage1", "stage2")
SYSTEMS = (*BASELINES, *POLICIES)
FIGURES = ("valid_rate", "mean_calls", "candidate_recall", "tokens_per_user", "same_as_trm", "top_preference_share")


def _data() -> ReportData:
    ranks = {name: np.array([place, -1, 0]) for place, name in enumerate(SYSTEMS)}
    found = {name: metrics_from_ranks(values) for name, values in ranks.items()}
    policy = {name: {**found[name], **dict.fromkeys(FIGURES, 0.5)} for name in POLICIES}
    baselines = {name: found[name] for name in BASELINES} | {"fusion": None}
    baselines["one_list"] = {**found["one_list"], "candidate_recall": 0.625}
    compared = compare(ranks, [("stage2", "trm"), ("stage2", "stage1")], 50, seed=0)
    counted = behaviour([TRAJECTORY], [EXAMPLE], [("lines",)])
    metrics = {
        "data": {"users": 3, "items": 3, "interactions": 9000},
        "baselines": baselines,
        "policy": policy,
        "users_evaluated": 3,
        "minutes": {"trm_everything": 0.6, "policy": 4.5},
        "intervals": compared["intervals"],
        "steps": compared["differences"],
        "verdict": {"serve": "trm"},
    }
    steps = [{"step": 1, "format": -0.5, "listwise": None}, {"step": 2, "format": -0.1, "listwise": 0.25}]
    return ReportData(
        name="<b>shop</b>",
        metrics=metrics,
        verdict=Verdict("evaluate", True, "evaluate: passed", (CheckRow("valid_rate", "1", "at least 0", True),)),
        sentences=["The policy is below the TRM.", "The bundle serves the TRM alone."],
        behaviours=dict.fromkeys(("scripted", "start", "stage1", "stage2"), counted),
        curves={
            "trm": [{"epoch": 1, "ndcg@10": 0.1}],
            "trm_everything": [{"epoch": 1, "loss": 2.0}],
            "stage1": steps,
            "stage2": steps,
        },
        trajectories=[read(TRAJECTORY, EXAMPLE, (), ("c",), CATALOGUE)],
        configuration={"explore": {"max_calls": 8}, "text": {"provider": HOSTILE}},
    )


class _Page(HTMLParser):
    """Collects tags, attributes and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self._script = dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def rendered() -> str:
    return render(_data())


@pytest.fixture(scope="module")
def page(rendered: str) -> _Page:
    return _Page(rendered)


@pytest.mark.parametrize(
    "text",
    [
        "Gate passed. evaluate: passed",
        "The policy is below the TRM.",
        "The bundle serves the TRM alone.",
        "Results",
        "popularity",
        "TRM alone",
        "scripted explorer",
        "policy, after stage 2",
        "ndcg@10",
        "TRM trained on everything",
        "one list as long as all calls",
        "What each step gives",
        "took 4.5 minutes to make, the TRM trained on everything 0.6.",
        "policy, after stage 2 − TRM alone",
        "How the policy explores",
        "one list as long as all calls together holds it for 0.625.",
        "Accuracy on the test target",
        "Learning curves of stage 1",
        "Learning curves of stage 2",
        "Valid answers",
        "Broken format rules",
        "Calls per rollout",
        "Candidate recall by turn",
        "Why rollouts ended",
        "Top preferences",
        "Trajectories to read",
        "After stage 2, with its reward. 1 of 3 rollouts",
        "Training of the TRM",
        "Training of the TRM on everything",
        "Configuration used",
        "max_calls: 8",
    ],
)
def test_every_section_is_there(page: _Page, text: str) -> None:
    assert text in page.text


def test_hostile_text_stays_text(page: _Page) -> None:
    assert "alert('owned')" in page.text
    assert "<b>shop</b>: DeepRec evaluation" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    data = sum(name.startswith("figure-") or name == "trajectories-data" for name in page.scripts)
    assert sum(tag == "script" for tag, _ in page.tags) == 3 + data


def test_figures_are_json_without_markup(page: _Page) -> None:
    figures = {name: text for name, text in page.scripts.items() if name.startswith("figure-")}
    assert {"figure-metrics", "figure-stage1", "figure-stage2", "figure-trm", "figure-preferences"} <= set(figures)
    for text in figures.values():
        assert not set("<>&") & set(text)
        assert set(json.loads(text)) == {"data", "layout"}


def test_figures_are_what_plotly_accepts(page: _Page) -> None:
    from plotly.graph_objects import Figure

    for name, text in page.scripts.items():
        if name.startswith("figure-"):
            assert len(Figure(json.loads(text), skip_invalid=False).data) > 0


def test_nothing_is_loaded_and_plotly_is_there_once(rendered: str, page: _Page) -> None:
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    assert not any(tag in {"link", "iframe", "object"} for tag, _ in page.tags)
    assert len(re.findall(r"\* plotly\.js v\d", rendered)) == 1


def test_every_plot_has_a_name_a_description_and_a_table(page: _Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.tags}
    plots = [attributes for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert len(plots) == 11
    for plot in plots:
        assert plot["role"] == "img"
        assert {plot["aria-labelledby"], plot["aria-describedby"]} <= ids
    assert page.text.count("The same as a table") == len(plots)


def test_a_stage_without_steps_and_rollouts_without_calls_say_so() -> None:
    data = _data()
    silent = behaviour([replace(TRAJECTORY, calls=())], [EXAMPLE], [()])
    text = _Page(
        render(
            replace(
                data,
                behaviours=dict.fromkeys(("start", "stage1", "stage2"), silent),
                curves={"trm": [], "stage1": [], "stage2": [{"step": 1, "reward": 0.5}]},
                trajectories=[],
            )
        )
    ).text
    assert "Learning curves of stage 1 This stage took no steps." in text
    assert "Top preferences" not in text
    assert "Broken format rules" not in text


def test_curves_leave_gaps_where_nothing_was_scored() -> None:
    chart = curve_chart(
        "k", "t", "d", [{"step": 5, "parts": {"listwise": 0.5}}, {"step": 6, "valid": float("nan"), "x": 1}]
    )
    assert chart is not None
    assert [(trace["name"], trace["x"], trace["y"]) for trace in chart.figure["data"]] == [
        ("parts/listwise", [5.0, 6.0], [0.5, None]),
        ("x", [5.0, 6.0], [None, 1.0]),
    ]
    assert chart.rows == (("5", "0.5000", "–"), ("6", "–", "1.0000"))
    assert curve_chart("k", "t", "d", [{"step": 1, "note": "text", "flag": True}]) is None


def test_error_bars_are_distances_from_the_mean() -> None:
    chart = metric_chart({"trm": {name: {"mean": 0.2, "low": 0.15, "high": 0.3} for name in ("ndcg@10", "recall@10")}})
    bars = chart.figure["data"][0]["error_x"]
    assert bars["array"] == pytest.approx([0.1])
    assert bars["arrayminus"] == pytest.approx([0.05])


def test_labels_are_escaped_and_cut() -> None:
    assert label("<b>&") == "&lt;b&gt;&amp;"
    assert len(label("x" * 200)) == 48
