"""The scripted explorer: the loop without a language model, as a baseline and as the teacher of the warm start.

It calls the TRM broadly, then with phrases that the history's recent items share, and merges the lists by weighted
reciprocal rank. ``explore`` is the baseline; ``teach`` writes the same behaviour, varied at random, as protocol text.
Every batch makes one ``retrieve`` per turn. Never reads a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deeprec.config import ExploreConfig
from deeprec.explore.fusion import merge, merged_weights
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    PREFERENCE_CLOSE,
    PREFERENCE_OPEN,
    THINK_CLOSE,
    TitleBook,
    render_list,
    render_preference,
)
from deeprec.types import Call, EndReason, Example, Opinion, Query, Retriever, Trajectory

BROAD_THOUGHTS = ("A broad look first.",)
NARROW_THOUGHTS = ("Look closer at what this user likes.", "Try another direction.")
FINAL_THOUGHTS = ("Now rank what was found.",)
THOUGHTS = (*BROAD_THOUGHTS, *NARROW_THOUGHTS, *FINAL_THOUGHTS)
"""Every sentence the teacher thinks, for a tokenizer that holds each as one piece."""

NARROW_CALLS = 2
"""Calls of the baseline after its first, broad one."""

_RECENCY = 0.9
"""Weight of an item relative to the next newer one."""

_RECENT_ITEMS = 50
"""Newest history items whose phrases count."""

Preference = tuple[str, ...]
"""Phrases of one call; none for a broad call."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One scripted completion as text: ``segments`` of (text, written by the policy), without the end of text."""

    example: Example
    prompt: str
    segments: tuple[tuple[str, bool], ...]
    calls: tuple[Call, ...]
    answer: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


def explore(
    examples: Sequence[Example],
    retriever: Retriever,
    titles: TitleBook,
    config: ExploreConfig,
) -> list[Trajectory]:
    """The baseline: a broad call and up to ``NARROW_CALLS`` narrow ones, merged into k items.

    Trajectories carry calls and answer but no tokens and no text. An answer is shorter than k only when the lists
    hold fewer distinct items.
    """
    scorer = PhraseScorer(titles)
    trajectories: list[Trajectory] = []
    for start in range(0, len(examples), config.batch_size):
        chunk = examples[start : start + config.batch_size]
        plans = [_plan(scorer.scores(example.history), config) for example in chunk]
        for example, calls in zip(chunk, _call(chunk, plans, retriever, config), strict=True):
            answer = merge([call.items for call in calls])[: config.answer_size]
            trajectories.append(_tokenless(example, calls, answer))
    return trajectories


def teach(
    examples: Sequence[Example],
    retriever: Retriever,
    titles: TitleBook,
    config: ExploreConfig,
    rng: np.random.Generator,
    *,
    judge: Opinion | None = None,
    call_shares: Sequence[float] = (0.25, 0.5, 0.25),
) -> Iterator[Lesson]:
    """Scripted completions to learn from, in the order of examples; repeat an example for more of its lessons.

    Args:
        judge: a second opinion: what is answered is chosen by its log-likelihood plus the logarithm of the merged
            weight, a product of the two experts (Hinton, 2002), best first. A free answer keeps the order in which the
            lists showed it instead, so that it can be read off them from top to bottom, which small models can learn.
        call_shares: chances of 1, 2, 3, … calls. Calls that would not fill the answer are never made fewer.

    The first call is ``anything``. Examples whose calls find fewer than k items give no lesson.
    """
    scorer = PhraseScorer(titles)
    prompts = PromptBuilder(config, titles)
    shares = np.asarray(call_shares, dtype=np.float64)
    fewest = math.ceil(config.answer_size / config.items_per_call)
    for start in range(0, len(examples), config.batch_size):
        chunk = examples[start : start + config.batch_size]
        plans = []
        for example in chunk:
            count = min(max(int(rng.choice(len(shares), p=shares / shares.sum())) + 1, fewest), config.max_calls)
            plans.append(_random_plan(scorer.scores(example.history), count, rng))
        made = _call(chunk, plans, retriever, config)
        answers = [merge([call.items for call in calls]) for calls in made]
        if judge is not None:
            answers = _judged(made, answers, judge(chunk, answers), config)
        for example, calls, answer in zip(chunk, made, answers, strict=True):
            if len(answer) >= config.answer_size:
                best = tuple(answer[: config.answer_size])
                segments = _segments(calls, best, titles, config, rng)
                yield Lesson(example, prompts.text(example.history), segments, calls, best)


def _judged(
    made: Sequence[tuple[Call, ...]],
    merged: Sequence[Sequence[str]],
    opinions: Sequence[Sequence[float]],
    config: ExploreConfig,
) -> list[list[str]]:
    """The items that both experts together prefer; see ``teach``."""
    answers = []
    for calls, items, opinion in zip(made, merged, opinions, strict=True):
        weights = merged_weights([call.items for call in calls])
        value = {item: math.log(weights[item]) + own for item, own in zip(items, opinion, strict=True)}
        best = sorted(items, key=lambda item: -value[item])[: config.answer_size]
        answers.append(best if config.answers == "retrieved" else [item for item in weights if item in set(best)])
    return answers


