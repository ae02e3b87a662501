"""The client of a completions server: what it sends, and how it meets the ways in which a server can fail."""

from __future__ import annotations

import math
import time

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from deeprec import retrying
from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore import server_engine
from deeprec.explore.answers import AnswerForm, AnswerRule
from deeprec.explore.server_engine import ServerPolicy
from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, MARKUP, PREFERENCE_CLOSE, PREFERENCE_OPEN
from tests.unit.explore.completions import CompletionsServer, refused

SPECIAL = ("<eos>", *MARKUP)
STOPS = frozenset({0, SPECIAL.index(PREFERENCE_CLOSE), SPECIAL.index(ANSWER_CLOSE)})


class Tokenizer:
    """One token per character and per markup string."""

    eos_token_id = 0

    def __init__(self, fake):
        self._fake = fake

    def encode(self, text, add_special_tokens):
        return self._fake.encode(text)

    def decode(self, token_ids, skip_special_tokens, clean_up_tokenization_spaces):
        return self._fake.decode(token_ids)


@pytest.fixture
def connect(character_policy):
    """``connect(server, fingerprint="", **config)``: a policy behind the server."""

    def connect(server, fingerprint="", **config):
        config = {"url": server.url, "timeout": 120, **config}
        return ServerPolicy(Tokenizer(character_policy([])), EngineConfig(kind="server", **config), fingerprint)

    return connect


def choices(body, tokens=(5, 0), **changes):
    """A right answer of the same tokens for each prompt; ``changes`` replaces parts of each choice."""
    tokens = list(tokens)[: body["max_tokens"]]
    logprobs = {"tokens": [""] * len(tokens), "token_logprobs": [-1.0] * len(tokens)}
    right = {"text": "", "finish_reason": "stop", "token_ids": tokens, "logprobs": logprobs}
    return {"choices": [{"index": index, **right, **changes} for index in range(len(body["prompt"]))]}


def generate(policy, rows=1, *, limit=4, temperature=1.0, seed=0, rules=()):
    generation = policy.start([[row + 100] for row in range(rows)], seed=seed)
    return generation.generate(range(rows), stop_ids=STOPS, max_new_tokens=limit, temperature=temperature, rules=rules)


def answer_rule(*title):
    """An answer of one line, that follows the number 5 and begins at once."""
    rule = AnswerRule(AnswerForm(7, (), ((5,),), (0,), "", ""), {title: 1.0})
    rule.take(7)
    return rule


def probed(answer):
    """An answerer that lets the first question pass, which is the client's own."""
    asked = []

    def answering(body):
        asked.append(body)
        return choices(body) if len(asked) == 1 else answer(body)

    return answering


def test_greedy_rows_share_one_request_and_sampled_ones_have_their_own_seeds(connect):
    with CompletionsServer(choices) as server:
        policy = connect(server)
        assert len(server.bodies) == 1
        generate(policy, 5, temperature=0.0)
        assert [body["prompt"] for body in server.bodies[1:]] == [[[100], [101], [102], [103], [104]]]
        assert "seed" not in server.bodies[1]
        del server.bodies[:]
        segments = generate(policy, 5)
        assert sorted(body["prompt"] for body in server.bodies) == [[[100 + row]] for row in range(5)]
        assert len({body["seed"] for body in server.bodies}) == 5
        assert [segment.token_ids for segment in segments] == [(5, 0)] * 5
        del server.bodies[:]
        generate(policy, 5, seed=None)
        assert [len(body["prompt"]) for body in server.bodies] == [5]


def test_what_vllm_is_asked(connect):
    with CompletionsServer(choices, {"data": [{"id": "other"}, {"id": "mine", "max_model_len": 3}]}) as server:
        generate(connect(server, model="mine"), temperature=0.7)
    body = server.bodies[-1]
    assert body["model"] == "mine"
    assert body["temperature"] == 0.7
    assert body["max_tokens"] == 2
    assert body["stop_token_ids"] == sorted(STOPS)
    assert body["return_token_ids"]
    assert body["include_stop_str_in_output"]
    assert not body["skip_special_tokens"]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)


def test_a_rule_is_sent_with_the_rows_that_it_holds_for(connect):
    with CompletionsServer(lambda body: choices(body, (5,))) as server:
        policy = connect(server)
        del server.bodies[:]
        rules = [answer_rule(8), answer_rule(9), answer_rule(8), answer_rule(9)]
        described = [rule.describe() for rule in rules[:2]]
        generate(policy, 4, temperature=0.0, limit=1, rules=rules)
        sent = sorted((body["vllm_xargs"]["deeprec_rule"], body["prompt"]) for body in server.bodies)
        assert sent == sorted(zip(described, ([[100], [102]], [[101], [103]]), strict=True))
        assert rules[0].allowed == {8: 0.0}
        del server.bodies[:]
        generate(policy, 2, limit=1, rules=[answer_rule(8), answer_rule(8)])
        assert sorted(body["prompt"] for body in server.bodies) == [[[100]], [[101]]]
        assert {body["vllm_xargs"]["deeprec_rule"] for body in server.bodies} == {described[0]}
        generate(policy)
        assert "vllm_xargs" not in server.bodies[-1]


