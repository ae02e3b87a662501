"""What the warm start learns from, in tokens: plain histories first, then scripted explorations.

A plain history is the compact prompt's own text, cut anywhere, on the items that the TRM trains on as well: the policy
learns what follows what, a second opinion beside the TRM's. A scripted exploration shows the protocol on the policy's
own targets, which neither of the two has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprec.config import ExploreConfig, WarmStartConfig
from deeprec.explore.answers import answer_rules
from deeprec.explore.opinion import OwnOpinion
from deeprec.explore.prompt import NEXT, PromptBuilder
from deeprec.policy.setting import Setting, derived_seed, sample
from deeprec.types import EndReason, Example, Trajectory

if TYPE_CHECKING:
    from deeprec.explore.engine import TransformersPolicy
    from deeprec.explore.scripted import Lesson
    from deeprec.policy.batches import Allowed


TOLD = 5000
"""Scripted trajectories between two progress lines."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Trajectories to learn from and, where answers are held to an answer rule, what each could have written."""

    trajectories: Sequence[Trajectory]
    allowed: Allowed


def history_lessons(
    setting: Setting, tokenizer: Any, explore: ExploreConfig, passes: int, seed: int
) -> list[Trajectory]:
    """Windows over every training sequence, cut anew in each of the passes: a prompt's titles and the next one.

    So a window has ``explore.prompt_history`` + 1 items at most, the last in the line that a prompt leaves open. Titles
    alone are to be learnt; a window of a single item gives no lesson.
    """
    from deeprec.data.splits import trm_sequences

    titles, width = setting.titles, explore.prompt_history + 1
    head = tuple(tokenizer.encode(PromptBuilder(explore, titles).head, add_special_tokens=False))
    lines = [tuple(tokenizer.encode(f"\n{line}. ", add_special_tokens=False)) for line in range(1, width)]
    last = tuple(tokenizer.encode(NEXT, add_special_tokens=False))
    known = {item.item_id: titles.title(item.item_id) for item in setting.dataset.catalogue.items}
    tokens = {item: tuple(tokenizer.encode(title, add_special_tokens=False)) for item, title in known.items()}
    generator = np.random.default_rng(seed)
    lessons = []
    for _ in range(passes):
        for user, items in trm_sequences(setting.dataset).items():
            for window in _windows(items, width, generator):
                lessons.append(_history_lesson(user, head, [tokens[item] for item in window], lines, last))
    return lessons


def rehearsal(setting: Setting, tokenizer: Any, explore: ExploreConfig, count: int, seed: int) -> list[Trajectory]:
    """``count`` such windows, drawn at random, so that what was learnt from histories is not lost over explorations."""
    made: list[Trajectory] = []
    while len(made) < count:
        drawn = history_lessons(setting, tokenizer, explore, 1, derived_seed(seed, len(made)))
        if not drawn:
            return []
        made += sample(drawn, count - len(made), derived_seed(seed, len(made), 1))
    return made


def _windows(items: Sequence[str], width: int, generator: np.random.Generator) -> Iterator[Sequence[str]]:
    """The newest window, and those that the sequence is cut into from one of the ``width`` items before the last."""
    ends = range(len(items), 0, -width)
    if len(items) > width:
        ends = range(len(items) - int(generator.integers(1, width + 1)), 0, -width)
        yield items[-width:]
    for end in ends:
        if len(window := items[max(0, end - width) : end]) > 1:
            yield window


def _history_lesson(
    user: str,
    head: tuple[int, ...],
    items: Sequence[tuple[int, ...]],
    lines: Sequence[tuple[int, ...]],
    last: tuple[int, ...],
) -> Trajectory:
    ids: list[int] = []
    mask: list[int] = []
    for line, item in zip([*lines[: len(items) - 1], last], items, strict=True):
        ids += [*line, *item]
        mask += [0] * len(line) + [1] * len(item)
    first = len(lines[0]) + len(items[0])
    return _lesson(Example(user, (), ""), [*head, *ids[:first]], ids[first:], mask[first:])


def scripted_lessons(
    setting: Setting,
    policy: TransformersPolicy,
    config: WarmStartConfig,
    explore: ExploreConfig,
    seed: int,
    *,
    progress: Callable[[str], None] = print,
) -> Lessons:
    """The scripted explorer's lessons on the policy's examples, each used about equally often.

    They are made with ``policy`` as it is, whose opinion of what comes next is lost as it learns to explore. Where
    ``explore.list_weight`` is set, the lists weigh 1 in what could be written, as they do for the teacher: what is left
    to learn is its opinion, and a larger weight is for those who have learnt it in part.

    Raises:
        PolicyError: titles are to be judged, and the tokenizer does not hold each as one token.
    """
    from deeprec.data.splits import policy_examples
    from deeprec.explore.scripted import teach

    examples = policy_examples(setting.dataset)
    generator = np.random.default_rng(seed)
    judge = OwnOpinion(policy.model, policy.tokenizer, setting.titles, explore) if config.judge == "histories" else None
    taught = explore.model_copy(update={"list_weight": 1.0}) if explore.list_weight else explore
    rules = answer_rules(policy, setting.titles, taught)
    shown = _repeated(examples, config.trajectories, generator)
    lessons = teach(
        [_shortened(one, config.short_histories, generator) for one in shown],
        setting.retriever,
        setting.titles,
        explore,
        generator,
        judge=judge,
        call_shares=config.call_shares,
    )
    tokens: list[Trajectory] = []
    for lesson in lessons:
        tokens.append(_tokenised(lesson, policy.tokenizer))
        if len(tokens) % TOLD == 0:
            progress(f"wrote {len(tokens)} of {config.trajectories} scripted trajectories")
    return Lessons(tokens, [rules.allowed(lesson) for lesson in tokens] if rules else ())


def _repeated(examples: Sequence[Example], count: int, generator: np.random.Generator) -> list[Example]:
    """``count`` examples, all of them in another random order each time round."""
    order: list[Example] = []
    while len(order) < count:
        order += [examples[index] for index in generator.permutation(len(examples))]
    return order[:count]


def _shortened(example: Example, share: float, generator: np.random.Generator) -> Example:
    """The example, or in ``share`` of the cases one with a random number of its newest items, fewer than it has."""
    if len(example.history) < 2 or generator.random() >= share:
        return example
    return replace(example, history=example.history[-int(generator.integers(1, min(len(example.history), 10))) :])


def _tokenised(lesson: Lesson, tokenizer: Any) -> Trajectory:
    ids: list[int] = []
    mask: list[int] = []
    for text, learnt in lesson.segments:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        mask += [int(learnt)] * len(tokens)
    made = _lesson(lesson.example, tokenizer.encode(lesson.prompt, add_special_tokens=False), ids, mask)
    return replace(made, calls=lesson.calls, answer=lesson.answer)


def _lesson(example: Example, prompt: Sequence[int], ids: Sequence[int], mask: Sequence[int]) -> Trajectory:
    return Trajectory(
        example_key=example.key,
        user_id=example.user_id,
        prompt_ids=tuple(prompt),
        completion_ids=tuple(ids),
        loss_mask=tuple(mask),
        logprobs=(0.0,) * len(ids),
        text="",
        calls=(),
        answer=(),
        end=EndReason.ANSWERED,
    )
