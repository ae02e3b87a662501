from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deeprec.config import IndexConfig
from deeprec.metrics import MISS
from deeprec.trm.search import contract as search_module
from deeprec.trm.search import device as device_module
from deeprec.trm.search import exact as index_module
from deeprec.trm.search.approximate import ApproximateIndex, recall
from deeprec.trm.search.contract import Index, Rows, Subset, parts
from deeprec.trm.search.device import DeviceIndex
from deeprec.trm.search.exact import ExactIndex, margin, open_index
from deeprec.types import FloatArray

Build = Callable[[FloatArray], Index]

BUILDS: dict[str, Build] = {
    "cpu": ExactIndex,
    "device": lambda vectors: DeviceIndex(torch.from_numpy(vectors)),
}
relaxed = settings(max_examples=80, deadline=None)


def unit(values: NDArray[np.float64]) -> FloatArray:
    return np.ascontiguousarray((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))


def brute_force(
    vectors: FloatArray, query: FloatArray, excluded: Rows | None, subset: Subset | None
) -> tuple[Rows, NDArray[np.float64]]:
    """All allowed rows, best first, ties in row order, by float64 scores."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    allowed = np.ones(len(vectors), dtype=bool) if subset is None else subset.mask.copy()
    if excluded is not None:
        allowed[excluded] = False
    rows = np.flatnonzero(allowed)
    order = np.lexsort((rows, -scores[rows]))
    return rows[order], scores[rows[order]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[FloatArray, FloatArray, int, list[Rows] | None, list[Subset | None] | None]:
    """A catalogue with well separated scores and duplicates, queries, k, exclusions and filters."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    items, width = draw(st.integers(1, 400)), draw(st.sampled_from([4, 16, 33]))
    queries = draw(st.integers(1, 9))
    vectors = unit(generator.standard_normal((items, width)))
    if draw(st.booleans()):
        vectors = vectors[generator.integers(0, max(1, items // 5), size=items)]
    shares = [0.0, 0.05, 0.5, 0.95]
    subsets = [Subset(generator.random(items) < share) for share in shares]
    pick = st.lists(st.sampled_from([*subsets, None]), min_size=queries, max_size=queries)
    allowed = draw(st.none() | pick)
    excluded = [generator.integers(0, items, size=int(generator.integers(0, 30))) for _ in range(queries)]
    return (
        np.ascontiguousarray(vectors),
        unit(generator.standard_normal((queries, width))),
        draw(st.sampled_from([1, 3, 20, 500])),
        draw(st.sampled_from([None, excluded])),
        allowed,
    )


def of(lists: Sequence | None, place: int):
    return None if lists is None else lists[place]


@pytest.fixture(params=["usual", "tiny blocks", "no heap"])
def sizes(request: pytest.FixtureRequest) -> str:
    """Names the sizes at which the index is to change its way."""
    return str(request.param)


def resize(monkeypatch: pytest.MonkeyPatch, sizes: str) -> None:
    if sizes != "usual":
        monkeypatch.setattr(index_module, "SMALL", 0)
        monkeypatch.setattr(index_module, "_SMALL_PARALLEL", 0)
    if sizes == "tiny blocks":
        monkeypatch.setattr(index_module, "SCORES", 256)
        monkeypatch.setattr(index_module, "GATHERED", 16)
        monkeypatch.setattr(search_module, "QUERIES", 4)
        monkeypatch.setattr(index_module, "FEW", 1)
        monkeypatch.setattr(index_module, "_PARALLEL", 50)
        monkeypatch.setattr(device_module, "SCORES", 256)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_search_equals_brute_force(build: Build, sizes: str) -> None:
    @relaxed
    @given(case=cases())
    def check(case: tuple) -> None:
        vectors, queries, k, excluded, allowed = case
        found = index_of(build, vectors).search(queries, k, excluded, allowed)
        assert found.rows.shape == found.scores.shape == (len(queries), k)
        for place, query in enumerate(queries):
            rows, scores = brute_force(vectors, query, of(excluded, place), of(allowed, place))
            count = min(k, len(rows))
            ours, shown = found.rows[place, :count], found.scores[place, :count]
            assert (found.rows[place, count:] == -1).all()
            assert np.isneginf(found.scores[place, count:]).all()
            assert len(set(ours.tolist())) == count
            assert set(ours.tolist()) <= set(rows.tolist())
            np.testing.assert_allclose(shown, scores[:count], atol=margin(vectors.shape[1]))
            for (row, score), (after, lower) in zip(
                zip(ours, shown, strict=True), list(zip(ours, shown, strict=True))[1:], strict=False
            ):
                assert score > lower or (score == lower and row < after)

    with pytest.MonkeyPatch.context() as monkeypatch:
        resize(monkeypatch, sizes)
        check()


def index_of(build: Build, vectors: FloatArray) -> Index:
    return build(np.array(vectors))


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_ranks_are_places_in_the_full_search(build: Build, sizes: str) -> None:
    @relaxed
    @given(case=cases(), seed=st.integers(0, 1000))
    def check(case: tuple, seed: int) -> None:
        vectors, queries, _, excluded, allowed = case
        index = index_of(build, vectors)
        targets = np.random.default_rng(seed).integers(0, len(vectors), size=len(queries))
        order = index.search(queries, len(vectors), excluded, allowed).rows
        expected = [
            int(np.flatnonzero(rows == target)[0]) if target in rows else MISS
            for rows, target in zip(order, targets, strict=True)
        ]
        assert index.ranks(queries, targets, excluded, allowed).tolist() == expected

    with pytest.MonkeyPatch.context() as monkeypatch:
        resize(monkeypatch, sizes)
        check()


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@relaxed
@given(case=cases())
def test_a_batch_has_the_bits_of_its_queries_one_by_one(build: Build, case: tuple) -> None:
    vectors, queries, k, excluded, allowed = case
    index = index_of(build, vectors)
    together = index.search(queries, k, excluded, allowed)
    for place in range(len(queries)):
        alone = index.search(
            queries[place : place + 1],
            k,
            None if excluded is None else [excluded[place]],
            None if allowed is None else [allowed[place]],
        )
        np.testing.assert_array_equal(alone.rows[0], together.rows[place])
        np.testing.assert_array_equal(alone.scores[0], together.scores[place])


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("queries", [1, 6])
def test_equal_scores_come_in_row_order_at_the_edge_of_the_list(build: Build, queries: int) -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (300, 1))
    vectors[:20] = np.eye(4, dtype=np.float32)[1]
    query = np.tile(np.array([[0.8, 0.6, 0, 0]], dtype=np.float32), (queries, 1))
    index = build(vectors)
    assert index.search(query, 7).rows.tolist() == [list(range(20, 27))] * queries
    barred = [np.array([21, 23])] * queries
    assert index.search(query, 4, barred).rows.tolist() == [[20, 22, 24, 25]] * queries
    assert index.ranks(query, np.array([25] * queries), barred).tolist() == [3] * queries


def test_no_more_scores_than_configured_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "SCORES", 2048)
    seen: list[int] = []
    original = ExactIndex._multiply

    def watched(self: ExactIndex, queries: FloatArray, pool: object, start: int, out: FloatArray) -> None:
        seen.append(out.size)
        original(self, queries, pool, start, out)  # type: ignore[arg-type]

    monkeypatch.setattr(ExactIndex, "_multiply", watched)
    generator = np.random.default_rng(0)
    index = ExactIndex(unit(generator.standard_normal((1000, 8))))
    index.search(unit(generator.standard_normal((64, 8))), 5)
    assert max(seen) <= 2048
    assert sum(seen) == 64 * 1000


def test_copies_of_filtered_matrices_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    index = ExactIndex(unit(generator.standard_normal((500, 8))))
    monkeypatch.setattr(index_module, "COMPACT_BYTES", 20_000)
    query = unit(generator.standard_normal((1, 8)))
    subsets = [Subset(generator.random(500) < 0.5) for _ in range(9)]
    first = [index.search(query, 5, None, [subset]).rows for subset in subsets]
    held = [pool.vectors.nbytes for pool in index._kept.values() if pool.vectors is not None]
    assert sum(held) == index._copied <= 20_000
    again = [index.search(query, 5, None, [subset]).rows for subset in subsets]
    np.testing.assert_array_equal(np.stack(first), np.stack(again))


def test_threads_do_not_disturb_one_another() -> None:
    generator = np.random.default_rng(0)
    index = ExactIndex(unit(generator.standard_normal((3000, 16))))
    queries = unit(generator.standard_normal((48, 16)))
    subsets = [Subset(generator.random(3000) < share) for share in (0.1, 0.6)]
    tasks = [(queries[start : start + 1 + start % 9], subsets[start % 2]) for start in range(40)]

    def search(task: tuple[FloatArray, Subset]) -> list[list[int]]:
        return index.search(task[0], 20, None, [task[1]] * len(task[0])).rows.tolist()

    expected = [search(task) for task in tasks]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(search, tasks * 5)) == expected * 5


