"""What /openapi.json promises, held against what is answered, by schemathesis."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from saywhy.serve.app import make_app
from saywhy.serve.shapes import Limits
from serving import Fake

KEY = "a-key-of-more-than-16-characters"


@pytest.fixture
def described() -> Any:
    app = make_app(Fake(), Limits(texts=8, characters=40, seconds=2), KEY)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("described")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: Any) -> None:
    case.call_and_validate(headers={"authorization": f"Bearer {KEY}"})
