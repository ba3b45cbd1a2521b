"""Time writing reasonings against transformers: rows a second of a local teacher, and whether both write the same.

    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/generate.py [--quick] [--only WORKLOAD]

A reasoner of 42 million parameters, trained once on emotion-why for a minute or a few, writes for the training rows of
emotion: `reasoner` greedily, `reasoner-sampled` at temperature 0.8 and top_p 0.95. Peers are transformers' `generate`
at several batch sizes and `generate_batch`, on the same model, in float32, with the same prompts, already tokens and
sorted by length: the fastest counts. `agree` is true where 95% of the greedy texts are the same and the others part at
a tie, two tokens whose probabilities, by transformers' own forward, are within 1e-3 of each other; of sampled texts
the mean lengths have to be within three standard errors.
With --processor all times are the processor's, which other work on the machine moves less; set OMP_NUM_THREADS=1.
The last line is one JSON object. Without --quick the results are written to benchmarks/results/generate.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import bench
from saywhy import journal, reasoner
from saywhy.config import Sampling
from saywhy.lm.encode import Encoder, decode, part_ids, prompt_ids, text_ids
from saywhy.lm.folder import load
from saywhy.prompts import REASONER, Part, described, reasoner_pieces, reasoner_question
from saywhy.reasonings.asking import ask
from saywhy.records import REASONING_CUE
from saywhy.teachers import Draft, Question, Writer, paragraph

WORKLOADS = ("reasoner", "reasoner-sampled")
SAMPLING = {
    "reasoner": Sampling(temperature=0.0, top_p=1.0, max_tokens=256),
    "reasoner-sampled": Sampling(temperature=0.8, top_p=0.95, max_tokens=256),
}
# Rows: quick, and in full.
ROWS = (64, 128)
PEERS = [("generate", 32), ("generate", 64), ("generate", 128), ("generate_batch", 32), ("generate_batch", 64)]
# What won the last full run, for a quick one.
BEST = ("generate", 32)
# Room for a whole group of questions: in two batches of unequal size they take a fifth longer (LOG.md, 2026-12-01).
BUDGET = 32768


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
        clock = time.process_time if given.processor else time.perf_counter
        folder, rows, repeat = Path(given.on[0]), int(given.on[1]), int(given.on[2])
        print(json.dumps(system(given.system, given.size, folder, given.only, rows, repeat, clock)))
        return
    names = [given.only] if given.only else WORKLOADS
    found = {name: measure(name, given.quick, given.rounds, given.processor) for name in names}
    if not given.quick:
        bench.keep("generate", found)
    bench.print_last(found)


def measure(name: str, quick: bool, rounds: int, processor: bool) -> dict[str, Any]:
    """Time saywhy and the peers on one workload, turn by turn."""
    folder = bench.trained(bench.workload(REASONER))
    rows = ROWS[0 if quick else 1]
    peers = [BEST] if quick else PEERS
    on = ("--only", name, "--on", str(folder), str(rows), "2" if quick else "1", *(["--processor"] * processor))
    seconds, last = bench.turns(__file__, [("saywhy", 0), *peers], 1 if quick else rounds, *on)
    rate = {key: rows / bench.median(times) for key, times in seconds.items()}
    best = max(peers, key=lambda peer: rate[peer])
    ours, theirs = last["saywhy", 0], last[best]
    return {
        "saywhy": rate["saywhy", 0],
        "best_peer": rate[best],
        "peer": bench.named(*best),
        "ratio": rate["saywhy", 0] / rate[best],
        "peak_memory_ratio": ours["peak"] / theirs["peak"],
        "matmul_share": ours["flops"] / bench.median(seconds["saywhy", 0]) / ours["matmul_rate"],
        **compared(name, folder, ours["texts"], theirs["ids"]),
        "rows": rows,
        "clock": "processor" if processor else "time",
        "all": {f"{who} {size or ''}".strip(): value for (who, size), value in rate.items()},
    }


def questions(rows: int) -> list[Question]:
    """Ask about the first training rows of emotion, as stage 2 does."""
    work = bench.workload(REASONER)
    asked = [
        (reasoner_question(work.task, row.text), described(work.task, row.label or "")) for row in work.test[:rows]
    ]
    return [Question(str(at), reasoner_pieces(*one), 0) for at, one in enumerate(asked)]


def prompts(encoder: Encoder, asked: Sequence[Question]) -> list[list[int]]:
    """Give the tokens of what a teacher sees, the forced cue last."""
    cue = part_ids(encoder, Part("cue", REASONING_CUE, ""))
    return [[*prompt_ids(encoder, one.pieces)[0], *cue] for one in asked]


def system(
    who: str, size: int, folder: Path, name: str, rows: int, repeat: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Let one system write, and give seconds, what it wrote and the most memory it took."""
    asked, sampling = questions(rows), SAMPLING[name]
    if who == "saywhy":
        return _saywhy(folder, asked, sampling, repeat, clock)
    heads = prompts(load(folder)[1].encoder, asked)
    order = sorted(range(rows), key=lambda at: -len(heads[at]))
    drawn: dict[str, Any] = {}
    if sampling.temperature:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    make = _generate if who == "generate" else bench.generate_batch
    how = bench.ending(folder, sampling.max_tokens, **drawn)
    call = make(folder, [heads[at] for at in order], how, size)
    torch.manual_seed(0)
    seconds, found = bench.timed(lambda: call(rows), lambda: call(min(8, rows)), repeat, clock)
    ids = dict(zip(order, found, strict=True))
    return {"seconds": seconds, "ids": [ids[at] for at in range(rows)], "peak": bench.peak_memory()}


