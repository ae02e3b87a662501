from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deeprec.config import IndexConfig, TextConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import TrmError
from deeprec.metrics import MISS
from deeprec.trm.artifact import TrainedTrm, write_trm
from deeprec.trm.encoding import Encoded
from deeprec.trm.filters import filter_mask
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.search import contract as search_module
from deeprec.trm.search import exact as index_module
from deeprec.trm.search.approximate import ApproximateIndex
from deeprec.trm.text import HashingEmbedder, load_embedder
from deeprec.types import Catalogue, Filter, FloatArray, Query

ids = st.lists(st.integers(0, 44).map(lambda row: f"m{row}"), max_size=30)
conditions = st.lists(
    st.sampled_from(
        [
            Filter("genres", "=", "Comedy"),
            Filter("year", ">=", 1990),
            Filter("maker", "!=", "Acme"),
            Filter("year", "<=", 0),
        ]
    ),
    max_size=2,
)
queries = st.builds(
    Query,
    history=ids.map(tuple),
    preference=st.sampled_from([(), ("comedy",), ("horror", "1990s"), ("something else",)]),
    exclude=ids.map(frozenset),
    filters=conditions.map(tuple),
    allow_seen=st.booleans(),
)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(query=queries, k=st.integers(1, 50))
def test_exactly_the_allowed_items_come_back(retriever: TrmRetriever, world: Dataset, query: Query, k: int) -> None:
    found = retriever.retrieve([query], k)[0]
    allowed = {item.item_id for item in world.catalogue.items} - query.exclude
    if not query.allow_seen:
        allowed -= set(query.history)
    for condition in query.filters:
        mask = filter_mask(world.catalogue, condition)
        allowed &= {item.item_id for item, holds in zip(world.catalogue.items, mask, strict=True) if holds}
    names = [item.item_id for item in found]
    assert len(names) == len(set(names)) == min(k, len(allowed))
    assert set(names) <= allowed
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


@relaxed
@given(batch=st.lists(queries, max_size=9))
def test_a_batch_equals_its_queries_one_by_one(
    trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder, batch: list[Query]
) -> None:
    together = TrmRetriever(trained, world.catalogue, embedder).retrieve(batch, 7)
    alone = TrmRetriever(trained, world.catalogue, embedder)
    for query, found in zip(batch, together, strict=True):
        single = alone.retrieve([query], 7)[0]
        assert [item.item_id for item in found] == [item.item_id for item in single]
        np.testing.assert_allclose([item.score for item in found], [item.score for item in single], atol=1e-6)


