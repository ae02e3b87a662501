from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from deeprec.trm.evaluation import Evaluation, Group
from deeprec.trm.report import bars_svg, curve_svg, group_figures, preference_rows

METRICS = {"ndcg@10": 0.2, "recall@20": 0.4, "half_preference_recall@20": 0.6, "preference_recall@20": 0.8}


def evaluation(*groups: Group) -> Evaluation:
    return Evaluation(3, {**METRICS, "misled_ndcg@10": 0.15}, {}, groups, groups)


def test_bars_are_as_tall_as_their_values() -> None:
    svg = bars_svg("Accuracy & more", "users", ["a", "<b>"], {"TRM": [0.1, 0.4], "popularity": [0.0, 0.2]})
    root = ElementTree.fromstring(svg)
    bars = [group for group in root.iter("g") if group.get("class") == "trm-bar"]
    heights = [float(str(bar.find("rect").get("height"))) for bar in bars]  # type: ignore[union-attr]
    assert len(bars) == 4
    assert heights[1] == 0
    assert heights[2] / heights[0] == pytest.approx(4, rel=0.01)
    assert heights[3] / heights[0] == pytest.approx(2, rel=0.01)
    titles = [bar.findtext("title") for bar in bars]
    assert titles == ["TRM, a: 0.1000", "popularity, a: 0.0000", "TRM, <b>: 0.4000", "popularity, <b>: 0.2000"]
    ticks = [float(str(text.text)) for text in root.iter("text") if re.fullmatch(r"0(\.\d{1,2})?", str(text.text))]
    assert ticks == sorted(ticks)
    assert max(ticks) == 0.4


@pytest.mark.parametrize("top", [0.0, 1e-6, 0.003, 0.199, 0.2, 0.5, 1.0])
def test_any_range_has_a_few_ticks_and_holds_its_bars(top: float) -> None:
    root = ElementTree.fromstring(bars_svg("x", "y", ["a"], {"TRM": [top]}))
    assert 2 <= len(root.findall("path")) <= 6
    [bar] = [group.find("rect") for group in root.iter("g")]
    assert float(str(bar.get("height"))) <= 180.05  # type: ignore[union-attr]


def test_no_groups_and_no_points_give_nothing() -> None:
    assert bars_svg("x", "y", [], {"TRM": []}) == ""
    assert curve_svg("x", [(1, 2)]) == ""


def test_each_group_has_a_chart_and_a_table() -> None:
    figures = group_figures(evaluation(Group("1–9", 3, 0.1234, 0.2, 0.05, 0.1)))
    assert len(figures) == 2
    for figure in figures:
        assert figure.count("<svg") == figure.count("<table") == 1
        assert figure.count("0.1234") >= 2
        assert "1–9" in figure
        assert "http" not in figure


def test_what_a_preference_changes() -> None:
    header, rows = preference_rows(evaluation())
    assert header[-1] == "relative to none"
    assert [row[-1] for row in rows] == ["1.00", "1.50", "2.00", "1.00", "0.75"]
