"""The report's plots as Plotly figures in plain JSON, each with a description and the same numbers as a table.

Figures carry no colours of paper, text or grid: the page sets them, so that light and dark both read well. Plotly reads
labels as markup, so every label that is data passes ``label``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deeprec.evaluation.behaviour import Behaviour
from deeprec.types import JsonDict

COLOURS = ("#3b82c4", "#d97706", "#0d9488", "#9461e0", "#d6437f", "#6b7f99")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
NAMES = {
    "popularity": "popularity",
    "trm": "TRM alone",
    "trm_everything": "TRM trained on everything",
    "one_list": "one list as long as all calls",
    "fusion": "fusion, first list × policy",
    "scripted": "scripted explorer",
    "start": "policy, start",
    "stage1": "policy, after stage 1",
    "stage2": "policy, after stage 2",
}
_PANEL_COLUMNS = 3
_LABEL_LENGTH = 48


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot. ``figure`` has ``data`` and ``layout``; ``rows`` say the same in text under ``columns``."""

    key: str
    title: str
    description: str
    figure: JsonDict
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height: int = field(default=340)


def label(text: str) -> str:
    """Text for a Plotly label: markup escaped, long text cut."""
    cut = text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
    return html.escape(cut)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table cell; an en dash where nothing was measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def metric_chart(intervals: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Chart:
    """NDCG@10 and Recall@10 of every recommender with their bootstrap intervals."""
    names = [name for name in NAMES if name in intervals]
    layout = _panels(("NDCG@10", "Recall@10"), 2)
    data: list[JsonDict] = []
    rows: list[tuple[str, ...]] = []
    for place, (metric, title) in enumerate((("ndcg@10", "NDCG@10"), ("recall@10", "Recall@10"))):
        found = [intervals[name][metric] for name in names]
        suffix = _suffix(place)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": title,
                "x": [value["mean"] for value in found],
                "y": [NAMES[name] for name in names],
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [value["high"] - value["mean"] for value in found],
                    "arrayminus": [value["mean"] - value["low"] for value in found],
                },
                "marker": _marker(place, 10),
            }
        )
        layout[f"xaxis{suffix}"] = {"rangemode": "tozero"}
        layout[f"yaxis{suffix}"] = {"autorange": "reversed", "automargin": True, "showticklabels": place == 0}
        rows += [
            (NAMES[name], title, number(value["mean"]), f"{number(value['low'])} to {number(value['high'])}")
            for name, value in zip(names, found, strict=True)
        ]
    return Chart(
        "metrics",
        "Accuracy on the test target",
        "Dots are means over users, bars their 95 % bootstrap intervals.",
        {"data": data, "layout": layout},
        ("recommender", "metric", "mean", "95 % interval"),
        tuple(rows),
    )


def curve_chart(key: str, title: str, description: str, curve: Sequence[Mapping[str, object]]) -> Chart | None:
    """Small panels, one per numeric series of ``curve`` (one mapping per step); None without any numbers.

    The horizontal axis is ``step`` or ``epoch`` where the rows have one, else their position. What is missing at a
    step leaves a gap.
    """
    flat = [_flatten(row) for row in curve]
    axis = next((name for name in ("step", "epoch") if flat and all(name in row for row in flat)), None)
    names = [name for name in dict.fromkeys(name for row in flat for name in row) if name != axis]
    if not names:
        return None
    steps = [row[axis] if axis else float(place) for place, row in enumerate(flat, 1)]
    columns = min(_PANEL_COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    layout = _panels(names, columns)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label(name),
            "x": steps,
            "y": [row.get(name) for row in flat],
            "xaxis": f"x{_suffix(place)}",
            "yaxis": f"y{_suffix(place)}",
            "line": {"color": COLOURS[place % len(COLOURS)]},
            "marker": _marker(place, 5),
        }
        for place, name in enumerate(names)
    ]
    table = tuple(
        (f"{step:g}", *(number(row.get(name)) for name in names)) for step, row in zip(steps, flat, strict=True)
    )
    return Chart(
        key, title, description, {"data": data, "layout": layout}, (axis or "row", *names), table, 70 + 190 * lines
    )


def calls_chart(behaviours: Mapping[str, Behaviour]) -> Chart:
    """Share of rollouts by their number of calls."""
    numbers = sorted({count for found in behaviours.values() for count in found.calls})
    shares = {
        name: [found.calls.get(count, 0) / max(found.users, 1) for count in numbers]
        for name, found in behaviours.items()
    }
    return _bars("calls", "Calls per rollout", "Share of rollouts by how often they called the TRM.", numbers, shares)


def valid_chart(behaviours: Mapping[str, Behaviour]) -> Chart:
    """Share of valid answers."""
    shares = {"valid answers": [found.valid_rate for found in behaviours.values()]}
    labels = [NAMES[name] for name in behaviours]
    return _bars(
        "valid", "Valid answers", "Share of rollouts whose answer keeps every format rule.", labels, shares, {}
    )