def test_blocks_do_not_change_results(retriever: TrmRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [Query((f"m{row}",)) for row in range(10)]
    targets = [f"m{row + 1}" for row in range(10)]
    whole, ranks = retriever.retrieve(batch, 5), retriever.rank_targets(batch, targets)
    monkeypatch.setattr(index_module, "SCORES", 30)
    monkeypatch.setattr(search_module, "QUERIES", 6)
    assert retriever.retrieve(batch, 5) == whole
    assert retriever.rank_targets(batch, targets).tolist() == ranks.tolist()


def test_ranks_agree_with_retrieval(retriever: TrmRetriever) -> None:
    query = Query(("m1", "m4"), ("western",), exclude=frozenset({"m9"}))
    order = [item.item_id for item in retriever.retrieve([query], 100)[0]]
    ranks = retriever.rank_targets([query] * len(order), order)
    assert ranks.tolist() == list(range(37))
    assert retriever.rank_targets([query] * 3, ["m1", "m9", "nowhere"]).tolist() == [MISS] * 3


def test_a_preference_moves_matching_items_up(retriever: TrmRetriever, world: Dataset) -> None:
    histories = [("m0", "m3", "m6"), ("m10", "m13"), ("m20",)]
    for phrase in ("comedy", "horror", "1990s"):
        told = retriever.retrieve([Query(history, (phrase,)) for history in histories], 10)
        plain = retriever.retrieve([Query(history) for history in histories], 10)

        def matching(lists: list, phrase: str = phrase) -> int:
            return sum(phrase in world.catalogue[item.item_id].phrases for found in lists for item in found)

        assert matching(told) > matching(plain)
        assert matching(told) >= 20


def test_case_space_and_repetition_of_phrases_do_not_count(retriever: TrmRetriever) -> None:
    written = Query(("m1",), (" Comedy", "comedy", "  "))
    assert retriever.retrieve([written], 5) == retriever.retrieve([Query(("m1",), ("comedy",))], 5)
    assert retriever.retrieve([Query(("m1",), (" ",))], 5) == retriever.retrieve([Query(("m1",))], 5)


def test_nothing_known_gives_popularity(retriever: TrmRetriever) -> None:
    order = np.argsort(-retriever.popularity, kind="stable")
    for query in (Query(()), Query(("unheard", "of"))):
        found = retriever.retrieve([query], 5)[0]
        assert [item.item_id for item in found] == [f"m{row}" for row in order[:5]]
        assert found[0].score == pytest.approx(1)


def test_preference_alone_finds_matching_items(retriever: TrmRetriever, world: Dataset) -> None:
    found = retriever.retrieve([Query((), ("horror",))], 10)[0]
    assert sum("horror" in world.catalogue[item.item_id].phrases for item in found) >= 8


def test_unknown_items_in_a_history_are_ignored(retriever: TrmRetriever) -> None:
    assert retriever.retrieve([Query(("m1", "ghost", "m4"))], 5) == retriever.retrieve([Query(("m1", "m4"))], 5)


def test_only_the_newest_items_are_read_but_all_are_excluded(retriever: TrmRetriever) -> None:
    long = tuple(f"m{row}" for row in range(30))
    newest = Query(long[-retriever.max_length :], exclude=frozenset(long))
    assert retriever.retrieve([Query(long)], 40) == retriever.retrieve([newest], 40)


def test_scores_of_calls_for_one_history_compare(retriever: TrmRetriever) -> None:
    plain, told = retriever.retrieve([Query(("m1", "m4")), Query(("m1", "m4"), ("comedy",))], 37)
    assert len({round(item.score, 2) for item in plain}) > 10
    assert plain[0].score - plain[-1].score > 0.2
    order = {item.item_id: item.score for item in plain}
    assert told[0].score > order[told[0].item_id]


@relaxed
@given(query=queries, seed=st.integers(0, 50))
def test_ranks_are_places_in_the_full_list(retriever: TrmRetriever, query: Query, seed: int) -> None:
    order = [item.item_id for item in retriever.retrieve([query], 100)[0]]
    targets = [f"m{seed % 45}", f"m{(seed + 7) % 45}"]
    expected = [order.index(target) if target in order else MISS for target in targets]
    assert retriever.rank_targets([query, query], targets).tolist() == expected


def test_what_is_asked_twice_is_searched_once(retriever: TrmRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    search = retriever.index.search

    def watched(users: FloatArray, *rest: Any) -> Any:
        sizes.append(len(users))
        return search(users, *rest)

    monkeypatch.setattr(retriever.index, "search", watched)
    history = ("m1", "m4")
    batch = [
        Query(history),
        Query(history, (" ",)),
        Query(history, ("comedy",)),
        Query(history, ("Comedy ",), set()),
        Query(history, exclude={"m3"}),
    ]
    found = retriever.retrieve(batch, 4)
    assert sizes == [3]
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert "m3" not in {item.item_id for item in found[4]}


def test_a_rollout_encodes_each_history_once(trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder) -> None:
    """512 prompts, 64 of them distinct, over four turns with other preferences and exclusions each time."""
    retriever = TrmRetriever(trained, world.catalogue, embedder)
    encoded: list[int] = []
    original = retriever._encoder._encode_batch

    def watched(batch: Sequence[NDArray[np.int64]]) -> list[Encoded]:
        encoded.append(len(batch))
        return original(batch)

    retriever._encoder._encode_batch = watched  # type: ignore[method-assign]
    histories = [tuple(f"m{(start + 3 * step) % 40}" for step in range(1 + start % 15)) for start in range(64)]
    distinct = len({history[-retriever.max_length :] for history in histories})
    for turn in range(4):
        told = [(), ("comedy",), ("horror", "1990s"), ("western",)][turn]
        batch = [Query(histories[row % 64], told if row % 3 else (), frozenset({f"m{turn}"})) for row in range(512)]
        assert len(retriever.retrieve(batch, 20)) == 512
        retriever.rank_targets(batch, ["m39"] * 512)
    assert sum(encoded) == distinct


def test_vectors(retriever: TrmRetriever, world: Dataset) -> None:
    vectors = retriever.item_vectors()
    assert vectors.text.shape == (40, 48)
    assert vectors.collaborative.shape == (40, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors.collaborative, axis=1), 1, atol=1e-5)
    table = retriever.item_embedding_table()
    assert table.dtype == np.float32
    np.testing.assert_allclose(table / np.linalg.norm(table, axis=1, keepdims=True), vectors.collaborative, atol=1e-5)
    encoded = retriever.encode_histories([("m1",), ("ghost",), ("m1",)])
    assert encoded.shape == (3, 16)
    assert not encoded[1].any()
    np.testing.assert_array_equal(encoded[0], encoded[2])
    assert retriever.encode_histories([]).shape == (0, 16)


def test_similar_items(retriever: TrmRetriever) -> None:
    vectors = retriever.item_vectors().collaborative
    found = retriever.similar(["m3", "m17"], 6)
    for row, items in zip((3, 17), found, strict=True):
        cosines = vectors @ vectors[row]
        cosines[row] = -np.inf
        assert [item.item_id for item in items] == [f"m{best}" for best in np.argsort(-cosines)[:6]]
        expected = np.clip(np.sort(cosines)[::-1][:6], 0, 1)
        np.testing.assert_allclose([item.score for item in items], expected, atol=1e-6)
    assert len(retriever.similar(["m3"], 100)[0]) == 39
    assert retriever.similar([], 5) == []
    with pytest.raises(TrmError, match="no item 'ghost'"):
        retriever.similar(["m1", "ghost"], 5)
    with pytest.raises(TrmError, match="k is 0"):
        retriever.similar(["m1"], 0)


def test_an_artifact_answers_by_itself(
    trained: TrainedTrm, retriever: TrmRetriever, text_config: TextConfig, tmp_path: Path
) -> None:
    write_trm(tmp_path / "trm", trained, text_config, {}, [])
    query = Query(("m1", "m4"), ("comedy",))
    [found], [expected] = (one.retrieve([query], 9) for one in (TrmRetriever.load(tmp_path / "trm"), retriever))
    assert [item.item_id for item in found] == [item.item_id for item in expected]
    # Sums of float32 may differ in their last bits with where in memory the same numbers lie.
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-6)


