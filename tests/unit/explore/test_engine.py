"""The cached engine against a forward pass without a cache, on a random tiny model."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from deeprec.errors import PolicyError
from deeprec.explore.engine import TransformersGeneration, TransformersPolicy, _Grid

VOCABULARY = 60


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation=request.param,
    )
    return Qwen2ForCausalLM(config).eval()


def uncached_logprobs(model, tokens, temperature=1.0):
    """Log-probabilities (length, vocabulary) of the token after each position."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return torch.log_softmax(logits / temperature, dim=-1)


def check_segment(model, before, segment, *, greedy, temperature=1.0):
    table = uncached_logprobs(model, before + list(segment.token_ids), temperature)
    for offset, (token, logprob) in enumerate(zip(segment.token_ids, segment.logprobs, strict=True)):
        row = table[len(before) + offset - 1]
        assert abs(row[token].item() - logprob) < 1e-4
        if greedy:
            assert row.argmax().item() == token


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_turns_with_holes_equal_uncached_forward(model, temperature):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13], [14, 15, 16, 17]]
    tokens = [list(prompt) for prompt in prompts]
    generation = TransformersGeneration(model, prompts, seed=3)
    stops = set(range(0, VOCABULARY, 7))
    plan = [[0, 1, 2, 3, 4], [3, 0, 1, 4], [1, 4], [1], [2, 1], [0, 1, 2, 3, 4]]
    lengths = set()
    for turn, rows in enumerate(plan):
        segments = generation.generate(rows, stop_ids=stops, max_new_tokens=9, temperature=temperature)
        appended = []
        for row, segment in zip(rows, segments, strict=True):
            lengths.add(len(segment.token_ids))
            stopped = segment.token_ids[-1] in stops
            assert stopped or len(segment.token_ids) == 9
            assert not set(segment.token_ids[:-1]) & stops
            check_segment(model, tokens[row], segment, greedy=temperature == 0, temperature=temperature or 1.0)
            appended.append([(turn * 5 + row + place) % VOCABULARY for place in range(row)])
            tokens[row] += [*segment.token_ids, *appended[-1]]
        generation.append(rows, appended)
    assert len(lengths) > 2


def test_straggler_leaves_the_batch_and_returns(model):
    """One row writes far longer than the rest; its cache is given up in the step loop and read again."""
    prompts = [[row + 1, row + 2] for row in range(6)]
    generation = TransformersGeneration(model, prompts, seed=1)
    first = generation.generate(range(6), stop_ids=set(range(30)), max_new_tokens=40, temperature=1.0)
    assert len({len(segment.token_ids) for segment in first}) > 1
    again = generation.generate(range(6), stop_ids=set(), max_new_tokens=5, temperature=0.0)
    for row in range(6):
        check_segment(model, prompts[row], first[row], greedy=False)
        check_segment(model, prompts[row] + list(first[row].token_ids), again[row], greedy=True)


def test_packing_of_a_wasteful_grid(model):
    generation = TransformersGeneration(model, [[1, 2], [3]], seed=0)
    generation.append([0], [[5] * 40])
    tokens = [[1, 2] + [5] * 40, [3]]
    for turn in range(4):
        row = turn % 2
        for _ in range(2):
            (segment,) = generation.generate([row], stop_ids=set(), max_new_tokens=3, temperature=0.0)
            check_segment(model, tokens[row], segment, greedy=True)
            tokens[row] += segment.token_ids
    both = generation.generate([0, 1], stop_ids=set(), max_new_tokens=3, temperature=0.0)
    for row in (0, 1):
        check_segment(model, tokens[row], both[row], greedy=True)
        tokens[row] += both[row].token_ids
    generation.append([1], [[9] * 150])
    tokens[1] += [9] * 150
    for rows in ([0, 1], [0]):
        for row, segment in zip(
            rows, generation.generate(rows, stop_ids=set(), max_new_tokens=3, temperature=0.0), strict=True
        ):
            check_segment(model, tokens[row], segment, greedy=True)
            tokens[row] += segment.token_ids
    assert generation._grid.visible.shape[1] < 100


