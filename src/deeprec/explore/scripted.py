"""The scripted explorer: the loop without a language model, as a baseline and as the teacher of the warm start.

It calls the TRM broadly, then with phrases that the history's recent items share, and merges the lists by weighted
reciprocal rank. ``explore`` is the baseline; ``teach`` writes the same behaviour, varied at random, as protocol text.
Every batch makes one ``retrieve`` per turn. Never reads a target, except where ``teach`` is asked to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from deeprec.types import Call, EndReason, Example, Query, Retriever, Trajectory

BROAD_THOUGHTS = ("A broad look first.",)
NARROW_THOUGHTS = ("Look closer at what this user likes.", "Try another direction.")
FINAL_THOUGHTS = ("Now rank what was found.",)
HASTY_THOUGHTS = ("What was found last will do.",)
UNAIDED_THOUGHTS = ("It is clear what this user wants.",)
THOUGHTS = (*BROAD_THOUGHTS, *NARROW_THOUGHTS, *FINAL_THOUGHTS, *HASTY_THOUGHTS, *UNAIDED_THOUGHTS)
"""Every sentence the teacher thinks, for a tokenizer that holds each as one piece."""

_RECENCY = 0.9
"""Weight of an item relative to the next newer one."""

_RECENT_ITEMS = 50
"""Newest history items whose phrases count."""

_TRUST = 0.6
"""Chance that the teacher answers a user it is sure of without a call: more often than not, so that the policy does so
greedily, and seldom enough that some of a prompt's rollouts are valid; else stage 1 is not given the prompt."""

Judge = Callable[[Sequence[Example], Sequence[Sequence[str]]], list[list[float]]]
"""Log-likelihoods, in nats, that each example's next item is each of its candidates."""

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
    *,
    narrow_calls: int = 2,
) -> list[Trajectory]:
    """The baseline: a broad call and up to ``narrow_calls`` narrow ones, merged into k items.

    Trajectories carry calls and answer but no tokens and no text. An answer is shorter than k only when the lists
    hold fewer distinct items.
    """
    scorer = PhraseScorer(titles)
    trajectories: list[Trajectory] = []
    for start in range(0, len(examples), config.batch_size):
        chunk = examples[start : start + config.batch_size]
        plans = [_plan(scorer.scores(example.history), narrow_calls, config) for example in chunk]
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
    judge: Judge | None = None,
    hasty: float = 0.0,
    unaided: float = 0.0,
    call_shares: Sequence[float] = (0.25, 0.5, 0.25),
    broad_first: float = 1.0,
    use_target: float = 0.0,
    sharpness: float = 1.0,
) -> Iterator[Lesson]:
    """Scripted completions to learn from, in the order of examples; repeat an example for more of its lessons.

    Args:
        judge: a second opinion: what is answered is chosen by its log-likelihood plus the logarithm of the merged
            weight, a product of the two experts (Hinton, 2002), best first. A free answer keeps the order in which the
            lists showed it instead, so that it can be read off them from top to bottom, which small models can learn.
        hasty: share of the lessons with the most calls that answer with the newest list as it is. Their last thought
            says so: what a policy thinks then decides how it ranks, and a stage can find out which thought serves
            better. Only after the most calls, so that a stage that rewards calls does not unlearn it unawares.
        unaided: share of the lessons that answer without a call, for users whose next item the judge is surest of:
            what a policy does that trusts itself, for a stage to unlearn. Nothing was retrieved then, so a held answer
            is empty. At most ``_TRUST``.
        call_shares: chances of 1, 2, 3, … calls. Calls that would not fill the answer are never made fewer.
        broad_first: chance that the first call is ``anything``.
        use_target: chance that a narrow call draws its phrases from the target instead of the history.
        sharpness: phrases are drawn in proportion to their scores to this power.

    Examples whose calls find fewer than k items give no lesson.
    """
    scorer = PhraseScorer(titles)
    prompts = PromptBuilder(config, titles)
    shares = np.asarray(call_shares, dtype=np.float64)
    fewest = math.ceil(config.answer_size / config.items_per_call)
    most = min(max(int(np.flatnonzero(shares)[-1]) + 1, fewest), config.max_calls)
    for start in range(0, len(examples), config.batch_size):
        chunk = examples[start : start + config.batch_size]
        plans = []
        for example in chunk:
            count = min(max(int(rng.choice(len(shares), p=shares / shares.sum())) + 1, fewest), config.max_calls)
            hints = titles.catalogue[example.target].phrases if use_target > 0 else ()
            scores = {phrase: score**sharpness for phrase, score in scorer.scores(example.history).items()}
            plans.append(_random_plan(scores, hints, count, broad_first, use_target, rng))
        made = _call(chunk, plans, retriever, config)
        answers = [merge([call.items for call in calls]) for calls in made]
        thoughts = [FINAL_THOUGHTS] * len(chunk)
        opinions = judge(chunk, answers) if judge is not None else []
        if judge is not None:
            answers = _judged(made, answers, opinions, config)
        for row in np.flatnonzero(rng.random(len(chunk)) < hasty).tolist():
            if len(made[row]) == most:
                answers[row], thoughts[row] = [item.item_id for item in made[row][-1].items], HASTY_THOUGHTS
        for row in _surest(opinions, unaided, rng):
            made[row], thoughts[row] = (), UNAIDED_THOUGHTS
        for example, calls, answer, last in zip(chunk, made, answers, thoughts, strict=True):
            if len(answer) >= config.answer_size:
                held = config.answers == "retrieved" and not calls
                best = () if held else tuple(answer[: config.answer_size])
                segments = _segments(calls, best, last, titles, config, rng)
                yield Lesson(example, prompts.text(example.history), segments, calls, best)


