"""A tiny endpoint over two nodes, and how its answers are asked for."""

import http.client
import json
import time
from contextlib import closing, suppress
from typing import Any

import yaml
from tests.launcher.kubernetes.real import Here

RUN = "endpoint-1"
PORT = 8000
PROMPT = "A pipeline has"
RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "endpoint",
    "task": "serve",
    "model": "tiny-llama",
    "parallelism": "TP2+PP2",
    "serve": {"host": "0.0.0.0", "port": PORT, "drain_s": 1},
    "inference": {"precision": "fp32", "tokenizer": "byte", "kv_blocks": 64, "max_context": 128},
    "placement": {"exclude": ["gpu-3"]},
    "launch": {
        "backend": "kubernetes",
        "stop_grace_s": 3,
        "kubernetes": {"cpu": "50m", "dead_node_s": 5},
    },
}


def write_recipe(here: Here, **launch: Any) -> str:
    file = here.folder / "endpoint.yaml"
    changed = {**RECIPE, "launch": {**RECIPE["launch"], **launch}}
    file.write_text(yaml.safe_dump(changed))
    return str(file)


def service_address(here: Here) -> str:
    """The address that clients of the cluster resolve the Service to."""
    found = here.cluster.api.get("Service", f"{RUN}-endpoint", here.namespace)
    return str(found["spec"]["clusterIP"])


def complete(address: str, port: int = PORT) -> str:
    """Ask for a greedy completion."""
    connection = http.client.HTTPConnection(address, port, timeout=60)
    body = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return str(json.loads(text)["choices"][0]["text"])
    finally:
        connection.close()


def healthy(address: str, port: int = PORT) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=3)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        with closing(connection.getresponse()) as answer:
            return answer.status == 200
    return False


def until_healthy(here: Here, address: str, port: int = PORT, *, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not healthy(address, port):
        assert time.monotonic() < deadline, here.why(RUN)
        time.sleep(0.3)
