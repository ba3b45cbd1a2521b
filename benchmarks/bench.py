"""What the benchmarks share: rows, a model of one shape, trained once and kept, and systems timed each in a process.

The rows and the tokenizer do not come with saywhy. SAYWHY_DATA names a folder with emotion/, emotion-why/ and
banking77/ (train.jsonl, test.jsonl: {"text", "label"}, and "reasoning" in emotion-why), SAYWHY_MODELS one with
llama2-tokenizer-32k/. What is trained is kept in benchmarks/.cache.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig, LlamaConfig

from saywhy import classifier, reasoner, store
from saywhy.config import Arm, Train
from saywhy.prompts import REASONER
from saywhy.records import Row, Task, WorkedCase

CACHE = Path(__file__).parent / ".cache"
# What trained models in the cache are known by.
QUICK_SHAPE = (384, 10, 6, 1024)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shape:
    """A Llama: its size, its tokenizer, and its vocabulary where that is larger than the tokenizer's.

    All but Llama-3.2-1B's have a head of their own, which from random weights learns in a fraction of the steps that a
    tied one takes (LOG.md, 2026-11-20).
    """

    width: int
    layers: int
    heads: int
    inner: int
    tokenizer: str
    groups: int = 0
    vocabulary: int = 0
    tied: bool = False


SHAPES = {
    "1m": Shape(128, 4, 4, 384, "stories260k"),
    "42m": Shape(384, 10, 6, 1024, "llama2-tokenizer-32k"),
    "150m": Shape(768, 14, 12, 2048, "llama2-tokenizer-32k"),
    "1b": Shape(2048, 16, 32, 8192, "llama2-tokenizer-32k", groups=8, vocabulary=128_256, tied=True),
}
EMOTIONS = {
    "sadness": "loss, regret, feeling low",
    "joy": "pleasure, pride, relief",
    "love": "tenderness, longing, gratitude",
    "anger": "irritation, resentment, rage",
    "fear": "worry, nervousness, dread",
    "surprise": "wonder, disbelief, shock",
}


@dataclass(frozen=True)
class Workload:
    """A task with its rows, the arm and mode that are measured, and how long the model is trained for it."""

    name: str
    task: Task
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    reasonings: dict[str, tuple[str, ...]]
    arm: str
    mode: str
    steps: int
    rows_per_step: int


def folder_of(variable: str) -> Path:
    """Give the folder that an environment variable names, or leave with what is missing."""
    named = os.environ.get(variable)
    if not named or not Path(named).is_dir():
        raise SystemExit(f"{variable} should name a folder, see the beginning of benchmarks/bench.py")
    return Path(named)


def workload(name: str) -> Workload:
    """Read a workload's rows."""
    data = folder_of("SAYWHY_DATA")
    if name == "banking77-label":
        train, test = (_rows(data / "banking77" / f"{part}.jsonl") for part in ("train", "test"))
        labels = tuple(sorted({row.label or "" for row in train}))
        task = Task("banking77", "Which intent does the customer have?", labels)
        # Longer than the others: a model that has not learned its 77 labels takes none of them for unlikely.
        return Workload(name, task, train, test, {}, "label_only", "label", 256, 64)
    task = Task("emotion", "Which emotion does the writer express?", tuple(EMOTIONS), EMOTIONS)
    test = _rows(data / "emotion" / "test.jsonl")
    if name == "emotion-label":
        return Workload(name, task, _rows(data / "emotion" / "train.jsonl"), test, {}, "label_only", "label", 120, 32)
    why = data / "emotion-why" / "train.jsonl"
    kept: dict[str, tuple[str, ...]] = {f"{at}": (record["reasoning"],) for at, record in enumerate(_records(why))}
    if name == REASONER:
        asked = _rows(data / "emotion" / "train.jsonl")
        return Workload(name, task, _rows(why), asked, kept, REASONER, "write", 80, 32)
    return Workload(name, task, _rows(why), test, kept, "reason_then_label", "reason", 80, 32)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rows(path: Path) -> tuple[Row, ...]:
    return tuple(Row(f"{at}", record["text"], record["label"]) for at, record in enumerate(_records(path)))


