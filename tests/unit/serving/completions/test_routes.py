"""The OpenAI-compatible paths over HTTP: what they take as vLLM does, what they refuse, what they answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.server_engine import ServerPolicy
from deeprec.serving.completions.routes import TextRequest, read_body
from tests.unit.serving.letters import EOS, LETTERS, Letters, LettersPolicy, eventually
from tests.unit.serving.policy_server import SERVING, serving_policy


@pytest.fixture
def policy():
    return LettersPolicy()


@pytest.fixture
def server(policy):
    with serving_policy(policy, fingerprint="deeprec-abc") as (url, _):
        yield url


def post(url, body, path="/v1/completions"):
    return httpx.post(url + path, json=body, timeout=20)


def complete(url, **body):
    answer = post(url, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(text):
    return [LETTERS.index(letter) for letter in text]


def test_text_in_text_out(server):
    answer = complete(server, model="deeprec-policy", prompt="abc", max_tokens=4)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == ("defg", "length", 0)
    assert choice["logprobs"] is None
    assert "token_ids" not in choice
    assert answer["object"] == "text_completion"
    assert (answer["model"], answer["system_fingerprint"]) == ("deeprec-policy", "deeprec-abc")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert post(server, {"prompt": "y"}, "/openai/v1/completions").json()["choices"][0]["text"] == "z"
    assert len(complete(server, prompt="a")["choices"][0]["text"]) == 16


def test_prompts_may_be_one_or_several_texts_or_ids(server):
    for prompt, wanted in [
        ("ab", ["c"]),
        (["ab", "x"], ["c", "y"]),
        (ids("ab"), ["c"]),
        ([ids("ab"), ids("x")], ["c", "y"]),
        (["ab", ids("x")], ["c", "y"]),
    ]:
        choices = complete(server, prompt=prompt, max_tokens=1)["choices"]
        assert [choice["text"] for choice in choices] == wanted
        assert [choice["index"] for choice in choices] == list(range(len(wanted)))


def test_what_ends_a_completion_is_left_out_unless_asked_for(server):
    def choice(**body):
        found = complete(server, max_tokens=9, return_token_ids=True, **body)["choices"][0]
        return found["text"], found["finish_reason"], found["stop_reason"], len(found["token_ids"])

    shown = {"include_stop_str_in_output": True}
    assert choice(prompt="x") == ("yz", "stop", None, 3)
    assert choice(prompt="x", **shown) == ("yz_", "stop", None, 3)
    assert choice(prompt="x", skip_special_tokens=True, **shown) == ("yz", "stop", None, 3)
    assert choice(prompt="x", ignore_eos=True)[1:] == ("length", None, 9)
    assert choice(prompt="a", stop_token_ids=ids("d")) == ("bc", "stop", LETTERS.index("d"), 3)
    assert choice(prompt="a", stop_token_ids=ids("d"), **shown) == ("bcd", "stop", LETTERS.index("d"), 3)
    assert choice(prompt="a", stop="de") == ("bc", "stop", "de", 4)
    assert choice(prompt="a", stop=["fg", "de", "hi"], **shown) == ("bcde", "stop", "de", 4)
    assert choice(prompt="a", stop=["d"]) == ("bc", "stop", "d", 3)


def test_log_probabilities_of_the_tokens_written(server):
    found = complete(server, prompt="w", max_tokens=3, logprobs=0)["choices"][0]["logprobs"]
    assert found == {
        "tokens": ["x", "y", "z"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }
    by_id = complete(server, prompt="w", max_tokens=2, logprobs=1, return_tokens_as_token_ids=True)["choices"][0]
    assert by_id["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids("xy")]


def test_models_answers_as_kserve_and_as_openai_do(server):
    for path in ("/v1/models", "/openai/v1/models"):
        found = httpx.get(server + path).json()
        assert found["models"] == ["deeprec-policy"]
        assert found["object"] == "list"
        [model] = found["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("deeprec-policy", "model", 200)


def test_fields_that_nobody_knows_are_ignored_and_neutral_ones_accepted(server):
    extra = {"user": "me", "priority": 3, "nonsense": [1], "top_p": 1.0, "n": 1, "stream": False, "stop": None}
    assert complete(server, prompt="a", max_tokens=1, presence_penalty=0.0, **extra)["choices"][0]["text"] == "b"


def test_a_temperature_that_no_score_can_be_divided_by_is_raised(policy):
    with serving_policy(policy) as (_, completions):
        asked = {given: completions.read({"prompt": "a", "temperature": given})[1] for given in (0, 1e-300, 0.009, 0.5)}
    assert [prompt.temperature for [prompt] in asked.values()] == [0.0, 0.01, 0.01, 0.5]


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "no tokens"),
        ({"prompt": []}, 400, "prompt: give"),
        ({"prompt": [[]]}, 400, "prompt: give"),
        ({"prompt": [1, "a"]}, 400, "prompt: give"),
        ({"prompt": [True]}, 400, "prompt: give"),
        ({"prompt": {"a": 1}}, 400, "prompt: give"),
        ({"prompt": 5}, 400, "prompt: give"),
        ({"prompt": [[5, len(LETTERS)]]}, 400, f"no token {len(LETTERS)}, but 0 to {len(LETTERS) - 1}"),
        ({"prompt": [-1]}, 400, "no token -1"),
        ({"prompt": ["a"] * 300}, 400, "300 prompts"),
        ({"prompt": "a" * 185}, 400, "185 tokens and 16 more"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a", "temperature": 1e9}, 400, "temperature"),
        ({"prompt": "a", "stream": True}, 400, "stream is True, which this server cannot do"),
        ({"prompt": "a", "n": 2}, 400, "n is 2"),
        ({"prompt": "a", "top_p": 0.9}, 400, "top_p is 0.9"),
        ({"prompt": "a", "echo": True}, 400, "echo"),
        ({"prompt": "a", "stop": [""]}, 400, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, 400, "stop"),
        ({"prompt": "a", "seed": 2**70}, 400, "seed"),
        ({"prompt": "a", "vllm_xargs": {"deeprec_rule": "nonsense"}}, 400, "no rule that deeprec has described"),
        ({"prompt": "a", "model": "gpt-4"}, 404, "no model 'gpt-4'"),
    ],
)
def test_refusals_are_one_sentence(server, policy, body, status, part):
    answer = post(server, body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert part in answer.json()["error"]
    assert policy.calls == []


def behind(policy, completer, url, *bodies):
    """Status and text of requests that came while the engine was at the first of them, in the order given."""
    policy.reached.clear()
    policy.hold.clear()
    with ThreadPoolExecutor(len(bodies)) as pool:
        first = pool.submit(post, url, bodies[0])
        assert policy.reached.wait(20)
        rest = []
        for number, body in enumerate(bodies[1:], start=1):
            rest.append(pool.submit(post, url, body))
            eventually(lambda wanted=number: completer.waiting == wanted or rest[-1].done())
        policy.hold.set()
        return [answer.result() for answer in (first, *rest)]


def test_concurrent_callers_share_batches(policy):
    with serving_policy(policy) as (url, completions):
        asked = [{"prompt": letter, "max_tokens": 1} for letter in "abcdefgh"]
        answers = behind(policy, completions.completer, url, *asked)
    assert [answer.json()["choices"][0]["text"] for answer in answers] == list("bcdefghi")
    assert policy.calls == [["a"], list("bcdefgh")]


def test_overload_is_told_with_the_time_to_wait(policy):
    with serving_policy(policy, waiting=2) as (url, completions):
        answers = behind(policy, completions.completer, url, *({"prompt": letter} for letter in "abcd"))
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["retry-after"] == str(SERVING.retry_after)
        assert "2 prompts wait for the policy" in answers[-1].json()["error"]
        assert post(url, {"prompt": "d"}).status_code == 200


def test_an_engine_that_does_not_write_is_told_at_once(policy):
    with serving_policy(policy, probe=0.02) as (url, completions):
        policy.broken = "_"
        eventually(lambda: not completions.completer.ready)
        answer = post(url, {"prompt": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, str(SERVING.retry_after))
        policy.broken = ""
        eventually(lambda: completions.completer.ready)
        assert post(url, {"prompt": "a"}).status_code == 200


def test_a_client_that_goes_away_is_not_written_for(policy, caplog):
    with serving_policy(policy) as (url, completions), ThreadPoolExecutor(1) as pool:
        policy.reached.clear()
        policy.hold.clear()
        first = pool.submit(post, url, {"prompt": "a"})
        assert policy.reached.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/v1/completions", json={"prompt": "b"}, timeout=httpx.Timeout(20, read=1))
        eventually(lambda: completions.completer.waiting == 0)
        policy.hold.set()
        assert first.result().status_code == 200
        assert complete(url, prompt="c", max_tokens=1)["choices"][0]["text"] == "d"
    assert policy.calls == [["a"], ["c"]]
    assert "failed" not in caplog.text


def test_kserves_requests_are_strict():
    assert read_body(TextRequest, {"prompt": "a"}).max_tokens == 256
    with pytest.raises(Exception, match="unknown field 'max_token'"):
        read_body(TextRequest, {"prompt": "a", "max_token": 3})


def test_a_server_of_another_policy_is_refused(server):
    engine = EngineConfig(kind="server", url=server, timeout=20)
    assert ServerPolicy(Letters(), engine, "deeprec-abc").prompts == "tokens"
    assert ServerPolicy(Letters(), engine).longest == 200
    with pytest.raises(PolicyError, match=r"serves the policy deeprec-abc, and the one opened here is deeprec-xyz"):
        ServerPolicy(Letters(), engine, "deeprec-xyz")


def test_a_deadline_ends_what_is_asked_of_a_stuck_server(server, policy):
    asked = ServerPolicy(Letters(), EngineConfig(kind="server", url=server, timeout=20))
    generation = asked.until(time.monotonic() + 0.5).start([ids("a")])
    policy.hold.clear()
    started = time.monotonic()
    with pytest.raises(PolicyError, match="no answer before the deadline"):
        generation.generate([0], stop_ids={EOS}, max_new_tokens=3, temperature=0.0)
    assert time.monotonic() - started < 5
    policy.hold.set()
    [segment] = asked.start([ids("a")]).generate([0], stop_ids={EOS}, max_new_tokens=3, temperature=0.0)
    assert segment.token_ids == tuple(ids("bcd"))


def test_whoever_has_a_deadline_does_not_wait_for_a_server_to_start(policy):
    with serving_policy(policy) as (url, _):
        asked = ServerPolicy(Letters(), EngineConfig(kind="server", url=url, timeout=20))
    started = time.monotonic()
    with pytest.raises(PolicyError, match="NewConnectionError"):
        asked.until(started + 15).start([ids("a")]).generate([0], stop_ids={EOS}, max_new_tokens=3, temperature=0.0)
    assert time.monotonic() - started < 10
