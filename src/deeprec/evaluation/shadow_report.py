"""The comparison of shadow mode in tables: the terminal's, and those of an HTML page that loads nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from deeprec.evaluation.charts import number
from deeprec.evaluation.later import Compared
from deeprec.evaluation.shadow import Latency, ShadowEvaluation
from deeprec.evaluation.templates import template
from deeprec.trm.report import bars_svg

NAMES = {"trm": "TRM", "policy": "policy"}
_METRICS = {"hit_rate": "hit rate", "ndcg": "NDCG"}


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table with a title, a line that explains it, and the chart below it (an SVG; empty: none)."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chart: str = ""


def sentences(found: ShadowEvaluation) -> list[str]:
    """What the comparison says, in plain sentences; the first says whether there is something to compare."""
    said = [
        f"The policy answered {found.answered:,} of {found.requests:,} requests ({found.answered_share:.1%}) validly "
        f"and within the deadline."
    ]
    if found.agreement is not None and found.agreement.identical == 1:
        said.append("Its lists were those of the TRM, item for item: it costs time and changes nothing.")
    elif found.later is not None:
        said += [found.later.verdict, found.later.caveat]
    if len(found.versions) > 1:
        said.append("Several bundles answered; name one with --bundle to compare its requests only.")
    return said


def tables(found: ShadowEvaluation) -> list[ReportTable]:
    """The comparison, in the order in which it is read."""
    made = [_requests(found)]
    if found.unanswered:
        made.append(_unanswered(found))
    if found.agreement is not None:
        made += [_agreement(found), _lists(found)]
    made.append(_latency(found))
    if found.later is not None:
        made.append(_later(found))
    return made


def render(found: ShadowEvaluation, place: str) -> str:
    """The comparison as an HTML page; ``place`` names the log."""
    return template("shadow.html").render(found=found, place=place, sentences=sentences(found), tables=tables(found))


def _requests(found: ShadowEvaluation) -> ReportTable:
    rows = [
        ("requests", f"{found.requests:,}"),
        ("users", f"{found.users:,}"),
        ("requests without a user", f"{found.anonymous:,}"),
        ("first", f"{found.first:%Y-%m-%d %H:%M:%S} UTC"),
        ("last", f"{found.last:%Y-%m-%d %H:%M:%S} UTC"),
        *((f"by bundle {version}", f"{count:,}") for version, count in found.versions.items()),
        ("answered by the policy, valid and in time", f"{found.answered:,} ({found.answered_share:.1%})"),
    ]
    return ReportTable("Requests in shadow mode", "", ("", "value"), tuple(rows))


def _unanswered(found: ShadowEvaluation) -> ReportTable:
    rows = [(reason, f"{count:,}", f"{count / found.requests:.1%}") for reason, count in found.unanswered.items()]
    return ReportTable(
        "Why the policy did not answer",
        "The TRM, or popularity, would have answered these in any case.",
        ("reason", "requests", "share"),
        tuple(rows),
    )


def _agreement(found: ShadowEvaluation) -> ReportTable:
    assert found.agreement is not None
    agreement, k = found.agreement, found.k
    rows = (
        (f"overlap@{k}", number(agreement.overlap, 3), "share of items that both lists hold"),
        (
            "rank correlation",
            number(agreement.rank_correlation, 3),
            f"Kendall's tau over shared items, {agreement.correlated:,} requests with at least two",
        ),
        ("same first item", f"{agreement.first_item:.1%}", "of requests"),
        ("same list", f"{agreement.identical:.1%}", "of requests, in the same order"),
    )
    numbers = range(min(agreement.shared), max(agreement.shared) + 1)
    shares = {"share of requests": [agreement.shared.get(both, 0) / agreement.requests for both in numbers]}
    chart = bars_svg("Items that both lists hold", "shared items", [str(both) for both in numbers], shares)
    note = f"{agreement.requests:,} requests; both lists cut to {k}, or to the shorter."
    return ReportTable("How alike the lists are", note, ("figure", "value", ""), rows, chart)


def _lists(found: ShadowEvaluation) -> ReportTable:
    rows = tuple(
        (
            NAMES[name],
            f"{figures.distinct:,}",
            "–" if figures.coverage is None else f"{figures.coverage:.1%}",
            number(figures.popularity, 1),
            number(figures.novelty, 2),
        )
        for name, figures in found.lists.items()
    )
    note = (
        "Popularity: mean training interactions of a listed item. Novelty: its mean self-information in bits; rarer "
        "items have more."
    )
    if all(figures.coverage is None for figures in found.lists.values()):
        note = "Coverage, popularity and novelty need the bundle; name it with --bundle."
    return ReportTable("What the lists hold", note, ("", "distinct items", "coverage", "popularity", "novelty"), rows)


def _latency(found: ShadowEvaluation) -> ReportTable:
    rows = [_latency_row("TRM's answer, whole request", found.answer_ms)]
    if found.policy_ms_all is not None:
        rows.append(_latency_row("policy, all turns", found.policy_ms_all))
    by_turns = found.policy_ms
    rows += [_latency_row(f"policy, {turns} turn{'s' * (turns != 1)}", row) for turns, row in by_turns.items()]
    series = {"median": [row.p50 for row in by_turns.values()], "95 %": [row.p95 for row in by_turns.values()]}
    chart = bars_svg("Milliseconds of the policy", "turns", [str(turns) for turns in by_turns], series)
    note = "Milliseconds; of the policy where it answered. Nobody waits for it in shadow mode."
    return ReportTable("Time", note, ("", "requests", "median", "95 %", "99 %"), tuple(rows), chart)


def _latency_row(name: str, row: Latency) -> tuple[str, ...]:
    return name, f"{row.requests:,}", f"{row.p50:,.1f}", f"{row.p95:,.1f}", f"{row.p99:,.1f}"


def _later(found: ShadowEvaluation) -> ReportTable:
    later = found.later
    assert later is not None
    rows = tuple(_later_row(name, metric) for name, metric in later.metrics.items())
    names = [_metric_name(name) for name in later.metrics]
    series = {
        "TRM": [metric.trm.mean for metric in later.metrics.values()],
        "policy": [metric.policy.mean for metric in later.metrics.values()],
    }
    note = (
        f"{later.taken:,} items taken within {later.window_hours:g} hours after {later.requests:,} requests of "
        f"{later.users:,} users; means over users, differences with 95 % bootstrap intervals."
    )
    columns = ("metric", "TRM", "policy", "policy minus TRM", "95 % interval")
    return ReportTable(
        "What users took afterwards", note, columns, rows, bars_svg("Later items in the list", "", names, series)
    )


def _later_row(name: str, metric: Compared) -> tuple[str, ...]:
    difference = metric.difference
    return (
        _metric_name(name),
        number(metric.trm.mean),
        number(metric.policy.mean),
        f"{difference.mean:+.4f}",
        f"{difference.low:+.4f} to {difference.high:+.4f}",
    )


def _metric_name(name: str) -> str:
    kind, _, k = name.partition("@")
    return f"{_METRICS[kind]}@{k}"
