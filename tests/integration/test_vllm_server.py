"""``deeprec serve policy`` on a real vLLM: asked by OpenAI's client, by the completions engine and by a recommender.

vLLM is one for a CPU, in an environment of its own (``tests.vllm_environment``). The tests' own server
(``tests.policy_server``) is asked the same by the same client, so that it goes on being what it stands in for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deeprec.bundle.bundle import Bundle
from deeprec.client import Client
from deeprec.config import EngineConfig, ServingConfig, TinyConfig
from deeprec.data.dataset import read_dataset
from deeprec.errors import PolicyError
from deeprec.explore.answers import AnswerForm, AnswerRule
from deeprec.explore.loading import fingerprint, load_policy, open_policy
from deeprec.explore.protocol import TitleBook
from deeprec.explore.rollout import rollout
from deeprec.explore.vllm_engine import RULE_ARGUMENT
from deeprec.features.directory import DirectoryPlace
from deeprec.serving.http.bundle_server import recommender_service
from deeprec.serving.http.service import Service
from deeprec.store import read_artifact
from deeprec.trm.retriever import TrmRetriever
from deeprec.types import EndReason, Example, Trajectory
from tests import forkserver
from tests.integration.parts import make_run
from tests.integration.servers import hosted, until
from tests.integration.taught import teach
from tests.policy_server import serving_policy
from tests.vllm_environment import Unavailable, environment, vllm_environment

pytestmark = pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")

HEADS_FOR_A_CPU = TinyConfig(width=64, layers=2, heads=2, inner=64)
"""vLLM's attention on a CPU wants heads of 32."""
OPTIONS = ("dtype=float32", "enforce_eager=true", "max_model_len=512")
USERS = 12


@pytest.fixture(scope="module")
def vllm() -> Path:
    """The ``bin`` of an environment with vLLM."""
    try:
        return vllm_environment()
    except Unavailable as reason:
        pytest.skip(f"vLLM cannot be installed here: {reason}")


