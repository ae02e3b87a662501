"""The KServe model of a policy: readiness that follows its engine, and what a server of it can be made from."""

from __future__ import annotations

import asyncio
import sys

import pytest

from deeprec.config import EngineConfig, ServingConfig
from deeprec.errors import ArtifactError, ConfigError, RequestError
from deeprec.serving.completions.completer import Completer
from deeprec.serving.completions.model import EXAMPLE, PolicyModel, kind_of_engine, open_policy_server
from deeprec.serving.completions.routes import Completions
from deeprec.store import write_artifact
from tests.unit.serving.letters import LettersPolicy, eventually

SERVING = ServingConfig()


@pytest.fixture
def policy():
    return LettersPolicy()


@pytest.fixture
def model(policy):
    completer = Completer(policy, batch=4, waiting=8, probe=0.02)
    yield PolicyModel(Completions(policy, completer, SERVING), SERVING)
    completer.close()


def healthy(model):
    return asyncio.run(model.healthy())


def test_ready_is_what_the_server_says_and_the_engine_does(model, policy):
    eventually(lambda: model._completions.completer.ready)
    assert not healthy(model), "the server has not called it ready"
    model.load()
    assert healthy(model)
    policy.broken = "_"
    eventually(lambda: not healthy(model))
    policy.broken = ""
    eventually(lambda: healthy(model))


def test_it_answers_and_refuses(model):
    asyncio.run(model._completions.completer.started())

    def answer(**request):
        return asyncio.run(model.answer(model.read(request)))

    assert answer(prompt="w", max_tokens=9) == {"text": "xyz", "finish_reason": "stop", "tokens": 4}
    assert answer(prompt="a", max_tokens=2) == {"text": "bc", "finish_reason": "length", "tokens": 2}
    assert answer(prompt="a", max_tokens=9, stop=["ef"])["text"] == "bcd"
    for wrong, part in (
        ({}, "prompt"),
        ({"prompt": "a", "n": 1}, "unknown field 'n'"),
        ({"prompt": "a" * 190, "max_tokens": 20}, "20"),
    ):
        with pytest.raises(RequestError, match=part):
            answer(**wrong)


def test_engines_have_names(monkeypatch):
    assert kind_of_engine("transformers") == "transformers"
    assert kind_of_engine("vllm") == "vllm"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kind_of_engine("auto") == "transformers"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys)
    assert kind_of_engine("auto") == "vllm"
    with pytest.raises(ConfigError, match="no engine 'x'"):
        kind_of_engine("x")


def test_a_policy_artifact_alone_can_be_served_and_nothing_else(tmp_path):
    from deeprec.config import ExploreConfig, TinyConfig
    from deeprec.markup import MARKUP
    from deeprec.policy.tiny import build_model, build_tokenizer

    tokenizer = build_tokenizer(("A Film",), ["comedy"], [], MARKUP, [EXAMPLE], ExploreConfig(prompt="compact"))
    with write_artifact(tmp_path / "policy", "policy") as work:
        tokenizer.save_pretrained(work)
        build_model(tokenizer, TinyConfig(width=16, layers=1, heads=2, inner=16), seed=0).save_pretrained(work)
    server = open_policy_server(str(tmp_path / "policy"), SERVING, EngineConfig(), "transformers")
    asyncio.run(server.completions.completer.started())
    prompt = server.completions.read({"prompt": server.prompt, "max_tokens": 3})[1]
    [written] = asyncio.run(server.completions.complete(prompt))
    assert 1 <= len(written.token_ids) <= 3
    server.completions.completer.close()
    with write_artifact(tmp_path / "trm", "trm") as work:
        (work / "a").write_text("a")
    with pytest.raises(ArtifactError, match="of kind 'trm'; name a bundle, or a policy"):
        open_policy_server(str(tmp_path / "trm"), SERVING, EngineConfig(), "transformers")
