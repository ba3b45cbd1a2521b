"""Time prediction against transformers: rows a second of label and reason, and whether both give the same labels.

    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/predict.py [--quick] [--only WORKLOAD] [--processor]

Peers are the text-generation pipeline and `generate_batch`, on the same model, in float32, with the same prompts sorted
by length, at several batch sizes: the fastest counts. They write the label (or reasoning and label) greedily and it is
parsed; saywhy scores labels. `agree` is true where the labels are the same on 99% of rows and what differs are ties:
two labels whose probabilities, by transformers' own forward, are within 1e-3 of each other.
With --processor all times are the processor's, which other work on the machine moves less; set OMP_NUM_THREADS=1.
The last line is one JSON object. Without --quick the results are written to benchmarks/results/predict.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bench
import saywhy
from saywhy import store
from saywhy.lm.encode import part_ids, prompt_ids
from saywhy.predict import load
from saywhy.predict.modes import LIKELIEST, answer
from saywhy.predict.texts import text_row
from saywhy.prompts import Part, row_pieces
from saywhy.records import LABEL_CUE, REASONING_CUE, Row

WORKLOADS = ("emotion-label", "banking77-label", "emotion-reason")
# Rows a call: quick, and in full. The trunk of banking77 alone has 600 tokens, which the peers read for every row.
ROWS = {"emotion-label": (32, 256), "banking77-label": (16, 64), "emotion-reason": (32, 128)}
# Batch sizes of the pipeline that a full run tries; the quick one takes what won, which stands in the results.
SIZES = {"emotion-label": (16, 64), "banking77-label": (4, 16), "emotion-reason": (16, 64)}
BEST = {"emotion-label": ("pipeline", 16), "banking77-label": ("pipeline", 16), "emotion-reason": ("pipeline", 64)}


def main() -> None:
    """Measure every workload and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one peer, few rows, two timed calls")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--processor", action="store_true", help="count processor time")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every system in a full run")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--on", nargs=3, metavar=("FOLDER", "ROWS", "REPEAT"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.system:
        folder, rows, repeat = Path(given.on[0]), int(given.on[1]), int(given.on[2])
        clock = time.process_time if given.processor else time.perf_counter
        print(json.dumps(system(given.system, folder, bench.workload(given.only), rows, repeat, given.size, clock)))
        return
    names = [given.only] if given.only else WORKLOADS
    found = {name: measure(name, given.quick, given.rounds, given.processor) for name in names}
    if not given.quick:
        bench.keep("predict", found)
    bench.print_last(found)


def measure(name: str, quick: bool, rounds: int, processor: bool) -> dict[str, Any]:
    """Time saywhy and the peers on one workload, turn by turn."""
    work = bench.workload(name)
    folder = bench.trained(work)
    rows, rounds = ROWS[name][0 if quick else 1], 1 if quick else rounds
    peers = [BEST[name]] if quick else [*(("pipeline", size) for size in SIZES[name]), ("generate_batch", 0)]
    on = ("--only", name, "--on", str(folder), str(rows), "2" if quick else "1", *(["--processor"] * processor))
    seconds, last = bench.turns(__file__, [("saywhy", 0), *peers], rounds, *on)
    rate = {key: rows / bench.median(times) for key, times in seconds.items()}
    best = max(peers, key=lambda peer: rate[peer])
    ours, theirs = last["saywhy", 0], last[best]
    same, ties, others = compare(folder, work.test[:rows], ours, theirs)
    return {
        "saywhy": rate["saywhy", 0],
        "best_peer": rate[best],
        "peer": bench.named(*best),
        "ratio": rate["saywhy", 0] / rate[best],
        "peak_memory_ratio": ours["peak"] / theirs["peak"],
        "matmul_share": ours["flops"] / bench.median(seconds["saywhy", 0]) / ours["matmul_rate"],
        "agree": same >= 0.99 * rows and others == 0,
        "same_labels": same / rows,
        "ties": ties,
        "rows": rows,
        "clock": "processor" if processor else "time",
        "with_probabilities": rows / bench.median(ours["with_probabilities"]),
        "all": {f"{who} {size or ''}".strip(): value for (who, size), value in rate.items()},
    }


def system(
    name: str, folder: Path, work: bench.Workload, rows: int, repeat: int, size: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Let one system answer, and give seconds, labels, written texts and the most memory it took."""
    texts = [row.text for row in work.test[:rows]]
    if name == "saywhy":
        return _saywhy(folder, work, texts, repeat, clock)
    limit = store.read_json(folder / "prompt.json")["limit"] or 0
    longest = limit + max(len(bench.tokenizer(folder)(f" {label}").input_ids) for label in work.task.labels) + 8
    heads = [_prompt(folder, text, work.mode) for text in texts]
    order = sorted(range(rows), key=lambda at: -len(heads[at][0]))
    call = (_pipeline if name == "pipeline" else _generate_batch)(folder, [heads[at] for at in order], longest, size)
    seconds, found = bench.timed(lambda: call(rows), lambda: call(min(4, rows)), repeat, clock)
    written = [""] * rows
    for at, text in zip(order, found, strict=True):
        written[at] = text
    peak = bench.peak_memory()
    return {"seconds": seconds, "labels": [_label(text) for text in written], "written": written, "peak": peak}


def _saywhy(
    folder: Path, work: bench.Workload, texts: list[str], repeat: int, clock: Callable[[], float]
) -> dict[str, Any]:
    asked = saywhy.load(folder, work.mode)
    seconds, labels = bench.timed(lambda: asked.predict(texts), lambda: asked.predict(texts[:4]), repeat, clock)
    peak = bench.peak_memory()
    # With the probabilities of all labels, which no peer gives.
    whole, _ = bench.timed(lambda: asked(texts), lambda: asked(texts[:4]), repeat, clock)
    rows = [text_row(asked.classifier.task, text, str(at)) for at, text in enumerate(texts)]
    found = answer(asked.classifier, rows, work.mode, prune=LIKELIEST)
    body, head = bench.parameters()
    steps = sum(len(asked.classifier.lm.encoder.tokenizer(one.reasoning or "").input_ids) + 1 for one in found)
    return {
        "seconds": seconds,
        "with_probabilities": whole,
        "labels": labels,
        "written": [one.reasoning for one in found],
        "peak": peak,
        "flops": 2.0 * (sum(one.tokens for one in found) * body + steps * head),
        "matmul_rate": bench.best_rate(),
    }


def _prompt(folder: Path, text: str, mode: str) -> tuple[str, list[int]]:
    """Give what stands before the answer as text; the cue is forced, as saywhy forces it."""
    saved = store.read_json(folder / "prompt.json")
    prompt = f"{saved['before']}{text}{saved['after']}{REASONING_CUE if mode == 'reason' else LABEL_CUE}"
    return prompt, bench.tokenizer(folder)(prompt, add_special_tokens=False).input_ids


def _pipeline(folder: Path, heads: list[tuple[str, list[int]]], longest: int, size: int) -> Any:
    from transformers import AutoModelForCausalLM, pipeline

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = pipeline("text-generation", model=model, tokenizer=bench.tokenizer(folder))

    def call(count: int) -> list[str]:
        found = asked(
            [text for text, _ in heads[:count]],
            batch_size=size,
            max_new_tokens=longest,
            do_sample=False,
            return_full_text=False,
            add_special_tokens=False,
        )
        return [one[0]["generated_text"] for one in found]

    return call


def _generate_batch(folder: Path, heads: list[tuple[str, list[int]]], longest: int, _size: int) -> Any:
    call = bench.generate_batch(folder, [ids for _, ids in heads], bench.ending(folder, longest))
    return lambda count: bench.tokenizer(folder).batch_decode(call(count), skip_special_tokens=True)


def _label(written: str) -> str:
    return written.rpartition(LABEL_CUE)[2].strip()


def compare(folder: Path, rows: tuple[Row, ...], ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, int, int]:
    """Count rows with the same label, with a tie, and with another one, by transformers' own forward row by row."""
    same, ties, others = 0, 0, 0
    asked = load(folder)
    for at, row in enumerate(rows):
        if ours["labels"][at] == theirs["labels"][at]:
            same += 1
        elif _near(asked, row, ours["written"][at], ours["labels"][at], theirs["labels"][at]):
            ties += 1
        else:
            others += 1
            print(f"{row.text[:60]!r}: {ours['labels'][at]} / {theirs['written'][at]!r:.200}", file=sys.stderr)
    return same, ties, others


def _near(asked: Any, row: Row, why: str | None, a: str, b: str) -> bool:
    """Tell whether two labels are equally likely to 1e-3 behind the row (and our reasoning)."""
    if b not in asked.task.labels:
        return False
    encoder = asked.lm.encoder
    parts = [Part("cue", LABEL_CUE, "")]
    if why is not None:
        parts = [Part("cue", REASONING_CUE, ""), Part("reasoning", f" {why}", ""), Part("cue", f"\n{LABEL_CUE}", "")]
    head = [*prompt_ids(encoder, row_pieces(row))[0], *(i for part in parts for i in part_ids(encoder, part))]
    ids = [[*part_ids(encoder, Part("label", f" {label}", "")), encoder.end] for label in (a, b)]
    return abs(_chance(asked.lm.model, head, ids[0]) - _chance(asked.lm.model, head, ids[1])) < 1e-3


def _chance(model: Any, head: list[int], tail: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*head, *tail]])).logits[0].double()
    logs = torch.log_softmax(logits[len(head) - 1 : -1], -1)
    return float(np.exp(sum(float(logs[at, token]) for at, token in enumerate(tail))))


if __name__ == "__main__":
    main()
