"""Shadow mode's question: what would users have been given had the policy answered, and at what price?

Reads the request log of a server in shadow mode (``serving.log``): the TRM answered, the policy ran beside. All
figures compare the two lists of one request, so they are paired. What users took afterwards is in ``evaluation.later``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeprec.errors import DataError
from deeprec.types import Catalogue, JsonDict

if TYPE_CHECKING:
    import polars as pl

    from deeprec.evaluation.later import Later

MODEL = "deeprec"
LISTS = ("trm", "policy")
QUANTILES = (0.5, 0.95, 0.99)
_MOST_REASONS = 10


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike the two lists of a request are; means over ``requests`` where the policy answered.

    Both lists are cut to k, and to the shorter of the two. ``overlap`` is the share of items that both hold;
    ``rank_correlation`` is Kendall's tau over the items that both hold, a mean over the ``correlated`` requests with at
    least two of them (None: there are none); ``first_item`` and ``identical`` are shares of requests.
    ``shared`` counts requests by the number of items that both lists hold.
    """

    requests: int
    overlap: float
    rank_correlation: float | None
    correlated: int
    first_item: float
    identical: float
    shared: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ListFigures:
    """What one recommender's lists hold, where the policy answered, cut as in ``Agreement``.

    ``distinct`` items over all lists, as a share of the catalogue in ``coverage``; ``popularity`` is the mean number of
    training interactions of a listed item, ``novelty`` its mean self-information in bits, -log2 of its share of all
    training interactions, one added to each item's (Vargas and Castells, 2011). None without a bundle.
    """

    distinct: int
    coverage: float | None = None
    popularity: float | None = None
    novelty: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles in milliseconds over ``requests``."""

    requests: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class ShadowEvaluation:
    """The comparison. ``requests`` are those answered in shadow mode; ``unanswered`` maps the reason to their number.

    ``policy_ms`` is the policy's time where it answered, by its turns; ``answer_ms`` what users waited for the TRM's
    answer. ``later`` is None without later events.
    """

    k: int
    requests: int
    users: int
    anonymous: int
    first: datetime
    last: datetime
    versions: Mapping[str, int]
    answered: int
    unanswered: Mapping[str, int]
    agreement: Agreement | None
    lists: Mapping[str, ListFigures]
    policy_ms: Mapping[int, Latency]
    policy_ms_all: Latency | None
    answer_ms: Latency
    later: Later | None = None

    @property
    def answered_share(self) -> float:
        """Share of requests that the policy answered validly and within the deadline."""
        return self.answered / self.requests

    def to_json(self) -> JsonDict:
        """Plain values."""
        return {
            **asdict(self),
            "answered_share": self.answered_share,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
        }


def shadow_rows(log: pl.DataFrame, version: str | None = None) -> pl.DataFrame:
    """The log's rows of shadow mode, of one bundle where ``version`` is given.

    Raises:
        DataError: there are none.
    """
    import polars as pl

    rows = log.filter(pl.col("shadow") & (pl.col("model") == MODEL))
    if rows.is_empty():
        raise DataError(
            f"none of the log's {len(log):,} rows was answered in shadow mode; serve with "
            f"deeprec serve recommender BUNDLE --shadow --log LOGDIR"
        )
    if version is None:
        return rows
    found = rows.filter(pl.col("version") == version)
    if found.is_empty():
        served = ", ".join(sorted(rows["version"].unique()))
        raise DataError(f"the bundle {version} answered none of the log's requests; these did: {served}")
    return found


def evaluate_shadow(
    rows: pl.DataFrame,
    *,
    k: int = 10,
    catalogue: Catalogue | None = None,
    counts: NDArray[np.int64] | None = None,
    later: Later | None = None,
) -> ShadowEvaluation:
    """Compare the lists of TRM and policy.

    Args:
        rows: at least one, from ``shadow_rows``.
        k: places of the lists that count.
        catalogue: the bundle's items; None leaves coverage, popularity and novelty out.
        counts: (items,) the bundle's training interactions, in the catalogue's order.
        later: what users took afterwards, passed through.

    Raises:
        DataError: a list holds an item that the catalogue has not.
    """
    import polars as pl

    answered = pl.col("policy_items").list.len() > 0
    lists = both_lists(rows).select("trm_items", "policy_items").iter_rows()
    pairs = [paired(trm, policy, k) for trm, policy in lists]
    spent = [(len(turns), sum(turns)) for turns in rows.filter(answered)["turns"].to_list() if turns]
    reasons = rows.filter(~answered)["reason"].str.replace_all(r"\d+", "…").fill_null("no reason given")
    return ShadowEvaluation(
        k=k,
        requests=len(rows),
        users=rows["user"].drop_nulls().n_unique(),
        anonymous=rows["user"].null_count(),
        first=rows["at"].min(),  # type: ignore[arg-type]
        last=rows["at"].max(),  # type: ignore[arg-type]
        versions=dict(Counter(rows["version"].to_list()).most_common()),
        answered=rows.select(answered.sum()).item(),
        unanswered=_most_common(reasons.to_list()),
        agreement=_agreement(pairs) if pairs else None,
        lists={
            name: _list_figures([pair[place] for pair in pairs], catalogue, counts) for place, name in enumerate(LISTS)
        },
        policy_ms={
            turns: _latency([total for number, total in spent if number == turns])
            for turns in sorted({number for number, _ in spent})
        },
        policy_ms_all=_latency([total for _, total in spent]) if spent else None,
        answer_ms=_latency(rows["milliseconds"].to_list()),
        later=later,
    )


def both_lists(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that hold a list of the TRM and one of the policy."""
    import polars as pl

    return rows.filter(*(pl.col(f"{name}_items").list.len() > 0 for name in LISTS))