def test_a_server_that_writes_something_else_is_found_out(connect):
    with (
        CompletionsServer(lambda body: choices(body, (5, 9, 0))) as server,
        pytest.raises(PolicyError, match=r"run vLLM where deeprec is installed, or set explore\.answers to 'free'"),
    ):
        generate(connect(server), rules=[answer_rule(8)])


def test_rules_cannot_be_sent_in_text(connect):
    with CompletionsServer(choices) as server:
        policy = connect(server, prompts="text")
        with pytest.raises(PolicyError, match=r"asked in text.*deeprec beside it.*explore\.answers to 'free'"):
            generate(policy, rules=[answer_rule(8)])
        assert server.bodies == []


def test_the_key_is_sent_where_there_is_one(connect, monkeypatch):
    monkeypatch.setenv(server_engine.KEY_VARIABLE, "secret")
    with CompletionsServer(choices) as server:
        connect(server)
        monkeypatch.delenv(server_engine.KEY_VARIABLE)
        connect(server)
    assert server.keys == ["Bearer secret", None]


def test_a_busy_server_is_asked_again(connect, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.01)
    states = [503, 429, 502, 504, 200]

    def answer(body):
        state = states.pop(0)
        return choices(body) if state == 200 else PlainTextResponse("later", status_code=state)

    with CompletionsServer(probed(answer)) as server:
        assert generate(connect(server))[0].token_ids == (5, 0)
    assert states == []


def test_a_server_that_asks_for_time_is_given_it_or_given_up_at_once(connect):
    at = []

    def answer(body):
        at.append(time.monotonic())
        return PlainTextResponse("later", status_code=429, headers={"Retry-After": str(len(at) ** 8)})

    with CompletionsServer(probed(answer)) as server:
        policy = connect(server)
        with pytest.raises(PolicyError, match=r"gave no answer within 120 seconds \(status 429: later\)"):
            generate(policy)
        assert len(at) == 2
        assert at[1] - at[0] >= 1
        with pytest.raises(PolicyError, match=r"before the deadline \(status 429: later\)"):
            generate(policy.until(time.monotonic() + 20))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: PlainTextResponse("out of\nmemory", status_code=500), "status 500: out of memory"),
        (lambda body: refused("too long"), 'status 400: .*"too long"'),
        (lambda body: PlainTextResponse("<html>"), "something else than .*<html>"),
        (lambda body: {"choices": [{"text": "no index"}]}, "something else than .*Field required"),
        (lambda body: {"choices": []}, "given 1 prompts and answered with 0 choices"),
        (lambda body: choices({**body, "prompt": [1, 2]}), "given 1 prompts and answered with 2 choices"),
        (lambda body: choices(body, token_ids=None), "no token ids and 2 log-probabilities"),
        (lambda body: choices(body, logprobs=None), "2 token ids and no log-probabilities"),
        (lambda body: choices(body, logprobs={"token_logprobs": [-1.0]}), "2 token ids and 1 log-probabilities"),
        (lambda body: choices(body, logprobs={"token_logprobs": [-1.0, None]}), "2 token ids and 2 log-prob"),
        (lambda body: choices({**body, "max_tokens": 9}, [5] * 9), "asked for 1 to 4 tokens and returned 9"),
        (lambda body: choices(body, []), "asked for 1 to 4 tokens and returned 0"),
    ],
)
def test_a_wrong_answer_is_named(connect, answer, message):
    with CompletionsServer(probed(answer)) as server:
        policy = connect(server)
        with pytest.raises(PolicyError, match=message):
            generate(policy)


def test_a_late_answer_is_not_waited_for(connect):
    def late(body):
        time.sleep(1.0)
        return choices(body)

    with (
        CompletionsServer(late) as server,
        pytest.raises(PolicyError, match=r"no answer within 0\.3 seconds .*Timeout"),
    ):
        connect(server, timeout=0.3)


def test_nobody_there(character_policy):
    engine = EngineConfig(kind="server", url="http://127.0.0.1:9", timeout=0.3)
    with pytest.raises(PolicyError, match=r"127\.0\.0\.1:9/v1/models gave no answer .*check explore\.engine\.url"):
        ServerPolicy(Tokenizer(character_policy([])), engine)


def test_a_model_it_does_not_serve_is_named(connect):
    with (
        CompletionsServer(choices, {"data": [{"id": "a"}, {"id": "b"}]}) as server,
        pytest.raises(PolicyError, match="serves not 'c' but a, b"),
    ):
        connect(server, model="c")


