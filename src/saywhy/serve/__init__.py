"""Serve a classifier over HTTP: an ASGI app around an engine that it is given."""

from __future__ import annotations

from saywhy.serve.contract import (
    About,
    Answer,
    Engine,
    Event,
    Failure,
    Full,
    Handle,
    ModeFigures,
    Piece,
    Stopped,
    Tell,
)

__all__ = [
    "About",
    "Answer",
    "Engine",
    "Event",
    "Failure",
    "Full",
    "Handle",
    "ModeFigures",
    "Piece",
    "Stopped",
    "Tell",
]
