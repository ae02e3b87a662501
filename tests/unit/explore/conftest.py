"""Fakes at the loop's two ports, and a small catalogue."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from deeprec.config import ExploreConfig
from deeprec.explore.protocol import MARKUP, TitleBook
from deeprec.types import Catalogue, Item, RetrievedItem, Segment

GENRES = ("comedy", "drama", "horror")


class CharacterPolicy:
    """One token per character and per markup string; writes what its script says, segment by segment and row by row."""

    def __init__(self, scripts):
        self._special = ("<eos>", *MARKUP)
        self._pattern = re.compile("|".join(re.escape(text) for text in self._special) + r"|[\s\S]")
        self._scripts = [list(script) for script in scripts]
        self.started = []
        self.log = []

    def encode(self, text):
        return [
            self._special.index(piece) if piece in self._special else ord(piece) + 100
            for piece in self._pattern.findall(text)
        ]

    def decode(self, token_ids):
        return "".join(self._special[token] if token < 100 else chr(token - 100) for token in token_ids)

    @property
    def eos_id(self):
        return 0

    def start(self, prompts, *, seed=None):
        self.started.append((len(prompts), seed))
        scripts, self._scripts = self._scripts[: len(prompts)], self._scripts[len(prompts) :]
        return CharacterGeneration(self, [list(prompt) for prompt in prompts], scripts)


class CharacterGeneration:
    def __init__(self, policy, tokens, scripts):
        self._policy = policy
        self.tokens = tokens
        self._left = [policy.encode("".join(script)) for script in scripts]

    def generate(self, rows, *, stop_ids, max_new_tokens, temperature, rules=()):
        self._policy.log.append(("generate", list(rows), max_new_tokens))
        ruled = dict(zip(rows, rules, strict=True)) if rules else {}
        segments = []
        for row in rows:
            written = []
            while len(written) < max_new_tokens:
                written.append(self._left[row].pop(0) if self._left[row] else ord("x") + 100)
                if row in ruled:
                    allowed = ruled[row].allowed
                    assert allowed is None or written[-1] in allowed, "the script writes what its rule bars"
                    ruled[row].take(written[-1])
                if written[-1] in stop_ids:
                    break
            self.tokens[row].extend(written)
            segments.append(Segment(tuple(written), (-0.5,) * len(written)))
        return segments

    def append(self, rows, token_ids):
        self._policy.log.append(("append", list(rows)))
        for row, tokens in zip(rows, token_ids, strict=True):
            self.tokens[row].extend(tokens)


class CatalogueRetriever:
    """Items that hold all phrases of the preference first, then the rest, in catalogue order, history excluded."""

    def __init__(self, catalogue):
        self._catalogue = catalogue
        self.batches = []

    def retrieve(self, queries, k):
        self.batches.append(list(queries))
        return [self._one(query, k) for query in queries]

    def _one(self, query, k):
        hidden = set(query.exclude) | (set() if query.allow_seen else set(query.history))
        matches = Counter(
            {
                item.item_id: sum(phrase in item.phrases for phrase in query.preference)
                for item in self._catalogue.items
                if item.item_id not in hidden
            }
        )
        best = [item_id for item_id, _ in matches.most_common(k)]
        return tuple(RetrievedItem(item_id, round(0.97 - 0.02 * rank, 2)) for rank, item_id in enumerate(best))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def catalogue():
    return Catalogue(
        tuple(
            Item(f"i{row}", f"Film {row}", phrases=(GENRES[row % 3], f"{1980 + 10 * (row % 4)}s")) for row in range(30)
        )
    )


@pytest.fixture
def titles(catalogue):
    return TitleBook(catalogue)


@pytest.fixture
def retriever(catalogue):
    return CatalogueRetriever(catalogue)


@pytest.fixture
def config():
    return ExploreConfig(
        items_per_call=4,
        answer_size=3,
        max_calls=3,
        max_new_tokens=400,
        max_context=4000,
        prompt="compact",
        prompt_history=5,
        batch_size=8,
    )


@pytest.fixture
def character_policy():
    return CharacterPolicy
