"""OpenAI's own client asking a policy server: ``python openai_client.py URL REQUESTS``, in an environment that has it.

REQUESTS is a JSON list of arguments of ``completions.create``. Printed is one JSON object: the names of the models, and
of each request the token ids and why they end, or the kind of error and its code.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai


def outcome(client: Any, request: dict[str, Any]) -> Any:
    """What became of one request."""
    try:
        completion = client.completions.create(**request)
    except openai.APIStatusError as error:
        return {"error": type(error).__name__, "code": int(error.code or 0), "said": bool(error.body["message"])}
    return [[choice.index, choice.model_extra["token_ids"], choice.finish_reason] for choice in completion.choices]


def main() -> None:
    """Ask and print."""
    client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
    models = [model.id for model in client.models.list()]
    print(json.dumps({"models": models, "outcomes": [outcome(client, one) for one in json.loads(sys.argv[2])]}))


if __name__ == "__main__":
    main()
