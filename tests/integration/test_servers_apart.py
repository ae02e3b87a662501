"""TRM and policy as servers of their own: the same answers as in one process, and what the loss of a policy means.

The policy's server is the tests' own (``tests.policy_server``), the others are the servers' applications in this
process; ``test_vllm_server.py`` has the same of vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate

from deeprec.bundle.bundle import Bundle
from deeprec.client import Client, Recommendation
from deeprec.config import EngineConfig, ServingConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import PolicyError
from deeprec.explore.loading import load_policy, open_policy
from deeprec.explore.protocol import TitleBook
from deeprec.explore.rollout import rollout
from deeprec.features.directory import DirectoryPlace
from deeprec.serving.http.bundle_server import recommender_service, trm_service
from deeprec.serving.http.service import Service
from deeprec.trm.retriever import TrmRetriever
from deeprec.types import EndReason, Example, Query, Trajectory
from tests import forkserver
from tests.integration.servers import Hosted, hosted, until
from tests.policy_server import serving_policy

pytest_plugins = ["tests.integration.rooms"]
pytestmark = pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")

DEADLINE_MS = 20_000


@pytest.fixture(scope="module")
def bundle(taught: Path) -> Bundle:
    return Bundle.load(taught / "bundle")


@pytest.fixture(scope="module")
def retriever(bundle: Bundle) -> TrmRetriever:
    """The bundle's TRM in this process."""
    return TrmRetriever.load(bundle.part("trm"))


@pytest.fixture(scope="module")
def users(plain: Path) -> Dataset:
    return read_dataset(plain / "dataset")


def host_trm(bundle: Path, port: int = 0) -> AbstractContextManager[Hosted]:
    """What ``deeprec serve trm`` serves."""

    def make() -> Service:
        return trm_service(str(bundle), ServingConfig())

    return hosted(make, port)


@pytest.fixture(scope="module")
def trm_server(taught: Path) -> Iterator[Hosted]:
    """What ``deeprec serve trm`` serves."""
    with host_trm(taught / "bundle") as server:
        yield server


def explored(policy: object, retriever: object, bundle: Bundle, users: Dataset, temperature: float) -> list[Trajectory]:
    """Rollouts of ten users."""
    examples = [Example(user, history, "") for user, history in list(users.sequences.items())[:10]]
    titles = TitleBook(bundle.catalogue)
    return rollout(policy, retriever, titles, examples, bundle.explore, temperature=temperature, seed=3)  # type: ignore[arg-type]


def test_the_trm_server_has_an_openapi_document(trm_server: Hosted) -> None:
    document = httpx.get(f"{trm_server.url}/openapi.json", timeout=30).json()
    validate(document)
    wanted = {"/v2/health/ready", "/v1/models/deeprec-trm:predict", "/v2/models/deeprec-trm/infer"}
    assert wanted <= set(document["paths"])


def test_greedy_rollouts_are_the_same_token_for_token(
    policy_server: str, bundle: Bundle, retriever: TrmRetriever, users: Dataset
) -> None:
    place = bundle.part("policy")
    here = explored(load_policy(place), retriever, bundle, users, 0.0)
    remote = open_policy(place, EngineConfig(kind="server", url=policy_server, timeout=60))
    there = explored(remote, retriever, bundle, users, 0.0)
    assert [one.completion_ids for one in there] == [one.completion_ids for one in here]
    assert [one.answer for one in there] == [one.answer for one in here]
    for one, other in zip(here, there, strict=True):
        assert one.end is EndReason.ANSWERED
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_sampled_rollouts_are_fixed_by_their_seed_whoever_else_asks(
    policy_server: str, bundle: Bundle, retriever: TrmRetriever, users: Dataset
) -> None:
    engine = EngineConfig(kind="server", url=policy_server, timeout=60)
    policy = open_policy(bundle.part("policy"), engine)
    first, again = (explored(policy, retriever, bundle, users, 1.0) for _ in range(2))
    assert [one.completion_ids for one in first] == [one.completion_ids for one in again]
    assert len({one.completion_ids for one in first}) == len(first)
    answered = [one for one in first if one.end is EndReason.ANSWERED]
    assert answered
    for one in answered:
        assert set(one.answer) <= {item.item_id for call in one.calls for item in call.items}


def test_a_server_of_another_policy_is_refused(plain: Path, policy_server: str) -> None:
    engine = EngineConfig(kind="server", url=policy_server, timeout=60)
    with pytest.raises(PolicyError, match="serve the same artifact"):
        open_policy(plain / "bundle" / "policy", engine)


def recommend(url: str, **question: object) -> Recommendation:
    with Client(url, timeout=30) as client:
        return client.recommend(deadline_ms=DEADLINE_MS, k=5, **question)  # type: ignore[arg-type]


def test_a_recommender_with_a_policy_server_and_what_its_loss_means(
    taught: Path, bundle: Bundle, retriever: TrmRetriever, users: Dataset
) -> None:
    here = explored(load_policy(bundle.part("policy")), retriever, bundle, users, 0.0)
    place = str(taught / "bundle")
    with forkserver.routed(), ExitStack() as running, ExitStack() as running_policy:
        url = running_policy.enter_context(serving_policy(bundle.part("policy"), ("another", "ours")))
        serving = ServingConfig(policy_url=url, policy_model="ours")
        features = taught / "features"
        recommender = running.enter_context(
            hosted(lambda: recommender_service(place, serving, DirectoryPlace(features)))
        )
        user = here[0].user_id
        until(lambda: recommend(recommender.url, user_id=user).path == "policy", "the policy is not asked")
        for one in here[:4]:
            found = recommend(recommender.url, user_id=one.user_id)
            assert (found.path, found.reason) == ("policy", None)
            assert [item.id for item in found.items] == list(one.answer)
        alone = retriever.retrieve([Query(users.sequences[user])], 5)[0]

        running_policy.close()
        without_policy = recommend(recommender.url, user_id=user)
        assert without_policy.path == "trm"
        assert "policy" in str(without_policy.reason)
        assert [item.id for item in without_policy.items] == [item.item_id for item in alone]
