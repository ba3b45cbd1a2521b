"""The architecture: floors, what is imported when, sizes, and what no file may hold. Needs nothing but Python."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import saywhy
from saywhy.version import VERSION

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "saywhy"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

FLOORS = {
    0: {"records", "version"},
    1: {"prompts", "checks", "controls", "metrics", "trees", "tickets", "progress", "machine"},
    2: {"config", "store", "journal"},
    3: {"data", "evaluate"},
    4: {"report", "card", "serve", "lm"},
    5: {"train", "teachers", "predict", "doctor"},
    6: {"reasoner", "reasonings", "support", "classifier", "encoder", "probe", "export", "spread"},
    7: {"pipeline"},
    8: {"study", "estimator", "demo", "labelling"},
    9: {"dryrun"},
    10: {"cli"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
WITH_MODELS = {
    "lm", "train", "predict", "teachers", "reasoner", "support", "classifier", "encoder", "pipeline", "dryrun",
    "doctor", "probe", "export", "study", "estimator", "demo", "cli",
}  # fmt: skip
COMMANDS = (
    "demo", "init", "check", "run", "reason", "train", "evaluate", "report", "predict", "label", "export", "serve",
    "doctor",
)  # fmt: skip
MOST_LINES = 600


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room(path: Path) -> str:
    """The room of a file: its name, or that of its folder."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: inside functions and for types alone too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            yield node.module or ""
            # `from saywhy import store` names a room in its second half.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "saywhy")


def rooms_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("saywhy.")}
    return names - {"VERSION"}


def test_every_room_has_a_floor_and_there_are_files_to_look_at() -> None:
    assert len(FILES) > 30
    assert {room(path) for path in FILES} - {"__init__"} <= FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        assert rooms_imported(path) <= {"version", "predict", "estimator"}
        return
    for other in rooms_imported(path) - {own}:
        assert other in FLOOR, f"{path.name} imports saywhy.{other}, which is no room"
        assert FLOOR[other] < FLOOR[own], f"{own} (floor {FLOOR[own]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_rooms_with_models_import_torch(path: Path) -> None:
    heavy = {name for name in imports(path) if name.split(".")[0] in ("torch", "transformers", "accelerate", "peft")}
    assert not heavy or room(path) in WITH_MODELS, f"{path.name} imports {heavy}"


def test_light_imports_stay_light() -> None:
    """In a process of its own, since this one may have imported torch long ago."""
    rooms = ("report", "config", "data", "evaluate", "store", "serve", "cli")
    modules = ", ".join(["saywhy", *(f"saywhy.{name}" for name in rooms)])
    heavy = ("torch", "transformers", "datasets", "fastapi")
    probe = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_no_file_may_hold(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = [one.id for one in caught if isinstance(one, ast.Name)]
            assert node.type is not None, f"{path.name}:{node.lineno}: a bare except"
            assert not {"Exception", "BaseException"} & set(names), f"{path.name}:{node.lineno}: catches everything"
        assert not isinstance(node, ast.Global), f"{path.name}:{node.lineno}: a global statement"
    for call in calls(path):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        assert name not in ("eval", "exec", "compile", "__import__"), f"{path.name}:{call.lineno}: {name}"
        assert name != "print" or room(path) in ("progress", "cli"), f"{path.name}:{call.lineno}: prints"
        for keyword in call.keywords:
            always = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            assert not (keyword.arg == "trust_remote_code" and always), f"{path.name}:{call.lineno}: runs foreign code"
    assert not {"pickle", "joblib", "marshal", "shelve", "dill"} & {name.split(".")[0] for name in imports(path)}
    assert "torch.load" not in path.read_text(encoding="utf-8"), f"{path.name}: torch.load unpickles"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_can_be_held_in_the_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert path.name != "utils.py"


def test_the_public_names_are_there() -> None:
    assert {"load", "__version__"} <= set(saywhy.__all__)
    assert callable(saywhy.load)
    assert saywhy.__version__ == VERSION
    with pytest.raises(AttributeError, match="lode"):
        _ = saywhy.lode  # type: ignore[attr-defined]


def test_the_version_is_the_newest_of_the_changes() -> None:
    changes = REPOSITORY / "CHANGELOG.md"
    if not changes.exists():
        pytest.skip("there is no CHANGELOG.md")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changes.read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION


def test_help_names_every_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "saywhy.cli", "--help"], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\b", found.stdout, re.MULTILINE), f"{command} is not in --help"
