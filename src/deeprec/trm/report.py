"""The learning curve of a TRM as a small inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 420, 200, 44


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
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in spots)
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
