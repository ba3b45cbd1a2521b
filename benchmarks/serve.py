"""Time serving against `transformers serve`: rows a second and latency at 1 to 256 clients, one text a request.

    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/serve.py [--quick] [--only WORKLOAD]
    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/serve.py --soak [SECONDS]

The peer serves what `saywhy export` wrote, in float32, with a chat template that renders saywhy's own prompt: its chat
route with and without --continuous-batching writes the label (or reasoning and label) greedily, and its decision route
(`emotion-decision`, whose labels are single tokens) reads the label's probabilities. saywhy scores labels. Servers and
load generator share the same two cores; each client asks again as soon as it is answered, over one connection.
`agree` is true where the labels are the same on 99% of the texts that both answered. The last line is one JSON object.
--quick takes labels, 64 clients and the peer that won the last full run; without it the results are written to
benchmarks/results/serve.json. --soak keeps one server busy with good, bad and broken requests and prints its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import bench
from saywhy import export, store
from saywhy.records import LABEL_CUE, REASONING_CUE, Task

WORKLOADS = ("emotion-label", "emotion-reason", "emotion-decision")
CLIENTS = (1, 8, 64, 256)
TARGET = 64
CHAT, BATCHED, DECISION = "chat", "chat --continuous-batching", "decision"
BEST = {"emotion-label": CHAT, "emotion-reason": BATCHED, "emotion-decision": DECISION}
TEXTS = 400
# Seconds and turns that a load lasts at the least, and the seconds after which it is cut where it stands: a peer may
# not answer 256 clients once in that time.
QUICK, FULL, LONGEST = (6.0, 2), (20.0, 4), 90.0
# By default the peer's cache takes nearly all memory there is, and on a shared machine it is then killed.
BATCHING = ["--continuous-batching", "--cb-max-memory-percent", "0.1"]
CORES = {0, 1}


def main() -> None:
    """Measure every workload, or soak one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="labels, 64 clients, one peer")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--peer", choices=(CHAT, BATCHED, DECISION), help="this one instead, with --quick")
    parser.add_argument("--soak", nargs="?", type=float, const=600.0, metavar="SECONDS")
    given = parser.parse_args()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, CORES)
    if given.soak:
        print(json.dumps(soak(given.soak)))
        return
    names = [given.only] if given.only else WORKLOADS[: 1 if given.quick else 3]
    found = {}
    for name in names:
        found[name] = measure(name, given.quick, given.peer or BEST[name])
        if not given.quick:
            bench.keep("serve", {name: found[name]})
    bench.print_last(found)


def workload(name: str) -> bench.Workload:
    """Give a workload; that of the decision route is emotion with a label of one token for `sadness`."""
    if name != "emotion-decision":
        return bench.workload(name)
    work = bench.workload("emotion-label")

    def renamed(label: str | None) -> str | None:
        return "sad" if label == "sadness" else label

    described = {renamed(label): text for label, text in work.task.descriptions.items()}
    task = Task("emotion-decision", work.task.instruction, tuple(described), described)  # type: ignore[arg-type]
    train, test = (tuple(replace(row, label=renamed(row.label)) for row in rows) for rows in (work.train, work.test))
    return replace(work, name=name, task=task, train=train, test=test)


def exported(work: bench.Workload, folder: Path) -> Path:
    """Export the model, and put saywhy's prompt into a chat template."""
    to = folder.with_name(f"{folder.name}-exported")
    if not (to / "chat_template.jinja").exists():
        rows = bench.CACHE / f"{work.name}-test.jsonl"
        lines = (json.dumps({"text": row.text, "label": row.label}) + "\n" for row in work.test[:8])
        rows.write_text("".join(lines), encoding="utf-8")
        for line in export.write(folder, to, rows=False, source=str(rows)):
            print(line, file=sys.stderr)
        prompt = store.read_json(to / "prompt.json")
        cue = REASONING_CUE if work.mode == "reason" else LABEL_CUE
        before, after = json.dumps(prompt["before"]), json.dumps(prompt["after"] + cue)
        template = "{{ " + before + " }}{{ messages[-1]['content'] | trim }}{{ " + after + " }}"
        (to / "chat_template.jinja").write_text(template, encoding="utf-8")
    return to


