"""The loop: every way to end, what is recorded, batching, deadlines; and one run with a real tiny model."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from deeprec.errors import ProtocolError
from deeprec.explore.engine import TransformersPolicy
from deeprec.explore.rollout import rollout
from deeprec.types import Conditions, EndReason, Example, Filter

BROAD = "\nLook.\n<|begin_of_preference|>anything<|end_of_preference|>"
NARROW = "Closer.\n<|begin_of_preference|> Comedy; 1990s <|end_of_preference|>"
ANSWER = "Rank.\n</think>\n<recommendation_list>\n1. Film 4\n2. Film 29\n3. Film\n</recommendation_list>"


def examples(count=1):
    return [Example(f"u{row}", ("i0", "i1"), "i4") for row in range(count)]


def run(policy, retriever, titles, config, tasks=None, **options):
    options = {"temperature": 1.0, "seed": 0, **options}
    return rollout(policy, retriever, titles, tasks or examples(), config, **options)


def until(*deadlines):
    return {"conditions": [Conditions(deadline=deadline) for deadline in deadlines]}


def test_a_whole_rollout(character_policy, retriever, titles, config):
    policy = character_policy([[BROAD, NARROW, ANSWER]])
    (trajectory,) = run(policy, retriever, titles, config)
    first = "\n<|begin_of_item_list|>\n1. Film 2 | 97\n2. Film 3 | 95\n3. Film 4 | 93\n4. Film 5 | 91\n"
    assert trajectory.text.startswith(BROAD + first + "<|end_of_item_list|>\nCloser.")
    assert trajectory.text.endswith(ANSWER)
    assert trajectory.end is EndReason.ANSWERED
    assert [(call.preference, call.phrases) for call in trajectory.calls] == [
        ("anything", ()),
        ("Comedy; 1990s", ("comedy", "1990s")),
    ]
    assert trajectory.answer == ("i4", None, None)
    assert trajectory.example_key == "u0@2"
    assert [query.preference for batch in retriever.batches for query in batch] == [(), ("comedy", "1990s")]
    assert policy.decode(trajectory.prompt_ids) == "History:\n1. Film 0\n2. Film 1\nNext: \n<think>"


def test_mask_ids_and_logprobs_align(character_policy, retriever, titles, config):
    policy = character_policy([[BROAD, NARROW, ANSWER]])
    (trajectory,) = run(policy, retriever, titles, config)
    assert len(trajectory.completion_ids) == len(trajectory.loss_mask) == len(trajectory.logprobs)
    written = [token for token, mask in zip(trajectory.completion_ids, trajectory.loss_mask, strict=True) if mask]
    assert policy.decode(written) == BROAD + NARROW + ANSWER
    assert trajectory.completion_ids[-1] == policy.eos_id
    assert trajectory.loss_mask[-1] == 0
    assert policy.decode(trajectory.completion_ids[:-1]) == trajectory.text
    assert {(mask, value) for mask, value in zip(trajectory.loss_mask, trajectory.logprobs, strict=True)} == {
        (1, -0.5),
        (0, 0.0),
    }


def test_a_held_answer_may_name_what_all_calls_so_far_returned(character_policy, retriever, titles, config):
    held = config.model_copy(update={"answers": "retrieved"})

    def answered(*rows, **options):
        lines = "".join(f"{line}. Film {row}\n" for line, row in enumerate(rows, start=1))
        written = f"Rank.\n</think>\n<recommendation_list>\n{lines}</recommendation_list>"
        policy = character_policy([[BROAD, NARROW, written]])
        (trajectory,) = run(policy, retriever, titles, held, **options)
        return trajectory.answer

    assert answered(5, 2, 4) == ("i5", "i2", "i4"), "of the first list, in an order of its own"
    (free,) = run(character_policy([[BROAD, NARROW, ANSWER]]), retriever, titles, config)
    of_the_second = max(int(item.item_id[1:]) for item in free.calls[1].items)
    assert of_the_second > 5
    assert answered(4, of_the_second, 2) == ("i4", f"i{of_the_second}", "i2")
    assert answered(5, 2, 4, **until(time.monotonic() + 60)) == ("i5", "i2", "i4"), "in slices"
    for rows in ((4, 4, 2), (4, 29, 2), (4, 2)):
        with pytest.raises(AssertionError, match="what its rule bars"):
            answered(*rows)


@pytest.mark.parametrize(
    ("script", "changes", "end", "calls"),
    [
        (["<|begin_of_preference|> ; <|end_of_preference|>"], {}, EndReason.EMPTY_PREFERENCE, 0),
        ([BROAD, NARROW, NARROW, BROAD], {}, EndReason.CALL_LIMIT, 3),
        ([BROAD, NARROW], {"max_new_tokens": 20}, EndReason.SEGMENT_LIMIT, 1),
        ([BROAD, NARROW], {"max_context": 400}, EndReason.CONTEXT_LIMIT, 2),
        ([BROAD], {"max_context": 100}, EndReason.CONTEXT_LIMIT, 0),
        ([BROAD], {"max_context": 10}, EndReason.CONTEXT_LIMIT, 0),
        ([BROAD, "enough.<eos>"], {}, EndReason.OUTSIDE_PROTOCOL, 1),
        (["comedy<|end_of_preference|>"], {}, EndReason.OUTSIDE_PROTOCOL, 0),
        (["1. Film 4\n</recommendation_list>"], {}, EndReason.OUTSIDE_PROTOCOL, 0),
        ([ANSWER], {}, EndReason.ANSWERED, 0),
    ],
)
def test_ends(character_policy, retriever, titles, config, script, changes, end, calls):
    config = config.model_copy(update=changes)
    policy = character_policy([script])
    (trajectory,) = run(policy, retriever, titles, config)
    assert trajectory.end is end
    assert len(trajectory.calls) == calls
    assert len(trajectory.completion_ids) == len(trajectory.loss_mask) == len(trajectory.logprobs)
    assert len(trajectory.prompt_ids) + len(trajectory.completion_ids) <= max(
        config.max_context, len(trajectory.prompt_ids)
    )
    if end is not EndReason.ANSWERED:
        assert trajectory.answer == ()
        assert policy.decode(trajectory.completion_ids) == trajectory.text


def test_an_item_that_was_not_retrieved_is_not_answered(character_policy, retriever, titles, config):
    (trajectory,) = run(character_policy([[ANSWER]]), retriever, titles, config)
    assert trajectory.answer == (None, None, None)


def test_one_generate_and_one_retrieve_per_turn(character_policy, retriever, titles, config):
    scripts = [[BROAD, ANSWER], [ANSWER], [BROAD, NARROW, ANSWER], ["over<eos>"]]
    policy = character_policy(scripts)
    turns: list[tuple[int, list[int]]] = []
    found = run(
        policy,
        retriever,
        titles,
        config,
        examples(4),
        on_turn=lambda *turn: turns.append(turn),
    )
    assert [entry[1] for entry in policy.log if entry[0] == "generate"] == [[0, 1, 2, 3], [0, 2], [2]]
    assert [len(batch) for batch in retriever.batches] == [2, 1]
    assert turns == [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [2])]
    assert [trajectory.user_id for trajectory in found] == ["u0", "u1", "u2", "u3"]
    alone = [run(character_policy([script]), retriever, titles, config)[0].text for script in scripts]
    assert [trajectory.text for trajectory in found] == alone


def test_batches_have_their_own_seeds(character_policy, retriever, titles, config):
    config = config.model_copy(update={"batch_size": 2})
    policy = character_policy([[ANSWER]] * 5)
    found = run(policy, retriever, titles, config, examples(5), seed=7)
    assert [trajectory.user_id for trajectory in found] == [f"u{row}" for row in range(5)]
    assert [size for size, _ in policy.started] == [2, 2, 1]
    assert len({seed for _, seed in policy.started}) == 3
    again = character_policy([[ANSWER]] * 5)
    run(again, retriever, titles, config, examples(5), seed=7)
    assert again.started == policy.started


def test_what_each_request_asks_reaches_its_own_queries(character_policy, retriever, titles, config):
    condition = Filter("year", ">=", 1990)
    asked = [Conditions(("horror",), frozenset({"i2"}), (condition,), True), Conditions(("drama",))]
    run(
        character_policy([[BROAD, NARROW, ANSWER]] * 2),
        retriever,
        titles,
        config,
        examples(2),
        conditions=asked,
    )
    first, second = zip(*retriever.batches, strict=True)
    assert [query.preference for query in first] == [("horror",), ("horror", "comedy", "1990s")]
    assert all(query.filters == (condition,) and query.exclude == {"i2"} and query.allow_seen for query in first)
    assert [query.preference for query in second] == [("drama",), ("drama", "comedy", "1990s")]
    assert not any(query.filters or query.exclude or query.allow_seen for query in second)


def test_conditions_are_as_many_as_examples(character_policy, retriever, titles, config):
    with pytest.raises(ValueError, match="2 examples have 1 conditions"):
        run(character_policy([[ANSWER]] * 2), retriever, titles, config, examples(2), conditions=[Conditions()])


def test_fresh_lists_leave_out_what_the_rollout_has_found(character_policy, retriever, titles, config):
    fresh = config.model_copy(update={"fresh_lists": True})
    policy = character_policy([[BROAD, BROAD, BROAD, ANSWER], [BROAD, ANSWER]])
    asked = [Conditions(exclude=frozenset({"i3"}))] * 2
    first, second = run(policy, retriever, titles, fresh, examples(2), conditions=asked)
    lists = [[item.item_id for item in call.items] for call in first.calls]
    assert lists == [[f"i{row}" for row in rows] for rows in ((2, 4, 5, 6), (7, 8, 9, 10), (11, 12, 13, 14))]
    assert [item.item_id for item in second.calls[0].items] == lists[0], "each rollout for itself"
    assert first.answer[0] == "i4", "what an earlier list held can be answered"


def test_a_passed_deadline_ends_its_own_rollout_and_no_other(character_policy, retriever, titles, config):
    policy = character_policy([[BROAD, ANSWER]] * 3)
    past, far = time.monotonic() - 1, time.monotonic() + 60
    found = run(policy, retriever, titles, config, examples(3), **until(past, None, far))
    assert [one.end for one in found] == [EndReason.DEADLINE, EndReason.ANSWERED, EndReason.ANSWERED]
    assert next(entry[1] for entry in policy.log if entry[0] == "generate") == [1, 2]
    assert found[0].completion_ids == ()


def test_a_deadline_in_the_middle_keeps_what_was_written(character_policy, retriever, titles, config, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("deeprec.explore.rollout.time.monotonic", lambda: next(clock))
    policy = character_policy([[BROAD, "x" * 500], [BROAD, "y" * 500], [BROAD, ANSWER]])
    early, late, free = run(policy, retriever, titles, config, examples(3), **until(6, 9, None))
    assert (early.end, late.end, free.end) == (EndReason.DEADLINE, EndReason.DEADLINE, EndReason.ANSWERED)
    for one in (early, late):
        assert len(one.calls) == 1
        assert policy.decode(one.completion_ids) == one.text
    assert len(early.completion_ids) < len(late.completion_ids)
    limits = [(rows, limit) for name, rows, limit in (entry for entry in policy.log if entry[0] == "generate")]
    assert all(limit <= 32 for rows, limit in limits if set(rows) & {0, 1})


def test_calls_are_told_as_they_happen(character_policy, retriever, titles, config):
    told = []
    policy = character_policy([[BROAD, ANSWER], [BROAD, NARROW, ANSWER], [BROAD, ANSWER]])
    found = run(
        policy,
        retriever,
        titles,
        config.model_copy(update={"batch_size": 2}),
        examples(3),
        on_turn=lambda turn, rows: told.append((turn, rows)),
        on_call=lambda row, call, text: told.append((row, call, text)),
        on_end=lambda row, trajectory: told.append((row, trajectory)),
    )
    assert told == [
        (1, [0, 1]),
        (0, found[0].calls[0], BROAD),
        (1, found[1].calls[0], BROAD),
        (2, [0, 1]),
        (1, found[1].calls[1], NARROW),
        (0, found[0]),
        (3, [1]),
        (1, found[1]),
        (1, [2]),
        (2, found[2].calls[0], BROAD),
        (2, [2]),
        (2, found[2]),
    ]


def test_a_call_whose_list_does_not_fit_is_not_told(character_policy, retriever, titles, config):
    told = []
    config = config.model_copy(update={"max_context": 100})
    (trajectory,) = run(
        character_policy([[BROAD]]), retriever, titles, config, on_call=lambda row, call, text: told.append(call)
    )
    assert trajectory.end is EndReason.CONTEXT_LIMIT
    assert told == []


def test_a_tokenizer_without_the_markup_is_refused(character_policy, retriever, titles, config):
    policy = character_policy([[ANSWER]])
    policy._special = ("<eos>",)
    policy._pattern = type(policy)([])._pattern
    policy.encode = lambda text: [1] * len(text)
    with pytest.raises(ProtocolError, match="special tokens"):
        run(policy, retriever, titles, config)


class CharacterTokenizer:
    """The fake policy's characters, folded into the vocabulary of a tiny model."""

    eos_token_id = 0

    def __init__(self, policy):
        self._policy = policy

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [token if token < 100 else 9 + (token - 100) % 12 for token in self._policy.encode(text)]

    def decode(self, token_ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert not skip_special_tokens
        assert not clean_up_tokenization_spaces
        return self._policy.decode([token if token < 9 else token - 9 + 100 + ord("a") for token in token_ids])


def test_end_to_end_with_a_random_model(character_policy, retriever, titles, config):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=21,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    policy = TransformersPolicy(model, CharacterTokenizer(character_policy([])))
    config = config.model_copy(update={"max_new_tokens": 40, "batch_size": 24})
    found = run(policy, retriever, titles, config, examples(40), seed=1)
    assert found == run(policy, retriever, titles, config, examples(40), seed=1)
    assert found != run(policy, retriever, titles, config, examples(40), seed=2)
    assert any(trajectory.calls for trajectory in found)
    for trajectory in found:
        tokens = [*trajectory.prompt_ids, *trajectory.completion_ids]
        with torch.no_grad():
            table = torch.log_softmax(model.eval()(input_ids=torch.tensor([tokens])).logits[0], dim=-1)
        start = len(trajectory.prompt_ids)
        for place, (token, mask) in enumerate(zip(trajectory.completion_ids, trajectory.loss_mask, strict=True)):
            expected = table[start + place - 1, token].item() if mask else 0.0
            assert abs(expected - trajectory.logprobs[place]) < 1e-4
