from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deeprec.errors import TrmError
from deeprec.store import read_artifact
from deeprec.trm.artifact import TrainedTrm, read_record, read_trm
from deeprec.trm.extend import extend, extend_trm
from deeprec.trm.retriever import TrmRetriever
from deeprec.trm.text import HashingEmbedder, item_text
from deeprec.types import Item, Query

NEW = (
    Item("new-1", "  A brand  new\tfilm ", {"genres": "Comedy|Noir", "maker": "Nobody", "year": 2031}),
    Item("new-2", "", {}, ("comedy",)),
)


@pytest.fixture(scope="module")
def embedder() -> HashingEmbedder:
    return HashingEmbedder(32)


@pytest.fixture(scope="module")
def old(toy_trm: Path) -> TrainedTrm:
    return read_trm(toy_trm)


@pytest.fixture(scope="module")
def new(old: TrainedTrm, embedder: HashingEmbedder) -> TrainedTrm:
    return extend(old, NEW, embedder)


def test_what_was_there_keeps_place_and_numbers(old: TrainedTrm, new: TrainedTrm) -> None:
    count, phrases = len(old.catalogue), len(old.vocabulary.phrases)
    assert new.catalogue.items[:count] == old.catalogue.items
    assert new.vocabulary.item_ids[:count] == old.vocabulary.item_ids
    assert new.vocabulary.phrases[:phrases] == old.vocabulary.phrases
    np.testing.assert_array_equal(new.vocabulary.item_text[:count], old.vocabulary.item_text)
    np.testing.assert_array_equal(new.vocabulary.phrase_text[:phrases], old.vocabulary.phrase_text)
    np.testing.assert_array_equal(new.vocabulary.popularity[:count], old.vocabulary.popularity)
    after = new.model.state_dict()
    for name, value in old.model.state_dict().items():
        assert torch.equal(after[name][: len(value)], value), name
    with torch.inference_mode():
        assert torch.equal(new.model.item_table()[:count], old.model.item_table())


def test_new_items_have_their_text_alone(old: TrainedTrm, new: TrainedTrm, embedder: HashingEmbedder) -> None:
    assert [item.title for item in new.catalogue.items[-2:]] == ["A brand new film", "Item new-2"]
    assert new.catalogue.items[-2].phrases == ("comedy", "noir", "nobody", "2030s")
    assert new.catalogue.items[-1].phrases == ("comedy",)
    assert new.vocabulary.phrases[len(old.vocabulary.phrases) :] == ("2030s", "nobody", "noir")
    assert not new.model.item_ids.weight[-2:].any()
    assert new.vocabulary.popularity[-2:].tolist() == [0, 0]
    texts = embedder.embed([item_text(item) for item in new.catalogue.items[-2:]])
    np.testing.assert_array_equal(new.vocabulary.item_text[-2:], texts)
    with torch.inference_mode():
        alone = new.model.item_adaptor(torch.from_numpy(texts))
        torch.testing.assert_close(new.model.item_table(torch.arange(len(old.catalogue), len(new.catalogue))), alone)


def test_new_items_are_retrieved_and_old_scores_keep_their_order(
    old: TrainedTrm, new: TrainedTrm, embedder: HashingEmbedder
) -> None:
    before = TrmRetriever(old, old.catalogue, embedder)
    after = TrmRetriever(new, new.catalogue, embedder)
    history = tuple(item.item_id for item in old.catalogue.items[:4])
    for query in (Query(history), Query((), ("noir", "comedy")), Query(history, ("2030s",))):
        ids = [item.item_id for item in after.retrieve([query], 1000)[0]]
        assert {"new-1", "new-2"} <= set(ids)
        kept = [item.item_id for item in before.retrieve([query], 1000)[0]]
        assert [item for item in ids if not item.startswith("new-")] == kept
    assert after.retrieve([Query(("new-1",))], 3)[0]


def test_the_state_of_random_numbers_and_of_the_old_network_is_kept(old: TrainedTrm, embedder: HashingEmbedder) -> None:
    before, weights = torch.random.get_rng_state(), old.model.item_ids.weight.clone()
    extend(old, NEW, embedder)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(weights, old.model.item_ids.weight)


def test_titles_are_told_apart(old: TrainedTrm, embedder: HashingEmbedder) -> None:
    title = old.catalogue.items[0].title
    found = extend(old, [Item("x", title), Item("y", title)], embedder).catalogue
    assert [item.title for item in found.items[-2:]] == [f"{title} (2)", f"{title} (3)"]


def test_no_items_change_nothing(old: TrainedTrm, embedder: HashingEmbedder) -> None:
    assert extend(old, [], embedder).catalogue == old.catalogue


def test_ids_that_exist_are_refused(old: TrainedTrm, embedder: HashingEmbedder) -> None:
    present = [Item(item.item_id, "again") for item in old.catalogue.items[:5]]
    with pytest.raises(TrmError, match=r"5 of 6 new items are already in the catalogue \('i\d+', .* and 2 more\)"):
        extend(old, [*present, Item("new", "New")], embedder)
    with pytest.raises(TrmError, match="1 ids are given to more than one new item \\('new'\\)"):
        extend(old, [Item("new", "One"), Item("new", "Two")], embedder)
    with pytest.raises(TrmError, match="1 of 1 new items have an empty item_id"):
        extend(old, [Item(" ", "One")], embedder)
    with pytest.raises(TrmError, match="hashing-32, but hashing-16 is given"):
        extend(old, NEW, HashingEmbedder(16))


def test_artifacts_are_extended_one_after_the_other(toy_trm: Path, tmp_path: Path) -> None:
    extend_trm(toy_trm, NEW[:1], tmp_path / "one")
    written = extend_trm(tmp_path / "one", NEW[1:], tmp_path / "two")
    found, record = read_trm(tmp_path / "two"), read_record(tmp_path / "two")
    assert found.catalogue == written.catalogue
    assert [item.item_id for item in found.catalogue.items[-2:]] == ["new-1", "new-2"]
    assert record.extends == (read_artifact(toy_trm).digest, read_artifact(tmp_path / "one").digest)
    assert record.metrics == read_record(toy_trm).metrics
    assert read_artifact(tmp_path / "two").parents == {"trm": read_artifact(tmp_path / "one").digest}


def test_new_items_score_less_as_configured(
    new: TrainedTrm, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = tuple(item.item_id for item in new.catalogue.items[:4])
    queries = [Query(history), Query(history, ("noir", "comedy")), Query((), ("2030s",))]
    tables, kept = [], []
    for factor in (1.0, 0.5):
        config = new.model.config.model_copy(update={"new_item_score": factor})
        monkeypatch.setattr(new.model, "config", config)
        retriever = TrmRetriever(new, new.catalogue, embedder)
        lengths = np.where(new.vocabulary.popularity == 0, factor, 1.0)
        np.testing.assert_allclose(np.linalg.norm(retriever.index.vectors, axis=1), lengths, atol=1e-5)
        tables.append((retriever.item_embedding_table(), retriever.item_vectors().collaborative))
        found = [[item.item_id for item in answer] for answer in retriever.retrieve(queries, 1000)]
        kept.append([[item for item in ids if new.vocabulary.popularity[new.catalogue.index[item]]] for ids in found])
    assert kept[0] == kept[1]
    for before, after in zip(*tables, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)
