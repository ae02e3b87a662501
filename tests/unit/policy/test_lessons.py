"""What the warm start is taught from: plain histories, and scripted explorations on the policy's own targets."""

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deeprec.config import ExploreConfig, WarmStartConfig
from deeprec.data.dataset import Dataset
from deeprec.data.splits import trm_sequences
from deeprec.errors import PolicyError
from deeprec.explore.engine import TransformersPolicy
from deeprec.explore.opinion import OwnOpinion
from deeprec.explore.protocol import TitleBook
from deeprec.policy.lessons import _shortened, _windows, history_lessons, scripted_lessons
from deeprec.types import Catalogue, Example, Query, RetrievedItem

ITEMS = tuple(f"i{row}" for row in range(8))


class FirstItems:
    """A retriever that lists the catalogue from its start, without the history."""

    def retrieve(self, queries: list[Query], k: int) -> list[list[RetrievedItem]]:
        kept = [[item for item in ITEMS if item not in query.history][:k] for query in queries]
        return [[RetrievedItem(item, 0.9 - 0.1 * rank) for rank, item in enumerate(items)] for items in kept]


@pytest.fixture
def setting(books: Catalogue) -> Any:
    """u1 has 12 training items (five, over and over) and a target it has had; u2 one, and the third of its list."""
    sequences = {"u1": ITEMS[:5] * 3, "u2": ("i0", "i3", "i4", "i5")}
    dataset = Dataset(books, sequences, {"policy_positions": 1})
    return SimpleNamespace(dataset=dataset, titles=TitleBook(books), retriever=FirstItems())


def learnt(lesson: Any, tokenizer: Any) -> list[str]:
    marked = zip(lesson.completion_ids, lesson.loss_mask, strict=True)
    return [tokenizer.decode([token]) for token, own in marked if own]


def text(lesson: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([*lesson.prompt_ids, *lesson.completion_ids]))