def test_a_large_catalogue_is_searched_approximately(
    trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained.model.config.model_copy(update={"index": IndexConfig(approximate_above=39)})
    monkeypatch.setattr(trained.model, "config", config)
    approximate = TrmRetriever(trained, world.catalogue, embedder)
    assert isinstance(approximate.index, ApproximateIndex)
    assert approximate.index.recall >= 0.95
    query = Query(("m1", "m4"), ("comedy",), frozenset({"m7"}), (Filter("year", ">=", 1990),))
    names = {item.item_id for item in approximate.retrieve([query], 40)[0]}
    assert len(names) == 20 - len(
        {item for item in ("m1", "m4", "m7") if world.catalogue[item].attributes["year"] >= 1990}
    )


def test_other_catalogue_or_encoder_is_refused(trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder) -> None:
    items = world.catalogue.items
    with pytest.raises(TrmError, match="39 items against 40"):
        TrmRetriever(trained, Catalogue(items[:-1]), embedder)
    with pytest.raises(TrmError, match="row 0 is 'm1' against 'm0'"):
        TrmRetriever(trained, Catalogue((items[1], items[0], *items[2:])), embedder)
    with pytest.raises(TrmError, match="trained with the text encoder hashing-48, but hashing-32 is configured"):
        TrmRetriever(trained, world.catalogue, load_embedder(TextConfig(provider="hashing", width=32)))


def test_k_below_one_is_refused(retriever: TrmRetriever) -> None:
    with pytest.raises(TrmError, match="k is 0"):
        retriever.retrieve([Query(())], 0)


def test_no_queries_give_no_results(retriever: TrmRetriever) -> None:
    assert retriever.retrieve([], 5) == []
    assert len(retriever.rank_targets([], [])) == 0