@dataclass
class Load:
    """What clients saw: seconds and text of each answer, the time from the first to the last, and the server's peak."""

    latencies: list[float] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)
    tokens: float = 0.0
    seconds: float = 0.0
    failed: int = 0
    cut: bool = False
    memory: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.latencies else 0.0

    def quantile(self, share: float) -> float | None:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def measure(name: str, quick: bool, likely: str) -> dict[str, Any]:
    """Serve one workload with saywhy and with its peers, one after the other, and ask both the same."""
    work = workload(name)
    folder = bench.trained(work)
    texts = [row.text for row in work.test[:TEXTS]]
    clients = (TARGET,) if quick else CLIENTS
    least = QUICK if quick else FULL
    ours = _loaded(saywhy_command(folder), "/v1/classify", _classify(texts, work.mode), clients, least, _ours)
    theirs: dict[str, dict[int, Load]] = {}
    routes = [likely] if quick else [DECISION] if name == "emotion-decision" else [CHAT, BATCHED]
    model = exported(work, folder)
    longest = (store.read_json(folder / "prompt.json")["limit"] or 0 if work.mode == "reason" else 0) + 12
    for route in routes:
        command, path, bodies, read = peer(route, model, texts, work.task, longest)
        theirs[route] = _loaded(command, path, bodies, clients, least, read)
    best = max(theirs, key=lambda route: theirs[route][TARGET].rate)
    mine, other = ours[TARGET], theirs[best][TARGET]
    shared = mine.answers.keys() & other.answers.keys()
    same = sum(mine.answers[at] == other.answers[at] for at in shared)
    body, head = bench.parameters()
    flops = 2.0 * (mine.tokens / len(mine.latencies) * body + head) * mine.rate
    return {
        "saywhy": mine.rate,
        "best_peer": other.rate,
        "peer": f"transformers serve, {best}",
        "ratio": mine.rate / other.rate,
        "peak_memory_ratio": mine.memory / other.memory,
        "matmul_share": flops / bench.best_rate(),
        "agree": same >= 0.99 * len(shared) > 0,
        "same_labels": same / max(1, len(shared)),
        "p50": mine.quantile(0.5),
        "p99": mine.quantile(0.99),
        "peer_p50": other.quantile(0.5),
        "peer_p99": other.quantile(0.99),
        "failed": mine.failed + other.failed,
        "all": {"saywhy": _shown(ours), **{route: _shown(loads) for route, loads in theirs.items()}},
    }


def _shown(loads: dict[int, Load]) -> dict[str, dict[str, Any]]:
    return {
        str(count): {
            "rows_per_second": one.rate,
            "p50": one.quantile(0.5),
            "p99": one.quantile(0.99),
            "answers": len(one.latencies),
            "failed": one.failed,
            "cut": one.cut,
            "memory": one.memory,
        }
        for count, one in loads.items()
    }


def saywhy_command(folder: Path) -> list[str]:
    """Give the command that serves a folder with saywhy."""
    return [sys.executable, "-m", "saywhy.cli", "serve", str(folder), "--deadline", "300", "--port"]


def _classify(texts: list[str], mode: str) -> list[bytes]:
    return [json.dumps({"texts": [text], "mode": mode}).encode() for text in texts]


def _ours(answer: dict[str, Any]) -> tuple[str, float]:
    return answer["results"][0]["label"], answer["usage"]["tokens"]


def peer(route: str, model: Path, texts: list[str], task: Task, longest: int) -> Any:
    """Give the peer's command, the path, the bodies, and what reads a label from an answer."""
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--dtype", "float32"]
    command += ["--device", "cpu", "--host", "127.0.0.1", *(BATCHING if route == BATCHED else [])]
    if route == DECISION:
        asked = {"label": {"type": "choice", "criteria": dict.fromkeys(task.labels)}}
        bodies = [json.dumps({"model": str(model), "state": text, "questions": asked}).encode() for text in texts]
        return [*command, "--port"], "/v1/systemone", bodies, lambda answer: (answer["answers"]["label"]["choice"], 0.0)
    more = {"model": str(model), "temperature": 0, "max_tokens": longest}
    bodies = [json.dumps({"messages": [{"role": "user", "content": text}], **more}).encode() for text in texts]

    def read(answer: dict[str, Any]) -> tuple[str, float]:
        return answer["choices"][0]["message"]["content"].rpartition(LABEL_CUE)[2].strip(), 0.0

    return [*command, "--port"], "/v1/chat/completions", bodies, read


