"""Lines for a shell that the serve commands print to try a server with."""

from __future__ import annotations

import json
from collections.abc import Mapping


def curl(url: str, body: Mapping[str, object]) -> str:
    """A line for a shell that posts ``body`` to ``url``."""
    quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"  curl -s {url} -H 'Content-Type: application/json' -d '{quoted}'"


def curl_v1(at: str, model: str, request: Mapping[str, object]) -> str:
    """A line that asks the model of the server ``at`` over V1."""
    return curl(f"{at}/v1/models/{model}:predict", {"instances": [request]})


def curl_v2(at: str, model: str, request: Mapping[str, object]) -> str:
    """A line that asks the model of the server ``at`` over V2."""
    tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(request)]}
    return curl(f"{at}/v2/models/{model}/infer", {"inputs": [tensor]})
