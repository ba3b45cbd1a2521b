"""Every config that is shown to a reader is one that saywhy reads: examples, README, docs."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy
from saywhy import cli, config, tickets
from saywhy.config import settings
from saywhy.config.reasonings import CONTROLS
from saywhy.data import read

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, kind: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == kind]


def names_of_sections(kind: type[settings.Settings]) -> set[str]:
    below = {name for one in kind.__subclasses__() for name in names_of_sections(one)}
    return below | {one.__name__ for one in kind.__subclasses__()}


def test_there_are_as_many_examples_as_this_file_knows() -> None:
    assert [path.name for path in EXAMPLES] == [
        "emotion-small.yaml", "emotion.yaml", "regularization-small.yaml", "regularization.yaml",
        "two-stage-recipe.yaml", "two-stage-small.yaml", "two-stage.yaml", "tickets.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_config_with_data_beside_it_or_on_the_hub(path: Path) -> None:
    made = config.load(path)
    assert config.parse(config.dump(made), path) == made
    for source in (made.data.train, made.data.dev, made.data.test):
        found = config.locate(str(source), path.parent)
        assert found.hub or str(found.path).startswith(str(path.parent / "data"))


def test_emotions_stand_in_the_order_of_the_data_set_and_are_described() -> None:
    for name in ("emotion", "emotion-small"):
        labels = config.load(ROOT / "examples" / f"{name}.yaml").task.labels
        assert labels is not None
        assert list(labels) == ["sadness", "joy", "love", "anger", "fear", "surprise"]
        assert all(labels.values())


def as_long(train: settings.Train) -> settings.Train:
    """What decides how much is learnt from: rate and decay are each arm's own."""
    return train.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0})


def test_the_tickets_example_reads_what_the_demo_writes(tmp_path: Path) -> None:
    tickets.write(tmp_path, 0)
    text = (ROOT / "examples" / "tickets.yaml").read_text(encoding="utf-8")
    assert text.count("data/tickets/") == 4
    made = config.parse(text.replace("data/tickets/", ""), tmp_path / "tickets.yaml")
    found = read(made)
    bundled = tickets.task()
    assert (found.task.instruction, found.task.labels, found.task.ordinal) == (
        bundled.instruction, bundled.labels, bundled.ordinal,
    )  # fmt: skip
    assert dict(found.task.descriptions) == dict(bundled.descriptions)
    assert [len(part) for part in (found.train, found.dev, found.test, found.worked_cases)] == [1000, 200, 1000, 400]
    once, twice, reasoned, both = made.classifier.arms
    assert (twice.name, twice.arm, reasoned.arm) == ("label_only_twice", "label_only", "reason_then_label")
    assert once.train.steps is not None
    assert twice.train == once.train.model_copy(update={"steps": 2 * once.train.steps})
    assert as_long(reasoned.train) == as_long(once.train)
    assert both.arm == "both" and as_long(both.train) == as_long(once.train)


def test_the_arms_of_the_small_emotion_example_take_the_same_steps() -> None:
    made = config.load(ROOT / "examples" / "emotion-small.yaml")
    assert [arm.arm for arm in made.classifier.arms] == ["label_only", "reason_then_label", "label_then_reason", "both"]
    assert all(as_long(arm.train) == as_long(made.classifier.train) for arm in made.classifier.arms)
    assert made.classifier.train.steps is not None


def test_an_example_can_be_pointed_at_data_elsewhere() -> None:
    text = (ROOT / "examples" / "emotion-small.yaml").read_text(encoding="utf-8")
    shown = re.findall(r'--set (\S+)="\$SAYWHY_DATA(\S+)"', text)
    made = config.load(ROOT / "examples" / "emotion-small.yaml", [f"{key}=/elsewhere{rest}" for key, rest in shown])
    sources = (made.data.train, made.data.dev, made.data.test)
    assert len(shown) == 3
    assert all(Path(str(source)).is_relative_to(Path("/elsewhere").resolve()) for source in sources)


def as_written(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / name).read_text(encoding="utf-8"))
    return found