def test_the_heap_of_this_faiss_scores_as_pairs_do() -> None:
    """What lets one query over a small catalogue skip a second scoring; other builds take the longer way."""
    assert ExactIndex(unit(np.random.default_rng(0).standard_normal((300, 128))))._small > 0


def test_a_catalogue_without_room_for_k(sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resize(monkeypatch, sizes)
    vectors = unit(np.random.default_rng(0).standard_normal((3, 4)))
    found = ExactIndex(vectors).search(vectors[:1], 5, [np.array([0, 1, 2])])
    assert found.rows.tolist() == [[-1] * 5]
    assert ExactIndex(vectors).search(vectors[:0], 5).rows.shape == (0, 5)


def test_queries_are_grouped_by_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Subset(np.ones(3, dtype=bool)), Subset(np.zeros(3, dtype=bool))
    groups = parts(5, [one, two, one, None, two])
    assert [(part.subset, part.places.tolist()) for part in groups] == [(one, [0, 2]), (two, [1, 4]), (None, [3])]
    monkeypatch.setattr(search_module, "QUERIES", 2)
    assert [part.places.tolist() for part in parts(5, None)] == [[0, 1], [2, 3], [4]]


# --------------------------------------------------------------------------------------------------------- approximate


@pytest.fixture(scope="module")
def clustered() -> FloatArray:
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((60, 24))
    return unit(centres[generator.integers(60, size=6000)] + 0.5 * generator.standard_normal((6000, 24)))


@pytest.fixture(scope="module")
def approximate(clustered: FloatArray) -> ApproximateIndex:
    return ApproximateIndex(ExactIndex(clustered), sample(clustered), 0.95)


def sample(vectors: FloatArray) -> FloatArray:
    generator = np.random.default_rng(4)
    near = vectors[generator.integers(len(vectors), size=64)]
    return unit(near + 0.02 * generator.standard_normal(near.shape))


def test_recall_reaches_the_target_and_is_what_is_stated(clustered: FloatArray, approximate: ApproximateIndex) -> None:
    queries = sample(clustered)
    truth = ExactIndex(clustered).search(queries, 20).rows
    found = approximate.search(queries, 20).rows
    assert approximate.recall >= 0.95
    assert approximate.recall == pytest.approx(recall(found, truth))
    assert approximate.probes < approximate.cells
    assert f"{approximate.probes} of {approximate.cells} cells" in str(approximate)


def test_a_higher_target_is_reached_by_more_effort(clustered: FloatArray) -> None:
    assert ApproximateIndex(ExactIndex(clustered), sample(clustered), 1.0).recall == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([None, 0.0, 0.002, 0.3, 0.9]), k=st.sampled_from([1, 20, 90]))