class PhraseScorer:
    """How much each phrase marks a history: recency-weighted counts × log inverse catalogue frequency."""

    def __init__(self, titles: TitleBook) -> None:
        self._catalogue = titles.catalogue
        counts: dict[str, int] = {}
        for item in self._catalogue.items:
            for phrase in set(item.phrases):
                counts[phrase] = counts.get(phrase, 0) + 1
        total = len(self._catalogue)
        self._rarity = {phrase: math.log((total + 1) / count) for phrase, count in counts.items()}

    def scores(self, history: Sequence[str]) -> dict[str, float]:
        """Phrase → score, best first; ties in alphabetical order. Empty for a history without phrases."""
        scores: dict[str, float] = {}
        recent = [item_id for item_id in history if item_id in self._catalogue][-_RECENT_ITEMS:]
        for age, item_id in enumerate(reversed(recent)):
            for phrase in self._catalogue[item_id].phrases:
                scores[phrase] = scores.get(phrase, 0.0) + _RECENCY**age * self._rarity[phrase]
        return dict(sorted(scores.items(), key=lambda entry: (-entry[1], entry[0])))


def _plan(scores: Mapping[str, float], config: ExploreConfig) -> list[Preference]:
    """``anything``, then the two strongest phrases, then the next two, …"""
    best = list(scores)
    narrow = [tuple(best[2 * number : 2 * number + 2]) for number in range(NARROW_CALLS)]
    return [(), *(phrases for phrases in narrow if phrases)][: config.max_calls]


def _random_plan(scores: Mapping[str, float], count: int, rng: np.random.Generator) -> list[Preference]:
    """``anything``, then different preferences up to ``count``; fewer where the history has too few phrases."""
    plan: list[Preference] = [()]
    seen: set[frozenset[str]] = {frozenset()}
    for _ in range(8 * count):
        if len(plan) >= count:
            break
        phrases = _draw(scores, int(rng.integers(1, 3)), rng)
        if phrases and frozenset(phrases) not in seen:
            seen.add(frozenset(phrases))
            plan.append(phrases)
    return plan


def _draw(scores: Mapping[str, float], count: int, rng: np.random.Generator) -> Preference:
    """``count`` distinct phrases, drawn in proportion to their scores and written strongest first."""
    if not scores:
        return ()
    names = list(scores)
    weights = np.asarray([max(scores[name], 1e-9) for name in names])
    drawn = rng.choice(len(names), size=min(count, len(names)), replace=False, p=weights / weights.sum())
    return tuple(names[index] for index in sorted(drawn))


def _call(
    examples: Sequence[Example], plans: Sequence[list[Preference]], retriever: Retriever, config: ExploreConfig
) -> list[tuple[Call, ...]]:
    """Carry the plans out, one ``retrieve`` per turn."""
    calls: list[list[Call]] = [[] for _ in examples]
    for turn in range(max((len(plan) for plan in plans), default=0)):
        rows = [row for row, plan in enumerate(plans) if turn < len(plan)]
        queries = [
            Query(examples[row].history, plans[row][turn], _returned(calls[row]) if config.fresh_lists else frozenset())
            for row in rows
        ]
        for row, items in zip(rows, retriever.retrieve(queries, config.items_per_call), strict=True):
            phrases = plans[row][turn]
            calls[row].append(Call(render_preference(phrases), phrases, tuple(items)))
    return [tuple(made) for made in calls]


def _returned(calls: Sequence[Call]) -> frozenset[str]:
    return frozenset(item.item_id for call in calls for item in call.items)


def _segments(
    calls: Sequence[Call],
    answer: Sequence[str],
    titles: TitleBook,
    config: ExploreConfig,
    rng: np.random.Generator,
) -> tuple[tuple[str, bool], ...]:
    """What is written, turn by turn."""
    segments: list[tuple[str, bool]] = []
    for number, call in enumerate(calls):
        thought = str(rng.choice(NARROW_THOUGHTS if call.phrases else BROAD_THOUGHTS))
        opening = "\n" if number == 0 else ""
        segments.append((f"{opening}{thought}\n{PREFERENCE_OPEN}{call.preference}{PREFERENCE_CLOSE}", True))
        segments.append((render_list(call.items, titles, config), False))
    lines = "".join(f"{number}. {titles.title(item_id)}\n" for number, item_id in enumerate(answer, start=1))
    thought = str(rng.choice(FINAL_THOUGHTS))
    segments.append((f"{thought}\n{THINK_CLOSE}\n{ANSWER_OPEN}\n{lines}{ANSWER_CLOSE}", True))
    return tuple(segments)


def _tokenless(example: Example, calls: tuple[Call, ...], answer: Sequence[str]) -> Trajectory:
    blank = Trajectory(example.key, example.user_id, (), (), (), (), "", calls, (), EndReason.ANSWERED)
    return replace(blank, answer=tuple(answer))