def test_the_papers_recipe_has_the_settings_of_its_card() -> None:
    path = ROOT / "examples" / "papers" / "two-stage-recipe.yaml"
    made = config.load(path)
    for train in (made.reasoner.train, made.classifier.train):
        assert (train.tokens_per_step, train.warmup, train.epochs, train.weight_decay) == (2 * 8 * 8192, 10, 1, 0)
        assert (train.learning_rate, train.schedule, train.label_weight) == (2e-5, "cosine", "tokens")
    assert {"evaluations"} == set(as_written("papers/two-stage-recipe.yaml")["classifier"]["train"]) - set(
        as_written("papers/two-stage-recipe.yaml")["reasoner"]["train"]
    )
    plain, reasoned, *controls = made.classifier.arms
    assert (plain.arm, reasoned.arm) == ("label_only", "reason_then_label")
    assert plain.train == reasoned.train == made.classifier.train
    assert [(arm.match, arm.to) for arm in controls[:2]] == [("steps", reasoned.name), ("tokens", reasoned.name)]
    for arm in controls[2:]:
        assert as_long(arm.train.model_copy(update={"epochs": 1.0, "evaluations": 2, "patience": None})) == as_long(
            made.classifier.train
        )
        assert arm.train.patience is not None and arm.train.epochs > 10


