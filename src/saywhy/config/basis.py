"""What all settings share: frozen, strict, and with messages that name what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

T = TypeVar("T")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Say which known name stands nearest to a word, as the end of a sentence; "" where none is near."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def to_tuple(value: Any) -> Any:
    """Turn a list into a tuple and leave all else to be checked."""
    return tuple(value) if isinstance(value, list) else value


def one_or_more(value: Any) -> Any:
    """Turn one text, or a list, into a tuple and leave all else to be checked."""
    return (value,) if isinstance(value, str) else to_tuple(value)


Items = Annotated[tuple[T, ...], BeforeValidator(to_tuple)]
Words = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Settings(BaseModel):
    """Settings that are frozen and refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return {} if value is None else cls._written(value)

    @classmethod
    def _written(cls, value: Any) -> Any:
        """Spell out what was written short."""
        return value
