"""The whole method on the bundled task."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from saywhy import config, pipeline, tickets
from saywhy.records import RequestError

DATA = "tickets"


def write_data(folder: Path, seed: int) -> None:
    """Write the tickets; a folder that holds other files is left alone."""
    names = {"worked.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl"}
    if folder.exists() and {path.name for path in folder.iterdir()} - names:
        raise RequestError(f"{folder}: holds other files than tickets; name a new or an empty folder")
    tickets.write(folder, seed)


def run(folder: Path, seed: int) -> Path:
    """Do the demo in `folder`: the config of demo.yaml, with one more check on the reasonings, passed as a function."""
    from saywhy import store

    with store.open_run(folder):
        tickets.write(folder / DATA, seed)
    text = resources.files("saywhy").joinpath("demo.yaml").read_text(encoding="utf-8")
    settings = config.parse(text, folder / DATA / "demo.yaml", [f"seed={seed}"])
    return pipeline.run(settings, folder, [tickets.sum_of_another_label])