def _surest(opinions: Sequence[Sequence[float]], share: float, rng: np.random.Generator) -> list[int]:
    """Rows of a share of the examples, drawn from those whose likeliest candidate is most likely: ``_TRUST`` of them.

    What to do after calls is then learnt for those users too.
    """
    highest = [max(opinion, default=-math.inf) for opinion in opinions]
    by_trust = sorted(range(len(highest)), key=lambda row: -highest[row])
    return [row for row in by_trust[: round(share / _TRUST * len(highest))] if rng.random() < _TRUST]


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


def _plan(scores: Mapping[str, float], narrow_calls: int, config: ExploreConfig) -> list[Preference]:
    """``anything``, then the two strongest phrases, then the next two, …"""
    best = list(scores)
    narrow = [tuple(best[2 * number : 2 * number + 2]) for number in range(narrow_calls)]
    return [(), *(phrases for phrases in narrow if phrases)][: config.max_calls]


def _random_plan(
    scores: Mapping[str, float],
    hints: Sequence[str],
    count: int,
    broad_first: float,
    use_target: float,
    rng: np.random.Generator,
) -> list[Preference]:
    """``count`` different preferences, fewer only when the history has too few phrases to differ."""
    plan: list[Preference] = [()] if not scores or rng.random() < broad_first else []
    seen: set[frozenset[str]] = {frozenset()} if plan else set()
    for _ in range(8 * count):
        if len(plan) >= count:
            break
        uniform = dict.fromkeys(hints, 1.0)
        source = uniform if hints and rng.random() < use_target else scores
        phrases = _draw(source, int(rng.integers(1, 3)), rng)
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
    thoughts: Sequence[str],
    titles: TitleBook,
    config: ExploreConfig,
    rng: np.random.Generator,
) -> tuple[tuple[str, bool], ...]:
    """What is written, turn by turn; ``thoughts`` are those before the answer, of which one is drawn."""
    segments: list[tuple[str, bool]] = []
    for number, call in enumerate(calls):
        thought = str(rng.choice(NARROW_THOUGHTS if call.phrases else BROAD_THOUGHTS))
        opening = "\n" if number == 0 else ""
        segments.append((f"{opening}{thought}\n{PREFERENCE_OPEN}{call.preference}{PREFERENCE_CLOSE}", True))
        segments.append((render_list(call.items, titles, config), False))
    lines = "".join(f"{number}. {titles.title(item_id)}\n" for number, item_id in enumerate(answer, start=1))
    opening = "" if calls else "\n"
    thought = str(rng.choice(list(thoughts)))
    segments.append((f"{opening}{thought}\n{THINK_CLOSE}\n{ANSWER_OPEN}\n{lines}{ANSWER_CLOSE}", True))
    return tuple(segments)


def _tokenless(example: Example, calls: tuple[Call, ...], answer: Sequence[str]) -> Trajectory:
    blank = Trajectory(example.key, example.user_id, (), (), (), (), "", calls, (), EndReason.ANSWERED)
    return replace(blank, answer=tuple(answer))
