"""Text in, text out: what a policy server takes and gives, in OpenAI's completions API as vLLM extends it.

``POST /v1/completions`` (and ``/openai/v1/completions``) understands what ``explore.server_engine`` sends: prompts and
results as token ids, stop tokens by id, rules of ``explore.answers`` (``vllm_xargs``), seeds, log-probabilities of the
distribution sampled from. Fields that OpenAI and vLLM do not know either are ignored, as vLLM does; what is known and
would be answered otherwise than asked (truncated sampling, penalties, several choices, streaming) is refused.

Two things differ from vLLM's defaults, since a policy's text is markup: special tokens are printed unless
``skip_special_tokens`` is set, and nothing is ever added to a prompt. ``system_fingerprint`` names the policy artifact.
Limits: ``logprobs`` gives those of the tokens written, without alternatives.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.explore.answers import AnswerRule
from deeprec.explore.tokens import TokenizedPolicy
from deeprec.explore.vllm_engine import RULE_ARGUMENT
from deeprec.recommender.batching import Overloaded
from deeprec.recommender.reading import mistakes
from deeprec.serving.completions.completer import Completer, Prompt, Written
from deeprec.serving.http.guard import Refused
from deeprec.types import JsonDict

NAME = "deeprec-policy"
MAX_STOPS, MAX_STOP = 16, 200
"""Stop texts of a request, and characters of each."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""A lower one than the first, other than 0, counts as that, as in vLLM: scores divided by it leave float32's range."""
_SEED = 2**63 - 1
"""The bits of a seed that count."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "stream": (False,),
    "suffix": ("",),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "use_beam_search": (False,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "min_tokens": (0,),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "prompt_embeds": (),
}
"""Fields that would change the answer in ways this server has not → values that change nothing; null is one for all."""

Result = TypeVar("Result")


class CompletionRequest(BaseModel):
    """What ``/v1/completions`` takes."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    model: str = ""
    """``deeprec-policy``, or nothing."""
    prompt: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                        "minItems": 1,
                    },
                ],
            }
        ),
    ]
    """A text or token ids, or several of either."""
    max_tokens: int = Field(16, ge=1, lt=2**31)
    temperature: float = Field(1.0, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)
    """0 is greedy."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP)], ...] = Field((), max_length=MAX_STOPS)
    """Texts before which to stop."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens behind which to stop, besides the end of text."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Fixes what is sampled."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Any number: give the log-probabilities of the tokens written."""
    ignore_eos: bool = False
    """The end of text does not end a completion."""
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    vllm_xargs: dict[str, Any] | None = None
    """``deeprec_rule``: a rule of ``explore.answers`` as it describes itself."""

    @model_validator(mode="before")
    @classmethod
    def _as_asked(cls, given: Any) -> Any:
        """Null is what is not given; what cannot be had is refused."""
        if not isinstance(given, dict):
            return given
        kept = {name: value for name, value in given.items() if value is not None}
        for name in kept.keys() & _NEUTRAL.keys():
            if kept[name] not in _NEUTRAL[name]:
                raise ValueError(f"{name} is {str(kept[name])[:60]}, which this server cannot do; leave it out")
        return kept

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop

    @property
    def rule(self) -> str:
        """The rule to decode by, as it describes itself; empty for none."""
        return str((self.vllm_xargs or {}).get(RULE_ARGUMENT, ""))


class TextRequest(BaseModel):
    """What ``deeprec-policy`` takes by KServe's protocols."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    prompt: str = Field(min_length=1)
    """The text to continue, markup included."""
    max_tokens: int = Field(256, ge=1, lt=2**31)
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)
    """0 is greedy."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP)], ...] = Field((), max_length=MAX_STOPS)
    """Texts before which to stop."""


class TextAnswer(BaseModel):
    """What ``deeprec-policy`` answers by KServe's protocols."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    """Tokens written."""


Body = TypeVar("Body", bound=BaseModel)


def read_body(kind: type[Body], raw: Any) -> Body:
    """Decoded JSON as a request.

    Raises:
        RequestError: naming what is wrong with it.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error


