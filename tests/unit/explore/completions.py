"""A real HTTP server of the completions API whose answers are a function: scripted, or a small model's in text."""

from __future__ import annotations

import threading
import time

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route


class CompletionsServer:
    """Context manager: ``url`` answers ``GET /v1/models`` and ``POST /v1/completions`` until the block ends.

    ``answer`` takes a request's body and returns JSON data or a starlette response; ``bodies`` and ``keys`` keep what
    came in, requests and their ``Authorization`` headers.
    """

    def __init__(self, answer, models=None):
        self.answer = answer
        self.models = {"data": [{"id": "policy"}]} if models is None else models
        self.bodies, self.keys = [], []

    def __enter__(self):
        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *error):
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=10)

    async def _models(self, request):
        return self._response(self.models)

    async def _completions(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        return self._response(await run_in_threadpool(self.answer, body))

    @staticmethod
    def _response(data):
        return JSONResponse(data) if isinstance(data, dict) else data


def refused(reason):
    return JSONResponse({"error": {"message": reason}}, status_code=400)


def speak_text(model, tokenizer):
    """An answerer that knows text alone: it refuses ids, and returns neither them nor the stop that it met."""

    def decode(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=False)

    def answer(body):
        if not all(isinstance(prompt, str) for prompt in body["prompt"]):
            return refused("prompts are strings")
        stops = {*body["stop"], tokenizer.eos_token}
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            ids = tokenizer.encode(prompt, add_special_tokens=False)
            tokens, logprobs = _extend(model, ids, body, lambda token: decode([token]) in stops)
            reason = "stop" if decode(tokens[-1:]) in stops else "length"
            if reason == "stop":
                tokens, logprobs = tokens[:-1], logprobs[:-1]
            found = {"tokens": [decode([token]) for token in tokens], "token_logprobs": logprobs}
            choices.append({"index": index, "text": decode(tokens), "logprobs": found, "finish_reason": reason})
        return {"choices": choices}

    return answer


def _extend(model, prompt, body, stops):
    """Tokens and log-probabilities by reading the whole sequence again for each token."""
    generator = torch.Generator()
    if "seed" in body:
        generator.manual_seed(body["seed"])
    else:
        generator.seed()
    tokens, logprobs = [], []
    while len(tokens) < body["max_tokens"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
        table = torch.log_softmax(logits / (body["temperature"] or 1.0), dim=-1)
        greedy = body["temperature"] == 0
        token = int(table.argmax() if greedy else torch.multinomial(table.exp(), 1, generator=generator))
        tokens.append(token)
        logprobs.append(table[token].item())
        if stops(token):
            break
    return tokens, logprobs