OURS, ANOTHER = "deeprec-0123456789ab", "deeprec-ba9876543210"


def listing(*names):
    return {"data": [{"id": name} for name in names]}


@pytest.mark.parametrize(
    ("listed", "configured", "asked"),
    [
        (("base", OURS, "deeprec-policy"), "", OURS),
        (("base", OURS, ANOTHER), "", OURS),
        (("base", "deeprec-policy"), "", "deeprec-policy"),
        (("policy",), "", "policy"),
        ((ANOTHER, OURS, "mine"), "mine", "mine"),
        ((ANOTHER, "deeprec-policy"), "deeprec-policy", "deeprec-policy"),
    ],
)
def test_which_of_several_models_is_the_policy(connect, listed, configured, asked):
    with CompletionsServer(choices, listing(*listed)) as server:
        generate(connect(server, OURS, model=configured))
    assert {body["model"] for body in server.bodies} == {asked}


def test_a_policy_without_a_fingerprint_is_the_servers_own(connect):
    with CompletionsServer(choices, listing(ANOTHER, "deeprec-policy")) as server:
        connect(server)
    assert server.bodies[0]["model"] == "deeprec-policy"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ((ANOTHER, "deeprec-policy"), f"serves {ANOTHER}, deeprec-policy, and the policy opened here is {OURS}; serve"),
        (("a", "b"), f"serves a, b, and none is called {OURS}; name the policy with explore.engine.model, or serving."),
    ],
)
def test_a_server_that_does_not_say_which_is_refused(connect, listed, message):
    with CompletionsServer(choices, listing(*listed)) as server, pytest.raises(PolicyError, match=message):
        connect(server, OURS)
    assert server.bodies == []


def test_a_server_that_lists_no_models_needs_a_name(connect):
    with CompletionsServer(choices, JSONResponse({}, status_code=404)) as server:
        assert connect(server, model="mine").prompts == "tokens"
        with pytest.raises(PolicyError, match="status 404"):
            connect(server)


@pytest.mark.parametrize("answer", [lambda body: refused("strings only"), lambda body: choices(body, token_ids=None)])
def test_a_server_that_does_not_speak_tokens_is_asked_in_text(connect, answer):
    with CompletionsServer(answer) as server:
        assert connect(server).prompts == "text"
        assert connect(server, prompts="tokens").prompts == "tokens"


@pytest.mark.parametrize(
    ("text", "reason", "last"),
    [
        (f"ab{PREFERENCE_OPEN}c", "stop", PREFERENCE_CLOSE),
        (f"{PREFERENCE_OPEN}a{ANSWER_OPEN}b", "stop", ANSWER_CLOSE),
        (f"{ANSWER_OPEN}b{PREFERENCE_OPEN}", "stop", PREFERENCE_CLOSE),
        ("ab", "stop", "<eos>"),
        ("", "stop", "<eos>"),
        (f"{PREFERENCE_OPEN}a{PREFERENCE_CLOSE}", "stop", PREFERENCE_CLOSE),
        (f"{PREFERENCE_OPEN}a", "length", "a"),
    ],
)
def test_text_that_stopped_gets_the_stop_token_it_was_written_for(connect, text, reason, last):
    def answer(body):
        return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}

    with CompletionsServer(answer) as server:
        [segment] = generate(connect(server, prompts="text"), limit=50)
    assert server.bodies[0]["prompt"] == ["\0"]
    assert server.bodies[0]["stop"] == [PREFERENCE_CLOSE, ANSWER_CLOSE]
    assert segment.token_ids[-1] == (SPECIAL.index(last) if last in SPECIAL else ord(last) + 100)
    assert all(math.isnan(value) for value in segment.logprobs)


def test_text_has_log_probabilities_as_far_as_its_tokens_are_ours(connect):
    def answer(body):
        found = {"tokens": ["a", "b", "cd"], "token_logprobs": [-1.0, -2.0, -3.0]}
        return {"choices": [{"index": 0, "text": "abcd", "finish_reason": "length", "logprobs": found}]}

    with CompletionsServer(answer) as server:
        [segment] = generate(connect(server, prompts="text"))
    assert segment.logprobs[:2] == (-1.0, -2.0)
    assert [math.isnan(value) for value in segment.logprobs] == [False, False, True, True]


def test_a_server_that_hides_special_tokens_is_found_out(connect):
    def answer(body):
        return {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}

    with CompletionsServer(answer) as server, pytest.raises(PolicyError, match="must print special tokens"):
        generate(connect(server, prompts="text"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "server"}, "give the server's address"),
        ({"kind": "server", "url": "policy:8000"}, "give the server's address"),
        ({"kind": "vllm", "url": "http://policy:8000"}, "'vllm' does not use"),
    ],
)
def test_engines_that_contradict_themselves(section, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(**section)