def _saywhy(
    folder: Path, asked: list[Question], sampling: Sampling, repeat: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Ask through a journal, in the groups that stage 2 asks in."""
    teach = reasoner.teacher(folder, sampling, 0, BUDGET)
    turn = count()
    with TemporaryDirectory() as kept, journal.opened(Path(kept) / journal.FILE) as book:

        def call(questions: list[Question]) -> list[Draft]:
            # What was answered once is not asked again, so every turn is another teacher.
            return ask(book, Writer(REASONER, {"turn": next(turn)}, lambda: teach), questions)

        seconds, found = bench.timed(lambda: call(asked), lambda: call(asked[:8]), repeat, clock)
    peak = bench.peak_memory()
    body, head = bench.parameters()
    written = sum(draft.tokens + (not draft.cut) for draft in found)
    heads = prompts(load(folder)[1].encoder, asked)
    read = sum(map(len, heads)) - (len(heads) - 1) * _shared(heads)
    return {
        "seconds": seconds,
        "texts": [draft.reasoning for draft in found],
        "peak": peak,
        "flops": 2.0 * ((written + read) * body + written * head),
        "matmul_rate": bench.best_rate(),
    }


def _shared(heads: Sequence[Sequence[int]]) -> int:
    return next((at for at, column in enumerate(zip(*heads, strict=False)) if len(set(column)) > 1), 0)


def _generate(
    folder: Path, heads: list[list[int]], how: GenerationConfig, size: int
) -> Callable[[int], list[list[int]]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = bench.tokenizer(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def call(count: int) -> list[list[int]]:
        found = []
        for start in range(0, count, size):
            padded = tokenizer.pad({"input_ids": heads[start : min(start + size, count)]}, return_tensors="pt")
            written = model.generate(**padded, generation_config=how)[:, padded["input_ids"].shape[1] :]
            found += written.tolist()
        return found

    return call


def compared(name: str, folder: Path, ours: list[str], theirs: list[list[int]]) -> dict[str, Any]:
    """Say whether both did the same work: the same texts but for ties, or sampled ones of the same length."""
    encoder = load(folder)[1].encoder
    closed = [ids[: ids.index(encoder.end)] if encoder.end in ids else ids for ids in theirs]
    texts = [paragraph(decode(encoder, ids)) for ids in closed]
    if SAMPLING[name].temperature:
        lengths = [[len(text_ids(encoder, text)) for text in some] for some in (ours, texts)]
        apart = np.mean(lengths[0]) - np.mean(lengths[1])
        error = np.sqrt(sum(np.var(some) / len(some) for some in lengths))
        return {"agree": bool(abs(apart) < 3 * error), "tokens_a_text": [float(np.mean(some)) for some in lengths]}
    heads = prompts(encoder, questions(len(ours)))
    differ = [at for at in range(len(ours)) if ours[at] != texts[at]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = {at: [*text_ids(encoder, f" {ours[at]}"), encoder.end] for at in differ}
    ties = [at for at in differ if _tie(model, heads[at], own[at], [*closed[at], encoder.end])]
    for at in sorted(set(differ) - set(ties)):
        print(f"row {at}: {ours[at]!r} / {texts[at]!r}", file=sys.stderr)
    same = (len(ours) - len(differ)) / len(ours)
    return {
        "agree": same >= 0.95 and len(ties) == len(differ),
        "same_texts": same,
        "ties": len(ties),
        "tokens_a_text": float(np.mean([len(ids) for ids in closed])),
        "reached_limit": float(np.mean([len(ids) == SAMPLING[name].max_tokens for ids in closed])),
    }


def _tie(model: Any, head: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Tell whether two texts part where both tokens are equally likely to 1e-3."""
    at = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*head, *ours[:at]]])).logits[0, -1].double()
    chance = torch.softmax(logits, -1)
    return abs(float(chance[ours[at]] - chance[theirs[at]])) < 1e-3


if __name__ == "__main__":
    main()
