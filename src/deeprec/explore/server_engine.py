"""A policy behind an OpenAI-compatible server: ``POST /v1/completions``, the whole batch of a turn under way at once.

The server has to serve the policy's own directory; its tokenizer is read here. Two ways of asking:

- tokens: prompts and results are token ids, with the stop tokens' own ids (``stop_token_ids``, ``return_token_ids``,
  as vLLM knows them). Nothing is lost; log-probabilities are those of the distribution sampled from at temperature 1
  without rules, and always when the server runs with ``--logprobs-mode processed_logprobs``. A rule travels in
  ``vllm_xargs`` and is kept by a vLLM that has deeprec beside it (``vllm_rules``); a server that keeps none is found
  out by the first token that the rule does not allow, with PolicyError. ``vllm_server`` starts one that does all this.
- text: any other server. Limits: it must print special tokens; what comes back is tokenised here again, so ids can
  differ from those it sampled; a log-probability is nan where the server's tokens do not line up with ours, and for the
  stop token; which stop ended a segment is not told, so it is the one that closes the markup opened last, else the end
  of text; rules are refused. Good enough to serve and evaluate, not to train on.

The environment variable ``DEEPREC_ENGINE_KEY``, where set, is sent as the bearer token.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, Literal, TypeVar

import urllib3
from pydantic import BaseModel, Field, ValidationError

from deeprec.config import EngineConfig
from deeprec.errors import PolicyError
from deeprec.explore.sequences import Request, SequenceGeneration
from deeprec.explore.tokens import FINGERPRINT, SERVED, TokenizedPolicy
from deeprec.explore.vllm_engine import RULE_ARGUMENT
from deeprec.markup import ANSWER_CLOSE, ANSWER_OPEN, PREFERENCE_CLOSE, PREFERENCE_OPEN
from deeprec.retrying import BUSY_BEHIND_A_GATEWAY, Again, keep_asking, retry_after
from deeprec.types import Generation, JsonDict, Segment

KEY_VARIABLE = "DEEPREC_ENGINE_KEY"
CONNECT_SECONDS = 10.0
_FINGERPRINT = re.compile(rf"{FINGERPRINT}[0-9a-f]{{12}}")
_SHOWN = 300
"""Characters of a server's answer that an error repeats."""

Answer = TypeVar("Answer", bound=BaseModel)


