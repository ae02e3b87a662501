"""Gates: the verdict of a set of checks, its report, and the refusal to go on after a failed one.

A stage writes its verdict and an HTML report, whether or not it passed, and succeeds; the next stage takes the verdict
as an input and calls ``require``, which raises ``CheckFailed`` with the gate's reason in one line. Data checks
(``checks.data``) and metric thresholds (``check_metrics``) share this mechanism. Reports are one HTML file each that
loads nothing; every text is escaped, and only ``figures`` and ``ReportSection.html`` are trusted to be HTML already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deeprec.errors import CheckFailed
from deeprec.store import write_text

if TYPE_CHECKING:
    from jinja2 import Template

_NAMED_FAILURES = 3


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check: its name, what was observed, the rule, and the outcome (None: skipped, which fails nothing)."""

    name: str
    observed: str
    rule: str
    passed: bool | None

    @property
    def outcome(self) -> str:
        """``passed``, ``failed`` or ``skipped``."""
        return "skipped" if self.passed is None else "passed" if self.passed else "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a gate. ``reason`` is one line that can stand alone."""

    gate: str
    passed: bool
    reason: str
    rows: tuple[CheckRow, ...]

    @classmethod
    def of(cls, gate: str, rows: Sequence[CheckRow]) -> Self:
        """The verdict on ``rows``: passed when none of them failed."""
        failed = [row for row in rows if row.passed is False]
        return cls(gate=gate, passed=not failed, reason=_reason(gate, rows, failed), rows=tuple(rows))

    def to_json(self) -> str:
        """Inverse of ``from_json``."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            CheckFailed: the text is not a verdict; what cannot be read has not passed.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if not isinstance(raw["passed"], bool):
                raise TypeError("passed is not true or false")
            rows = tuple(CheckRow(**row) for row in raw["rows"])
            return cls(gate=str(raw["gate"]), passed=raw["passed"], reason=str(raw["reason"]), rows=rows)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckFailed(
                f"a gate's verdict cannot be read ({one_line(str(error))}); run the stage that writes it again"
            ) from error

    def to_markdown(self) -> str:
        """The verdict for a person: the reason, then a table of the checks."""
        rows = [(row.name, row.observed, row.rule, row.outcome) for row in self.rows]
        lines = [_row(cells) for cells in (("check", "observed", "rule", "outcome"), ("---",) * 4, *rows)]
        return "\n".join([f"**{self.reason}**", "", *(lines if rows else [])]) + "\n"


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A part of a report below the table: ``text`` is escaped (blank lines split paragraphs), ``html`` is trusted."""

    heading: str
    text: str = ""
    html: str = ""


def require(verdict_json: str) -> None:
    """Return when the gate passed.

    Raises:
        CheckFailed: it did not, or its verdict cannot be read; the message is the reason in one line.
    """
    verdict = Verdict.from_json(verdict_json)
    if not verdict.passed:
        raise CheckFailed(one_line(verdict.reason))


def check_metrics(
    gate: str,
    rules: Sequence[tuple[str, float | None, float]],
    report: Path,
    *,
    title: str = "",
    intro: str = "",
    figures: Sequence[str] = (),
) -> Verdict:
    """A model gate: each rule is (metric, observed, least value); its report is written to the file ``report``.

    A metric that is None or not a number was not measured, and fails. ``intro`` is plain text above the table;
    ``figures`` are HTML fragments that load nothing from elsewhere, such as Plotly's with its script inline.

    Raises:
        StoreError: the report cannot be written.
    """
    verdict = Verdict.of(gate, [_metric_row(*rule) for rule in rules])
    sections = [ReportSection("Figures", html="\n".join(figures))] if figures else []
    write_report(verdict, report, title or f"Gate: {gate}", sections, intro=intro)
    return verdict


def write_report(
    verdict: Verdict, path: Path, title: str, sections: Sequence[ReportSection] = (), *, intro: str = ""
) -> None:
    """Write the verdict as one self-contained HTML file, whole or not at all; missing directories are made.

    Raises:
        StoreError: the file cannot be written.
    """
    _write(path, title, sections, intro, verdict)


def write_page(path: Path, title: str, sections: Sequence[ReportSection], *, intro: str = "") -> None:
    """Write a report that is no gate's: the same page without a verdict.

    Raises:
        StoreError: the file cannot be written.
    """
    _write(path, title, sections, intro, None)


def _write(path: Path, title: str, sections: Sequence[ReportSection], intro: str, verdict: Verdict | None) -> None:
    page = _template().render(
        verdict=verdict,
        title=title,
        intro=_paragraphs(intro),
        sections=[(section.heading, _paragraphs(section.text), section.html) for section in sections],
    )
    write_text(path, page)


def one_line(text: str) -> str:
    """The text with every run of white space and unprintable characters as one space."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _metric_row(name: str, observed: float | None, minimum: float) -> CheckRow:
    rule = f"at least {minimum:.4g}"
    if observed is None or math.isnan(observed):
        return CheckRow(name, "not measured", rule, False)
    passed = observed >= minimum
    shown = f"{observed:.4g}"
    if not passed and shown == f"{minimum:.4g}":
        shown = repr(float(observed))
    return CheckRow(name, shown, rule, passed)


def _reason(gate: str, rows: Sequence[CheckRow], failed: Sequence[CheckRow]) -> str:
    if not rows:
        return f"{gate}: passed, nothing was checked"
    skipped = sum(row.passed is None for row in rows)
    checked = len(rows) - skipped
    if not failed:
        return f"{gate}: passed, {checked} of {checked} checks" + (f" ({skipped} skipped)" if skipped else "")
    named = "; ".join(
        one_line(f"{row.name}: observed {row.observed}, rule: {row.rule}") for row in failed[:_NAMED_FAILURES]
    )
    more = len(failed) - _NAMED_FAILURES
    return f"{gate}: failed {len(failed)} of {checked} checks: {named}" + (f"; and {more} more" if more > 0 else "")


def _row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deeprec.checks", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
