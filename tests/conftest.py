"""Every test is hermetic: no network, one thread, no progress bars, seeded examples, models made in the process."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("saywhy", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("saywhy")

if importlib.util.find_spec("torch") is not None:
    import torch

    # On a shared machine torch's own choice of threads made these tests ten times slower.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but those to this machine."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach {address!r}; tests may only reach this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer with bos and end token and no chat template."""
    import tiny

    return tiny.byte_level()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with a small Llama and its tokenizer, as a user would name it in `base`."""
    import tiny

    folder: Path = tmp_path_factory.mktemp("base")
    tiny.model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Give what was printed to the standard error stream so far."""
    yield lambda: capsys.readouterr().err