class Completions:
    """The policy's answers to requests.

    Args:
        policy: encodes and decodes; its engine is the completer's.
        completer: writes.
        serving: limits.
        fingerprint: names the policy artifact.
    """

    def __init__(
        self, policy: TokenizedPolicy, completer: Completer, serving: ServingConfig, fingerprint: str = ""
    ) -> None:
        self.completer = completer
        self.longest = policy.longest
        self._policy, self._serving, self._fingerprint = policy, serving, fingerprint
        self._vocabulary = len(policy.tokenizer)
        self._special = frozenset(policy.tokenizer.all_special_ids)

    def read(self, raw: Any) -> tuple[CompletionRequest, list[Prompt]]:
        """A request to ``/v1/completions`` and its prompts.

        Raises:
            RequestError: it is not acceptable.
        """
        request = read_body(CompletionRequest, raw)
        if request.model not in ("", NAME):
            raise _NotServed(f"this server has no model {request.model[:100]!r}; it serves {NAME!r}")
        return request, self._prompts(request, self._texts_or_ids(request.prompt))

    def prompt_of(self, given: TextRequest) -> Prompt:
        """A request by KServe's protocols as a prompt; RequestError for one that is too long."""
        settings = {"max_tokens": given.max_tokens, "temperature": given.temperature, "stop": given.stop}
        [prompt] = self._prompts(CompletionRequest(prompt=given.prompt, **settings), [given.prompt])
        return prompt

    async def complete(self, prompts: Sequence[Prompt]) -> list[Written]:
        """What was written after each prompt.

        Raises:
            Refused: 429, too many wait; 503, the engine does not write. Both say when to try again.
        """
        if not self.completer.ready:
            raise self._later(503, "the policy's engine does not write")
        try:
            return await self.completer.complete(prompts)
        except Overloaded as full:
            raise self._later(429, str(full)) from full

    def answer(self, request: CompletionRequest, prompts: Sequence[Prompt], written: Sequence[Written]) -> JsonDict:
        """The body of an answer to ``/v1/completions``."""
        read, wrote = sum(len(one.tokens) for one in prompts), sum(len(one.token_ids) for one in written)
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": NAME,
            "choices": [self._choice(place, request, one) for place, one in enumerate(written)],
            "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
            "system_fingerprint": self._fingerprint or None,
        }

    def text(self, written: Written, *, with_stop: bool = False, with_special: bool = True) -> str:
        """The text of what was written; without what ended it unless ``with_stop``."""
        tokens = list(written.token_ids)
        if isinstance(written.stop, int) and not with_stop:
            tokens.pop()
        kept = tokens if with_special else [token for token in tokens if token not in self._special]
        text = self._policy.decode(kept)
        if isinstance(written.stop, str) and (place := text.find(written.stop)) >= 0:
            return text[: place + len(written.stop) * with_stop]
        return text

    def _later(self, status: int, why: str) -> Refused:
        seconds = self._serving.retry_after
        return Refused(status, f"{why}; try again in {seconds} s", headers=[(b"retry-after", str(seconds).encode())])

    def _texts_or_ids(self, prompt: Any) -> list[str | list[int]]:
        """The prompts of a request, whichever way they are given."""
        several = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
        if (
            not isinstance(several, list)
            or not several
            or not all(isinstance(one, str) or _are_ids(one) for one in several)
        ):
            raise RequestError("prompt: give a text or token ids, or a list of either, none of them empty")
        most = self._serving.max_waiting
        if len(several) > most:
            raise RequestError(f"prompt: {len(several)} prompts in one body, but this server takes at most {most}")
        return several

    def _prompts(self, request: CompletionRequest, given: Iterable[str | list[int]]) -> list[Prompt]:
        ends = set(request.stop_token_ids) | (set() if request.ignore_eos else {self._policy.eos_id})
        ends |= {tokens[0] for stop in request.stop if len(tokens := self._policy.encode(stop)) == 1}
        seed = None if request.seed is None else request.seed & _SEED
        try:
            AnswerRule.read(request.rule) if request.rule else None
        except (ValueError, TypeError, IndexError) as error:
            raise RequestError(f"vllm_xargs: {RULE_ARGUMENT} is no rule that deeprec has described") from error
        return [
            Prompt(
                tokens=self._tokens(one, request.max_tokens),
                limit=request.max_tokens,
                stop_ids=frozenset(ends),
                stops=request.stop,
                temperature=max(request.temperature, MIN_TEMPERATURE) if request.temperature else 0.0,
                seed=seed,
                rule=request.rule,
            )
            for one in given
        ]

    def _tokens(self, prompt: str | list[int], limit: int) -> tuple[int, ...]:
        tokens = self._policy.encode(prompt) if isinstance(prompt, str) else prompt
        if not tokens:
            raise RequestError("prompt: one has no tokens; give a text or token ids")
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise RequestError(f"prompt: the policy has no token {str(unknown)[:20]}, but 0 to {self._vocabulary - 1}")
        if self.longest and len(tokens) + limit > self.longest:
            raise RequestError(
                f"prompt: {len(tokens)} tokens and {limit} more (max_tokens) are longer than the {self.longest} that "
                f"the policy reads; shorten one of them"
            )
        return tuple(tokens)

    def _choice(self, index: int, request: CompletionRequest, written: Written) -> JsonDict:
        text = self.text(
            written, with_stop=request.include_stop_str_in_output, with_special=not request.skip_special_tokens
        )
        choice: JsonDict = {
            "index": index,
            "text": text,
            "finish_reason": finish_reason(written),
            "stop_reason": None if written.stop == self._policy.eos_id else written.stop,
            "logprobs": None if request.logprobs is None else self._logprobs(request, written),
        }
        return choice | ({"token_ids": list(written.token_ids)} if request.return_token_ids else {})

    def _logprobs(self, request: CompletionRequest, written: Written) -> JsonDict:
        by_id = request.return_tokens_as_token_ids
        tokens = [f"token_id:{token}" if by_id else self._policy.decode([token]) for token in written.token_ids]
        offsets = [0]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": list(written.logprobs),
            "top_logprobs": None,
            "text_offset": offsets,
        }


