"""Pictures and pages about a TRM, as HTML fragments that load nothing: the learning curve, and accuracy by group.

A bar chart is an inline SVG whose bars show their value on hover and to screen readers, with its numbers in a table
below. Fragments fit into a gate's report (``checks.gate.check_metrics``) and into the page of ``write_trm_report``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.checks.gate import ReportSection, write_page

if TYPE_CHECKING:
    from deeprec.trm.evaluation import Evaluation, Group

WIDTH, HEIGHT, MARGIN = 420, 200, 44
BAR_HEIGHT, GROUP_WIDTH, LEFT, TOP, BOTTOM = 180, 64, 48, 48, 52
COLOURS = ("#3b82c4", "#d97706")
_STYLE = (
    "<style>.trm-bar .value{opacity:0}.trm-bar:hover .value,.trm-bar:focus .value{opacity:1}"
    ".trm-bar:hover rect,.trm-bar:focus rect{filter:brightness(1.25)}</style>"
)


def curve_svg(title: str, points: Sequence[tuple[float, float]]) -> str:
    """An SVG line through (x, y) points with its extremes labelled; an empty text for fewer than two points."""
    if len(points) < 2:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across, up = max(xs) - min(xs) or 1.0, high - low or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + (x - min(xs)) / across * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - (y - low) / up * (HEIGHT - 2 * MARGIN),
        )

    spots = [place(x, y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>epoch {epoch:g}: {value:.4g}</title></circle>'
        for (x, y), (epoch, value) in zip(spots, points, strict=True)
    )
    floor = HEIGHT - MARGIN
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="11" fill="currentColor">'
        f'<text x="{MARGIN}" y="16" font-size="13">{escape(title)}</text>'
        f'<path d="M{MARGIN},{MARGIN} V{floor} H{WIDTH - MARGIN}" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<text x="{MARGIN - 4}" y="{MARGIN + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{MARGIN - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{floor + 16}">epoch {min(xs):g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{floor + 16}" text-anchor="end">{max(xs):g}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>'
        f'<g fill="#2563eb">{dots}</g></svg>'
    )


def bars_svg(title: str, axis: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Grouped bars from zero: one group per label, one bar per series (two at most); empty for no labels."""
    if not labels:
        return ""
    top = max((value for values in series.values() for value in values), default=0.0)
    step = _tick(top)
    ticks = [step * number for number in range(max(1, math.ceil(top / step - 1e-9)) + 1)]
    edge, floor = LEFT + GROUP_WIDTH * len(labels), TOP + BAR_HEIGHT
    width, height = max(edge + 12, LEFT + 9 * len(title)), floor + BOTTOM
    parts = [_STYLE, f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>', *_legend(list(series))]
    for tick in ticks:
        y = floor - BAR_HEIGHT * tick / ticks[-1]
        parts.append(f'<path d="M{LEFT},{y:.1f} H{edge}" stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    bar = GROUP_WIDTH * 0.8 / max(len(series), 1)
    for group, label in enumerate(labels):
        left = LEFT + GROUP_WIDTH * (group + 0.1)
        middle = left + GROUP_WIDTH * 0.4
        parts.append(f'<text x="{middle:.1f}" y="{floor + 15}" text-anchor="middle">{escape(label)}</text>')
        for place, (name, values) in enumerate(series.items()):
            tall, value = BAR_HEIGHT * values[group] / ticks[-1], f"{values[group]:.4f}"
            parts.append(_bar(f"{name}, {label}: {value}", value, left + place * bar, bar, tall, COLOURS[place]))
    parts.append(f'<text x="{(LEFT + edge) / 2:.1f}" y="{floor + 34}" text-anchor="middle">{escape(axis)}</text>')
    return (
        f'<svg role="group" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'style="max-width:100%" font-family="sans-serif" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


def _legend(names: Sequence[str]) -> list[str]:
    return [
        f'<rect x="{LEFT + 110 * place}" y="25" width="10" height="10" fill="{COLOURS[place]}"/>'
        f'<text x="{LEFT + 110 * place + 14}" y="34">{escape(name)}</text>'
        for place, name in enumerate(names)
    ]


def _bar(told: str, value: str, x: float, width: float, tall: float, colour: str) -> str:
    """A bar on the floor of the chart that shows ``value`` above it on hover and is called ``told``."""
    y = TOP + BAR_HEIGHT - tall
    return (
        f'<g class="trm-bar" tabindex="0" role="img" aria-label="{escape(told)}"><title>{escape(told)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{tall:.1f}" fill="{colour}"/>'
        f'<text class="value" x="{x + width / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle">{value}</text></g>'
    )


def group_figures(evaluation: Evaluation) -> list[str]:
    """NDCG@10 by popularity of the target and by length of the history: for each a chart and a table, as HTML."""
    return [
        _group_figure("NDCG@10 by popularity of the target", "training interactions", evaluation.by_popularity),
        _group_figure("NDCG@10 by length of the history", "items in the history", evaluation.by_history),
    ]


def write_trm_report(
    path: Path, evaluation: Evaluation, curves: Sequence[Mapping[str, float]], split: str, name: str = ""
) -> None:
    """Write the evaluation of a TRM as one HTML page that loads nothing.

    Raises:
        StoreError: it cannot be written.
    """
    losses = [(float(point["epoch"]), point["loss"]) for point in curves]
    measured = [(float(point["epoch"]), point["ndcg@10"]) for point in curves if "ndcg@10" in point]
    lines = [curve_svg("Training loss", losses), curve_svg("NDCG@10 of some validation users", measured)]
    by_popularity, by_history = group_figures(evaluation)
    sections = [
        ReportSection("Accuracy", html=_table(*accuracy_rows(evaluation))),
        ReportSection("With a preference", _PREFERENCES, _table(*preference_rows(evaluation))),
        ReportSection("Popular and rare targets", _DECILES, by_popularity),
        ReportSection("Short and long histories", html=by_history),
    ]
    if any(lines):
        sections.append(ReportSection("Learning curve", html="\n".join(lines)))
    intro = (
        f"{evaluation.users:,} users, each one's {split} item to be found in the whole catalogue, items of the history "
        f"excluded. Popularity ranks by training interactions."
    )
    write_page(path, f"The preference-aware TRM{name and ': '}{name}", sections, intro=intro)


_PREFERENCES = (
    "A truthful preference names phrases of the target; a misleading one, half of the phrases of another user's target."
)
_DECILES = "Each group holds about a tenth of the users, as far as targets with equally many interactions allow."


def accuracy_rows(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the TRM beside popularity, without preference."""
    names = ("ndcg@10", "ndcg@5", "recall@1", "recall@5", "recall@10", "mrr")
    found = (("TRM", evaluation.metrics), ("popularity", evaluation.popularity))
    shown = (name.replace("ndcg", "NDCG").replace("recall", "Recall").replace("mrr", "MRR") for name in names)
    return ("", *shown), [(who, *(f"{values[name]:.4f}" for name in names)) for who, values in found]


def preference_rows(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of what a preference changes."""
    values = evaluation.metrics
    plain, ndcg = values["recall@20"], values["ndcg@10"]
    rows = [
        ("no preference", "Recall@20", plain, plain),
        ("half of the target's phrases", "Recall@20", values["half_preference_recall@20"], plain),
        ("all of the target's phrases", "Recall@20", values["preference_recall@20"], plain),
        ("no preference", "NDCG@10", ndcg, ndcg),
        ("another user's phrases", "NDCG@10", values["misled_ndcg@10"], ndcg),
    ]
    return ("preference", "metric", "value", "relative to none"), [
        (told, metric, f"{value:.4f}", f"{value / base:.2f}" if base else "–") for told, metric, value, base in rows
    ]


def group_rows(axis: str, groups: Sequence[Group]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of accuracy by group."""
    header = (axis, "users", "NDCG@10", "Recall@10", "popularity NDCG@10", "popularity Recall@10")
    return header, [
        (
            group.label,
            f"{group.users:,}",
            *(
                f"{value:.4f}"
                for value in (group.ndcg_10, group.recall_10, group.popularity_ndcg_10, group.popularity_recall_10)
            ),
        )
        for group in groups
    ]


def _group_figure(title: str, axis: str, groups: Sequence[Group]) -> str:
    series = {
        "TRM": [group.ndcg_10 for group in groups],
        "popularity": [group.popularity_ndcg_10 for group in groups],
    }
    return bars_svg(title, axis, [group.label for group in groups], series) + _table(*group_rows(axis, groups))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" style="white-space:nowrap">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _tick(top: float) -> float:
    """A round step that divides an axis up to ``top`` into two to five parts."""
    if top <= 0:
        return 0.5
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (0.2, 0.25, 0.5, 1.0, 2.0) if top / (step * power) <= 5)