def test_history_lessons_are_the_prompts_text_and_teach_titles(
    setting: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    lessons = history_lessons(setting, tokenizer, explore, 6, seed=0)
    assert {lesson.user_id for lesson in lessons} == {"u1"}, "one item alone teaches nothing"
    sequence = [setting.titles.title(item) for item in trm_sequences(setting.dataset)["u1"]]
    taught: Counter[tuple[int, int]] = Counter()
    for lesson in lessons:
        head, *lines = text(lesson, tokenizer).split("\n")
        assert head == "History:"
        *numbers, last = [re.split(r"(?<=[.:]) ", line, maxsplit=1)[0] for line in lines]
        titles = [re.split(r"(?<=[.:]) ", line, maxsplit=1)[1] for line in lines]
        assert [*numbers, last] == [*(f"{number}." for number in range(1, len(lines))), "Next:"]
        assert 2 <= len(titles) <= explore.prompt_history + 1
        assert learnt(lesson, tokenizer) == titles[1:]
        places = [at for at in range(len(sequence)) if sequence[at : at + len(titles)] == titles]
        assert places, "a window of the sequence"
        taught.update({(places[0], len(titles))})
    assert len(taught) > 4, "cut anew in each pass"
    longest = max(len(text(lesson, tokenizer).split("\n")) - 1 for lesson in lessons)
    assert longest == explore.prompt_history + 1, "a whole prompt, and the line that it leaves open"


def test_history_lessons_are_fixed_by_the_seed(setting: Any, tokenizer: Any, explore: ExploreConfig) -> None:
    made = [history_lessons(setting, tokenizer, explore, 2, seed=seed) for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_scripted_lessons_teach_what_the_policy_would_write(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    config = WarmStartConfig(trajectories=40, short_histories=0.0)
    lessons = scripted_lessons(setting, TransformersPolicy(model, tokenizer), config, explore, seed=0)
    assert not lessons.allowed, "a free answer is held to nothing"
    for lesson in lessons.trajectories:
        assert lesson.calls
        completion = tokenizer.decode(lesson.completion_ids)
        own = "".join(learnt(lesson, tokenizer))
        for listed in completion.split("<|begin_of_item_list|>")[1:]:
            assert listed.partition("<|end_of_item_list|>")[0] not in own
        assert own.endswith(completion.rpartition("<recommendation_list>")[2])


def test_writing_lessons_tells_how_far_it_is(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.policy.lessons.TOLD", 15)
    told: list[str] = []
    policy, config = TransformersPolicy(model, tokenizer), WarmStartConfig(trajectories=40)
    scripted_lessons(setting, policy, config, explore, seed=0, progress=told.append)
    assert told == ["wrote 15 of 40 scripted trajectories", "wrote 30 of 40 scripted trajectories"]


def test_lessons_with_held_answers_say_which_titles_could_have_come(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    config = WarmStartConfig(trajectories=40, short_histories=0.5)
    held = explore.model_copy(update={"answers": "retrieved"})
    policy = TransformersPolicy(model, tokenizer)
    lessons = scripted_lessons(setting, policy, config, held, seed=0)
    assert len(lessons.allowed) == len(lessons.trajectories) == 40
    for lesson, rules in zip(lessons.trajectories, lessons.allowed, strict=True):
        found = {setting.titles.title(item.item_id) for call in lesson.calls for item in call.items}
        left = set(found)
        for item in lesson.answer:
            title = setting.titles.title(item)
            token = tokenizer.convert_tokens_to_ids(title)
            [place] = [at for at in rules if lesson.completion_ids[at] == token]
            assert {tokenizer.decode([token]) for token in rules[place]} == left
            left.remove(title)
        assert all(lesson.loss_mask[place] for place in rules)


def test_the_lists_weigh_one_in_lessons_wherever_they_weigh(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    policy, config = TransformersPolicy(model, tokenizer), WarmStartConfig(trajectories=6)

    def added(weight: float) -> list[list[float]]:
        held = explore.model_copy(update={"answers": "retrieved", "list_weight": weight})
        lessons = scripted_lessons(setting, policy, config, held, seed=0)
        return [list(tokens.values()) for rules in lessons.allowed for tokens in rules.values()]

    assert added(3.0) == added(1.0)
    assert any(any(values) for values in added(3.0))
    assert not any(any(values) for values in added(0.0))


def test_the_models_own_opinion_is_that_of_the_next_line(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    opinion = OwnOpinion(model.eval(), tokenizer, setting.titles, explore)
    examples = [Example("u1", ITEMS[:7], ""), Example("u2", ("i3",), "")]
    [long, short] = opinion(examples, [["i2", "i7"], ["i1"]])
    titles = [setting.titles.title(item) for item in ITEMS]
    shown = "".join(f"\n{line}. {title}" for line, title in enumerate(titles[2:7], start=1))
    ids = tokenizer.encode(f"History:{shown}\nNext: ", add_special_tokens=False)
    with torch.no_grad():
        likely = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert long == pytest.approx([float(likely[tokenizer.convert_tokens_to_ids(titles[row])]) for row in (2, 7)], 1e-4)
    assert opinion(examples[1:], [["i1"]])[0] == short
    fresh = OwnOpinion(model, tokenizer, setting.titles, explore)
    assert fresh(examples[1:], [["i1"]])[0] == pytest.approx(short, 1e-4), "padding changes nothing"


def test_a_history_is_read_once(setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig) -> None:
    read: list[int] = []
    hook = model.base_model.register_forward_hook(lambda *call: read.append(len(call[2].last_hidden_state)))
    opinion = OwnOpinion(model.eval(), tokenizer, setting.titles, explore)
    one, same, other = (
        Example(user, history, "") for user, history in (("a", ("i3",)), ("b", ("i3",)), ("c", ("i4",)))
    )
    first = opinion([one, same], [["i1"], ["i1"]])
    assert first[0] == first[1]
    assert opinion([other, one], [["i1"], ["i1"]])[1] == first[0]
    hook.remove()
    assert read == [1, 1]


def test_titles_of_several_tokens_cannot_be_judged(
    setting: Any, model: Any, tokenizer: Any, explore: ExploreConfig
) -> None:
    class Letters:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [ord(letter) for letter in text]

    with pytest.raises(PolicyError, match=r"titles are one token each, the tiny one, has an opinion .* to 'lists'"):
        OwnOpinion(model, Letters(), setting.titles, explore)


def test_some_lessons_show_a_short_history() -> None:
    generator = np.random.default_rng(0)
    example = Example("u", tuple(f"i{number}" for number in range(30)), "target")
    lengths = [len(_shortened(example, 0.5, generator).history) for _ in range(200)]
    assert 70 < sum(length == 30 for length in lengths) < 130
    assert set(lengths) - {30} == set(range(1, 10))
    assert _shortened(example, 0.9, generator).history[-1] == "i29"
    assert _shortened(Example("u", ("a",), "b"), 1.0, generator).history == ("a",)


def test_no_window_comes_twice() -> None:
    """Whatever the cut: the newest one could be cut again, and would be learnt twice."""
    for seed in range(30):
        cut = [tuple(window) for window in _windows([str(item) for item in range(13)], 6, np.random.default_rng(seed))]
        assert len(set(cut)) == len(cut)
        assert cut[0][-1] == "12"
