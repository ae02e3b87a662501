"""What an answer may be written with: every way through a rule is an answer of distinct retrieved titles."""

import math
import random
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deeprec.config import ExploreConfig
from deeprec.explore.answers import AnswerForm, AnswerRule, AnswerRules, answer_rules
from deeprec.explore.fusion import merged_weights
from deeprec.explore.protocol import ANSWER_CLOSE, ANSWER_OPEN, MARKUP, AnswerText, parse_segment
from deeprec.explore.tokens import TokenizedPolicy
from deeprec.policy.tiny import build_tokenizer
from deeprec.types import Call, EndReason, RetrievedItem, Trajectory

from .conftest import CharacterPolicy

QWEN_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenized(TokenizedPolicy):
    def start(self, prompts, *, seed=None):
        raise NotImplementedError


def byte_pairs(titles):
    """A byte-level tokenizer that cuts text as Qwen's does, with merges over line ends such as ``)\\n``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [f"{line}. {title} (1995)\n" for line, title in enumerate(titles.titles, start=1)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", extra_special_tokens=list(MARKUP))


@pytest.fixture(params=["characters", "titles", "byte pairs"])
def policy(request, titles, config):
    if request.param == "characters":
        return CharacterPolicy([])
    if request.param == "titles":
        return Tokenized(build_tokenizer(titles.titles, ["comedy"], [], MARKUP, ["Done."], config))
    return Tokenized(byte_pairs(titles))


def call(*rows):
    return Call("anything", (), tuple(RetrievedItem(f"i{row}", 0.5) for row in rows))


def written(rule, policy, start, choose):
    """Follow a rule from the opening markup to the end; ``choose`` picks among what is allowed."""
    tokens = policy.encode(start)
    for token in tokens:
        rule.take(token)
    while (allowed := rule.allowed) is not None:
        assert list(allowed) == sorted(allowed) != []
        tokens.append(choose(list(allowed)))
        rule.take(tokens[-1])
    return tokens


def test_every_way_through_is_a_whole_answer_of_distinct_retrieved_titles(policy, titles):
    rules = AnswerRules(policy, titles, 5)
    found = [titles.title(f"i{row}") for row in (1, 2, 3, 10, 12, 29)]
    for seed in range(40):
        generator = random.Random(seed)
        rule = rules.rule([call(1, 10, 12), call(2, 3, 29, 1)])
        tokens = written(rule, policy, f"Done.\n</think>\n{ANSWER_OPEN}", generator.choice)
        answer = parse_segment(policy.decode(tokens))
        assert isinstance(answer, AnswerText)
        assert len(set(answer.titles)) == len(answer.titles) == 5
        assert set(answer.titles) <= set(found)


def test_every_retrieved_title_can_be_written_as_the_policy_was_taught(policy, titles):
    rules = AnswerRules(policy, titles, 3)
    for rows in ((1, 10, 12), (12, 1, 10), (10, 12, 1)):
        lines = "".join(f"{line}. {titles.title(f'i{row}')}\n" for line, row in enumerate(rows, start=1))
        tokens = policy.encode(f"Done.\n</think>\n{ANSWER_OPEN}\n{lines}{ANSWER_CLOSE}")
        rule = rules.rule([call(1, 10, 12)])
        for token in tokens:
            assert rule.allowed is None or token in rule.allowed
            rule.take(token)
        assert rule.allowed is None


def test_a_rule_holds_the_answer_alone(policy, titles):
    rule = AnswerRules(policy, titles, 3).rule([call(1, 2, 3)])
    for token in policy.encode("Film 9 and so on, at length. </think>\n"):
        assert rule.allowed is None
        rule.take(token)
    for token in policy.encode(ANSWER_OPEN):
        rule.take(token)
    assert rule.allowed is not None


def test_what_was_not_retrieved_cannot_be_written_and_short_lists_give_short_answers(policy, titles):
    assert not policy.decode(written(AnswerRules(policy, titles, 3).rule(()), policy, ANSWER_OPEN, min)).count("Film")
    tokens = written(AnswerRules(policy, titles, 3).rule([call(7, 8)]), policy, ANSWER_OPEN, min)
    answer = parse_segment(policy.decode(tokens))
    assert sorted(answer.titles) == ["Film 7", "Film 8"]


def test_a_rule_lets_go_after_a_token_that_it_did_not_allow(policy, titles):
    rule = AnswerRules(policy, titles, 3).rule([call(7, 8)])
    rule.take(policy.encode(ANSWER_OPEN)[0])
    rule.take(policy.eos_id)
    assert rule.allowed is None
    rule.take(policy.encode("x")[0])
    assert rule.allowed is None


def test_a_described_rule_goes_on_where_it_was(policy, titles):
    rules = AnswerRules(policy, titles, 4, list_weight=0.5)
    rule = rules.rule([call(1, 10, 12, 2, 20)])
    generator = random.Random(0)
    for token in policy.encode(f"Done.\n{ANSWER_OPEN}"):
        rule.take(token)
    steps = 0
    while (allowed := rule.allowed) is not None:
        copy = AnswerRule.read(rule.describe())
        assert copy.allowed == allowed
        token = generator.choice(list(allowed))
        copy.take(token)
        rule.take(token)
        assert copy.allowed == rule.allowed
        steps += 1
    assert steps >= 9


def test_a_finished_trajectory_tells_what_was_allowed_where(policy, titles):
    rules = AnswerRules(policy, titles, 2, list_weight=1.0)
    ask, listed = policy.encode("a\n<|begin_of_preference|>"), policy.encode("\n1. Film 4\n")
    rule = rules.rule([call(4, 5), call(6)])
    answer = policy.encode(ANSWER_OPEN)
    for token in answer:
        rule.take(token)
    expected = {}
    while (allowed := rule.allowed) is not None:
        expected[len(answer)] = allowed
        answer.append(max(allowed))
        rule.take(max(allowed))
    ids, mask = [], []
    for tokens, own in ((ask, 1), (listed, 0), (ask, 1), (listed, 0), (answer, 1), ([policy.eos_id], 0)):
        ids += tokens
        mask += [own] * len(tokens)
    made = Trajectory(
        "u@1", "u", (1,), tuple(ids), tuple(mask), (0.0,) * len(ids), "", (call(4, 5), call(6)), (), EndReason.ANSWERED
    )
    begin = 2 * len(ask) + 2 * len(listed)
    assert rules.allowed(made) == {begin + place: tokens for place, tokens in expected.items()}


def test_the_lists_order_speaks_for_titles(policy, titles):
    """A policy without an opinion writes a title as often as its merged weight says, λ = 1, however it is cut."""
    calls = [call(1, 10, 12), call(2, 10)]
    weights = merged_weights([one.items for one in calls])
    shares = {}
    for item_id in weights:
        rule = AnswerRules(policy, titles, 1, list_weight=1.0).rule(calls)
        title = titles.title(item_id)
        share = 1.0
        for token in policy.encode(f"{ANSWER_OPEN}\n1. {title}\n{ANSWER_CLOSE}"):
            allowed = rule.allowed
            if allowed is not None:
                share *= math.exp(allowed[token]) / sum(map(math.exp, allowed.values()))
            rule.take(token)
        shares[item_id] = share
    assert shares == pytest.approx({item_id: weight / sum(weights.values()) for item_id, weight in weights.items()})


def test_without_a_weight_the_lists_say_nothing(policy, titles):
    rule = AnswerRules(policy, titles, 3).rule([call(1, 10, 12), call(2, 10)])
    added = []
    written(rule, policy, ANSWER_OPEN, lambda allowed: added.extend(rule.allowed.values()) or allowed[0])
    assert set(added) == {0.0}


def test_answers_are_held_where_the_configuration_says_so(policy, titles):
    assert answer_rules(policy, titles, ExploreConfig()) is None
    rules = answer_rules(policy, titles, ExploreConfig(answers="retrieved", list_weight=2.0))
    expected = AnswerRules(policy, titles, 10, list_weight=2.0)
    assert rules.rule([call(1, 2)]).describe() == expected.rule([call(1, 2)]).describe()


def test_the_tokenizers_own_cut_decides_the_form(titles, config):
    plain = AnswerForm.of(Tokenized(build_tokenizer(titles.titles, [], [], MARKUP, [], config)), titles, 3)
    assert (plain.before, plain.after, plain.head) == ("", "", ())
    pairs = Tokenized(byte_pairs(titles))
    behind = AnswerForm.of(pairs, titles, 3)
    assert (behind.before, behind.after, pairs.decode(behind.head)) == (" ", "\n", "\n")


def test_a_tokenizer_that_loses_text_is_refused(titles, config):
    from deeprec.errors import ProtocolError

    lossy = SimpleNamespace(encode=lambda text: [1] * len(text), decode=lambda tokens: "?" * len(tokens), eos_id=0)
    with pytest.raises(ProtocolError, match=r"explore\.answers"):
        AnswerForm.of(lossy, titles, 3)


@pytest.mark.parametrize("described", ["", "[]", '{"a": 1}', '[[1,[],[[1]],[1],"",""],["a"],0.0,0,[],null]'])
def test_what_is_no_described_rule_is_refused(described):
    with pytest.raises(ValueError, match="validation error"):
        AnswerRule.read(described)
