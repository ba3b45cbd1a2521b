"""A config is read strictly: what is not understood is refused with its place, and what is written down reads back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saywhy import checks, config
from saywhy.config import reasonings, settings, written
from saywhy.records import RequestError

SMALL = "task: {name: mood, instruction: Name the mood}\ndata: {train: rows.csv}\n"


def parse(text: str, *sets: str, folder: Path = Path("/somewhere")) -> config.Config:
    return config.parse(text, folder / "config.yaml", sets)


def refusal(text: str, *sets: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse(text, *sets)
    return str(caught.value).replace("/somewhere/", "")


def test_defaults_are_those_of_the_contract() -> None:
    made = parse(SMALL)
    assert (made.task.text, made.task.label, made.task.labels) == ("text", "label", None)
    assert (made.data.dev, made.data.rows, made.data.on_overflow) == (0.1, "all", "cut")
    assert [arm.name for arm in made.classifier.arms] == ["label_only", "reason_then_label", "label_then_reason"]
    assert (made.classifier.train.epochs, made.reasoner.train.epochs) == (3, 1)
    assert (made.classifier.train.rows_per_step, made.classifier.train.tokens_per_step) == (32, None)
    assert made.reasonings.teacher == ()
    assert made.evaluate.abstain_below is None
    assert (made.recommend_by, made.seed, made.study) == ("macro_f1", 0, None)


@pytest.mark.parametrize(
    ("written_as", "value"),
    [
        ("2e-5", 2e-5),
        ("1", 1),
        ("0755", 755),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("True", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-11-20", "2026-11-20"),
        ("0b1", "0b1"),
        ("1e", "1e"),
        ("nUll", "nUll"),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written_as: str, value: Any) -> None:
    found, _ = written.read(f"key: {written_as}", "c")
    assert found == {"key": value} and type(found["key"]) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["yes", "1e5", "~"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain)
def test_what_is_written_reads_back(value: Any) -> None:
    found, _ = written.read(written.write({"key": value}), "c")
    assert found == {"key": value} and repr(found) == repr({"key": value})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("[yes, no]", ["yes", "no"]),
        ("[1, 1.0, 01]", ["1", "1.0", "01"]),
        ("[null, NA, ~, true, .nan]", ["null", "NA", "~", "true", ".nan"]),
        ("{1: one star, 2: null, yes: 3}", ["1", "2", "yes"]),
        ("{ 2e-5: , 1e3: }", ["2e-5", "1e3"]),
        ("[幸福, 'a: b']", ["幸福", "a: b"]),
    ],
)
def test_labels_are_the_text_as_written(labels: str, expected: list[str]) -> None:
    from_file = parse(f"task: {{name: a, instruction: b, labels: {labels}}}\ndata: {{train: x.csv}}")
    from_set = parse(SMALL, f"task.labels={labels}")
    assert list(from_file.task.labels or ()) == list(from_set.task.labels or ()) == expected
    assert list(parse(config.dump(from_file)).task.labels or ()) == expected


def test_descriptions_and_label_names_are_text_too() -> None:
    labels = "{1: 5, 2: null, 3: , 4: yes}"
    made = parse(SMALL, f"task.labels={labels}", "data.label_names=[no, 1]", "task.labels.5=1.0")
    assert made.task.labels == {"1": "5", "2": "", "3": "", "4": "yes", "5": "1.0"}
    assert made.data.label_names == ("no", "1")


@given(st.lists(st.text(min_size=1).filter(lambda label: not config.label_fault(label)), min_size=2, unique=True))
def test_any_labels_survive_being_dumped(labels: list[str]) -> None:
    task = {"name": "a", "instruction": "b", "labels": labels}
    made = parse(written.write({"task": task, "data": {"train": "x.csv"}}))
    assert list(made.task.labels or ()) == labels
    assert parse(config.dump(made)) == made


def test_a_dumped_config_has_every_default_and_means_the_same_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    made = parse(
        SMALL
        + """
base: model
reasoner: {worked_cases: {data: 'cases/w.jsonl'}}
classifier:
  arms: [label_only, {name: long, arm: both, train: {tokens_per_step: 100}, match: tokens, to: label_only}]
