"""`saywhy serve` as a user runs it: a process of its own, asked, and stopped while it answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import saywhy
import toy

pytest_plugins = ["runs"]
PATIENCE = 120


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_answers_what_it_took(
    quick_run: toy.Done, tmp_path: Path, stop: signal.Signals
) -> None:
    folder = quick_run.folder / "reason_then_label"
    texts = [row["text"] for row in toy.records()["train"]] * 4
    wanted = saywhy.load(folder).predict(texts)
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "saywhy.cli", "serve", str(folder), "--port", "0"]
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        with process.stdout:
            said = process.stdout.readline()
            address = next(word for word in said.split() if word.startswith("http://"))
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(_ask(address, texts)))
            asking.start()
            until = time.monotonic() + PATIENCE
            while "saywhy_waiting_texts 0.0" in (state := _get(f"{address}/metrics")):
                assert time.monotonic() < until and asking.is_alive(), state
            process.send_signal(stop)
            asking.join(PATIENCE)
            code = process.wait(PATIENCE)
        log.seek(0)
        logged = log.read()
    assert [one["label"] for one in answers[0]["results"]] == wanted
    # A signal that ends a process is what its parent should see; Ctrl-C is how a server is left.
    assert code == (-signal.SIGTERM if stop == signal.SIGTERM else 0)
    assert "POST /v1/classify 200" in logged and texts[0] not in logged and "Traceback" not in logged


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as said:
        return str(said.read().decode())


def _ask(address: str, texts: list[str]) -> Any:
    request = urllib.request.Request(
        f"{address}/v1/classify", json.dumps({"texts": texts}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as said:
        return json.load(said)