def test_approximate_results_are_allowed_exactly_scored_and_complete(
    clustered: FloatArray, approximate: ApproximateIndex, seed: int, share: float | None, k: int
) -> None:
    generator = np.random.default_rng(seed)
    queries = sample(clustered)[generator.integers(64, size=5)]
    subset = None if share is None else Subset(generator.random(len(clustered)) < share)
    exact = ExactIndex(clustered)
    excluded = list(exact.search(queries, 40).rows)
    found = approximate.search(queries, k, excluded, None if subset is None else [subset] * 5)
    for place in range(5):
        allowed = np.ones(len(clustered), dtype=bool) if subset is None else subset.mask.copy()
        allowed[excluded[place]] = False
        rows, scores = found.rows[place], found.scores[place]
        rows, scores = rows[rows >= 0], scores[rows >= 0]
        assert len(rows) == min(k, int(allowed.sum()))
        assert allowed[rows].all()
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_array_equal(scores, exact.score(queries[place : place + 1], np.zeros_like(rows), rows))
        assert (np.diff(scores) <= 0).all()


def test_approximate_ranks_are_exact(clustered: FloatArray, approximate: ApproximateIndex) -> None:
    queries, targets = sample(clustered)[:4], np.arange(4)
    exact = ExactIndex(clustered).ranks(queries, targets)
    assert approximate.ranks(queries, targets).tolist() == exact.tolist()


def test_the_configured_size_decides(clustered: FloatArray) -> None:
    def asked() -> FloatArray:
        return sample(clustered)

    vectors = torch.from_numpy(clustered)
    assert isinstance(open_index(vectors, IndexConfig(approximate_above=6000), asked), ExactIndex)
    assert isinstance(open_index(vectors, IndexConfig(approximate_above=0), asked), ExactIndex)
    above = open_index(vectors, IndexConfig(approximate_above=5999, recall=0.9), asked)
    assert isinstance(above, ApproximateIndex)
    assert above.recall >= 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_vectors_on_a_gpu_are_searched_there(clustered: FloatArray) -> None:
    queries = sample(clustered)
    index = open_index(torch.from_numpy(clustered).cuda(), IndexConfig(), lambda: queries)
    assert isinstance(index, DeviceIndex)
    exact = ExactIndex(clustered).search(queries, 20)
    assert recall(index.search(queries, 20).rows, exact.rows) > 0.999