@pytest.fixture(scope="module")
def run(vllm: Path, built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run's directory whose policy answers, and which vLLM can run on a CPU."""
    plain = built_once("run", make_run)
    return built_once("taught-for-vllm", lambda place: teach(plain, place, HEADS_FOR_A_CPU))


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return Bundle.load(run / "bundle")


@pytest.fixture(scope="module")
def server(vllm: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``deeprec serve policy`` of the run, ended with SIGTERM; it leaves no process behind."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    sets = [argument for option in OPTIONS for argument in ("--set", f"explore.engine.{option}")]
    command = [str(vllm / "deeprec"), "serve", "policy", str(run), "--port", "0", *sets, "--", "--max-num-seqs", "16"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment(), process_group=0)
    try:
        address = re.compile(r"at (http://127\.0\.0\.1:\d+);")
        until(lambda: address.search(log.read_text()), lambda: f"no address:\n{log.read_text()}", process)
        found = address.search(log.read_text())
        assert found
        until(lambda: _answers(f"{found[1]}/health"), lambda: f"not ready:\n{log.read_text()[-4000:]}", process)
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-4000:]
        until(lambda: not _alive(process.pid), "a process of vLLM's is left")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def asked_by_openai(vllm: Path, url: str, requests: Sequence[Any]) -> Any:
    """What OpenAI's client makes of the server's answers; see ``openai_client``."""
    script = Path(__file__).with_name("openai_client.py")
    command = [str(vllm / "python"), str(script), url, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def explored(policy: Any, bundle: Bundle, run: Path, temperature: float) -> list[Trajectory]:
    users = read_dataset(run.parent / "built-run" / "dataset").sequences
    examples = [Example(user, history, "") for user, history in list(users.items())[:USERS]]
    retriever, titles = TrmRetriever.load(bundle.part("trm")), TitleBook(bundle.catalogue)
    return rollout(policy, retriever, titles, examples, bundle.explore, temperature=temperature, seed=3)


@pytest.fixture(scope="module")
def here(bundle: Bundle, run: Path) -> list[Trajectory]:
    """What the policy explores in this process, greedily."""
    return explored(load_policy(bundle.part("policy")), bundle, run, 0.0)


def test_openais_client_is_answered_as_by_the_tests_own_server(
    vllm: Path, server: str, bundle: Bundle, here: list[Trajectory]
) -> None:
    place = bundle.part("policy")
    name = fingerprint(read_artifact(place, "policy"))
    prompts = [list(trajectory.prompt_ids) for trajectory in here[:3]]
    rule = AnswerRule(
        AnswerForm(9, (), ((10,), (11,)), (12,), "", ""), {(20, 21): 1.0, (20, 22): 0.5, (23,): 0.25}, 1.0
    )
    rule.take(9)
    ids = {"return_token_ids": True, "ignore_eos": True}

    def request(prompt: Any, **changes: Any) -> dict[str, Any]:
        more = {**ids, **changes.pop("extra_body", {})}
        return {"model": name, "prompt": prompt, "max_tokens": 4, "temperature": 0.0, "extra_body": more, **changes}

    requests = [
        request(prompts[0]),
        request(prompts),
        request(prompts[1], model="deeprec-policy", extra_body={"stop_token_ids": [here[1].completion_ids[1]]}),
        request(prompts[:2], max_tokens=9, extra_body={"vllm_xargs": {RULE_ARGUMENT: rule.describe()}}),
        request(prompts[0], model="gpt-4"),
        request([]),
        request([5] * 4096),
        request(prompts[0], extra_body={"vllm_xargs": {RULE_ARGUMENT: "nonsense"}}),
    ]
    found = asked_by_openai(vllm, server, requests)
    assert found["models"] == [name, "deeprec-policy"]
    one, several, stopped, ruled, unknown, *wrong = found["outcomes"]
    assert one == [[0, list(here[0].completion_ids[:4]), "length"]]
    assert [choice[0] for choice in several] == [0, 1, 2]
    assert stopped == [[0, list(here[1].completion_ids[:2]), "stop"]]
    for _, tokens, _ in ruled:
        answer = tokens[: tokens.index(12)]
        assert [token for token in answer if token in (10, 11)] == [10, 11]
        assert set(answer) <= {10, 11, 20, 21, 22, 23}
    assert unknown == {"error": "NotFoundError", "code": 404, "said": True}
    assert wrong == [{"error": "BadRequestError", "code": 400, "said": True}] * 3
    with serving_policy(place) as url:
        assert asked_by_openai(vllm, url, requests) == found


def test_it_explores_as_the_policy_does_in_this_process(
    server: str, bundle: Bundle, run: Path, here: list[Trajectory]
) -> None:
    """Rounding may turn a token where two are level; with float32 that is rare."""
    remote = open_policy(bundle.part("policy"), EngineConfig(kind="server", url=server, timeout=120))
    assert getattr(remote, "prompts", "") == "tokens"
    there = explored(remote, bundle, run, 0.0)
    same = [one for one, other in zip(there, here, strict=True) if one.completion_ids == other.completion_ids]
    assert len(same) >= USERS - 2
    for one, other in zip(there, here, strict=True):
        assert one.end is EndReason.ANSWERED
        if one.completion_ids == other.completion_ids:
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-3)


def test_a_sampled_answer_never_leaves_what_was_retrieved(server: str, bundle: Bundle, run: Path) -> None:
    remote = open_policy(bundle.part("policy"), EngineConfig(kind="server", url=server, timeout=120))
    first, again = (explored(remote, bundle, run, 1.0) for _ in range(2))
    answered = [one for one in first if one.end is EndReason.ANSWERED]
    assert answered
    for one in answered:
        assert len(set(one.answer)) == len(one.answer) == bundle.explore.answer_size
        assert set(one.answer) <= {item.item_id for call in one.calls for item in call.items}
    assert [one.completion_ids for one in first] == [one.completion_ids for one in again], "the seed fixes it"


def test_another_policy_is_refused(server: str, run: Path) -> None:
    with pytest.raises(PolicyError, match="serve the same artifact"):
        open_policy(run.parent / "built-run" / "bundle" / "policy", EngineConfig(kind="server", url=server, timeout=60))


def test_a_recommender_answers_by_it(server: str, run: Path, here: list[Trajectory]) -> None:
    def make() -> Service:
        return recommender_service(
            str(run / "bundle"), ServingConfig(policy_url=server), DirectoryPlace(run / "features")
        )

    with forkserver.routed(), hosted(make) as recommender, Client(recommender.url, timeout=60) as client:

        def by_policy() -> bool:
            return client.recommend(user_id=here[0].user_id, k=5, deadline_ms=20_000).path == "policy"

        until(by_policy, lambda: f"the policy is not asked:\n{recommender.printed}")
        for one in here[:4]:
            found = client.recommend(user_id=one.user_id, k=5, deadline_ms=20_000)
            assert (found.path, found.reason) == ("policy", None)
            assert len(found.items) == 5