def ends_chart(behaviours: Mapping[str, Behaviour]) -> Chart:
    """Share of rollouts by why they ended."""
    ends = list(dict.fromkeys(end for found in behaviours.values() for end in found.ends))
    shares = {
        name: [found.ends.get(end, 0) / max(found.users, 1) for end in ends] for name, found in behaviours.items()
    }
    return _bars("ends", "Why rollouts ended", "Share of rollouts by end reason.", ends, shares)


def violations_chart(behaviours: Mapping[str, Behaviour]) -> Chart | None:
    """Share of rollouts that break each format rule; None when none is broken."""
    names = list(dict.fromkeys(name for found in behaviours.values() for name in found.violations))
    if not names:
        return None
    shares = {
        system: [found.violations.get(name, 0) / max(found.users, 1) for name in names]
        for system, found in behaviours.items()
    }
    return _bars(
        "violations",
        "Broken format rules",
        "Share of rollouts that break a rule; one can break several.",
        names,
        shares,
    )


def recall_chart(behaviours: Mapping[str, Behaviour]) -> Chart:
    """Candidate recall after each turn."""
    data, rows = [], []
    for name, found in behaviours.items():
        place = _place(name, 0)
        turns = list(range(1, len(found.recall_by_turn) + 1))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": NAMES[name],
                "x": turns,
                "y": list(found.recall_by_turn),
                "line": {"color": COLOURS[place % len(COLOURS)]},
                "marker": _marker(place, 8),
            }
        )
        rows += [(NAMES[name], str(turn), number(found.recall_by_turn[turn - 1])) for turn in turns]
    layout = {
        "xaxis": {"title": {"text": "calls so far"}, "dtick": 1},
        "yaxis": {"title": {"text": "share of users"}, "rangemode": "tozero"},
    }
    return Chart(
        "recall",
        "Candidate recall by turn",
        "Share of users whose target was among the items retrieved so far; rollouts that stopped earlier stay in.",
        {"data": data, "layout": layout},
        ("recommender", "calls", "share of users"),
        tuple(rows),
    )


def preferences_chart(found: Behaviour) -> Chart | None:
    """The most frequent preferences after the first call; None when there was no second call."""
    if not found.preferences:
        return None
    shares = [(text, count / max(found.users, 1)) for text, count in found.preferences]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [share for _, share in shares],
            "y": [f"{place}. {label(text)}" for place, (text, _) in enumerate(shares, 1)],
            "marker": {"color": COLOURS[0]},
        }
    ]
    layout = {
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "xaxis": {"tickformat": ".1%", "title": {"text": "share of users"}},
    }
    return Chart(
        "preferences",
        "Top preferences",
        "Most frequent preferences in calls after the first, after stage 2.",
        {"data": data, "layout": layout},
        ("preference", "share of users"),
        tuple((text, number(share)) for text, share in shares),
        120 + 24 * len(shares),
    )


def _bars(
    key: str,
    title: str,
    description: str,
    labels: Sequence[object],
    shares: Mapping[str, Sequence[float]],
    names: Mapping[str, str] = NAMES,
) -> Chart:
    data = [
        {
            "type": "bar",
            "name": names.get(name, name),
            "x": [label(str(text)) for text in labels],
            "y": list(values),
            "marker": {"color": COLOURS[_place(name, place) % len(COLOURS)]},
        }
        for place, (name, values) in enumerate(shares.items())
    ]
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero"},
    }
    rows = tuple(
        (str(text), *(number(values[place]) for values in shares.values())) for place, text in enumerate(labels)
    )
    columns = ("", *(names.get(name, name) for name in shares))
    return Chart(key, title, description, {"data": data, "layout": layout}, columns, rows)


def _panels(titles: Sequence[str], columns: int) -> JsonDict:
    """Layout of panels with their own axes, each under its title."""
    return {
        "grid": {
            "rows": math.ceil(len(titles) / columns),
            "columns": columns,
            "pattern": "independent",
            "ygap": 0.45,
            "xgap": 0.18 if columns > 2 else 0.06,
        },
        "showlegend": False,
        "margin": {"t": 40},
        "annotations": [
            {
                "text": label(title),
                "xref": f"x{_suffix(place)} domain",
                "yref": f"y{_suffix(place)} domain",
                "x": 0,
                "y": 1.0,
                "yanchor": "bottom",
                "xanchor": "left",
                "showarrow": False,
                "font": {"size": 13},
            }
            for place, title in enumerate(titles)
        ],
    }


def _suffix(place: int) -> str:
    """What Plotly writes behind ``x`` and ``y`` for the panel at ``place``."""
    return "" if place == 0 else str(place + 1)


def _place(name: str, otherwise: int) -> int:
    """A recommender's place among all, so that it keeps its colour from plot to plot."""
    return list(NAMES).index(name) if name in NAMES else otherwise


def _marker(place: int, size: int) -> JsonDict:
    return {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": size}


def _flatten(row: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Numeric entries of a nested mapping, keys joined by ``/``; what is not a finite number is left out."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat
