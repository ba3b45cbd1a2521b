"""What a trained model does with its reasonings, what goes on inside it, and what its answers take."""

from __future__ import annotations

from saywhy.probe.faithfulness import faithfulness
from saywhy.probe.inside import POSITIONS, inside
from saywhy.probe.latency import TIMED_ROWS, latency, machine

__all__ = ["POSITIONS", "TIMED_ROWS", "faithfulness", "inside", "latency", "machine"]
