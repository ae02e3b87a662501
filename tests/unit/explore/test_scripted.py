"""The scripted explorer as baseline and as teacher."""

from __future__ import annotations

import numpy as np
import pytest

from deeprec.explore.fusion import merge, merged_weights
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import AnswerText, PreferenceText, parse_segment
from deeprec.explore.scripted import (
    THOUGHTS,
    PhraseScorer,
    explore,
    teach,
)
from deeprec.types import EndReason, Example, RetrievedItem


def items(*ids):
    return tuple(RetrievedItem(item_id, 0.5) for item_id in ids)


def examples(count=6):
    return [Example(f"u{row}", ("i0", "i1", f"i{3 * row + 3}"), f"i{row + 4}") for row in range(count)]


def test_phrase_scores_are_recent_and_rare(titles):
    scores = PhraseScorer(titles).scores(("i0", "i1", "gone"))
    drama, comedy = np.log(31 / 10), 0.9 * np.log(31 / 10)
    assert scores["drama"] == pytest.approx(drama)
    assert scores["comedy"] == pytest.approx(comedy)
    assert next(iter(scores)) == "1990s"
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert PhraseScorer(titles).scores(()) == {}


def test_baseline(retriever, titles, config):
    tasks = examples()
    found = explore(tasks, retriever, titles, config)
    assert [len(batch) for batch in retriever.batches] == [6, 6, 6]
    for trajectory, task in zip(found, tasks, strict=True):
        assert trajectory.example_key == task.key
        assert trajectory.end is EndReason.ANSWERED
        assert trajectory.calls[0].preference == "anything"
        assert len({call.preference for call in trajectory.calls}) == 3
        assert len(set(trajectory.answer)) == config.answer_size
        assert set(trajectory.answer) <= {item.item_id for call in trajectory.calls for item in call.items}
        assert not set(trajectory.answer) & set(task.history)
    assert [call.preference for call in explore([Example("new", (), "i1")], retriever, titles, config)[0].calls] == [
        "anything"
    ]


def test_fresh_lists_hold_every_item_once(retriever, titles, config):
    fresh = config.model_copy(update={"fresh_lists": True})
    lessons = list(teach(examples(), retriever, titles, fresh, np.random.default_rng(0), call_shares=(0, 0, 1)))
    for made in (*explore(examples(), retriever, titles, fresh), *lessons):
        found = [item.item_id for call in made.calls for item in call.items]
        assert len(made.calls) == 3
        assert len(set(found)) == len(found) == 3 * config.items_per_call


def test_lessons_follow_the_protocol(retriever, titles, config):
    lessons = list(teach(examples() * 5, retriever, titles, config, np.random.default_rng(0)))
    assert len(lessons) == 30
    assert {len(lesson.calls) for lesson in lessons} == {1, 2, 3}
    prompts = PromptBuilder(config, titles)
    for lesson in lessons:
        assert lesson.prompt == prompts.text(lesson.example.history)
        assert [by_policy for _, by_policy in lesson.segments] == [True, False] * len(lesson.calls) + [True]
        for (text, _), call in zip(lesson.segments[::2], lesson.calls, strict=False):
            assert parse_segment(text) == PreferenceText(call.preference, call.phrases, empty=False)
            assert text.strip("\n").split("\n")[0] in THOUGHTS
        parsed = parse_segment(lesson.segments[-1][0])
        assert parsed == AnswerText(tuple(titles.title(item_id) for item_id in lesson.answer))
        preferences = [frozenset(call.phrases) for call in lesson.calls]
        assert preferences[0] == frozenset()
        assert len(set(preferences)) == len(preferences)
        assert len(set(lesson.answer)) == config.answer_size


def test_lessons_are_fixed_by_the_generator(retriever, titles, config):
    def texts(seed):
        return [lesson.text for lesson in teach(examples(), retriever, titles, config, np.random.default_rng(seed))]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_a_judge_ranks_beside_the_merged_lists(retriever, titles, config):
    def judge(tasks, candidates):
        assert [task.user_id for task in tasks] == [f"u{row}" for row in range(6)]
        # One nat a place, last in the catalogue first: more than two neighbours in a list differ by, but not all.
        return [[float(int(item[1:])) for item in items] for items in candidates]

    [lesson, *others] = teach(examples(), retriever, titles, config, np.random.default_rng(0), judge=judge)
    assert len(others) == 5
    weights = merged_weights([call.items for call in lesson.calls])
    scores = {item: float(np.log(weight)) + int(item[1:]) for item, weight in weights.items()}
    chosen = sorted(scores, key=lambda item: -scores[item])[: config.answer_size]
    merged = merge([call.items for call in lesson.calls])
    assert set(chosen) != set(merged[: config.answer_size])
    assert list(lesson.answer) == [item for item in weights if item in chosen], "in the order the lists showed them"

    held = config.model_copy(update={"answers": "retrieved"})
    best_first = next(teach(examples(), retriever, titles, held, np.random.default_rng(0), judge=judge))
    assert list(best_first.answer) == chosen

    def indifferent(tasks, candidates):
        return [[-3.0] * len(items) for items in candidates]

    plain = [set(one.answer) for one in teach(examples(), retriever, titles, config, np.random.default_rng(0))]
    judged = teach(examples(), retriever, titles, config, np.random.default_rng(0), judge=indifferent)
    assert [set(one.answer) for one in judged] == plain


def test_phrases_are_those_of_the_history(retriever, titles, config):
    task = Example("u", ("i0",), "i2")
    lessons = teach([task] * 20, retriever, titles, config, np.random.default_rng(0), call_shares=(0.0, 1.0))
    assert {phrase for lesson in lessons for call in lesson.calls for phrase in call.phrases} == {"comedy", "1980s"}


def test_answers_that_cannot_be_filled_give_no_lesson(retriever, titles, config):
    narrow = config.model_copy(update={"items_per_call": 1, "answer_size": 3})
    # One item a call: every call returns the same best item of its phrases, so three distinct items may not be found.
    lessons = list(teach(examples(), retriever, titles, narrow, np.random.default_rng(0), call_shares=(1.0,)))
    assert all(len(lesson.calls) == 3 and len(set(lesson.answer)) == 3 for lesson in lessons)
    wide = config.model_copy(update={"answer_size": 40})
    assert list(teach(examples(), retriever, titles, wide, np.random.default_rng(0))) == []
