"""Run the bundled task over seeds, without and with the demo's own check on the reasonings.

    python benchmarks/tickets.py -o runs/tickets [--seeds 0 1 2] [--only checked] [--set key=value …]

The config is examples/tickets.yaml. For each seed the folders SEED/unchecked and SEED/checked hold finished runs; the
second begins as a copy of the first, so that only what the check changes is done again; --only makes one of them.
`benchmarks/seeds.py` puts the seeds together.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from saywhy import config, pipeline, tickets

CHECKS = {"unchecked": [], "checked": [tickets.sum_of_another_label]}
EXAMPLE = Path(__file__).parent.parent / "examples" / "tickets.yaml"


def main() -> None:
    """Run every seed, both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=CHECKS)
    parser.add_argument("--set", dest="sets", nargs="*", default=[])
    given = parser.parse_args()
    for seed in given.seeds:
        folder = given.output / str(seed)
        tickets.write(folder / "data", seed)
        places = [
            f"data.{part}={(folder / 'data' / part).resolve()}.jsonl" for part in ("train", "dev", "test")
        ] + [f"reasoner.worked_cases.data={(folder / 'data' / 'worked.jsonl').resolve()}"]
        settings = config.load(EXAMPLE, [*places, f"seed={seed}", *given.sets])
        for name, checks in CHECKS.items():
            if given.only not in (None, name):
                continue
            if name == "checked" and (folder / "unchecked").exists() and not (folder / name).exists():
                shutil.copytree(folder / "unchecked", folder / name)
            pipeline.run(settings, folder / name, checks)


if __name__ == "__main__":
    main()