def base(size: str = "42m") -> Path:
    """Make a model of one of the benchmarks' shapes with random weights, once."""
    folder = CACHE / f"base-{size}"
    if (folder / "config.json").exists():
        return folder
    shape = SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(folder_of("SAYWHY_MODELS") / shape.tokenizer)
    config = LlamaConfig(
        vocab_size=shape.vocabulary or len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups or shape.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(given: Workload) -> Path:
    """Train the model on a workload's own rows, once: random weights never end a text."""
    told = {
        "steps": given.steps,
        "rows_per_step": given.rows_per_step,
        "optimizer": "muon",
        "learning_rate": 5e-3,
        "weight_decay": 0.2,
        "layout": "tree",
    }
    settings = Train.model_validate(told)
    stamp = store.hash_of([QUICK_SHAPE, given.name, given.task, told, len(given.train)])[:12]
    folder = CACHE / f"{given.name}-{stamp}"
    if not (folder / "train.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if given.arm == REASONER:
            cases = [WorkedCase(row.text, row.label or "", given.reasonings[row.id][0], True) for row in given.train]
            course = reasoner.course(str(base()), settings, 0, False)
            reasoner.train(folder, course, reasoner.lessons(given.task, cases))
            return folder
        arm = Arm(name=given.arm, arm=given.arm, train=settings)  # type: ignore[arg-type]
        plan = classifier.course(given.task, given.arm, str(base()), settings, given.train, 0, "cut", False)
        taught = classifier.lessons(given.arm, given.train, given.reasonings)
        classifier.train(folder, given.task, arm, plan, taught, (), "accuracy")
    return folder


def timed(
    call: Callable[[], Any],
    warm: Callable[[], Any],
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], Any]:
    """Call something a few times after a warm-up: the seconds of each call, and what the last one gave."""
    warm()
    seconds, found = [], None
    for _ in range(repeat):
        began = clock()
        found = call()
        seconds.append(clock() - began)
    return seconds, found


def finish() -> None:
    """Wait for what a GPU is still at."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Give the most memory this process ever held, in bytes: a GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a system in a process of its own and give the JSON object that is its last line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def turns(
    script: str, systems: Sequence[tuple[str, int]], rounds: int, *arguments: str
) -> tuple[dict[tuple[str, int], list[float]], dict[tuple[str, int], dict[str, Any]]]:
    """Run systems, each a name and a batch size, turn by turn: the seconds of each, and what its last turn gave."""
    seconds: dict[tuple[str, int], list[float]] = {one: [] for one in systems}
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for _ in range(rounds):
        for who, size in systems:
            last[who, size] = child(script, *arguments, "--system", who, "--size", str(size))
            seconds[who, size] += last[who, size]["seconds"]
    return seconds, last


def named(who: str, size: int) -> str:
    """Name a peer with its batch size, where it has one."""
    return f"transformers {who}" + (f", batch size {size}" if size else "")


@cache
def tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer as the peers need it."""
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.padding_side = "left"
    return loaded


def ending(folder: Path, longest: int, **sampling: Any) -> GenerationConfig:
    """Say how a peer writes: greedily unless told, up to so many tokens."""
    own = tokenizer(folder)
    ends = {"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id or own.eos_token_id}
    return GenerationConfig(max_new_tokens=longest, **{"do_sample": False, **sampling}, **ends)


def generate_batch(
    folder: Path, prompts: Sequence[list[int]], how: GenerationConfig, size: int = 0
) -> Callable[[int], list[list[int]]]:
    """Let transformers' continuous batching write behind the first so many prompts.

    `size` rows of 128 tokens have room in its cache; 0 leaves that to it, which takes most of the free memory.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    held = ContinuousBatchingConfig(page_size=32, num_blocks=4 * size, max_batch_tokens=8 * size) if size else None

    def call(count: int) -> list[list[int]]:
        some = list(prompts[:count])
        found = model.generate_batch(some, how, continuous_batching_config=held, progress_bar=False)
        written = sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return [one.generated_tokens for _, one in written]

    return call


def quicker_precision(size: str = "42m") -> str:
    """Name the precision in which this machine multiplies faster: a CPU may have bf16 and be slow at it."""
    return max(("float32", "bf16"), key=lambda name: matmul_rate(size, name))


def best_rate(size: str = "42m") -> float:
    """Measure the rate of the precision in which this machine multiplies faster, in FLOPs a second."""
    return max(matmul_rate(size, precision) for precision in ("bf16", "float32"))


def matmul_rate(size: str = "42m", precision: str = "bf16", seconds: float = 1.0) -> float:
    """Measure the best rate of the model's own matrix shapes in this process, in FLOPs a second."""
    width, inner = SHAPES[size].width, SHAPES[size].inner
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for rows in (256, 1024, 4096):
        for a, b in ((width, inner), (inner, width), (width, width)):
            left = torch.randn(rows, a, dtype=kind, device=device)
            right = torch.randn(a, b, dtype=kind, device=device)
            left @ right
            finish()
            count, began = 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds / 9:
                for _ in range(16):
                    left @ right
                finish()
                count += 16
            best = max(best, 2.0 * rows * a * b * count / passed)
    return best


def parameters(size: str = "42m") -> tuple[int, int]:
    """Count the weights that every token is multiplied with, and those of the head."""
    config = store.read_json(base(size) / "config.json")
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner
    return config["num_hidden_layers"] * layer, width * config["vocab_size"]


def median(values: Sequence[float]) -> float:
    """Give the median."""
    return statistics.median(values)


def keep(name: str, found: Mapping[str, Any], of: str = "workloads") -> None:
    """Write what was measured into `results/NAME.json`, beside what was measured before."""
    file = RESULTS / f"{name}.json"
    known = store.read_json(file)[of] if file.exists() else {}
    store.write_json(file, {**machine(), of: {**known, **found}})


def print_last(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what was measured by workload, without its details, as the last line."""
    print(json.dumps({name: {key: value for key, value in one.items() if key != "all"} for name, one in found.items()}))


def machine() -> dict[str, Any]:
    """Say what a result was measured on."""
    return {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "torch": torch.__version__}
