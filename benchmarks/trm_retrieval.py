"""Top-20 retrieval beside FAISS's flat index, in one run: ``python -m benchmarks.trm_retrieval``.

Every size × batch × condition: our exact index and FAISS's ``IndexFlatIP`` take turns, and the table shows the medians
and their ratio (ours over FAISS; the aim is at most 1.10). In each turn both must return the same items.

- *exclusion*: 100 items per query, half of them among its best. FAISS fetches 20 + 100 and drops (Python sets, ready
  made); ours are barred inside the search.
- *filter 10 %, 50 %*: a random share of the items is allowed, one filter for the batch. FAISS has its
  ``IDSelectorBitmap`` ready made; ours its ``Subset``.
- At batch 64 FAISS multiplies matrices only if its threshold is lowered; without a filter it runs both ways, each in
  turns of two with ours so that neither finds its vectors in the cache, and the faster one counts.

Then the approximate index: recall@20 against exact, and time beside the exact search. Vectors are unit-length, in
clusters of clusters; queries lie near items. Both sides use the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec.types import FloatArray

WIDTH, TOP, EXCLUDED = 128, 20, 100
AIM = 1.10
CONDITIONS = (
    ("plain", None, False),
    ("exclusion", None, True),
    ("filter 10 %", 0.1, False),
    ("filter 50 %", 0.5, False),
    ("filter 10 % + exclusion", 0.1, True),
    ("filter 50 % + exclusion", 0.5, True),
)
Search = Callable[[], Any]


@dataclass(frozen=True)
class Sides:
    """One catalogue in both indexes."""

    ours: Any
    theirs: Any
    items: int


def main() -> None:
    """Measure, print the tables and write the figures."""
    arguments = _arguments()
    _limit_threads(arguments.threads)
    sizes = arguments.items or ([3_000, 20_000] if arguments.quick else [3_000, 100_000, 1_000_000])
    print(f"top {TOP} of {WIDTH} dimensions, {arguments.threads} thread(s) on both sides, medians of alternating turns")
    figures: dict[str, Any] = {"threads": arguments.threads, "top": TOP, "width": WIDTH, "exact": [], "approximate": []}
    approximate = [20_000] if arguments.quick else [100_000, 1_000_000]
    print(f"\n{'items':>9} {'batch':>5}  {'condition':24} {'ours ms':>9} {'FAISS ms':>9} {'ratio':>6}")
    indexes = {}
    for items in sizes:
        sides = build(items)
        for batch in (1, 64):
            for name, share, barred in CONDITIONS:
                figures["exact"].append(exact_row(sides, batch, name, share, barred, arguments.seconds))
                _print_exact(figures["exact"][-1])
        if items in approximate and not arguments.exact_only:
            indexes[items] = sides.ours
    worst = max(figures["exact"], key=lambda row: row["ratio"])
    print(f"worst ratio {worst['ratio']:.2f}: {worst['items']:,} items, batch {worst['batch']}, {worst['condition']}")
    for items, ours in indexes.items():
        figures["approximate"] += approximate_rows(ours, items, arguments.seconds)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def make_vectors(count: int, seed: int) -> FloatArray:
    """(count, width) unit vectors: 64 groups of clusters, one cluster per 500 vectors or so, in random order."""
    generator = np.random.default_rng(seed)
    clusters = max(count // 500, 64)
    groups = generator.standard_normal((64, WIDTH), dtype=np.float32)
    centres = groups[generator.integers(64, size=clusters)]
    centres += 0.8 * generator.standard_normal(centres.shape, dtype=np.float32)
    vectors = centres[generator.integers(clusters, size=count)]
    for start in range(0, count, 65_536):
        part = vectors[start : start + 65_536]
        part += 1.2 * generator.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def make_queries(vectors: FloatArray, count: int, seed: int) -> FloatArray:
    """(count, width) unit vectors, each between three items of which one weighs most, with as much noise again."""
    generator = np.random.default_rng(seed)
    near = vectors[generator.integers(len(vectors), size=(count, 3))]
    mixed = near[:, 0] + 0.5 * near[:, 1] + 0.5 * near[:, 2]
    mixed += 0.08 * generator.standard_normal(mixed.shape, dtype=np.float32)
    return np.ascontiguousarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))


def build(items: int) -> Sides:
    """Both indexes over the same vectors."""
    import faiss

    from deeprec.trm.search.exact import ExactIndex

    vectors = make_vectors(items, seed=items)
    theirs = faiss.IndexFlatIP(WIDTH)
    theirs.add(vectors)
    return Sides(ExactIndex(vectors), theirs, items)


def exact_row(sides: Sides, batch: int, name: str, share: float | None, barred: bool, seconds: float) -> dict[str, Any]:
    """Medians of both sides under one condition, after checking that they agree."""
    import faiss

    from deeprec.trm.search.contract import Subset

    generator = np.random.default_rng(sides.items + batch)
    queries = make_queries(sides.ours.vectors, batch, seed=batch)
    mask = None if share is None else generator.random(sides.items) < share
    subset = None if mask is None else Subset(mask)
    excluded = _excluded(sides, queries, generator) if barred else None
    selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    settings = None if selector is None else faiss.SearchParameters(sel=selector)
    allowed = None if subset is None else [subset] * batch
    sets = None if excluded is None else [set(rows.tolist()) for rows in excluded]

    def ours() -> NDArray[np.int64]:
        return np.asarray(sides.ours.search(queries, TOP, excluded, allowed).rows)

    def theirs() -> NDArray[np.int64]:
        if sets is None:
            return np.asarray(sides.theirs.search(queries, TOP, params=settings)[1])
        return _drop(sides.theirs.search(queries, TOP + EXCLUDED, params=settings)[1], sets)

    def multiplied() -> NDArray[np.int64]:
        usual = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            return theirs()
        finally:
            faiss.cvar.distance_compute_blas_threshold = usual

    _check(sides, queries, ours(), theirs(), f"{sides.items:,} items, batch {batch}, {name}")
    rivals: dict[str, Search] = {"usual": theirs}
    if batch > 1 and share is None:
        rivals["multiplied"] = multiplied
    duels = {name: alternate(ours, rival, seconds) for name, rival in rivals.items()}
    mine, other = min(duels.values(), key=lambda duel: duel[1])
    return {
        "items": sides.items,
        "batch": batch,
        "condition": name,
        "ours_ms": mine,
        "faiss_ms": other,
        "faiss_usual_ms": duels["usual"][1],
        "ratio": mine / other,
    }


def alternate(one: Search, other: Search, seconds: float) -> tuple[float, float]:
    """Milliseconds of both, medians of turns taken for about so many seconds (at least 3); who begins changes."""
    taken: dict[Search, list[float]] = {one: [], other: []}
    began, turn = time.perf_counter(), 0
    while turn < 3 or (time.perf_counter() - began < seconds and turn < 5000):
        for search in (one, other) if turn % 2 else (other, one):
            start = time.perf_counter()
            search()
            taken[search].append((time.perf_counter() - start) * 1000)
        turn += 1
    return median(taken[one]), median(taken[other])


def approximate_rows(exact: Any, items: int, seconds: float) -> list[dict[str, Any]]:
    """Recall and time of the approximate index beside the exact one."""
    from deeprec.trm.search.approximate import ApproximateIndex, recall
    from deeprec.trm.search.contract import Subset

    began = time.perf_counter()
    index = ApproximateIndex(exact, make_queries(exact.vectors, 256, seed=9), 0.95)
    print(f"\n{index}; built in {time.perf_counter() - began:.0f} s")
    print(f"{'items':>9} {'batch':>5}  {'condition':24} {'recall':>7} {'ms':>9} {'exact ms':>9}")
    generator = np.random.default_rng(items)
    rows = []
    for batch in (1, 64):
        queries = make_queries(exact.vectors, batch, seed=100 + batch)
        many = make_queries(exact.vectors, 256, seed=200)
        for name, share, barred in CONDITIONS:
            subset = None if share is None else Subset(generator.random(items) < share)
            allowed = None if subset is None else [subset] * 256
            bars = exact.search(many, EXCLUDED).rows[:, ::2] if barred else None
            found, truth = (one.search(many, TOP, bars, allowed).rows for one in (index, exact))
            given = (queries, TOP, None if bars is None else bars[:batch], None if allowed is None else allowed[:batch])
            searches = [partial(one.search, *given) for one in (index, exact)]
            ours, theirs = alternate(*searches, seconds)
            row = {"items": items, "batch": batch, "condition": name, "recall": recall(found, truth)}
            rows.append({**row, "ms": ours, "exact_ms": theirs})
            print(f"{items:9,} {batch:5}  {name:24} {row['recall']:7.3f} {ours:9.3f} {theirs:9.3f}", flush=True)
    return rows


def _limit_threads(threads: int) -> None:
    """Start again where the libraries, which read these when they are loaded, were told another number."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "benchmarks.trm_retrieval", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def _excluded(sides: Sides, queries: FloatArray, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """For each query half of its best 100 items and 50 others."""
    best = sides.ours.search(queries, EXCLUDED).rows
    lists = []
    for row in best:
        others = np.setdiff1d(generator.choice(sides.items, EXCLUDED, replace=False), row[::2])
        lists.append(np.concatenate([row[::2], others])[:EXCLUDED])
    return lists


def _drop(rows: NDArray[np.int64], sets: list[set[int]]) -> NDArray[np.int64]:
    """The first 20 of each row that are not in its set."""
    kept = np.full((len(rows), TOP), -1, dtype=np.int64)
    for place, (found, barred) in enumerate(zip(rows.tolist(), sets, strict=True)):
        good = []
        for row in found:
            if row >= 0 and row not in barred:
                good.append(row)
                if len(good) == TOP:
                    break
        kept[place, : len(good)] = good
    return kept


def _check(sides: Sides, queries: FloatArray, ours: NDArray[np.int64], theirs: NDArray[np.int64], where: str) -> None:
    """Same items in the same order, but for neighbours whose scores differ by rounding alone."""
    for query, row in zip(*np.nonzero(ours != theirs), strict=True):
        scores = sides.ours.vectors[[ours[query, row], theirs[query, row]]] @ queries[query]
        if min(ours[query, row], theirs[query, row]) < 0 or abs(scores[0] - scores[1]) > 1e-6:
            raise SystemExit(f"{where}: query {query} gives row {ours[query, row]} at rank {row}, FAISS another")


def _print_exact(row: dict[str, Any]) -> None:
    late = " above the aim" if row["ratio"] > AIM else ""
    print(
        f"{row['items']:9,} {row['batch']:5}  {row['condition']:24} {row['ours_ms']:9.3f} {row['faiss_ms']:9.3f} "
        f"{row['ratio']:6.2f}{late}",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.trm_retrieval --quick\n"
        "  python -m benchmarks.trm_retrieval --threads 2 --out retrieval.json\n"
        "  python -m benchmarks.trm_retrieval --items 100000 --exact-only",
    )
    parser.add_argument("--quick", action="store_true", help="3,000 and 20,000 items only")
    parser.add_argument("--items", nargs="+", type=int, help="other catalogue sizes for the exact part")
    parser.add_argument("--exact-only", action="store_true", help="leave the approximate index out")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides (default: 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per row (default: 2)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