def paired(trm: Sequence[str], policy: Sequence[str], k: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first k of both lists, or as many as the shorter has, so that neither gains by being longer."""
    size = min(k, len(trm), len(policy))
    return tuple(trm[:size]), tuple(policy[:size])


def kendall_tau(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Kendall's tau over the items that both lists hold, 1 for the same order; None for fewer than two."""
    place = {item: rank for rank, item in enumerate(other)}
    ranks = np.array([place[item] for item in one if item in place])
    if len(ranks) < 2:
        return None
    ahead = np.sign(ranks[None, :] - ranks[:, None])
    return float(ahead[np.triu_indices(len(ranks), 1)].mean())


def _agreement(pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> Agreement:
    shared = [len(set(trm) & set(policy)) for trm, policy in pairs]
    taus = [tau for trm, policy in pairs if (tau := kendall_tau(trm, policy)) is not None]
    return Agreement(
        requests=len(pairs),
        overlap=float(np.mean([both / len(trm) for both, (trm, _) in zip(shared, pairs, strict=True)])),
        rank_correlation=float(np.mean(taus)) if taus else None,
        correlated=len(taus),
        first_item=float(np.mean([trm[:1] == policy[:1] for trm, policy in pairs])),
        identical=float(np.mean([trm == policy for trm, policy in pairs])),
        shared=dict(sorted(Counter(shared).items())),
    )


def _list_figures(
    lists: Sequence[tuple[str, ...]], catalogue: Catalogue | None, counts: NDArray[np.int64] | None
) -> ListFigures:
    listed = Counter(chain.from_iterable(lists))
    if catalogue is None or counts is None or not listed:
        return ListFigures(len(listed))
    unknown = next((item for item in listed if item not in catalogue), None)
    if unknown is not None:
        raise DataError(
            f"the log lists the item {unknown!r}, which the bundle's catalogue has not; name its own bundle"
        )
    items = counts[[catalogue.index[item] for item in listed]].astype(np.float64)
    weights = np.array(list(listed.values()), dtype=np.float64)
    bits = -np.log2((items + 1.0) / float(counts.sum() + len(counts)))
    return ListFigures(
        distinct=len(listed),
        coverage=len(listed) / len(catalogue),
        popularity=float(np.average(items, weights=weights)),
        novelty=float(np.average(bits, weights=weights)),
    )


def _latency(milliseconds: Sequence[float]) -> Latency:
    return Latency(len(milliseconds), *(float(value) for value in np.quantile(milliseconds, QUANTILES)))


def _most_common(reasons: Sequence[str]) -> dict[str, int]:
    """The most frequent reasons; the others together."""
    counted = Counter(reasons).most_common()
    others = sum(number for _, number in counted[_MOST_REASONS:])
    return dict(counted[:_MOST_REASONS]) | ({"other reasons": others} if others else {})
