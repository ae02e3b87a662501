"""The KServe model ``deeprec-policy``: text in, text out; and the server of a policy around it.

The same engine answers KServe's two protocols and OpenAI's (``completions.routes``). A policy server has one policy
for its life: a new one is a new server, which is not ready before its first token.
"""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from deeprec.bundle.bundle import Bundle, Part
from deeprec.bundle.opening import open_bundle
from deeprec.config import EngineConfig, ServingConfig
from deeprec.errors import ArtifactError, ConfigError
from deeprec.explore.loading import fingerprint, open_policy
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import TitleBook
from deeprec.serving.completions.completer import Completer
from deeprec.serving.completions.routes import (
    NAME,
    Completions,
    TextAnswer,
    TextRequest,
    finish_reason,
    read_body,
    router,
)
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.model import JsonModel
from deeprec.serving.http.server import Service, run
from deeprec.store import MANIFEST, read_artifact
from deeprec.types import JsonDict

EngineKind = Literal["transformers", "vllm"]
EXAMPLE = "History:\n"
"""A prompt for a policy that comes without a catalogue."""

MAX_BODY_BYTES = 16 << 20
"""Of a policy server at least: the prompts of a whole turn travel in one body."""


class PolicyModel(JsonModel):
    """The policy; see ``completions.routes.TextRequest`` for what it takes."""

    NAME = NAME
    REQUEST: ClassVar[type[BaseModel]] = TextRequest
    ANSWER: ClassVar[type[BaseModel]] = TextAnswer

    def __init__(self, completions: Completions, serving: ServingConfig) -> None:
        super().__init__(serving)
        self._completions = completions

    def read(self, raw: Any) -> TextRequest:
        """Check one request; see ``JsonModel.read``."""
        return read_body(TextRequest, raw)

    async def answer(self, request: TextRequest) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        prompt = await asyncio.to_thread(self._completions.prompt_of, request)
        [written] = await self._completions.complete([prompt])
        return {
            "text": self._completions.text(written),
            "finish_reason": finish_reason(written),
            "tokens": len(written.token_ids),
        }

    async def healthy(self) -> bool:
        """Whether the engine writes; see ``completions.completer``."""
        return self.ready and self._completions.completer.ready


def kind_of_engine(name: str) -> EngineKind:
    """The engine called ``name``; ``auto`` is vLLM where that is installed, else transformers.

    Raises:
        ConfigError: there is no such engine.
    """
    if name == "vllm" or (name == "auto" and importlib.util.find_spec("vllm") is not None):
        return "vllm"
    if name in ("auto", "transformers"):
        return "transformers"
    raise ConfigError(f"there is no engine {name!r}; name auto, transformers or vllm")


@dataclass(frozen=True)
class PolicyServer:
    """A policy that is loaded, ready to be served; ``prompt`` is one that it understands."""

    completions: Completions
    serving: ServingConfig
    prompt: str

    def service(self) -> Service:
        """The model ``deeprec-policy`` and the OpenAI-compatible paths."""
        completer = self.completions.completer

        async def close() -> None:
            await asyncio.to_thread(completer.close)

        return Service(
            [PolicyModel(self.completions, self.serving)],
            self.serving,
            Admission(self.serving),
            routers=[router(self.completions)],
            start=completer.started,
            close=close,
        )

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            PolicyError: the engine does not write.
        """
        run(self.service())


def open_policy_server(address: str, serving: ServingConfig, engine: EngineConfig, kind: EngineKind) -> PolicyServer:
    """The policy of a bundle, by its address, or a policy artifact in a directory, on an engine of a kind.

    Raises:
        ArtifactError: there is neither at ``address``, or a file differs from its hash.
        PolicyError: the engine is not installed, or cannot read the policy.
        StoreError: the store cannot be reached.
    """
    place, prompt = Path(address), EXAMPLE
    artifact = read_artifact(place, verify=False).kind if (place / MANIFEST).is_file() else "bundle"
    if artifact not in ("bundle", "policy"):
        raise ArtifactError(f"{address} is an artifact of kind {artifact!r}; name a bundle, or a policy")
    if artifact == "bundle":
        bundle = open_bundle(address, lambda serve: frozenset[Part]({"policy"}), serving.cache)
        place, prompt = bundle.part("policy"), _prompt(bundle)
    name = fingerprint(read_artifact(place, "policy", verify=False))
    policy = open_policy(place, engine.model_copy(update={"kind": kind, "url": ""}))
    completer = Completer(policy, batch=serving.batch, waiting=serving.max_waiting)
    return PolicyServer(Completions(policy, completer, serving, name), serving, prompt)


def _prompt(bundle: Bundle) -> str:
    """The prompt of a user who has had the three most popular items."""
    return PromptBuilder(bundle.explore, TitleBook(bundle.catalogue)).text(bundle.popular(3))