class _Logprobs(BaseModel):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _Choice(BaseModel):
    index: int
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class ServerPolicy(TokenizedPolicy):
    """A policy that a server generates with. Making one asks the server what it serves and how it is to be asked.

    ``fingerprint`` is the policy artifact's. Of what the server lists it asks for ``engine.model``, where that is set;
    else for the model of that name, for ``deeprec-policy``, or for the only one. A server that lists another policy's
    fingerprint is refused, and one that is started anew with another policy refuses to be asked for this one.

    Raises:
        PolicyError: the server cannot be reached within the timeout, or does not say which model is the policy.
    """

    def __init__(self, tokenizer: Any, engine: EngineConfig, fingerprint: str = "") -> None:
        super().__init__(tokenizer)
        self._client = _Client(engine)
        self._fingerprint = fingerprint
        self._parallel = engine.requests
        model = self._find(engine.model)
        self._name, self._longest = model.id, model.max_model_len or 0
        self.prompts: Literal["tokens", "text"] = engine.prompts if engine.prompts != "auto" else self._understood()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence the server takes; 0 where it does not say."""
        return self._longest

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        """Begin a batch. A prompt of no tokens is refused with PolicyError."""
        return SequenceGeneration(prompts, seed, self._longest, self._complete)

    def until(self, deadline: float) -> ServerPolicy:
        """The same policy for work that is of no use after ``deadline`` (``time.monotonic`` seconds).

        A request that is not answered by then ends with PolicyError, and at once where nobody listens: whoever has a
        deadline has something better to do than to wait for a server to start. Connections are shared.
        """
        bounded = copy.copy(self)
        bounded._client = self._client.until(deadline)
        return bounded

    def _find(self, name: str) -> _Model:
        try:
            known = self._client.ask(_Models, "GET", "models").data
        except _Refused:
            if name:
                return _Model(id=name)
            raise
        return self._chosen(name, {model.id: model for model in known})

    def _chosen(self, name: str, models: Mapping[str, _Model]) -> _Model:
        """The model to ask for: ``name``, else this policy by its fingerprint or as ``SERVED``, else the only one."""
        where, cure = f"{self._client.base} serves", "explore.engine.model, or serving.policy_model of a recommender"
        listed, wanted = ", ".join(models), name or self._fingerprint
        if wanted in models:
            return models[wanted]
        if name:
            raise PolicyError(f"{where} not {name!r} but {listed}; correct {cure}")
        if wanted and any(map(_FINGERPRINT.fullmatch, models)):
            raise PolicyError(f"{where} {listed}, and the policy opened here is {wanted}; serve the same artifact")
        if SERVED in models or len(models) == 1:
            return models.get(SERVED) or next(iter(models.values()))
        raise PolicyError(f"{where} {listed}, and none is called {wanted or SERVED}; name the policy with {cure}")

    def _understood(self) -> Literal["tokens", "text"]:
        """Ask for one token by ids; a server that refuses, or returns no ids, is asked in text from then on."""
        body = self._body([Request((self.eos_id,), 1, None)], frozenset({self.eos_id}), 0.0, by_ids=True)
        try:
            choices = self._ask(body)
        except _Refused:
            return "text"
        return "tokens" if choices and choices[0].token_ids else "text"

    def _complete(self, requests: Sequence[Request], stop_ids: AbstractSet[int], temperature: float) -> list[Segment]:
        """All requests at once: fixed sampling needs one of its own for each row, else rows alike share one."""
        if self.prompts == "text" and any(request.rule for request in requests):
            raise PolicyError(
                f"{self._client.base} is asked in text, and what an answer may be written with can only be sent with "
                f"token ids; serve the policy with a vLLM that has deeprec beside it, or set explore.answers to 'free'"
            )
        together = temperature <= 0 or requests[0].seed is None

        def alike(place: int) -> tuple[int, str]:
            return requests[place].limit, requests[place].rule

        order = sorted(range(len(requests)), key=alike)
        shared = [list(places) for _, places in groupby(order, key=alike)]
        parts = shared if together else [[place] for place in order]

        def ask(places: list[int]) -> list[Segment]:
            return self._extend([requests[place] for place in places], stop_ids, temperature)

        segments: dict[int, Segment] = {}
        with ThreadPoolExecutor(min(self._parallel, len(parts)), thread_name_prefix="engine") as pool:
            found = map(ask, parts) if len(parts) == 1 else pool.map(ask, parts)
            for places, written in zip(parts, found, strict=True):
                segments.update(zip(places, written, strict=True))
        return [segments[place] for place in range(len(requests))]

    def _extend(self, requests: list[Request], stop_ids: AbstractSet[int], temperature: float) -> list[Segment]:
        by_ids = self.prompts == "tokens"
        body = self._body(requests, stop_ids, temperature, by_ids)
        choices = sorted(self._ask(body), key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(len(requests))):
            raise PolicyError(
                f"{self._client.base} was given {len(requests)} prompts and answered with {len(choices)} choices"
            )
        if by_ids:
            return [self._from_ids(choice) for choice in choices]
        return [
            self._from_text(choice, stop_ids, request.limit) for choice, request in zip(choices, requests, strict=True)
        ]

    def _ask(self, body: JsonDict) -> list[_Choice]:
        return self._client.ask(_Completion, "POST", "completions", body).choices

    def _body(
        self, requests: Sequence[Request], stop_ids: AbstractSet[int], temperature: float, by_ids: bool
    ) -> JsonDict:
        """What is sent. Sampling is not truncated; the special tokens that the protocol needs are kept."""
        body: JsonDict = {
            "model": self._name,
            "prompt": [list(one.tokens) if by_ids else self.decode(one.tokens) for one in requests],
            "max_tokens": requests[0].limit,
            "temperature": max(temperature, 0.0),
            "top_p": 1.0,
            "logprobs": 0 if by_ids else 1,
            "skip_special_tokens": False,
            "add_special_tokens": False,
        }
        if temperature > 0 and requests[0].seed is not None:
            body["seed"] = requests[0].seed
        if requests[0].rule:
            body["vllm_xargs"] = {RULE_ARGUMENT: requests[0].rule}
        if not by_ids:
            return body | {"stop": [self.decode([token]) for token in sorted(stop_ids - {self.eos_id})]}
        return body | {
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }

    def _from_ids(self, choice: _Choice) -> Segment:
        found = choice.logprobs.token_logprobs if choice.logprobs else None
        if choice.token_ids is None or found is None or len(found) != len(choice.token_ids) or None in found:
            raise PolicyError(
                f"{self._client.base} returned {_count(choice.token_ids)} token ids and {_count(found)} "
                f"log-probabilities for one prompt; set explore.engine.prompts to 'text' if it is no vLLM server"
            )
        return Segment(tuple(choice.token_ids), tuple(float(value) for value in found if value is not None))

    def _from_text(self, choice: _Choice, stop_ids: AbstractSet[int], limit: int) -> Segment:
        text = choice.text or ""
        tokens = self.encode(text)
        logprobs = self._aligned(choice.logprobs, tokens)
        if choice.finish_reason == "stop" and (not tokens or tokens[-1] not in stop_ids):
            tokens.append(self._closing(text, stop_ids))
            logprobs.append(math.nan)
        if not tokens:
            raise PolicyError(
                f"{self._client.base} wrote nothing and did not stop; it must print special tokens (the protocol's "
                f"markup), or serve the policy with vLLM"
            )
        return Segment(tuple(tokens[:limit]), tuple(logprobs[:limit]))

    def _aligned(self, found: _Logprobs | None, tokens: Sequence[int]) -> list[float]:
        """The server's log-probabilities where its tokens are ours, one by one; nan elsewhere."""
        values = [math.nan] * len(tokens)
        if found is None or found.tokens is None or found.token_logprobs is None:
            return values
        for place, (token, text, value) in enumerate(zip(tokens, found.tokens, found.token_logprobs, strict=False)):
            if value is None or text != self.decode([token]):
                break
            values[place] = value
        return values

    def _closing(self, text: str, stop_ids: AbstractSet[int]) -> int:
        """The stop token of a text that was cut off before it."""
        pairs = ((PREFERENCE_OPEN, PREFERENCE_CLOSE), (ANSWER_OPEN, ANSWER_CLOSE))
        place, close = max((text.rfind(opened), closed) for opened, closed in pairs)
        tokens = self.encode(close)
        known = place >= 0 and close not in text[place:] and len(tokens) == 1 and tokens[0] in stop_ids
        return tokens[0] if known else self.eos_id


