"""The logits processor that vLLM loads: which rows it masks, in the batches of either of vLLM's model runners.

What asks for vLLM's own classes is skipped where vLLM cannot be imported; ``test_engine_contract.py`` runs the whole.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deeprec.explore.answers import AnswerForm, AnswerRule
from deeprec.explore.masks import hold_
from deeprec.explore.vllm_engine import RULE_ARGUMENT
from deeprec.explore.vllm_rules import NEVER, RuleProcessor

OPENING, VOCABULARY = 9, 12
TITLES = {(4, 5): 1.0, (4, 6): 0.5, (7,): 0.25}
GROUP = "vllm.logits_processors"
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; its runners are met where it is"
)


def answer_rule(*before):
    """Two lines numbered 1 and 2, closed with 3, after the tokens ``before``."""
    rule = AnswerRule(AnswerForm(OPENING, (), ((1,), (2,)), (3,), "", ""), TITLES)
    for token in before:
        rule.take(token)
    return rule


def request(rule=None, **fields):
    arguments = {RULE_ARGUMENT: rule.describe()} if rule else None
    return SimpleNamespace(extra_args=arguments, bad_words=[], _bad_words_token_ids=None, **fields)


def finite(logits):
    return [tuple(row.isfinite().nonzero().flatten().tolist()) for row in logits]


EVERY = tuple(range(VOCABULARY))


def test_a_row_keeps_its_allowed_logits_alone():
    logits = torch.arange(3.0 * VOCABULARY).reshape(3, VOCABULARY)
    before = logits.clone()
    hold_(logits, {0: {2: 0.0, 7: 0.0}, 2: {VOCABULARY - 1: 0.0, VOCABULARY: 0.0, -1: 0.0}})
    assert finite(logits) == [(2, 7), EVERY, (VOCABULARY - 1,)]
    assert torch.equal(logits[logits.isfinite()], before[logits.isfinite()])


def test_what_speaks_for_a_token_is_added_to_its_logit():
    logits = torch.arange(2.0 * VOCABULARY).reshape(2, VOCABULARY)
    held = hold_(logits, {1: {3: -0.5, 8: 2.0, VOCABULARY: 9.0}})
    assert held is logits
    assert finite(logits) == [EVERY, (3, 8)]
    assert logits[1, [3, 8]].tolist() == [VOCABULARY + 3 - 0.5, VOCABULARY + 8 + 2.0]


def test_a_row_that_may_write_nothing_known_is_left():
    logits = torch.zeros(2, VOCABULARY)
    hold_(logits, {})
    hold_(logits, {1: {VOCABULARY: 1.0}})
    assert torch.equal(logits, torch.zeros(2, VOCABULARY))


class SecondRunner:
    """As much of V2's batches as the processor reads: slots, their prompts and tokens, and the rows of a step."""

    def __init__(self, slots=6, length=32):
        self.tokens = torch.full((slots, length), -9)
        self.prompts = np.zeros(slots, dtype=np.int32)
        view = SimpleNamespace(
            all_token_ids=SimpleNamespace(gpu=self.tokens), prompt_len=SimpleNamespace(np=self.prompts)
        )
        self.processor = RuleProcessor(None, view)

    def add(self, slot, params, prompt, written=()):
        self.prompts[slot] = len(prompt)
        self.tokens[slot, : len(prompt) + len(written)] = torch.tensor([*prompt, *written])
        return self.processor.add_request(slot, params)

    def step(self, *rows):
        """Masks of the rows; a row is a slot, the position it reads, and drafts that are read after it."""
        layout = []
        for slot, position, *drafts in rows:
            layout.append((slot, position, int(self.tokens[slot, position]), 0))
            layout += [(slot, position + place, draft, place) for place, draft in enumerate(drafts, start=1)]
        slots, positions, read, places = torch.tensor(layout, dtype=torch.int32).T
        ctx = SimpleNamespace(
            idx_mapping_np=np.array([row[0] for row in rows]),
            expanded_idx_mapping=slots,
            expanded_local_pos=places,
            pos=positions.long(),
            input_ids=read,
        )
        logits = torch.zeros(len(layout), VOCABULARY)
        return finite(self.processor.apply(logits, ctx))


def test_v2_masks_the_rows_of_ruled_requests_in_whatever_order():
    runner = SecondRunner()
    assert not runner.add(0, request(), [8, 8])
    assert runner.add(4, request(answer_rule(OPENING)), [8, 8, 8])
    assert runner.add(2, request(answer_rule()), [8])
    assert runner.step((0, 1), (4, 1), (2, 0)) == [EVERY, EVERY, EVERY]
    assert runner.step((4, 2)) == [(1,)]
    runner.tokens[4, 3], runner.tokens[2, 1], runner.tokens[0, 2] = 1, OPENING, OPENING
    assert runner.step((2, 1), (0, 2), (4, 3)) == [(1,), EVERY, (4, 7)]
    runner.tokens[4, 4], runner.tokens[2, 2] = 4, 1
    assert runner.step((4, 4), (2, 2)) == [(5, 6), (4, 7)]
    assert runner.step((0, 2)) == [EVERY]


def test_v2_gives_a_slot_to_another_request():
    runner = SecondRunner()
    runner.add(1, request(answer_rule(OPENING)), [8])
    assert runner.step((1, 0)) == [(1,)]
    runner.add(1, request(answer_rule(OPENING, 1)), [8, 8])
    assert runner.step((1, 1)) == [(4, 7)]
    runner.add(1, request(), [8])
    assert runner.step((1, 0)) == [EVERY]


