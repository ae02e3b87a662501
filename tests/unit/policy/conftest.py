"""A small catalogue, its tokenizer and model, and hand-made trajectories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import ExploreConfig, TinyConfig
from deeprec.explore.protocol import MARKUP, TitleBook
from deeprec.policy.tiny import build_model, build_tokenizer
from deeprec.types import Catalogue, EndReason, Item, RewardPart, Trajectory
from tests.unit.policy.world import World

TINY = TinyConfig(width=32, layers=2, heads=2, inner=64)


@pytest.fixture(scope="session")
def books() -> Catalogue:
    names = ("Alpha, The", "Beta: 2; part", "Gamma <2>", "Delta | 97", "7. Epsilon", "Zeta", "Eta (1999)", "Theta")
    phrases = (("comedy", "1990s"), ("drama",), ("comedy",), ("1990s",))
    return Catalogue(
        tuple(Item(f"i{row}", name, phrases=phrases[row % len(phrases)]) for row, name in enumerate(names))
    )


@pytest.fixture(scope="session")
def explore() -> ExploreConfig:
    return ExploreConfig(
        prompt="compact", items_per_call=4, answer_size=3, prompt_history=5, max_calls=3, max_new_tokens=64,
        max_context=512,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(books: Catalogue, explore: ExploreConfig) -> Any:
    titles = TitleBook(books)
    return build_tokenizer(titles.titles, books.phrases, [], MARKUP, ["History:\n", "A thought.\n"], explore)


@pytest.fixture(scope="session")
def world(sample_dataset: Path, toy_trm: Path, built_once: Callable[[str, Callable[[Path], object]], Path]) -> World:
    place = built_once("world", lambda place: World.build(sample_dataset, toy_trm, place))
    return World(sample_dataset, toy_trm, place / "start", place / "prompts")


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return build_model(tokenizer, TINY, seed=0)


@pytest.fixture
def trajectory() -> Callable[..., Trajectory]:
    """A trajectory of given ids and mask; ``rewards`` maps part names to (value, weight)."""

    def make(
        key: str,
        prompt: list[int],
        completion: list[int],
        mask: list[int],
        rewards: dict[str, tuple[float | None, float]],
        logprobs: list[float] | None = None,
    ) -> Trajectory:
        return Trajectory(
            example_key=key,
            user_id=key.partition("@")[0],
            prompt_ids=tuple(prompt),
            completion_ids=tuple(completion),
            loss_mask=tuple(mask),
            logprobs=tuple(logprobs or [0.0] * len(completion)),
            text="",
            calls=(),
            answer=(),
            end=EndReason.ANSWERED,
            rewards=tuple(RewardPart(name, value, weight) for name, (value, weight) in rewards.items()),
        )

    return make
