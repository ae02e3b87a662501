"""The page of a look at drift: figures against their limits, day by day, and what they compare; it loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from deeprec.checks.gate import ReportSection, write_page
from deeprec.release.drift.figure import Day, Drift, Figure
from deeprec.trm.report import bars_svg

MOST_DAYS = 90
"""Days of a plot, the newest."""
_CLASSES = {"ok": "passed", "drifted": "failed", "inconclusive": "skipped", "not compared": "skipped"}
_SIGNS = {"ok": "✔", "drifted": "✘", "inconclusive": "?", "not compared": "–"}
_COLOUR = "#3b82c4"
_COLUMNS = ("figure", "value", "95 % interval", "limit", "", "users", "verdict")


def write_drift_page(path: Path, drift: Drift) -> None:
    """Write a look as one HTML file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    sections = [
        ReportSection("Verdict", html=_banner(drift)),
        ReportSection("Figures", _READ, _table(drift.figures)),
        *(ReportSection(f"{figure.name[0].upper()}{figure.name[1:]}", *_section(figure)) for figure in drift.figures),
    ]
    intro = f"Bundle {drift.version}, from {drift.since} to {drift.until}, beside what it was trained on."
    write_page(path, f"Drift: {drift.verdict}", sections, intro=intro)


_READ = (
    "A figure has drifted when its whole 95 % interval lies beyond its limit, and is ok when all of it lies within; "
    "else, and below the least number of users, it decides nothing."
)


def _banner(drift: Drift) -> str:
    kind = {"ok": "passed", "drifted": "failed"}.get(drift.verdict, "")
    sign = f"{_SIGNS[drift.verdict]} {drift.verdict[0].upper()}{drift.verdict[1:]}"
    return f'<div class="banner {kind}" role="status"><strong>{sign}</strong>{escape(drift.reason)}</div>'


def _table(figures: Sequence[Figure]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th><td>{_number(one.value)}</td><td>{interval_text(one)}</td>'
        f"<td>{one.rule}</td><td>{_interval_svg(one)}</td><td>{one.users:,}</td>"
        f'<td class="outcome {_CLASSES[one.state]}">{_SIGNS[one.state]} {one.state}</td></tr>'
        for one in figures
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _section(figure: Figure) -> tuple[str, str]:
    bars = figure.bars
    parts = [_days_svg(figure)]
    if bars is not None:
        series = {"training": bars.training, "now": bars.now}
        parts.append(bars_svg("Share of each, in training and now", bars.axis, bars.labels, series))
    return f"{figure.note}\n\n{figure.state}: {figure.why}.", "\n".join(filter(None, parts))


def interval_text(figure: Figure) -> str:
    """The figure's interval for a table."""
    return "–" if figure.low is None else f"{_number(figure.low)} to {_number(figure.high)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval_svg(figure: Figure) -> str:
    """The interval as a bar, its value as a dot and the limit as a dashed line, on a scale of their own."""
    if figure.value is None or figure.low is None or figure.high is None:
        return ""
    start, end = min(figure.low, 0.0), max(figure.high, figure.limit * 1.5, 1e-9)

    def at(value: float) -> float:
        return 4 + 192 * (value - start) / (end - start)

    told = f"{figure.value:.3f}, {interval_text(figure)}, limit {figure.limit:g}"
    width = max(at(figure.high) - at(figure.low), 1.0)
    return (
        f'<svg role="img" aria-label="{told}" viewBox="0 0 200 20" width="200" height="20">'
        f'<path d="M4,10 H196" stroke="currentColor" opacity="0.2"/>'
        f'<rect x="{at(figure.low):.1f}" y="7" width="{width:.1f}" height="6" rx="2" fill="{_COLOUR}" opacity="0.6"/>'
        f'<circle cx="{at(figure.value):.1f}" cy="10" r="4" fill="{_COLOUR}"/>'
        f'<path d="M{at(figure.limit):.1f},1 V19" stroke="currentColor" stroke-dasharray="3 2"/></svg>'
    )


def _days_svg(figure: Figure) -> str:
    """The figure day by day, with gaps where a day has too few users; empty without two days that have enough."""
    days = figure.days[-MOST_DAYS:]
    measured = [day.value for day in days if day.value is not None]
    if len(measured) < 2:
        return ""
    is_limited = figure.key != "hit_loss"
    top = max(*measured, figure.limit if is_limited else 0.0, 1e-9)
    step = 500 / max(len(days) - 1, 1)
    spots = [
        (48 + step * place, None if day.value is None else 140 - 110 * day.value / top)
        for place, day in enumerate(days)
    ]
    lines = "".join(
        f'<polyline points="{line}" fill="none" stroke="{_COLOUR}" stroke-width="2"/>' for line in _lines(spots)
    )
    dots = "".join(_dot(x, y, day) for (x, y), day in zip(spots, days, strict=True) if y is not None)
    limit = 140 - 110 * figure.limit / top
    dashed = f'<path d="M48,{limit:.1f} H548" stroke="currentColor" stroke-dasharray="5 4" opacity="0.6"/>'
    title = f"{figure.name if is_limited else 'hit share'} by day (UTC)"
    return (
        f'<svg role="group" aria-label="{escape(title)}" viewBox="0 0 600 170" width="600" style="max-width:100%" '
        f'font-family="sans-serif" font-size="11" fill="currentColor"><text x="48" y="16" font-size="13">'
        f'{escape(title)}</text><path d="M48,30 V140 H548" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<text x="44" y="34" text-anchor="end">{top:.3g}</text><text x="44" y="140" text-anchor="end">0</text>'
        f'<text x="48" y="158">{days[0].day}</text><text x="548" y="158" text-anchor="end">{days[-1].day}</text>'
        f"{dashed if is_limited else ''}{lines}{dots}</svg>"
    )


def _lines(spots: Sequence[tuple[float, float | None]]) -> Iterator[str]:
    """The points of each stretch without a gap."""
    for is_there, stretch in groupby(spots, lambda spot: spot[1] is not None):
        if is_there:
            yield " ".join(f"{x:.1f},{y:.1f}" for x, y in stretch)


def _dot(x: float, y: float, day: Day) -> str:
    told = f"{day.day}: {_number(day.value)}, {day.users:,} users"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_COLOUR}" tabindex="0" role="img" aria-label="{told}">'
        f"<title>{told}</title></circle>"
    )