class _NotServed(RequestError):
    status = 404


def finish_reason(written: Written) -> str:
    """``length`` where the limit ended it, else ``stop``."""
    return "length" if written.stop is None else "stop"


def router(completions: Completions) -> APIRouter:
    """The OpenAI-compatible paths; ``/v1/models`` answers as KServe does and as OpenAI does, in one."""
    paths = APIRouter(tags=["OpenAI"])
    started = int(time.time())
    schema = {"application/json": {"schema": CompletionRequest.model_json_schema()}}

    async def complete(request: Request) -> JSONResponse:
        raw = await request.json()
        asked, prompts = await asyncio.to_thread(completions.read, raw)
        written = await _while_there(request, completions.complete(prompts))
        return JSONResponse(await asyncio.to_thread(completions.answer, asked, prompts, written))

    async def models() -> JsonDict:
        model = {"id": NAME, "object": "model", "created": started, "owned_by": "deeprec"}
        model["max_model_len"] = completions.longest or None
        return {"models": [NAME], "object": "list", "data": [model]}

    for prefix in ("/v1", "/openai/v1"):
        paths.add_api_route(
            f"{prefix}/completions",
            complete,
            methods=["POST"],
            summary="Continue prompts",
            responses={404: {"description": "There is no such model."}},
            openapi_extra={"requestBody": {"required": True, "content": schema}},
        )
        paths.add_api_route(f"{prefix}/models", models, methods=["GET"], summary="The model that is served")
    return paths


async def _while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is given up when the client goes away."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError("the client went away")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
