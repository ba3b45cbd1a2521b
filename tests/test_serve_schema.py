"""What /openapi.json promises, held against what is answered, by schemathesis."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from saywhy.serve.app import make_app
from saywhy.serve.shapes import Limits
from serving import Fake

KEY = "a-key-of-more-than-16-characters"
# The first takes the key away and does not see that it is sent again (test_serve.py has one of its own). What the last
# message of the user has to hold, JSON Schema cannot say, so that of a chat not all that is described is accepted.
EXCLUDED = [ignored_auth, positive_data_acceptance]
OPERATIONS = [
    ("/v1/classify", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def described() -> Any:
    app = make_app(Fake(), Limits(texts=8, characters=40, seconds=2), KEY)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_among_those_that_are_tried(described: Any) -> None:
    found = {(one.ok().path, one.ok().method.upper()) for one in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_as_described(described: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation, excluded = described[path][method], EXCLUDED if "chat" in path else EXCLUDED[:1]
    if mode == GenerationMode.NEGATIVE and method == "GET" and "{" not in path:
        pytest.skip("there is nothing to get wrong")

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def validate(case: Any) -> None:
        case.call_and_validate(headers={"authorization": f"Bearer {KEY}"}, excluded_checks=excluded)

    validate()
