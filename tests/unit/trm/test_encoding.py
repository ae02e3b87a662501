from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprec.trm.artifact import TrainedTrm
from deeprec.trm.encoding import Encoded, Encoder, clean
from deeprec.trm.text import HashingEmbedder

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def encoder(trained: TrainedTrm, embedder: HashingEmbedder) -> Encoder:
    return Encoder(trained, embedder)


@relaxed
@given(seed=st.integers(0, 2**32), lengths=lengths)
def test_padding_never_changes_an_encoding(
    trained: TrainedTrm, embedder: HashingEmbedder, seed: int, lengths: list[int]
) -> None:
    generator = np.random.default_rng(seed)
    histories = [generator.integers(0, 40, size=length) for length in lengths]
    together = Encoder(trained, embedder).encode(histories)
    alone = Encoder(trained, embedder)
    for rows, one in zip(histories, together, strict=True):
        single = alone.encode([rows])[0]
        assert one is not None
        assert single is not None
        np.testing.assert_allclose(one.vector, single.vector, atol=2e-6)
        np.testing.assert_allclose(one.reference, single.reference, rtol=1e-5, atol=1e-5)
        users = [alone.users([part], [None])[0] for part in (one, single)]
        np.testing.assert_allclose(alone.vectors.numpy() @ users[0], alone.vectors.numpy() @ users[1], atol=1e-6)


def test_it_reads_the_last_items_as_the_network_does(trained: TrainedTrm, encoder: Encoder) -> None:
    rows = np.arange(20)
    with torch.inference_mode():
        newest = torch.from_numpy(rows[-encoder.max_length :])[None]
        states = trained.model.encode(newest, trained.model.item_table())
    [one] = encoder.encode([rows])
    assert one is not None
    np.testing.assert_allclose(one.vector, states[0, -1].numpy(), atol=1e-5)
    assert encoder.encode([rows[:0]]) == [None]


def test_the_reference_is_mean_and_deviation_of_all_scores(trained: TrainedTrm, encoder: Encoder) -> None:
    generator = np.random.default_rng(1)
    encoded = encoder.encode([generator.integers(0, 40, size=length) for length in (1, 2, 5, 11)])
    users = encoder.users(encoded, [None] * 4)
    raw = users.astype(np.float64) @ encoder.vectors.numpy().T.astype(np.float64) / trained.model.config.temperature
    for one, scores in zip(encoded, raw, strict=True):
        assert one is not None
        assert one.reference == pytest.approx((scores.mean(), scores.std()), rel=1e-5, abs=1e-5)


def test_the_reference_of_phrases_is_the_mean_of_theirs(trained: TrainedTrm, encoder: Encoder) -> None:
    told = encoder.preferences([(phrase,) for phrase in trained.vocabulary.phrases])
    users = encoder.users([None] * len(told), told)
    raw = users.astype(np.float64) @ encoder.vectors.numpy().T.astype(np.float64) / trained.model.config.temperature
    assert encoder.phrase_reference == pytest.approx((raw.mean(), raw.std(axis=1).mean()), rel=1e-5, abs=1e-5)


def test_a_preference_is_the_mean_of_its_phrases(encoder: Encoder) -> None:
    comedy, horror, both, nothing = encoder.preferences([("comedy",), ("horror",), ("comedy", "horror"), ()])
    assert comedy is not None
    assert horror is not None
    np.testing.assert_allclose(both, (comedy + horror) / 2, atol=1e-6)
    assert nothing is None
    assert clean((" Comedy", "comedy", "  ", "1990s")) == ("comedy", "1990s")


def test_users_are_unit_vectors_of_the_sum(trained: TrainedTrm, encoder: Encoder) -> None:
    [history], [told] = encoder.encode([np.array([1, 4])]), encoder.preferences([("comedy",)])
    assert isinstance(history, Encoded)
    assert told is not None
    users = encoder.users([history, history, None], [told, None, None])
    with torch.inference_mode():
        expected = trained.model.user(torch.from_numpy(np.stack([history.vector + told, history.vector])))
    np.testing.assert_allclose(users[:2], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(users[:2], axis=1), 1, atol=1e-5)


def test_item_vectors_and_their_lengths_give_the_table_back(trained: TrainedTrm, encoder: Encoder) -> None:
    with torch.inference_mode():
        table = trained.model.item_table()
    torch.testing.assert_close(encoder.vectors * encoder.lengths, table, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoder.vectors.norm(dim=1), torch.ones(40), atol=1e-6, rtol=0)