class _Refused(PolicyError):
    """The server understood the address and refused the request (4xx)."""


class _Client:
    """Requests to one server: JSON out, a checked shape back, or PolicyError."""

    def __init__(self, engine: EngineConfig) -> None:
        self.base = engine.url.rstrip("/").removesuffix("/v1") + "/v1"
        self._timeout = engine.timeout
        self._deadline = math.inf
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=engine.requests, block=True, retries=False)
        key = os.environ.get(KEY_VARIABLE, "")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def until(self, deadline: float) -> _Client:
        """The same client, whose requests end by ``deadline``."""
        bounded = copy.copy(self)
        bounded._deadline = deadline
        return bounded

    def ask(self, shape: type[Answer], method: str, path: str, body: JsonDict | None = None) -> Answer:
        """Send until answered, within the timeout.

        Raises:
            PolicyError: no answer in time, an error status, or an answer of another shape.
        """
        address = f"{self.base}/{path}"
        data = self._send(method, address, None if body is None else json.dumps(body).encode())
        try:
            return shape.model_validate_json(data)
        except ValidationError as error:
            raise PolicyError(
                f"{address} answered with something else than an OpenAI-compatible server's JSON "
                f"({error.errors()[0]['msg']}): {_shown(data)}"
            ) from error

    def _send(self, method: str, address: str, data: bytes | None) -> bytes:
        end = min(time.monotonic() + self._timeout, self._deadline)
        late = functools.partial(self._late, address, end)

        def attempt() -> bytes:
            left = end - time.monotonic()
            if left <= 0:
                raise late("no time")
            timeout = urllib3.Timeout(connect=min(CONNECT_SECONDS, left), read=left)
            try:
                answer = self._pool.request(
                    method, address, body=data, headers=self._headers, timeout=timeout, pool_timeout=left
                )
            except urllib3.exceptions.LocationValueError as error:
                raise PolicyError(f"{address} is no address ({error}); correct explore.engine.url") from error
            except urllib3.exceptions.HTTPError as error:
                failed = late(f"{type(error).__name__}: {error}")
                nobody = isinstance(error, urllib3.exceptions.NewConnectionError)
                raise (failed if nobody and self._deadline < math.inf else Again(failed)) from error
            if answer.status == 200:
                return bytes(answer.data)
            reason = f"status {answer.status}: {_shown(answer.data)}"
            if answer.status in BUSY_BEHIND_A_GATEWAY:
                raise Again(late(reason), retry_after(answer.headers.get("Retry-After")))
            kind = _Refused if answer.status < 500 else PolicyError
            raise kind(f"{address} refused a request with {reason}; see the server's log")

        return keep_asking(attempt, end - time.monotonic())

    def _late(self, address: str, end: float, reason: str) -> PolicyError:
        if end == self._deadline:
            return PolicyError(f"{address} gave no answer before the deadline ({reason})")
        return PolicyError(
            f"{address} gave no answer within {self._timeout:g} seconds ({reason}); check explore.engine.url and that "
            f"the server is up, or raise explore.engine.timeout"
        )


def _count(values: Sequence[object] | None) -> str:
    return "no" if values is None else str(len(values))


def _shown(data: bytes) -> str:
    return " ".join(data.decode("utf-8", "replace").split())[:_SHOWN]