def test_v2_resumes_a_request_with_what_it_had_written():
    runner = SecondRunner()
    runner.add(3, request(answer_rule()), [8, 8], written=[8, OPENING, 1, 4])
    assert runner.step((3, 1)) == [EVERY]
    assert runner.step((3, 4)) == [(4, 7)]
    assert runner.step((3, 5)) == [(5, 6)]


def test_v2_holds_a_row_to_what_may_come_after_the_drafts_before_it():
    runner = SecondRunner()
    runner.add(0, request(answer_rule(OPENING)), [8])
    runner.add(5, request(), [8])
    assert runner.step((0, 0, 1, 4, 5), (5, 0, 1)) == [(1,), (4, 7), (5, 6), (2,), EVERY, EVERY]
    runner.tokens[0, 1:3] = torch.tensor([1, 7])
    assert runner.step((0, 2, 2)) == [(2,), (4,)]


def test_placeholders_in_place_of_tokens_are_no_tokens():
    runner = SecondRunner()
    runner.add(0, request(answer_rule(OPENING)), [8], written=[-1])
    with pytest.raises(RuntimeError, match="--no-async-scheduling"):
        runner.step((0, 1))


def test_an_unreadable_rule_is_refused_when_its_request_comes_in():
    for described in ("{", "[]", "[[1, 2], 3]", 7):
        params = SimpleNamespace(extra_args={RULE_ARGUMENT: described}, bad_words=[])
        with pytest.raises(ValueError, match=RULE_ARGUMENT):
            RuleProcessor.validate_params(params)


def test_a_ruled_request_asks_for_its_tokens_and_others_are_left_alone():
    ruled, free, other = request(answer_rule()), request(), request(answer_rule())
    other.bad_words = ["no"]
    for params in (ruled, free, other, SimpleNamespace(extra_args={"another": 1})):
        RuleProcessor.validate_params(params)
    assert ruled._bad_words_token_ids == [list(NEVER)]
    assert free._bad_words_token_ids is other._bad_words_token_ids is None
    assert min(NEVER) < -1


def test_the_entry_point_names_the_processor():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"][GROUP].items()
    assert EntryPoint(name, value, GROUP).load() is RuleProcessor


def test_a_vllm_without_our_other_dependencies_starts():
    """It fails to start where an entry point cannot be imported."""
    absent = ("accelerate", "datasets", "faiss", "feast", "kfp", "polars", "pyarrow", "rich", "sentence_transformers",
              "tokenizers", "transformers", "trl", "typer", "urllib3", "vllm")  # fmt: skip
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {RuleProcessor.__module__}"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_vllm
def test_either_interface_of_vllm_takes_the_processor(monkeypatch):
    from vllm.v1.sample import logits_processor as first

    assert issubclass(RuleProcessor, first.LogitsProcessor)
    assert RuleProcessor in first._load_logitsprocs_plugins()
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor, loader
    except ImportError:
        return
    assert issubclass(RuleProcessor, LogitsProcessor)
    assert RuleProcessor in loader._load_v2_logitsprocs_plugins()


@needs_vllm
def test_the_first_runner_moves_requests_between_rows():
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    processor = RuleProcessor(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    outputs = [[], [], [OPENING]]
    rules = [answer_rule(OPENING), None, answer_rule()]

    def step(added=(), removed=(), moved=(), size=3):
        if added or removed or moved:
            processor.update_state(BatchUpdate(size, removed, added, moved))
        else:
            processor.update_state(None)
        return finite(processor.apply(torch.zeros(size, VOCABULARY)))

    added = [(row, request(rule), [8], output) for row, (rule, output) in enumerate(zip(rules, outputs, strict=True))]
    assert step(added) == [(1,), EVERY, (1,)]
    for output in outputs:
        output.append(1)
    assert step() == [(4, 7), EVERY, (4, 7)]
    outputs[0].append(7)
    outputs[2].append(4)
    assert step(moved=[(0, 1, MoveDirectionality.SWAP)]) == [EVERY, (2,), (5, 6)]
    assert step(removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)], size=2) == [EVERY, (5, 6)]
    assert step([(1, request(), [8], [])], size=2) == [EVERY, EVERY]
    assert step([(0, request(rules[2]), [8], outputs[2])], size=2) == [(5, 6), EVERY]


@needs_vllm
def test_the_first_runner_shows_the_tokens_of_a_batch_with_a_rule():
    """It replaces the placeholders of async scheduling where its metadata ask for tokens, and there alone."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    def shown(*rules):
        batch = InputBatch(
            max_num_reqs=4,
            max_model_len=64,
            max_num_batched_tokens=64,
            device=torch.device("cpu"),
            vocab_size=VOCABULARY,
            block_sizes=[32],
            max_num_blocks_per_req=[2],
            logitsprocs=LogitsProcessors([RuleProcessor(None, torch.device("cpu"), False)]),
        )
        for row, rule in enumerate(rules):
            params = SamplingParams(extra_args={RULE_ARGUMENT: rule.describe()} if rule else None)
            RuleProcessor.validate_params(params)
            state = CachedRequestState(
                req_id=str(row),
                prompt_token_ids=[8],
                mm_features=[],
                sampling_params=params.clone(),
                generator=None,
                block_ids=([row],),
                num_computed_tokens=1,
                output_token_ids=[-1],
            )
            batch.add_request(state)
        batch.refresh_metadata()
        return batch.sampling_metadata.output_token_ids

    assert shown(None, None) == []
    assert shown(None, answer_rule()) == [[-1], [-1]]
