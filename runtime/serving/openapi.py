"""The endpoint's own description (OpenAPI 3.1), generated from the models that check bodies."""

from typing import Any

from parctl._version import __version__
from parctl.runtime.serving.bodies import Body, ChatBody, CompletionBody

JSON = "application/json"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
REFUSALS = {
    "400": "the body is not what is expected",
    "401": "the API key is missing or wrong",
    "404": "no such model",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "415": "the body is no JSON",
    "429": "too many calls are under way",
    "503": "the engine is starting, ending or gone",
}


def openapi_document(model_name: str, *, keyed: bool, vocab_size: int | None) -> dict[str, Any]:
    """Return the document. `keyed`: a key is asked for; `vocab_size`: of the model, once known."""
    schemas: dict[str, Any] = {"Error": ERROR, "Usage": USAGE, "Model": model_schema(model_name)}
    for body in (CompletionBody, ChatBody):
        schemas |= body_schemas(body, model_name, vocab_size)
    schemas["Completion"] = answer_schema("text_completion", {"text": {"type": "string"}})
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
    }
    schemas["ChatCompletion"] = answer_schema("chat.completion", {"message": message})
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"{model_name}, served by parctl", "version": __version__},
        "paths": {
            "/v1/completions": {"post": completion("completion", "CompletionBody", "Completion")},
            "/v1/chat/completions": {
                "post": completion("chatCompletion", "ChatBody", "ChatCompletion")
            },
            "/v1/models": {"get": reading("listModels", model_list(), ["401"])},
            "/v1/models/{name}": {
                "get": {
                    **reading("getModel", reference("Model"), ["401", "404"]),
                    "parameters": [
                        {
                            "name": "name",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "enum": [model_name]},
                        }
                    ],
                }
            },
            "/health": {"get": health()},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "security": [],
                    "responses": {
                        "200": {
                            "description": "in the text format of Prometheus",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        }
                    },
                }
            },
        },
        "components": {"schemas": schemas},
    }
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def body_schemas(body: type[Body], model_name: str, vocab_size: int | None) -> dict[str, Any]:
    """Return the schemas of a body and its parts, with what this model adds to them."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs", {})
    schema["properties"]["model"]["enum"] = [model_name]
    if vocab_size is not None:
        bound_tokens(schema["properties"].get("prompt", {}), vocab_size)
    return {**parts, body.__name__: schema}


def bound_tokens(node: Any, vocab_size: int) -> None:
    if isinstance(node, dict):
        if node.get("type") == "integer":
            node.pop("exclusiveMaximum", None)
            node["maximum"] = vocab_size - 1
        for value in node.values():
            bound_tokens(value, vocab_size)
    elif isinstance(node, list):
        for value in node:
            bound_tokens(value, vocab_size)


def reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def content(schema: dict[str, Any]) -> dict[str, Any]:
    return {JSON: {"schema": schema}}


def refusals(statuses: list[str]) -> dict[str, Any]:
    return {
        status: {"description": REFUSALS[status], "content": content(reference("Error"))}
        for status in statuses
    }


def completion(operation: str, body: str, answer: str) -> dict[str, Any]:
    # before OpenAPI 3.2 the schema of a stream is that of each event
    texts = {"data": {"type": "string"}}
    each = {"type": "object", "required": ["data"], "properties": texts}
    events = {"text/event-stream": {"schema": each}}
    return {
        "operationId": operation,
        "requestBody": {"required": True, "content": content(reference(body))},
        "responses": {
            "200": {
                "description": "the answers; with `stream: true`, events up to `[DONE]`",
                "content": {**content(reference(answer)), **events},
            },
            **refusals(list(REFUSALS)),
        },
    }


def reading(operation: str, schema: dict[str, Any], statuses: list[str]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "responses": {
            "200": {"description": "found", "content": content(schema)},
            **refusals(statuses),
        },
    }


def health() -> dict[str, Any]:
    states = {"type": "string", "enum": ["starting", "ready", "draining"]}
    schema = {"type": "object", "required": ["status"], "properties": {"status": states}}
    return {
        "operationId": "health",
        "security": [],
        "responses": {
            "200": {"description": "ready", "content": content(schema)},
            "503": {"description": "not yet, or no longer", "content": content(schema)},
        },
    }


def model_schema(model_name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"const": model_name},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
        },
    }


def model_list() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference("Model")},
        },
    }


def answer_schema(kind: str, own: dict[str, Any]) -> dict[str, Any]:
    choice = {
        "type": "object",
        "required": ["index", *own, "logprobs", "finish_reason"],
        "properties": {
            "index": {"type": "integer", "minimum": 0},
            **own,
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": {"enum": ["stop", "length"]},
        },
    }
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "minItems": 1, "items": choice},
            "usage": reference("Usage"),
        },
    }