def test_the_seed_fixes_sampling(model):
    def sample(seed):
        generation = TransformersGeneration(model, [[1, 2], [3]], seed)
        return generation.generate([0, 1], stop_ids=set(), max_new_tokens=12, temperature=1.0)

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


def test_sampling_follows_the_distribution(model):
    rows = 4000
    generation = TransformersGeneration(model, [[1, 2, 3]] * rows, seed=0)
    segments = generation.generate(range(rows), stop_ids=set(), max_new_tokens=1, temperature=1.0)
    counts = torch.bincount(torch.tensor([segment.token_ids[0] for segment in segments]), minlength=VOCABULARY)
    expected = uncached_logprobs(model, [1, 2, 3])[-1].exp()
    assert (counts / rows - expected).abs().max() < 0.03


def test_training_mode_is_restored_and_gradients_still_flow(model):
    model.train()
    generation = TransformersGeneration(model, [[1, 2, 3]], seed=0)
    (segment,) = generation.generate([0], stop_ids=set(), max_new_tokens=4, temperature=1.0)
    assert model.training
    model(input_ids=torch.tensor([[1, 2, 3, *segment.token_ids]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad(set_to_none=True)
    model.eval()


def test_bad_starts_are_refused(model):
    with pytest.raises(PolicyError, match="no tokens"):
        TransformersGeneration(model, [[1], []], seed=0)
    tokenizer = type("Tokenizer", (), {"eos_token_id": None})()
    with pytest.raises(PolicyError, match="end-of-text"):
        TransformersPolicy(model, tokenizer)


def test_a_group_reads_its_prompt_once(model, monkeypatch):
    """Two groups side by side; what follows the prompt is each row's own."""
    prompts = [[4, 5, 6, 7, 8, 9], [1, 2, 3]] * 3
    read = []
    forward = TransformersGeneration._forward

    def counted(self, grid, ids, real):
        read.append(int(real.sum()))
        return forward(self, grid, ids, real)

    monkeypatch.setattr(TransformersGeneration, "_forward", counted)
    generation = TransformersGeneration(model, prompts, seed=2)
    first = generation.generate(range(6), stop_ids=set(), max_new_tokens=4, temperature=1.0)
    assert read == [9, 6, 6, 6]
    assert len({segment.token_ids for segment in first}) == 6
    appended = [[20 + row] * (row + 1) for row in range(6)]
    generation.append(range(6), appended)
    rows = [5, 0, 3, 2]
    second = generation.generate(rows, stop_ids=set(), max_new_tokens=4, temperature=0.0)
    for row in range(6):
        check_segment(model, prompts[row], first[row], greedy=False)
    for row, segment in zip(rows, second, strict=True):
        before = [*prompts[row], *first[row].token_ids, *appended[row]]
        check_segment(model, before, segment, greedy=True)


class Only:
    """Allows the given tokens at each step in turn, then anything."""

    def __init__(self, *steps):
        self.steps, self.taken = list(steps), []

    @property
    def allowed(self):
        place = len(self.taken)
        allowed = self.steps[place] if place < len(self.steps) else None
        return None if allowed is None else dict.fromkeys(allowed, 0.0)

    def take(self, token):
        self.taken.append(token)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rules_choose_among_what_they_allow_and_so_do_the_logprobs(model, temperature):
    prompts = [[1, 2, 3], [4, 5, 6, 7], [8, 9]]
    generation = TransformersGeneration(model, prompts, seed=1)
    rules = [Only((11, 12), None, (13,)), Only(None, (20, 21, 22), (0, 1)), Only()]
    segments = generation.generate(
        [2, 0, 1], stop_ids={99}, max_new_tokens=5, temperature=temperature, rules=[rules[2], rules[0], rules[1]]
    )
    for row, rule, segment in zip([2, 0, 1], [rules[2], rules[0], rules[1]], segments, strict=True):
        assert tuple(rule.taken) == segment.token_ids
        tokens = prompts[row] + list(segment.token_ids)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0] / (temperature or 1.0)
        for step, (token, logprob) in enumerate(zip(segment.token_ids, segment.logprobs, strict=True)):
            allowed = rule.steps[step] if step < len(rule.steps) else None
            kept = list(allowed or range(VOCABULARY))
            assert token in kept
            table = logits[len(prompts[row]) + step - 1, kept].log_softmax(-1)
            assert abs(float(table[kept.index(token)]) - logprob) < 1e-4
            if not temperature:
                assert kept.index(token) == int(table.argmax())


@pytest.fixture
def read(monkeypatch):
    """Real cells of each forward pass."""
    read = []
    forward = TransformersGeneration._forward

    def counted(self, grid, ids, real):
        read.append(real.sum(1).tolist())
        return forward(self, grid, ids, real)

    monkeypatch.setattr(TransformersGeneration, "_forward", counted)
    return read


def test_what_a_rule_leaves_no_choice_about_is_read_with_the_choice_before_it(model, read):
    """Rows have their certain tokens in different places; the log-probability of one is 0."""
    prompts = [[1, 2, 3], [4, 5]]
    rules = [Only((11, 12), (13,), (14,), (15, 16), None), Only((20, 21), (22, 23), (24,), (25, 26), (27,))]
    generation = TransformersGeneration(model, prompts, seed=1)
    segments = generation.generate([0, 1], stop_ids={99}, max_new_tokens=5, temperature=1.0, rules=rules)
    assert read == [[3, 2], [3, 1], [1, 2]]
    for segment, rule in zip(segments, rules, strict=True):
        assert tuple(rule.taken) == segment.token_ids
        assert [len(allowed or ()) == 1 for allowed in rule.steps] == [logprob == 0 for logprob in segment.logprobs]
    after = generation.generate([1, 0], stop_ids=set(), max_new_tokens=4, temperature=0.0)
    for row, segment in zip([1, 0], after, strict=True):
        check_segment(model, prompts[row] + list(segments[row].token_ids), segment, greedy=True)


def test_a_certain_token_can_be_the_last(model, read):
    """By being a stop token, or by the limit."""
    rules = [Only((11, 12), (13,), (14,)), Only((21, 22), (23,), (24,), (25,))]
    generation = TransformersGeneration(model, [[1, 2], [3]], seed=1)
    segments = generation.generate([0, 1], stop_ids={13}, max_new_tokens=3, temperature=0.7, rules=rules)
    assert [segment.token_ids[1:] for segment in segments] == [(13,), (23, 24)]
    assert len(read) == 1


def test_a_certain_token_outside_the_vocabulary_is_not_written(model):
    generation = TransformersGeneration(model, [[1, 2]], seed=1)
    rule = Only((11, 12), (VOCABULARY,), (13,))
    (segment,) = generation.generate([0], stop_ids=set(), max_new_tokens=3, temperature=0.0, rules=[rule])
    assert max(segment.token_ids) < VOCABULARY


def test_holes_of_certain_tokens_are_packed_while_rows_write(model, monkeypatch):
    """Each row has its certain stretches where the others choose: without packing, three columns in four were holes."""
    columns = []
    take = _Grid.take
    monkeypatch.setattr(_Grid, "take", lambda grid, places: columns.append(grid.visible.shape[1]) or take(grid, places))
    prompts = [[1, 2], [3], [4, 5], [6]]
    rules = [
        Only(*[step for line in range(20) for step in ((line, line + 1), *[(30,)] * (9 if line % 4 == row else 0))])
        for row in range(4)
    ]
    generation = TransformersGeneration(model, prompts, seed=1)
    segments = generation.generate(range(4), stop_ids=set(), max_new_tokens=60, temperature=0.0, rules=rules)
    assert len(columns) > 2
    assert generation._grid.visible.shape[1] < 1.5 * 62
    after = generation.generate(range(4), stop_ids=set(), max_new_tokens=3, temperature=0.0)
    for prompt, segment, later in zip(prompts, segments, after, strict=True):
        check_segment(model, prompt + list(segment.token_ids), later, greedy=True)
