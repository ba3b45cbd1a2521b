"""The language model: load, encode, forward, score, generate. The only room with tokenizer and model code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saywhy.lm.encode import Encoder
from saywhy.lm.load import why_no_tree


@dataclass(frozen=True)
class LM:
    """A model with the encoder of its run. `reads_trees` is False for models that are read row by row."""

    model: Any
    encoder: Encoder
    reads_trees: bool


def bind(model: Any, encoder: Encoder) -> LM:
    """Put a model and an encoder together."""
    return LM(model, encoder, not why_no_tree(model))
