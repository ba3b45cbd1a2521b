"""`python -m saywhy.cli` is the command `saywhy`."""

from __future__ import annotations

from saywhy.cli import entry

if __name__ == "__main__":
    entry()