def _loaded(
    command: list[str], path: str, bodies: list[bytes], clients: tuple[int, ...], least: tuple[float, int], read: Any
) -> dict[int, Load]:
    """Put every number of clients on a server of its own: one that was cut would still work on what it was asked."""
    found = {}
    for count in clients:
        with running(command) as (port, process):
            one = found[count] = asyncio.run(load(port, path, bodies, count, *least, read))
            one.memory = memory(process.pid, "VmHWM")
        shown = f"{one.rate:.1f} rows/s, {len(one.latencies)} answers{', cut' * one.cut}"
        print(f"{path} {count} clients: {shown}", file=sys.stderr, flush=True)
    return found


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server on a free port until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with (bench.CACHE / "serve.log").open("wb") as log:
        process = subprocess.Popen([*command, str(port)], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                    line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if b" 200 " in line.recv(100):
                        break
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{' '.join(command)} did not start; see {log.name}")
                time.sleep(0.5)
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def memory(pid: int, name: str) -> int:
    """Give a figure of a process's memory in bytes: VmHWM the most it ever held, VmRSS what it holds."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


async def load(port: int, path: str, bodies: list[bytes], clients: int, seconds: float, turns: int, read: Any) -> Load:
    """Let clients ask one text after the other, for `seconds` and until each was answered `turns` times on average.

    What they see is counted once as many answers came as there are clients, and cut after LONGEST seconds.
    """
    found, order, done, began = Load(), itertools.cycle(range(len(bodies))), 0, time.perf_counter()

    async def client() -> None:
        nonlocal done, began
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while done < turns * clients or time.perf_counter() < began + seconds:
            at = next(order)
            start = time.perf_counter()
            status, answer = await ask(reader, writer, path, bodies[at])
            done += 1
            if done <= clients:
                began = time.perf_counter()
                continue
            if status != 200:
                found.failed += 1
                continue
            label, tokens = read(json.loads(answer))
            found.latencies.append(time.perf_counter() - start)
            found.answers[at], found.tokens = label, found.tokens + tokens
        writer.close()

    try:
        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(clients))), LONGEST)
    except TimeoutError:
        found.cut = True
    found.seconds = time.perf_counter() - began
    return found


async def ask(reader: Any, writer: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Send one request and read its answer, of known length or in chunks."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length")), None)
    if length is not None:
        return int(lines[0].split()[1]), await reader.readexactly(length)
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return int(lines[0].split()[1]), b"".join(parts)


def soak(seconds: float) -> dict[str, Any]:
    """Keep a server busy with all kinds of requests, and tell whether its memory stayed where it was."""
    work = workload("emotion-reason")
    texts = [row.text for row in work.test[:TEXTS]]
    with running(saywhy_command(bench.trained(work))) as (port, process):
        counted = asyncio.run(_soaked(port, process.pid, texts, seconds))
    statuses, held = counted["statuses"], counted["memory"]
    # The most of every twentieth of the time. While lengths of texts are new, so is some of what it holds; from the
    # second fifth to the last it should stay.
    tops = [max(part.tolist()) for part in np.array_split(held, 20)]
    growth = sum(tops[16:]) / sum(tops[4:8]) - 1
    return {
        "seconds": seconds,
        "answers": statuses,
        "broken": counted["broken"],
        "memory_mb": [round(one / 2**20) for one in tops],
        "growth": growth,
        "flat": growth <= 0.05,
        "errors": sum(count for status, count in statuses.items() if status >= 500),
    }


async def _soaked(port: int, pid: int, texts: list[str], seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    statuses: dict[int, int] = {}
    held: list[int] = []
    broken = 0
    bad = [
        b"{",
        b"[" * 5000,
        b'{"texts": []}',
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["' + b"a" * 30000 + b'"]}',
        b"\0",
    ]

    async def client(seed: int) -> None:
        nonlocal broken
        draw = random.Random(seed)
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(draw.randint(1, 8)):
                if time.monotonic() > until:
                    break
                kind = draw.random()
                some = draw.sample(texts, draw.choice([1, 1, 1, 8, 32]))
                body = json.dumps({"texts": some, "stream": kind < 0.4}).encode()
                if kind < 0.15:
                    # A client that leaves in the midst of its answer, or of its question.
                    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    writer.write(
                        f"{head}Content-Type: application/json\r\n\r\n".encode()
                        + body[: draw.randint(0, 2 * len(body))]
                    )
                    await asyncio.sleep(draw.random())
                    broken += 1
                    break
                status, _ = await ask(reader, writer, "/v1/classify", draw.choice(bad) if kind > 0.9 else body)
                statuses[status] = statuses.get(status, 0) + 1
            writer.close()

    async def watch() -> None:
        began, shown = time.monotonic(), 0.0
        while time.monotonic() < until:
            held.append(memory(pid, "VmRSS"))
            passed = time.monotonic() - began
            if passed >= shown:
                print(f"{passed:.0f} s: {held[-1] / 2**20:.0f} MB, {statuses}", file=sys.stderr, flush=True)
                shown += seconds / 20
            await asyncio.sleep(1.0)

    await asyncio.gather(watch(), *(client(seed) for seed in range(12)))
    return {"statuses": dict(sorted(statuses.items())), "memory": held, "broken": broken}


if __name__ == "__main__":
    main()
