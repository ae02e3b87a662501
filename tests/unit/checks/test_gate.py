"""Verdicts, the refusal after a failed gate, and reports."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deeprec.checks.gate import CheckRow, ReportSection, Verdict, check_metrics, require, write_report
from deeprec.errors import CheckFailed, StoreError

HOSTILE = '<script>alert("x")</script> & "quoted"\nsecond line'


class Tags(HTMLParser):
    """Collects start tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


def test_a_verdict_survives_json():
    rows = [CheckRow("é <b>", "1", "≥ 2", False), CheckRow("skipped", "-", "-", None)]
    verdict = Verdict.of("trm", rows)
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert json.loads(verdict.to_json())["passed"] is False


def test_require_lets_a_passed_verdict_through():
    verdict = Verdict.of("g", [CheckRow("a", "1", "r", True), CheckRow("b", "-", "r", None)])
    assert verdict.passed
    require(verdict.to_json())


def test_require_refuses_with_the_reason_in_one_line():
    verdict = Verdict.of("g", [CheckRow(HOSTILE, "a\r\nb", "r", False), CheckRow("fine", "1", "r", True)])
    with pytest.raises(CheckFailed) as caught:
        require(verdict.to_json())
    message = str(caught.value)
    assert message.startswith("g: failed 1 of 2 checks: ")
    assert "observed a b" in message
    assert len(message.splitlines()) == 1


def test_a_reason_names_three_failures_and_counts_the_rest():
    verdict = Verdict.of("g", [CheckRow(f"check{n}", "0", "r", False) for n in range(5)])
    assert "check2" in verdict.reason
    assert "check3" not in verdict.reason
    assert verdict.reason.endswith("; and 2 more")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"gate": "g", "passed": "yes", "reason": "", "rows": []}'])
def test_what_is_no_verdict_has_not_passed(text):
    with pytest.raises(CheckFailed, match="cannot be read"):
        require(text)


def test_metrics_at_their_least_value_pass(tmp_path):
    verdict = check_metrics("trm", [("ndcg@10", 0.15, 0.15), ("ratio", 3.2, 1.0)], tmp_path / "new" / "report.html")
    assert verdict.passed
    assert [row.passed for row in verdict.rows] == [True, True]
    assert verdict.reason == "trm: passed, 2 of 2 checks"
    assert "✔ Passed" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("observed", [0.1, None, float("nan")])
def test_metrics_below_or_missing_fail_and_are_reported(tmp_path, observed):
    verdict = check_metrics("trm", [("ndcg@10", observed, 0.15)], tmp_path / "report.html")
    assert not verdict.passed
    assert "ndcg@10" in verdict.reason
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "✘ Failed" in page
    assert verdict.reason in page


def test_a_metric_just_below_is_not_shown_as_its_limit(tmp_path):
    verdict = check_metrics("trm", [("ndcg@10", 0.1499999, 0.15)], tmp_path / "report.html")
    assert verdict.rows[0].observed == "0.1499999"


def test_a_gate_without_thresholds_passes_and_says_so(tmp_path):
    assert check_metrics("trm", [], tmp_path / "report.html").reason == "trm: passed, nothing was checked"
    assert "No thresholds are set" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_escapes_every_text_and_loads_nothing(tmp_path):
    verdict = Verdict.of(HOSTILE, [CheckRow(HOSTILE, HOSTILE, HOSTILE, False)])
    sections = [ReportSection(HOSTILE, text=HOSTILE, html='<div id="figure"></div>')]
    write_report(verdict, tmp_path / "report.html", HOSTILE, sections, intro=HOSTILE)
    found = tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    names = [name for name, _ in found]
    assert "script" not in names
    assert ("div", {"id": "figure"}) in found
    assert not [attributes for _, attributes in found if {"src", "href"} & set(attributes)]
    assert names.count("caption") == 1
    assert [attributes["scope"] for name, attributes in found if name == "th"] == ["col"] * 4 + ["row"]


def test_figures_and_introduction_are_in_the_report(tmp_path):
    report = tmp_path / "report.html"
    check_metrics("trm", [("a", 1.0, 0.5)], report, intro="One.\n\nTwo & three.", figures=["<svg id='one'></svg>"])
    page = report.read_text(encoding="utf-8")
    assert "<svg id='one'></svg>" in page
    assert "<p>Two &amp; three.</p>" in page


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"report\.html"):
        check_metrics("trm", [], tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
