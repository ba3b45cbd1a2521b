"""examples/deploy/ray_serve.py on a local cluster: replicas answer what the model alone answers, then stop."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import saywhy
import toy

pytest_plugins = ["runs"]
SCRIPT = Path(__file__).parents[1] / "examples" / "deploy" / "ray_serve.py"
PATIENCE = 600


@pytest.mark.soak
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_replicas_answer_as_the_model_does(quick_run: toy.Done, tmp_path: Path) -> None:
    folder = quick_run.folder / "label_only"
    texts = [row["text"] for row in toy.records()["test"]]
    wanted = saywhy.load(folder)(texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # Its sockets need a path shorter than that of a test.
    short = tempfile.mkdtemp(prefix="ray-")
    told = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short, "OMP_NUM_THREADS": "1"}
    # A busy machine takes longer than 5 s to start the proxy, which is then ended and started again, for ever; and what
    # others take of its memory is no reason to end these.
    told |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_memory_monitor_refresh_ms": "0"}
    told["RAY_AUTH_MODE"] = "disabled"
    arguments = [str(folder), "--port", str(port), "--replicas", "2", "--cpus", "0.5"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], env=told, stdout=log, stderr=log)
    try:
        _wait(f"{address}/ready", process, tmp_path / "log")

        def ask(text: str) -> Any:
            body = json.dumps({"texts": [text]}).encode()
            request = urllib.request.Request(f"{address}/v1/classify", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as said:
                return json.load(said)["results"][0]

        with ThreadPoolExecutor(8) as several:
            found = list(several.map(ask, texts))
        assert [one["label"] for one in found] == [one.label for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one["probability"] == pytest.approx(other.probabilities[other.label], abs=1e-5)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        shutil.rmtree(short, ignore_errors=True)
    assert code == 0


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(url, timeout=5) as said:
                if said.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise AssertionError(log.read_text(encoding="utf-8"))
