"""A stage's learning curves as small inline SVG: a panel per figure that was logged, nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from deeprec.types import JsonDict

WIDTH, HEIGHT, MARGIN = 360, 180, 40

PANELS = (
    ("reward", "Reward"),
    ("format", "Reward part: format"),
    ("interaction", "Reward part: interaction"),
    ("diversity", "Reward part: diversity"),
    ("listwise", "Reward part: list-wise"),
    ("pointwise", "Reward part: point-wise"),
    ("valid_rate", "Valid share"),
    ("mean_calls", "Calls per rollout"),
    ("policy_tokens", "Tokens written per rollout"),
    ("entropy", "Entropy, nats per token"),
    ("kl", "KL to the stage’s start, nats per token"),
    ("zero_variance_groups", "Share of groups without variance"),
    ("logprob_gap", "Gap of log-probabilities, sampled against recomputed"),
    ("repeated_preferences", "Share of calls that repeat a preference"),
    ("top_preference_share", "Largest share of one preference after the first call"),
    ("rollout_tokens_per_second", "Tokens written per second, rolling out"),
    ("training_tokens_per_second", "Tokens read per second, training"),
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm before clipping"),
)


def stage_figures(curves: Sequence[JsonDict]) -> list[str]:
    """One SVG per figure with at least two measured steps."""
    figures = []
    for name, title in PANELS:
        points = [(float(r["step"]), float(r[name])) for r in curves if isinstance(r.get(name), int | float)]
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) > 1:
            figures.append(line_svg(title, points))
    return figures


def line_svg(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through (step, value) points, its extremes and its last value labelled."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across, up = max(xs) - min(xs) or 1.0, high - low or 1.0

    def place(x: float, y: float) -> str:
        left = MARGIN + (x - min(xs)) / across * (WIDTH - 2 * MARGIN)
        top = HEIGHT - MARGIN - (y - low) / up * (HEIGHT - 2 * MARGIN)
        return f"{left:.1f},{top:.1f}"

    floor, edge = HEIGHT - MARGIN, WIDTH - MARGIN
    description = f"{title}: from {ys[0]:.3g} at step {xs[0]:g} to {ys[-1]:.3g} at step {xs[-1]:g}"
    return (
        f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="11" fill="currentColor">'
        f'<text x="{MARGIN}" y="16" font-size="13">{escape(title)}</text>'
        f'<path d="M{MARGIN},{MARGIN} V{floor} H{edge}" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<text x="{MARGIN - 4}" y="{MARGIN + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{MARGIN - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{floor + 16}">step {min(xs):g}</text>'
        f'<text x="{edge}" y="{floor + 16}" text-anchor="end">{max(xs):g}: {ys[-1]:.3g}</text>'
        f'<polyline points="{" ".join(place(*point) for point in points)}" fill="none" stroke="#3b82c4" '
        f'stroke-width="2"/></svg>'
    )
