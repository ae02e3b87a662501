"""The OpenAPI document of a server: KServe's routes as our models answer them, and whatever routers were added.

KServe describes its calls for any model and any tensor. Here each model has its own ``:predict`` and ``/infer`` with
the fields that it takes and gives and this server's limits, errors are ``{"error": sentence}``, and what the server
keeps closed is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from deeprec import __version__
from deeprec.config import ServingConfig
from deeprec.types import JsonDict

if TYPE_CHECKING:
    from deeprec.serving.http.model import JsonModel

_REF = "#/components/schemas/{model}"
_GENERIC = re.compile(r"/v1/models/\{model_name\}:\w+|/v2/models/\{model_name\}/infer|.*/versions/.*|/v2/repository/.*")
_SUMMARIES = {
    "/": "Whether the server is alive",
    "/metrics": "Figures for Prometheus",
    "/v1/models": "The models' names",
    "/v1/models/{model_name}": "Whether a model is ready (V1)",
    "/v2": "The server's name and version",
    "/v2/health/live": "Whether the server is alive",
    "/v2/health/ready": "Whether every model is ready",
    "/v2/models": "The models' names",
    "/v2/models/{model_name}": "A model's tensors",
    "/v2/models/{model_name}/ready": "Whether a model is ready (V2)",
}
_MAY_BE_UNREADY = ("/v1/models/{model_name}", "/v2/health/ready", "/v2/models/{model_name}/ready")
_REFUSALS = {
    "400": "The request is not acceptable; the sentence says what to mend.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not sent as plain JSON.",
    "503": "The model is not ready yet.",
}


def document(app: Any, models: Sequence[JsonModel], serving: ServingConfig) -> JsonDict:
    """The OpenAPI 3.1 document of a FastAPI application that serves ``models``."""
    from fastapi.openapi.utils import get_openapi

    first_wins = list(reversed(app.routes))
    found = get_openapi(title="deeprec", version=__version__, routes=first_wins)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"type": "string", "description": "What was found, and what to do."}},
        "required": ["error"],
    }
    paths = {path: item for path, item in found["paths"].items() if not _GENERIC.fullmatch(path)}
    for path, item in paths.items():
        for method, operation in item.items():
            _mend(path, method, operation, [model.name for model in models])
            _name_bodies(operation, schemas)
    for model in models:
        request, answer = _put(schemas, model.REQUEST), _put(schemas, model.ANSWER)
        paths[f"/v1/models/{model.name}:predict"] = {"post": _predict(model.name, request, answer, serving)}
        paths[f"/v2/models/{model.name}/infer"] = {"post": _infer(model.name, request, serving)}
    for schema in schemas.values():
        _bound(schema, serving)
    return {**found, "paths": dict(sorted(paths.items()))}


def _mend(path: str, method: str, operation: JsonDict, names: list[str]) -> None:
    """What FastAPI cannot know of a route: errors as this server gives them, the models there are."""
    answers = operation["responses"]
    if path in _SUMMARIES and operation.get("tags") != ["page"]:
        operation["summary"] = _SUMMARIES[path]
        operation.pop("description", None)
    if path == "/metrics":
        text = {"schema": {"type": "string"}}
        answers["200"]["content"] = {"text/plain": text, "application/openmetrics-text": text}
    operation["parameters"] = [one for one in operation.get("parameters", ()) if one["name"] != "model_version"]
    for parameter in operation["parameters"]:
        if parameter["in"] == "path" and parameter["name"] == "model_name":
            parameter["schema"] = {"type": "string", "enum": names}
            answers["404"] = _refusal("There is no such model.")
    if answers.pop("422", None) is not None:
        answers["400"] = _refusal(_REFUSALS["400"])
    if path in _MAY_BE_UNREADY:
        answers["503"] = _refusal("Not ready: still loading, or shutting down.")
    if method == "post":
        answers |= {status: _refusal(why) for status, why in _REFUSALS.items() if status not in answers}
    answers.setdefault("429", _shed())


def _name_bodies(operation: JsonDict, schemas: JsonDict) -> None:
    """Put the bodies that a router describes in place, with definitions of their own, among the components."""
    for media in operation.get("requestBody", {}).get("content", {}).values():
        schema = media["schema"]
        if "$defs" in schema and "title" in schema:
            whole = json.loads(json.dumps(schema).replace("#/$defs/", _REF.format(model="")))
            schemas |= whole.pop("$defs")
            schemas[whole["title"]] = whole
            media["schema"] = {"$ref": _REF.format(model=whole["title"])}


def _predict(name: str, request: JsonDict, answer: JsonDict, serving: ServingConfig) -> JsonDict:
    most = serving.max_instances
    instances = {"type": "array", "items": request, "minItems": 1, "maxItems": most}
    predictions = {"type": "array", "items": answer, "minItems": 1, "maxItems": most}
    return _call(
        f"Ask {name} (V1)", f"predict_{name}", ["V1"], _object(instances=instances), _object(predictions=predictions)
    )


def _infer(name: str, request: JsonDict, serving: ServingConfig) -> JsonDict:
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": request}
    shape = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1}
    data = {"type": "array", "items": {"anyOf": [text, request]}, "minItems": 1, "maxItems": serving.max_instances}
    tensor = _object(name={"const": "request"}, shape=shape, datatype={"const": "BYTES"}, data=data)
    body = _object(inputs={"type": "array", "items": tensor, "minItems": 1, "maxItems": 1})
    body["properties"]["id"] = {"type": "string"}
    texts = {"type": "array", "items": {"type": "string", "contentMediaType": "application/json"}}
    output = _object(name={"const": "response"}, shape=shape, datatype={"const": "BYTES"}, data=texts)
    answer = _object(model_name={"const": name}, id={"type": "string"}, outputs={"type": "array", "items": output})
    return _call(f"Ask {name} (V2)", f"infer_{name}", ["V2"], body, answer)


def _call(summary: str, operation: str, tags: list[str], body: JsonDict, answer: JsonDict) -> JsonDict:
    return {
        "tags": tags,
        "summary": summary,
        "operationId": operation.replace("-", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "Answers, in the requests' order",
                "content": {"application/json": {"schema": answer}},
            },
            **{status: _refusal(why) for status, why in _REFUSALS.items()},
            "429": _shed(),
        },
    }


def _object(**properties: JsonDict) -> JsonDict:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _refusal(description: str) -> JsonDict:
    schema = {"$ref": _REF.format(model="Error")}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _shed() -> JsonDict:
    wait = {"description": "Seconds to wait", "required": True, "schema": {"type": "integer", "minimum": 1}}
    return {**_refusal("Every place is taken."), "headers": {"Retry-After": wait}}


def _put(schemas: JsonDict, kind: type[Any]) -> JsonDict:
    """A reference to ``kind``, whose schema is put among the components."""
    schema = TypeAdapter(kind).json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    schemas[kind.__name__] = schema
    return {"$ref": _REF.format(model=kind.__name__)}


def _bound(schema: JsonDict, serving: ServingConfig) -> None:
    """Write this server's limits into a request's schema, where it has the fields."""
    fields = schema.get("properties", {})
    limits = {
        "k": ("maximum", serving.max_k),
        "deadline_ms": ("maximum", serving.max_deadline_ms),
        "history": ("maxItems", serving.max_history),
        "exclude": ("maxItems", serving.max_history),
    }
    for name, (word, limit) in limits.items():
        for option in fields.get(name, {}).get("anyOf", [fields.get(name, {})]):
            if option.get("type") in ("integer", "array"):
                option[word] = limit