study: {grid: {seed: [0, 1], data.rows: [64, all]}}
""",
        folder=tmp_path,
    )
    text = config.dump(made)
    again = config.parse(text, tmp_path / "run" / "config.yaml")
    assert again == made and config.dump(again) == text
    assert again.folder == (tmp_path / "run").resolve() and made.folder == tmp_path.resolve()
    plain, _ = written.read(text, "c")
    assert plain["data"]["train"] == str(tmp_path.resolve() / "rows.csv")
    assert (
        plain["base"] == plain["classifier"]["base"] == plain["reasoner"]["base"] == str(tmp_path.resolve() / "model")
    )
    assert "folder" not in plain
    assert set(plain["classifier"]["train"]) == set(settings.Train.model_fields)
    assert made != parse(SMALL, folder=tmp_path)


def test_common_settings_still_reach_the_arms_of_a_dumped_config() -> None:
    made = parse(config.dump(parse(SMALL, "base=scratch")), "classifier.train.epochs=7", "classifier.train.clip=2")
    assert [(arm.train.epochs, arm.train.clip) for arm in made.classifier.arms] == [(7, 2)] * 3


@pytest.mark.parametrize(
    ("base", "own", "rate"),
    [
        ("scratch", None, 2e-3),
        ("{scratch: {width: 64}}", None, 2e-3),
        ("hub/model", None, 2e-5),
        ("hub/model", "scratch", 2e-3),
        ("scratch", "hub/model", 2e-5),
    ],
)
def test_the_learning_rate_follows_the_base_of_its_stage(base: str, own: str | None, rate: float) -> None:
    sets = [f"base={base}"] + ([f"classifier.base={own}"] if own else [])
    made = parse(SMALL, *sets)
    assert made.classifier.train.learning_rate == made.classifier.arms[0].train.learning_rate == rate
    assert made.reasoner.train.learning_rate == (2e-3 if "scratch" in base else 2e-5)
    assert parse(SMALL, *sets, "classifier.train.learning_rate=1e-4").classifier.train.learning_rate == 1e-4
    assert parse(SMALL, *sets, "classifier.train.learning_rate=null").classifier.train.learning_rate == rate


def test_worked_cases_are_one_source_or_a_list_of_them() -> None:
    one = parse(SMALL, "reasoner.worked_cases.data=w.csv")
    assert [source.data for source in one.reasoner.sources] == ["/somewhere/w.csv"]
    listed = SMALL + "reasoner:\n  worked_cases:\n    - {data: w.csv}\n    - data: o.csv\n      of_this_task: true\n"
    both = parse(listed)
    assert [(source.data, source.of_this_task) for source in both.reasoner.sources] == [
        ("/somewhere/w.csv", False), ("/somewhere/o.csv", True),
    ]  # fmt: skip
    assert both.reasonings.teacher == ("reasoner",) and parse(SMALL).reasoner.sources == ()
    for made in (one, both):
        again = config.parse(config.dump(made), Path("/elsewhere/config.yaml"))
        assert again == made and type(again.reasoner.worked_cases) is type(made.reasoner.worked_cases)
    few = config.parse(config.dump(one), Path("/elsewhere/config.yaml"), ["reasoner.worked_cases.rows=9"])
    assert few.reasoner.sources[0].rows == 9
    place = "config.yaml, line 6: reasoner.worked_cases[1]"
    assert refusal(listed.replace("of_this_task: true", "of_this_tsk: true")).startswith(
        "config.yaml, line 7: reasoner.worked_cases[1].of_this_tsk: unknown key; did you mean 'of_this_task'?"
    )
    assert refusal(listed.replace("data: o.csv", "rows: 4")) == f"{place}.data: is missing"
    assert refusal(SMALL, "reasoner.worked_cases=[]").endswith("name a source, or null for none")
    assert "should be a mapping of data, question" in refusal(SMALL, "reasoner.worked_cases=w.csv")


def test_scratch_is_short_for_its_sizes() -> None:
    size = parse(SMALL, "base=scratch").classifier.base
    assert isinstance(size, config.FromScratch)
    assert size == parse(SMALL, "base={scratch: {width: 128, layers: 4, vocabulary: 3000}}").base
    assert (size.scratch.width, size.scratch.layers, size.scratch.vocabulary, size.scratch.heads) == (128, 4, 3000, 4)
    assert "multiple" in refusal(SMALL, "base={scratch: {width: 130}}")


def test_a_base_is_asked_for_only_when_it_is_needed() -> None:
    with pytest.raises(RequestError, match="nothing to train the classifier from"):
        config.needed_base(parse(SMALL), "classifier")
    assert config.needed_base(parse(SMALL, "reasoner.base=a/b"), "reasoner") == "a/b"


def test_arms_take_what_they_do_not_set_from_the_classifier() -> None:
    made = parse(
        SMALL + "classifier: {train: {epochs: 5, clip: 2}, arms: [both, {arm: label_only, train: {epochs: 1}}]}"
    )
    both, alone = made.classifier.arms
    assert (both.name, both.arm, both.train.epochs, both.train.clip) == ("both", "both", 5, 2)
    assert (alone.name, alone.train.epochs, alone.train.clip) == ("label_only", 1, 2)


def test_rows_and_tokens_per_step_exclude_each_other() -> None:
    assert "exclude each other" in refusal(SMALL, "classifier.train={rows_per_step: 8, tokens_per_step: 9}")
    by_tokens = parse(SMALL, "classifier.train.tokens_per_step=512").classifier
    assert (by_tokens.train.rows_per_step, by_tokens.arms[0].train.rows_per_step) == (None, None)
    arm = "classifier.arms=[{arm: both, train: {rows_per_step: 8}}]"
    by_rows = parse(SMALL, "classifier.train.tokens_per_step=512", arm).classifier.arms[0].train
    assert (by_rows.rows_per_step, by_rows.tokens_per_step) == (8, None)


def test_the_teacher_is_the_reasoner_where_there_are_worked_cases() -> None:
    assert parse(SMALL, "reasoner.worked_cases.data=a/b").reasonings.teacher == ("reasoner",)
    assert parse(SMALL, "reasonings.teacher=column").reasonings.teacher == ("column",)
    assert parse(SMALL, "reasonings.teacher=[base, api]").reasonings.teacher == ("base", "api")
    assert "needs reasoner.worked_cases" in refusal(SMALL, "reasonings.teacher=reasoner")
    assert "needs file" in refusal(SMALL, "reasonings.teacher=file")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("data.rowz=3", "--set data.rowz=3: data.rowz: unknown key; did you mean 'rows'?"),
        ("dta.rows=3", "--set dta.rows=3: dta: unknown key; did you mean 'data'?"),
        ("qqq=3", "--set qqq=3: qqq: unknown key; there are task, data, base,"),
        (
            "reasoner.worked_cases={data: a/b, cases: 3}",
            "reasoner.worked_cases.cases: unknown key; there are data, question",
        ),
        ("classifier.arms=[{arm: both, nme: x}]", "classifier.arms[0].nme: unknown key; did you mean 'name'?"),
        ("classifier.arms=[labl_only]", "classifier.arms[0].arm: should be one of label_only, reason_then_label"),
        ("classifier.arms=[labl_only]", "not 'labl_only'; did you mean 'label_only'?"),
        ("classifier.arms=[]", "classifier.arms: should hold at least one arm"),
        ("classifier.arms=[both, both]", "two arms have the same name"),
        ("classifier.arms=[both, {name: m, arm: label_only, match: tokens}]", "match and to go together"),
        ("classifier.arms=[both, {name: m, arm: label_only, match: tokens, to: boht}]", "did you mean 'both'?"),
        ("classifier.arms=[{name: m, arm: both, match: tokens, to: m}]", "no arm 'm' is trained without a match"),
        ("classifier.train.epochs=many", "classifier.train.epochs: should be a number, not 'many'"),
        ("classifier.train.epochs=0", "classifier.train.epochs: should be greater than 0, not 0"),
        ("classifier.train.clip=.nan", "classifier.train.clip: should be a finite number, not nan"),
        ("classifier.train.epochs=true", "classifier.train.epochs: should be a number, not True"),
        ("classifier.train.steps=1.5", "classifier.train.steps: should be a whole number, not 1.5"),
        ("classifier.train.warmup=1.5", "should be a share of the steps from 0 to below 1, or a whole number of steps"),
        ("classifier.train.warmup=-0.1", "or a whole number of steps, not -0.1"),
        ("classifier.train.patience=0", "classifier.train.patience: should be greater than or equal to 1, not 0"),
        ("classifier.arms=[both, {arm: label_only, match: rows, to: both}]", "should be one of tokens, steps"),
        ("classifier.train.label_weight=-1", "should be balanced, tokens or a number above 0, not -1"),
        ("classifier.train=3", "classifier.train: should be a mapping of epochs, steps"),
        ("trust_remote_code=yes", "trust_remote_code: should be true or false, not 'yes'"),
        ("task.name=2024", "task.name: should be text, not 2024; put it in quotes"),
        ("task.name=a/b", "task.name: should not be 'a/b'"),
        ("task.name=..", "task.name: should not be '..'"),
        ("task.instruction=' '", "task.instruction: should not be ' ': it is empty"),
        ("task.labels=[a, a]", "at least two labels, each once"),
        ("task.labels=[a]", "at least two labels, each once"),
        ("task.labels=a", "should be a list of labels"),
        ("task.labels=[a, ' b']", "label ' b' starts or ends with white space"),
        ("task.labels=[a, '']", "label '' is empty"),
        ('task.labels=[a, "b\\nc"]', "starts or ends with white space or holds a line break"),
        ("task.labels={a: [b], c: d}", "label 'a' should be described by one text"),
        ("task={name: a, instruction: b, choices: c, labels: [d, e]}", "leave labels and ordinal out, or choices"),
        ("data.rows=1", "data.rows: should be all or a whole number from 2 on, not 1"),
        ("data.rows=some", "data.rows: should be all or a whole number from 2 on, not 'some'"),
        ("data.dev=1.0", "data.dev: should be a file, a folder, a hub id or a share of train between 0 and 1, not 1.0"),
        ("data.test=null", "data.test: should be a file"),
        ("data.test=two words", "--set data.test=two words: data.test: 'two words' is neither a file, nor a folder"),
        ("data={train: a.csv, dev: 0.6, test: 0.4}", "(0.6 + 0.4) leave nothing to train on"),
        ("data.label_names=[a, a]", "label_names should hold at least two names, each once"),
        ("data.on_overflow=drops", "did you mean 'drop'?"),
        ("reasonings.checks=[to_long]", "reasonings.checks[0]: should be one of empty, too_long"),
        ("reasonings.per_row=5", "per_row (5) is more than candidates (4)"),
        ("reasonings.replace=shufle", "reasonings.replace: should be one of none, shuffle, bag_corpus"),
        ("evaluate.abstain_below=70", "evaluate.abstain_below: should be less than or equal to 1, not 70"),
        ("seed=-1", "seed: should be greater than or equal to 0, not -1"),
        ("study.grid={}", "study: should hold a grid or parts"),
        ("study.grid={seed: []}", "study.grid: should hold at least one key"),
        ("study.grid={seed: 3}", "study.grid.seed: should be a list, not 3"),
        ("study.grid={data.rowz: [3]}", "study.grid.data.rowz[0]: data.rowz: unknown key; did you mean 'rows'?"),
        ("study.grid={data.rows: [64, 0]}", "study.grid.data.rows[1]: data.rows: should be all"),
        ("seed", "write it as key=value"),
        (".seed=1", "write it as key=value"),
        ("seed.x.y=1", "--set seed.x.y=1: seed is 0, there is nothing below it to set"),
        ("classifier.arms.7.name=x", "classifier.arms is a list of 1, it has no '7'"),
        ("data.rows=[1", "--set data.rows=[1, line 1: this is not YAML"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(sets: str, message: str) -> None:
    assert message in refusal(SMALL + "seed: 0\nclassifier: {arms: [both]}\n", sets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yaml: a config is a mapping"),
        ("- a", "config.yaml: a config is a mapping"),
        ("task: [1", "config.yaml, line 1: this is not YAML"),
        ("task:\n  a: 1\n b: 2", "config.yaml, line 3: this is not YAML"),
        ("a: 1\n---\nb: 1", "config.yaml, line 2: this is not YAML"),
        (
            "task:\n  name: a\n  name: b",
            "config.yaml, line 3: task.name stands here a second time (first: config.yaml, line 2)",
        ),
        ("data: &a\n  dev: *a", "line 1: data.dev holds itself"),
        ("? [a]\n: b", "config.yaml, line 1: a key should be one word"),
        ("seed: !!python/name:os.system x", "config.yaml, line 1: seed: the tag"),
        (f"seed: {'9' * 5000}", "config.yaml, line 1: seed: '999"),
        (SMALL + "\n\nseeds: 1", "config.yaml, line 5: seeds: unknown key; did you mean 'seed'?"),
        (
            SMALL + "classifier:\n  train:\n    clip: a",
            "config.yaml, line 5: classifier.train.clip: should be a number",
        ),
        ("task: {name: a, instruction: b}", "config.yaml, line 1: data: is missing"),
        ("task: {name: a}\ndata: {train: a.csv}", "config.yaml, line 1: task.instruction: is missing"),
        (SMALL + "<<: {seed: 1}", "config.yaml, line 3: <<: unknown key"),
        (
            "task:\n  name: a\n  instruction: b\n  labels: {a: b,\n    a: c}\ndata: {train: x}",
            "line 5: task.labels.a stands here",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    assert message in refusal(text)


def key_paths(value: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in ((*above, key), *key_paths(inner, (*above, key)))]


EXAMPLE = written.read(config.commented_example(), "example")[0]


@hypothesis.settings(deadline=None)
@given(st.sampled_from(key_paths(EXAMPLE)), plain)
def test_whatever_a_key_holds_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    text = written.write(written.put(EXAMPLE, path, value, "x"))
    try:
        made = parse(text)
    except RequestError as error:
        assert str(error).startswith("/somewhere/config.yaml")
    else:
        assert parse(config.dump(made)) == made


def test_every_mistake_is_named_once() -> None:
    lines = refusal(
        "task: {nam: a, instruction: b}\ndata: {train: a.csv, rows: 0}\nbase: 3\nclassifier: {train: {clip: 0}}"
    )
    assert sorted(line.split(": ")[1] for line in lines.splitlines()) == [
        "base", "classifier.train.clip", "data.rows", "task.nam", "task.name",
    ]  # fmt: skip


def test_set_replaces_and_adds() -> None:
    made = parse(
        SMALL, "data.rows=64", "task.text=Is it: {a}?", "data.rows=65", "task.labels=[a, b]", "task.labels.0=c"
    )
    assert made.data.rows == 65 and made.task.text == "Is it: {a}?" and list(made.task.labels or ()) == ["c", "b"]
    assert parse(SMALL, "task.instruction= a = b ").task.instruction == "a = b"
    assert parse(SMALL, "task.name='7'").task.name == "7"
    assert parse(SMALL + "study:\nevaluate:\n").evaluate == settings.Evaluate()


def test_putting_a_value_leaves_the_settings_it_was_given() -> None:
    raw = {"data": {"rows": 3}, "arms": [{"name": "a"}]}
    assert written.put(raw, ("arms", "0", "name"), "b", "x") == {"data": {"rows": 3}, "arms": [{"name": "b"}]}
    assert written.put(raw, ("data", "new", "deep"), 1, "x")["data"] == {"rows": 3, "new": {"deep": 1}}
    assert raw == {"data": {"rows": 3}, "arms": [{"name": "a"}]}


def test_settings_are_frozen() -> None:
    made: Any = parse(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 3


def test_load_reads_a_file_and_says_why_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    made = config.load(path, ["seed=4"])
    assert made.seed == 4 and made.data.train == str(tmp_path.resolve() / "rows.csv")
    assert config.resolve_path(made, "data/x.csv") == tmp_path.resolve() / "data" / "x.csv"
    with pytest.raises(RequestError, match=r"confg\.yaml: there is no such file; did you mean config\.yaml\?"):
        config.load(tmp_path / "confg.yaml")
    path.write_bytes(b"task: \xff")
    with pytest.raises(RequestError, match="byte 6 is not UTF-8"):
        config.load(path)
    with pytest.raises(RequestError, match="cannot be read"):
        config.load(tmp_path)


def test_sources_are_files_folders_or_hub_ids(tmp_path: Path) -> None:
    for name in ("rows", "odd:name", "owner"):
        (tmp_path / name).mkdir()
    here = tmp_path.resolve()

    def found(text: str) -> tuple[Path | None, str, str | None, str | None]:
        source = config.locate(text, tmp_path)
        return source.path, source.hub, source.config, source.part

    assert found("x.csv") == (here / "x.csv", "", None, None)
    assert found("x.JSONL") == (here / "x.JSONL", "", None, None)
    assert found("rows") == (here / "rows", "", None, None)
    assert found("rows:test") == (here / "rows", "", None, "test")
    assert found("rows/missing") == (here / "rows" / "missing", "", None, None)
    assert found("./new:test") == (here / "new", "", None, "test")
    assert found("odd:name") == (here / "odd:name", "", None, None)
    assert found("odd:name:test") == (here / "odd:name", "", None, "test")
    assert found("emotion") == (None, "emotion", None, None)
    assert found("dair-ai/emotion") == (None, "dair-ai/emotion", None, None)
    assert found("dair-ai/emotion:test") == (None, "dair-ai/emotion", None, "test")
    assert found("dair-ai/emotion/split:train") == (None, "dair-ai/emotion", "split", "train")
    for drive in ("C:\\data\\rows", "C:rows", "C:/data/rows"):
        path, hub, _, part = found(drive)
        assert path is not None and not hub and part is None
    assert found("C:\\data\\rows:test")[3] == "test"
    for text in ("two words", "a/b:", "a/b:c:d", "héé/!", "a" * 400 + " b"):
        with pytest.raises(RequestError, match="neither a file, nor a folder, nor a hub id"):
            config.locate(text, tmp_path)


def test_the_example_is_valid_commented_and_agrees_with_the_defaults() -> None:
    text = config.commented_example()
    made = parse(text)
    chosen = {"task", "study", "base"}
    example, _ = written.read(text, "example")
    bare = parse(
        SMALL, f"base={made.base}", f"reasoner.worked_cases.data={example['reasoner']['worked_cases']['data']}"
    )
    default = written.read(config.dump(bare), "c")[0]
    full = written.read(config.dump(made), "c")[0]
    for other in (full, default):
        del other["data"]["train"], other["data"]["test"]
    assert {key: value for key, value in full.items() if key not in chosen} == {
        key: value for key, value in default.items() if key not in chosen
    }
    left_out = _missing(settings.Config.model_validate(example).model_dump(), example)
    inherited = {f"reasoner.train.{key}" for key in settings.Train.model_fields} - {"reasoner.train.epochs"}
    assert set(left_out) <= inherited
    for line in text.splitlines():
        assert "# " in line and len(line.partition("# ")[2]) > 5, line


def _missing(complete: Any, found: Any, path: str = "") -> list[str]:
    if not isinstance(complete, dict) or not isinstance(found, dict):
        return []
    missing = [f"{path}{key}" for key in complete if key not in found]
    return missing + [name for key in found for name in _missing(complete[key], found[key], f"{path}{key}.")]


def test_the_checks_are_those_that_exist() -> None:
    limits = checks.Limits(too_long=9, too_short=1, generic=3, least_support=0.0)
    names = get_args(reasonings.CheckName)
    assert [check.__name__ for check in checks.by_name(names, limits)] == list(names)
    assert set(reasonings.CHECKS) < set(names)


def test_it_is_quick_to_import() -> None:
    slow = {"torch", "datasets", "pyarrow", "numpy", "transformers"}
    code = f"import sys, saywhy.config; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
