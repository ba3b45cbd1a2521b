"""An OpenAI-compatible server writes."""

from __future__ import annotations

from saywhy.config import Api, Sampling
from saywhy.records import RequestError
from saywhy.teachers.shape import Teacher


def open_api(api: Api, sampling: Sampling, seed: int, instruction: str) -> Teacher:
    """Connect."""
    raise RequestError("reasonings.teacher: api is to come")
