"""The version of saywhy, and of what it stands on."""

from __future__ import annotations

import platform
from importlib import metadata

VERSION = "0.1.0"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Give the versions that a result depends on, libraries that are not installed left out."""
    machine = f"{platform.system()} {platform.machine()}"
    found = {"saywhy": VERSION, "python": platform.python_version(), "platform": machine}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
