"""Print what every control keeps of the reasonings of a config: lengths, and what a linear model reads from them.

    python benchmarks/controls.py CONFIG [--run FOLDER] [--kinds shuffle filler …] [--set key=value …]

The reasonings are those that the training rows or a file bring, or with --run those that a finished run kept. Nothing
is trained but the linear model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from saywhy import classifier, config, controls, data, evaluate, reasonings
from saywhy.config import Config, FromScratch, needed_base
from saywhy.lm.load import make_scratch
from saywhy.pipeline.stage import scratch_texts

COLUMNS = (
    "control", "exact length", "within 1", "most off", "label read", "mean recall", "read as written", "label named",
    "another named", "seconds",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--kinds", nargs="+", default=[*controls.KINDS, "corrupt(0.2)"])
    parser.add_argument("--set", dest="sets", nargs="*", default=[])
    given = parser.parse_args()
    settings = config.load(given.config, given.sets)
    told = data.read(settings)
    brought = {**told.file_reasonings, **told.reasonings}
    kept: dict[str, tuple[str, ...]] = {name: (text,) for name, text in brought.items() if text.strip()}
    if given.run:
        kept = reasonings.read_kept(given.run / "reasonings")
    with tempfile.TemporaryDirectory() as folder:
        print_table(settings, told, kept, given.kinds, student(settings, told, Path(folder)))


def student(settings: Config, told: data.Data, folder: Path) -> controls.Tokens:
    """The tokens of the student, made from scratch where the config's is."""
    base = needed_base(settings, "classifier")
    if isinstance(base, FromScratch):
        make_scratch(folder, scratch_texts(settings, told), base.scratch, settings.seed)
        base = str(folder)
    return classifier.tokens(told.task, base, settings.trust_remote_code)


def print_table(
    settings: Config, told: data.Data, kept: dict[str, tuple[str, ...]], kinds: list[str], tokens: controls.Tokens
) -> None:
    """One line a control, shares in percent."""
    print(f"{sum(map(len, kept.values())):,} reasonings of {len(kept):,} rows\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
    for kind in kinds:
        began = time.perf_counter()
        taught = controls.replace(kind, told.train, kept, tokens, settings.seed)
        seconds = time.perf_counter() - began
        off = [
            abs(len(tokens.encode(new)) - len(tokens.encode(old)))
            for name, texts in taught.items()
            for new, old in zip(texts, kept[name], strict=True)
        ]
        found = evaluate.leakage(told.task, told.train, kept, taught, settings.seed)
        if found.written is None or found.taught is None or found.crossed is None:
            print(f"| {kind} | {found.missing} |")
            continue
        if kind == kinds[0]:
            print(line("as written", "", "", "", found.written, "", ""))
        exact, near = (sum(one <= most for one in off) / len(off) for most in (0, 1))
        across = f"{100 * (found.crossed.accuracy):.1f}"
        print(
            line(kind, f"{100 * exact:.1f}", f"{100 * near:.1f}", str(max(off)), found.taught, across, f"{seconds:.1f}")
        )
    print(f"\nThe most frequent label is that of {100 * (found.majority or 0):.1f}% of the reasonings.")


def line(name: str, exact: str, near: str, most: str, told: evaluate.Told, across: str, seconds: str) -> str:
    """A line of the table."""
    shares = [told.accuracy, told.mean_recall, told.named, told.other_named]
    read, recall, own, other = (f"{100 * share:.1f}" for share in shares)
    return f"| {' | '.join((name, exact, near, most, read, recall, across, own, other, seconds))} |"


if __name__ == "__main__":
    main()