def test_checking_the_papers_recipe_tells_steps_and_tokens_of_every_arm(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    labels = ("sadness", "joy", "love", "anger", "fear", "surprise")
    rows = [{"text": f"i feel so odd {at} today", "label": labels[at % 6]} for at in range(48)]
    cases = [{"question": "why?", "answer": "so", "reasoning": f"it is {at} of them, and more"} for at in range(9)]
    for name, some in (("train", rows), ("test", rows[:6]), ("cases", cases)):
        toy.write_lines(tmp_path / f"{name}.jsonl", some)
    sets = {
        "base": base, "data.train": tmp_path / "train.jsonl", "data.test": tmp_path / "test.jsonl", "data.dev": 0.2,
        "reasoner.worked_cases.data": tmp_path / "cases.jsonl", "classifier.train.tokens_per_step": 1500,
    }  # fmt: skip
    told = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(["check", str(ROOT / "examples" / "papers" / "two-stage-recipe.yaml"), *told]) == 0
    out = capsys.readouterr().out
    steps = {
        name: int(n.replace(",", "")) for name, n in re.findall(r"^(\w+): ([\d,]+) steps of 1,500 tokens", out, re.M)
    }
    passes = {name: float(n) for name, n in re.findall(r"^(\w+): .* tokens, ([\d.]+) passes", out, re.M)}
    assert steps["label_only"] < steps["reason_then_label"] == steps["label_only_same_steps"]
    assert steps["label_only_same_tokens"] >= steps["label_only_same_steps"]
    assert passes["label_only"] == passes["reason_then_label"] == 1
    assert passes["label_only_same_steps"] > 1 and passes["label_only_converged"] == 30
    assert re.search(r"^Label:\[\d+ × 0\] \w+\[\d+ × 1\]", out, re.M), "trained tokens are weighted"
    assert "label_only_same_steps has the steps of reason_then_label" in out
    assert "label_only_converged ends earlier where 4 evaluations in a row are no new best (of 30" in out
    # Every arm stands in the table with its steps and its computed tokens; matched tokens are nearly equal.
    tokens = {
        name: int(n.replace(",", ""))
        for name, n in re.findall(r"^│ (\w+)\s+│\s+[\d,]+\s+│\s+[\d,]+\s+│\s+([\d,]+)", out, re.M)
    }
    assert set(steps) <= set(tokens)
    assert tokens["label_only_same_tokens"] == pytest.approx(tokens["reason_then_label"], rel=0.2)


def study_of(name: str) -> tuple[config.Config, dict[str, list[config.Cell]]]:
    made, cells = config.load_study(ROOT / "examples" / "papers" / f"{name}.yaml")
    by_part: dict[str, list[config.Cell]] = {}
    for cell in cells:
        by_part.setdefault(cell.part, []).append(cell)
    return made, by_part


def test_the_first_papers_study_asks_all_that_its_readers_ask() -> None:
    made, parts = study_of("two-stage")
    assert made.evaluate.zero_shot and made.evaluate.encoder and made.evaluate.probes == ("faithfulness", "inside")
    assert all({cell.config.seed for cell in cells} == {0, 1, 2, 3, 4} for cells in parts.values())
    recipe = config.load(ROOT / "examples" / "papers" / "two-stage-recipe.yaml")
    (first, *_) = parts["result"]
    told = first.config.classifier.train
    assert told == recipe.classifier.train.model_copy(update={"optimizer": told.optimizer})
    assert first.config.reasoner.train == recipe.reasoner.train
    assert first.config.reasonings.checks == recipe.reasonings.checks and first.config.reasonings.candidates == 1
    told_of = {
        (cell.config.reasonings.teacher, cell.config.reasonings.label_shown,
         tuple(one.of_this_task for one in cell.config.reasoner.sources))
        for cell in parts["stage_1"]
    }  # fmt: skip
    assert told_of == {
        (("reasoner",), True, (False,)), (("reasoner",), True, (True,)), (("reasoner",), True, (False, True)),
        (("base",), True, (False,)), (("reasoner",), False, (False,)),
    }  # fmt: skip
    assert {cell.config.reasonings.replace for cell in parts["controls"]} == {*CONTROLS, "corrupt(0.2)"}
    assert {cell.config.data.balanced for cell in parts["balanced"]} == {False, True}
    assert {cell.config.reasonings.top_up for cell in parts["rare"]} == {None, 0.5}


def test_the_second_papers_study_has_its_eighteen_settings() -> None:
    made, parts = study_of("regularization")
    assert made.evaluate.zero_shot and made.evaluate.encoder and made.evaluate.probes == ("faithfulness", "inside")
    settings_of = {cell.config.data.train: cell.config for cell in parts["settings"]}
    assert len(settings_of) == 18 and len(parts["settings"]) == 18 * 5
    assert len({one.task.instruction for one in settings_of.values()}) == 3
    for train, one in settings_of.items():
        assert str(one.data.test) == train.replace(".train.", ".test.")
        axis = Path(train).name.partition("-")[2].partition(".")[0].split("_")[-1]
        assert {"naturalness": "natural", "comprehensiveness": "comprehensive", "topic": "topic"}[axis] in (
            one.task.instruction
        )
        assert one.task.ordinal and one.classifier.train.bits == 4
    assert {cell.config.reasonings.replace for cell in parts["pseudo_explanations"]} == {*CONTROLS, "corrupt(0.2)"}


def test_configs_on_pages_are_configs() -> None:
    shown = [(page, block) for page in PAGES for block in blocks(page, "yaml")]
    assert len(shown) >= 3
    for page, block in shown:
        # A page may show the part of a config that it is about.
        around = {"task": "{name: t, instruction: Which one}", "data": "{train: t.csv}", "base": "scratch"}
        lacking = [
            f"{key}: {value}\n" for key, value in around.items() if not re.search(rf"^{key}:", block, re.MULTILINE)
        ]
        config.parse("".join(lacking) + block, page)


def test_commands_on_pages_exist() -> None:
    shown = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in shown if line.startswith("$ ")]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    cli = (ROOT / "src" / "saywhy" / "cli" / "__init__.py").read_text(encoding="utf-8")
    verbs = re.findall(r"^@app\.command\(\)\ndef (\w+)", cli, re.MULTILINE)
    assert {"demo", "test", "check"} <= set(targets)
    for words in commands:
        if words[0] == "make":
            assert words[1] in targets
        if words[0].endswith("saywhy"):
            assert words[1] in verbs
            assert all(f'"{word}"' in cli or f" {word[2:]}:" in cli for word in words if word.startswith("--"))


def test_links_on_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_room_stands_in_the_tree_of_the_readme() -> None:
    tree = next(block for block in blocks(ROOT / "README.md", "") if block.startswith("src/saywhy/"))
    named = set(re.findall(r"^  (\w+)(?:\.py|/) ", tree, re.MULTILINE))
    package = ROOT / "src" / "saywhy"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - named - {"__init__"} == set()
    assert named - rooms == set()


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "write_config.py"))
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert script["filled"](page) == page, "run: python docs/write_config.py"
    marked = script["marked"](page)
    assert len(marked) == len(set(marked))
    assert set(marked) == names_of_sections(settings.Settings)
