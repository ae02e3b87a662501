"""A valid rollout to break, a small catalogue with hand-made vectors, and an embedder of known vectors."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.config import ExploreConfig
from deeprec.types import Call, Catalogue, EndReason, Item, ItemVectors, RetrievedItem, Trajectory

TITLES = {"a": "Alien", "b": "Aliens", "c": "Brazil", "d": "Clue"}
PHRASES = {"anything": (1.0, 0.0), "comedy": (0.0, 1.0), "drama": (1.0, 0.0), "dark comedy": (0.6, 0.8)}


class TableEmbedder:
    """Vectors from ``PHRASES``; remembers every request."""

    identity = "table"
    width = 2

    def __init__(self):
        self.requests = []

    def embed(self, texts):
        self.requests.append(tuple(texts))
        return np.array([PHRASES[text] for text in texts], dtype=np.float32)


def make_list(ids):
    lines = "".join(f"{number}. {TITLES[item_id]} | 90\n" for number, item_id in enumerate(ids, start=1))
    return f"\n<|begin_of_item_list|>\n{lines}<|end_of_item_list|>\n"


def make_trajectory(answer=("a", "c"), calls=(((), "ab"), (("comedy",), "cd")), key="u@3", **changes):
    """A valid rollout with k = 2 unless changed; ``calls`` are (phrases, item ids)."""
    made = tuple(
        Call("; ".join(phrases) or "anything", tuple(phrases), tuple(RetrievedItem(one, 0.9) for one in ids))
        for phrases, ids in calls
    )
    explored = "".join(
        f"\nLook.\n<|begin_of_preference|>{call.preference}<|end_of_preference|>{make_list(ids)}"
        for call, (_, ids) in zip(made, calls, strict=True)
    )
    lines = "".join(f"{number}. {TITLES[one]}\n" for number, one in enumerate(answer, start=1))
    text = f"{explored}Rank.\n</think>\n<recommendation_list>\n{lines}</recommendation_list>"
    fields = {"text": text, "calls": made, "answer": tuple(answer), "end": EndReason.ANSWERED, **changes}
    return Trajectory(key, "u", (1,), (2,), (1,), (-0.1,), **fields)


@pytest.fixture
def make():
    return make_trajectory


@pytest.fixture
def explore():
    return ExploreConfig(items_per_call=2, answer_size=2, prompt="compact")


@pytest.fixture
def embedder():
    return TableEmbedder()


@pytest.fixture
def catalogue():
    return Catalogue(tuple(Item(item_id, title) for item_id, title in TITLES.items()))


@pytest.fixture
def vectors():
    text = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    collaborative = np.array([[1, 0], [0, 1], [0.8, 0.6], [0, -1]], dtype=np.float32)
    return ItemVectors(text, collaborative)
