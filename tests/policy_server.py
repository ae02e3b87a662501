"""A policy behind OpenAI's completions API as vLLM has it, on transformers: for tests of what asks such a server.

``serving_policy(directory)`` answers ``GET /v1/models`` and ``POST /v1/completions`` on a port of this process, by text
or token ids, with stop texts and stop tokens, seeds, log-probabilities and the rules of ``explore.answers``; what it
cannot do is refused with OpenAI's error objects. vLLM itself is met in ``integration/test_vllm_server.py``. Limits: one
body at a time, one choice per prompt, no streaming and no truncated sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from deeprec.explore.answers import AnswerRule
from deeprec.explore.loading import fingerprint, load_policy
from deeprec.explore.tokens import SERVED
from deeprec.explore.vllm_engine import RULE_ARGUMENT
from deeprec.store import read_artifact
from tests.unit.explore.completions import CompletionsServer

NEUTRAL: dict[str, Any] = {"n": 1, "stream": False, "echo": False, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


class Refused(Exception):
    """A request that is not answered: status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Row:
    """What is written after one prompt; ``stop`` is the token or the text that ended it, None while nothing has."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stop: int | str | None = None


class Answers:
    """One policy's answers to decoded bodies, for ``CompletionsServer``."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.policy, self.names, self._turn = load_policy(directory), names, threading.Lock()

    def models(self) -> dict[str, Any]:
        """What ``GET /v1/models`` says."""
        described = {"object": "model", "owned_by": "deeprec", "max_model_len": self.policy.longest}
        return {"object": "list", "data": [{"id": name, **described} for name in self.names]}

    def __call__(self, body: dict[str, Any]) -> dict[str, Any] | JSONResponse:
        try:
            with self._turn:
                return self._answer({key: value for key, value in body.items() if value is not None})
        except Refused as refused:
            kind = "NotFoundError" if refused.status == 404 else "BadRequestError"
            error = {"message": str(refused), "type": kind, "param": None, "code": refused.status}
            return JSONResponse({"error": error}, refused.status)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("model", SERVED) not in self.names:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if wrong := [key for key, value in NEUTRAL.items() if body.get(key, value) != value]:
            raise Refused(400, f"this server has no {wrong[0]}")
        prompts = self._prompts(body.get("prompt"), body.get("max_tokens", 16))
        choices = [self._choice(number, row, body) for number, row in enumerate(self._written(prompts, body))]
        return {"object": "text_completion", "model": body.get("model", SERVED), "choices": choices}

    def _prompts(self, prompt: Any, limit: int) -> list[list[int]]:
        several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        tokens = [self.policy.encode(one) if isinstance(one, str) else one for one in several]
        for one in tokens:
            if not isinstance(one, list) or not one or not all(type(token) is int for token in one):
                raise Refused(400, "prompt: give texts or token ids, none of them empty")
            if len(one) + limit > self.policy.longest or not 0 <= min(one) <= max(one) < len(self.policy.tokenizer):
                raise Refused(400, f"prompt: {len(one)} tokens and {limit} more, or one of them, are beyond the model")
        return tokens

    def _written(self, prompts: list[list[int]], body: dict[str, Any]) -> list[Row]:
        """Token by token, so that a text that ends a completion is seen when it stands there."""
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
        ends = frozenset(body.get("stop_token_ids", ())) | (set() if body.get("ignore_eos") else {self.policy.eos_id})
        rules = self._rules(body.get("vllm_xargs", {}).get(RULE_ARGUMENT), len(prompts))
        generation = self.policy.start(prompts, seed=body.get("seed"))
        rows = [Row() for _ in prompts]
        for _ in range(body.get("max_tokens", 16)):
            still = [number for number, row in enumerate(rows) if row.stop is None]
            if not still:
                break
            segments = generation.generate(
                still,
                stop_ids=ends,
                max_new_tokens=1,
                temperature=body.get("temperature", 1.0),
                rules=[rules[number] for number in still] if rules else (),
            )
            for number, segment in zip(still, segments, strict=True):
                row = rows[number]
                row.tokens.extend(segment.token_ids)
                row.logprobs.extend(segment.logprobs)
                text = self.policy.decode(row.tokens)
                token = row.tokens[-1]
                row.stop = token if token in ends else next((stop for stop in stops if stop in text), None)
        return rows

    @staticmethod
    def _rules(described: str | None, count: int) -> list[AnswerRule]:
        """The rule of each prompt; none where the request has none."""
        try:
            return [AnswerRule.read(described) for _ in range(count)] if described else []
        except (ValueError, TypeError) as error:
            raise Refused(400, f"{RULE_ARGUMENT} is no rule: {error}") from error

    def _choice(self, number: int, row: Row, body: dict[str, Any]) -> dict[str, Any]:
        shown = list(row.tokens)
        if isinstance(row.stop, int) and not body.get("include_stop_str_in_output"):
            shown.pop()
        special = self.policy.tokenizer.all_special_ids if body.get("skip_special_tokens", True) else ()
        text = self.policy.decode([token for token in shown if token not in special])
        if isinstance(row.stop, str):
            text = text[: text.find(row.stop) + len(row.stop) * bool(body.get("include_stop_str_in_output"))]
        choice = {"index": number, "text": text, "finish_reason": "length" if row.stop is None else "stop"}
        if "logprobs" in body:
            names = [f"token_id:{token}" for token in row.tokens]
            choice["logprobs"] = {"tokens": names, "token_logprobs": row.logprobs}
        return choice | ({"token_ids": row.tokens} if body.get("return_token_ids") else {})


@contextmanager
def serving_policy(directory: Path, names: Sequence[str] = ()) -> Iterator[str]:
    """The address at which the policy artifact answers, by these names or those of ``deeprec serve policy``."""
    manifest = read_artifact(directory, "policy", verify=False)
    answers = Answers(directory, names or (fingerprint(manifest), SERVED))
    with CompletionsServer(answers, answers.models()) as server:
        yield server.url
