"""Whether a server answers as its OpenAPI document says, whatever it is sent."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

GENTLE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


def untruths(url: str, mode: GenerationMode) -> str:
    """What the server at ``url`` answered otherwise than its document says; empty for nothing."""
    wrong = []
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=60)
    for found in document.get_all_operations():
        operation = found.ok()

        @GENTLE
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, timeout=60)

        try:
            ask()
        except (FailureGroup, Failure) as error:
            wrong.append(f"{operation.label}: {error}")
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label
    return "\n\n".join(wrong)
