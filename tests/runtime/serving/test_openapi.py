"""The OpenAPI document is true: calls made from it, good and bad, are answered as it says."""

from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from tests.runtime.serving.endpoint import Endpoint

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def test_calls_made_from_the_document_are_answered_as_it_says(endpoint: Endpoint) -> None:
    document = httpx.get(endpoint.root + "/openapi.json").json()
    schema: Any = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=endpoint.root)
    asked: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        asked += ask(endpoint, operation, GenerationMode.POSITIVE)
        if operation.method == "post":
            asked += ask(endpoint, operation, GenerationMode.NEGATIVE)
    assert asked[200] >= 20 and asked[400] >= 20


def ask(endpoint: Endpoint, operation: Any, mode: GenerationMode) -> Counter[int]:
    """Make calls, good or bad ones, and hold the answers against the document."""
    headers = {"authorization": f"Bearer {endpoint.key}"}
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        answer = case.call(base_url=endpoint.root, headers=headers, timeout=60)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS, headers=headers)

    one()
    return statuses
