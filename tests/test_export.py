"""Leaving saywhy: others load what is written, answer alike, and train on the same text; what fails leaves nothing."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import saywhy
import tiny
import toy
from saywhy import cli, export, store
from saywhy.config import load as load_config
from saywhy.data import read
from saywhy.lm.encode import Encoder, Part, decode, golden_ids, make_encoder, part_ids, prompt_ids, render, segments
from saywhy.lm.folder import ROOM_FOR_LABEL, save
from saywhy.predict import load
from saywhy.prompts import read_target, row_pieces, target, task_instruction
from saywhy.records import RequestError, Row, Task, WorkError

pytest_plugins = ("runs",)

ROWS = ("prompt-completion", "messages", "segments")
FILES = {
    "README.md", "task.json", "calibration.json", "prompt.json", "config.json", "generation_config.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
DECISION = {"decision.json", "decision_template.jinja"}
EMOTIONS = Task("emotion", "Which emotion does the writer express?", ("joy", "sadness"), {"joy": "pleasure, pride"})


@pytest.fixture(scope="module")
def exported(finished: toy.Done, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """Every arm of a run: the folder it was exported to, and what was said."""
    where = tmp_path_factory.mktemp("exported")
    return {arm: (where / arm, export.write(finished.folder / arm, where / arm)) for arm in toy.ARMS}


@pytest.fixture
def copied(quick_run: toy.Done, tmp_path: Path) -> Path:
    """A copy of a run that a test may change."""
    shutil.copytree(quick_run.folder, tmp_path / "run")
    return tmp_path / "run"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untrained(folder: Path, tokenizer: Any, task: Task = EMOTIONS, arm: str = "label_only") -> Path:
    """A model folder as training leaves it, with random weights."""
    folder.mkdir()
    encoder = make_encoder(tokenizer, replace(render(tokenizer, task_instruction(task)), room=200, limit=20))
    encoder = replace(encoder, prompt=replace(encoder.prompt, golden=golden_ids(encoder)))
    model = tiny.model("llama")
    if len(tokenizer) > tiny.VOCABULARY:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    save(folder, arm, model, encoder)
    store.write_json(folder / "task.json", asdict(task))
    return folder


def some_rows(folder: Path, count: int = 6) -> str:
    """A file of rows to score again."""
    texts = [{"text": f"what a lovely morning, number {i}"} for i in range(count)]
    return str(toy.write_lines(folder / "rows.jsonl", texts))


# What others load.
def test_texts_are_not_drawn_where_the_base_would_draw_them(tmp_path: Path) -> None:
    model = tiny.model("llama")
    drawn = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    avoided = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "suppress_tokens": [5]}
    model.generation_config.update(**drawn, **avoided)
    tokenizer = tiny.byte_level(["<|eot_id|>"])
    model.resize_token_embeddings(max(tiny.VOCABULARY, len(tokenizer)), mean_resizing=False)
    encoder = make_encoder(tokenizer, replace(render(tokenizer, task_instruction(EMOTIONS)), room=200, limit=20))
    save(tmp_path, "label_only", model, encoder)
    kept = store.read_json(tmp_path / "generation_config.json")
    assert not kept.pop("do_sample", False)
    assert not {*drawn, *avoided} & kept.keys()
    assert kept["max_new_tokens"] == 20 + ROOM_FOR_LABEL


def test_who_may_read_the_settings_may_read_the_weights(
    finished: toy.Done, exported: dict[str, tuple[Path, list[str]]]
) -> None:
    """A container serves as another user than the one who trained."""
    for folder in (finished.folder / "base", *(finished.folder / arm for arm in toy.ARMS), exported["both"][0]):
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_weights_that_this_user_may_not_read_are_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library says of them is that there are none."""
    weights = copied / "label_only" / "model.safetensors"

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("No such file or directory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != weights)
    with pytest.raises(RequestError, match=r"label_only/model.safetensors may not be read by this user"):
        load(copied / "label_only")




@pytest.mark.parametrize("arm", toy.ARMS)
def test_transformers_loads_the_same_weights_and_stops_at_the_end(
    finished: toy.Done, exported: dict[str, tuple[Path, list[str]]], arm: str
) -> None:
    folder, _ = exported[arm]
    decision = set() if arm == "reason_then_label" else DECISION
    assert {path.name for path in folder.iterdir()} == FILES | decision | {f"rows-{name}.jsonl" for name in ROWS}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    trained = AutoModelForCausalLM.from_pretrained(finished.folder / arm).state_dict()
    assert model.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    end = tokenizer.convert_tokens_to_ids(store.read_json(folder / "prompt.json")["end"])
    assert end in model.generation_config.eos_token_id
    assert not model.generation_config.do_sample
    encoder = load(folder).lm.encoder
    cue = part_ids(encoder, Part("cue", "Label:" if arm != "reason_then_label" else "Reasoning:", ""))
    asked = torch.tensor([[*prompt_ids(encoder, ("", toy.records()["train"][1]["text"], ""))[0], *cue]])
    written = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=60, do_sample=False)
    assert written[0, -1] == end and len(written[0]) < len(asked[0]) + 60
    if arm == "label_only":
        assert tokenizer.decode(written[0, len(asked[0]) : -1]).strip() in toy.LABELS


@pytest.mark.parametrize("arm", toy.ARMS)
def test_saywhy_still_answers_alike_from_there(
    finished: toy.Done, exported: dict[str, tuple[Path, list[str]]], arm: str
) -> None:
    texts = [row["text"] for row in toy.records()["test"]]
    own, there = saywhy.load(finished.folder / arm), saywhy.load(exported[arm][0])
    np.testing.assert_array_equal(there.predict_proba(texts), own.predict_proba(texts))
    assert there.classifier.temperatures == own.classifier.temperatures and own.classifier.temperatures


def test_the_command_says_what_it_wrote_and_predict_takes_it(
    finished: toy.Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(finished.folder), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    arm = finished.metrics["recommended"]["arm"]
    assert f"the arm {arm}, as transformers and vLLM load it" in said
    assert "24 of 24 rows have the same label (100.0% agree, 0 of them ties)" in said
    assert cli.main(["predict", str(tmp_path / "out"), "alone by the gate it barks"]) == 0
    assert "dog" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "README.md").read_bytes() == (finished.folder / arm / "README.md").read_bytes()


# transformers' decision pipeline.


def ask(folder: Path, labels: tuple[str, ...], text: str) -> dict[str, Any]:
    question = {"type": "choice", "instructions": "is not read", "criteria": dict.fromkeys(labels)}
    found: dict[str, Any] = pipeline("decision", model=str(folder))({"state": text, "questions": {"it": question}})
    return found["it"]


@pytest.mark.parametrize("arm", ["label_only", "label_then_reason", "both"])
def test_the_decision_pipeline_gives_the_same_labels_and_nearly_the_same_probabilities(
    exported: dict[str, tuple[Path, list[str]]], arm: str
) -> None:
    """The prompt's tokens are equal. Probabilities cannot be: saywhy counts what ends a label, the pipeline does not.

    So the pipeline's are compared twice: with saywhy's own (near, for a trained model ends every label), and with the
    label tokens alone behind saywhy's prompt (equal).
    """
    folder, said = exported[arm]
    assert any(line.startswith("decision.json: pipeline('decision')") for line in said)
    own = saywhy.load(folder)
    encoder, temperature = own.classifier.lm.encoder, own.classifier.temperatures["label"]
    assert store.read_json(folder / "decision.json")["temperature"] == {"choice": temperature}
    assert abs(temperature - 1) > 0.01, "a temperature of 1 would show nothing"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = [part_ids(encoder, Part("label", f" {label}", ""))[0] for label in toy.LABELS]
    for row in toy.records()["test"][:8]:
        found = ask(folder, toy.LABELS, row["text"])
        prediction = own(row["text"], mode="label")
        assert found["choice"] == prediction.label
        for label, share in prediction.probabilities.items():
            assert found["probabilities"][label] == pytest.approx(share, abs=0.02)
        ids = [*prompt_ids(encoder, row_pieces(Row("", row["text"])))[0], *part_ids(encoder, Part("", "Label:", ""))]
        with torch.inference_mode():
            alone = (model(torch.tensor([ids])).logits[0, -1, tokens] / temperature).softmax(-1).tolist()
        assert [found["probabilities"][label] for label in toy.LABELS] == pytest.approx(alone, abs=1e-5)


def text_in(encoder: Encoder, ids: list[int]) -> str:
    """The row's text out of the tokens of a prompt that ends with the label's cue."""
    cue = part_ids(encoder, Part("cue", "Label:", ""))
    return decode(encoder, ids[len(encoder.before) : len(ids) - len(encoder.after) - len(cue)])


TEMPLATES = {
    "plain": lambda: tiny.byte_level(),
    "chatml": lambda: tiny.byte_level(tiny.TURNS, tiny.CHATML, bos=None, end="<|im_end|>"),
    "qwen3": lambda: tiny.byte_level(
        tiny.TURNS, tiny.QWEN3, bos=None, end="<|im_end|>", plain_added=("<think>", "</think>")
    ),
    "llama3": lambda: tiny.byte_level(tiny.HEADERS, tiny.LLAMA3, bos="<bos>", end="<|eot_id|>"),
    "metaspace": lambda: tiny.sentence_piece("metaspace"),
    "gemma": lambda: tiny.byte_level(("<start_of_turn>", "<end_of_turn>"), tiny.GEMMA, end="<end_of_turn>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_of_the_decision_is_the_prompt_of_the_run(tmp_path: Path, name: str) -> None:
    # An instruction that a template could take for its own marks, or a constant for escapes.
    asked = 'Which "emotion" \\n \\u0041 {{ is }} {% it %}? 😀'
    task = replace(EMOTIONS, instruction=asked, labels=("joy", "the"))
    folder = untrained(tmp_path / "model", TEMPLATES[name](), task)
    export.write(folder, tmp_path / "out", source=some_rows(tmp_path))
    encoder = load(folder).lm.encoder
    decide = pipeline("decision", model=str(tmp_path / "out"))
    question = {"type": "choice", "criteria": dict.fromkeys(task.labels)}
    cue = part_ids(encoder, Part("cue", "Label:", ""))

    def read_of(text: str) -> list[int]:
        prompts = decide.preprocess({"state": text, "questions": {"it": question}})["prompts"]
        ids: list[int] = prompts[0][0]["input_ids"][0].tolist()
        return ids

    for text in ("i feel so alone", "  spaces around\n", '"quotes" {{ braces }} \\n ünïcode 😀 <|none|>'):
        assert read_of(text) == [*prompt_ids(encoder, ("", text, ""))[0], *cue]
    # The word of a control token is cut apart otherwise, but it is characters there too.
    spelt = read_of(f"an {encoder.prompt.end} inside")
    assert spelt.count(encoder.end) == [*encoder.before, *encoder.after].count(encoder.end)
    assert text_in(encoder, spelt) == f"an {encoder.prompt.end} inside"


def test_without_a_token_for_each_label_there_is_no_decision(tmp_path: Path) -> None:
    several = replace(EMOTIONS, labels=("joy", "sadness", "yes and no", "b-z"))
    folder = untrained(tmp_path / "several", tiny.byte_level(), several)
    said = export.write(folder, tmp_path / "out", source=some_rows(tmp_path))
    assert "no decision.json: more than one token behind 'Label:': yes and no, b-z" in said
    assert not DECISION & {path.name for path in (tmp_path / "out").iterdir()}


def test_where_the_pipeline_would_read_other_tokens_there_is_no_decision(tmp_path: Path) -> None:
    """This tokenizer has a token over the join of prompt and text, and saywhy never makes such a token."""
    task = replace(EMOTIONS, labels=("joy", "the"))
    folder = untrained(tmp_path / "model", tiny.sentence_piece("prepend"), task)
    said = export.write(folder, tmp_path / "out", source=some_rows(tmp_path))
    assert "no decision.json: the decision pipeline would read other tokens than the model was trained on" in said
    assert not DECISION & {path.name for path in (tmp_path / "out").iterdir()}


def test_reasoned_arms_and_own_choices_have_no_decision(
    exported: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    assert any(
        "reason_then_label is not asked for the label alone" in line for line in exported["reason_then_label"][1]
    )
    own = Task("quiz", "Which is right?", (), choices="choices")
    folder = untrained(tmp_path / "quiz", tiny.byte_level(), own)
    asked = [{"text": f"number {i}", "choices": ["joy", "yes and no"]} for i in range(4)]
    said = export.write(folder, tmp_path / "out", source=str(toy.write_lines(tmp_path / "asked.jsonl", asked)))
    assert "no decision.json: each row brings its own choices" in said
    assert "4 of 4 rows have the same label" in said[1]


# The training rows.


@pytest.mark.parametrize("arm", toy.ARMS)
def test_rows_are_the_text_that_was_trained(
    finished: toy.Done, exported: dict[str, tuple[Path, list[str]]], arm: str
) -> None:
    folder, said = exported[arm]
    trained = store.read_table(finished.folder / arm / "trained_on.parquet").to_pylist()
    rows = {row.id: row for row in read(finished.config).train}
    encoder, task = load(folder).lm.encoder, load(folder).task
    found = [lines(folder / f"rows-{name}.jsonl") for name in ROWS]
    assert [len(one) for one in found] == [len(trained)] * 3
    assert f"{len(trained)} training rows in rows-prompt-completion" in said[-1]
    for line, pair, said_, pieces in zip(trained, *found, strict=True):
        text = encoder.prompt.before + rows[line["id"]].text + encoder.prompt.after
        assert pair["prompt"] + pair["completion"] == text + line["target"]
        cue = "Reasoning:" if line["target"].startswith("Reasoning:") else "Label:"
        assert pair["prompt"] == text + cue and pair["completion"].endswith(encoder.prompt.end)
        assert said_["messages"] == [
            {"role": "system", "content": task_instruction(task)},
            {"role": "user", "content": rows[line["id"]].text},
            {"role": "assistant", "content": line["target"].removesuffix(encoder.prompt.end)},
        ]
        parts = target(*read_target(line["target"].removesuffix(encoder.prompt.end)))
        weighted = segments(encoder, parts)
        head, _ = prompt_ids(encoder, row_pieces(rows[line["id"]]))
        wanted = [*((False, i) for i in head), *((one.weight > 0, i) for one in weighted for i in one.ids)]
        # As a trainer that reads such pieces encodes them: each by itself, nothing added.
        tokenizer = encoder.tokenizer
        given = [
            (piece["label"], i)
            for piece in pieces["segments"]
            for i in tokenizer(piece["text"], add_special_tokens=False).input_ids
        ]
        assert given == wanted


def test_a_text_that_was_cut_is_written_as_it_was_trained(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", tiny.byte_level())
    classifier = load(folder)
    row = Row("long", "what a lovely morning and " * 100, "joy")
    note = export.write_rows(tmp_path, classifier, [export.Taught(row, target("label_only", "joy", None))])
    (written,) = lines(tmp_path / "rows-messages.jsonl")
    text = written["messages"][1]["content"]
    assert " … " in text and len(text) < len(row.text) and "control" not in note
    assert prompt_ids(classifier.lm.encoder, ("", text, ""))[0] == prompt_ids(classifier.lm.encoder, row_pieces(row))[0]
    spelt = replace(row, text="an <eos> inside")
    note = export.write_rows(tmp_path, classifier, [export.Taught(spelt, target("label_only", "joy", None))])
    assert "1 texts spell a control token" in note


def test_a_template_without_a_system_turn_has_the_instruction_in_the_users(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", TEMPLATES["gemma"]())
    row = Row("a", " trimmed ", "joy")
    export.write_rows(tmp_path, load(folder), [export.Taught(row, target("label_only", "joy", None))])
    (written,) = lines(tmp_path / "rows-messages.jsonl")
    asked = f"{task_instruction(EMOTIONS)}\n\ntrimmed"
    assert written["messages"] == [{"role": "user", "content": asked}, {"role": "assistant", "content": "Label: joy"}]


def test_rows_are_left_out_where_they_cannot_be_had_and_refused_where_asked_for(copied: Path, tmp_path: Path) -> None:
    def said(rows: bool | None) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return export.write(copied / "label_only", tmp_path / "out", rows)[-1]

    assert said(None).startswith("60 training rows")
    assert said(False) == "no training rows, as asked"
    assert not list((tmp_path / "out").glob("rows-*"))
    made = load_config(copied / "config.yaml")
    rows = lines(Path(made.data.train))
    text = (copied / "config.yaml").read_text(encoding="utf-8")
    spoilt = {
        "changed": [{**row, "label": toy.LABELS[(toy.LABELS.index(row["label"]) + 1) % 3]} for row in rows],
        "shorter": rows[:-1],
        "gone": None,
    }
    for name, changed in spoilt.items():
        if changed is not None:
            toy.write_lines(tmp_path / f"{name}.jsonl", changed)
        elsewhere = text.replace(str(made.data.train), str(tmp_path / f"{name}.jsonl"))
        (copied / "config.yaml").write_text(elsewhere, encoding="utf-8")
        assert said(None).startswith("no training rows: ") and name in said(None)
        with pytest.raises(RequestError, match=name):
            said(True)
    (copied / "config.yaml").unlink()
    assert "is in no run's folder" in said(None)
    with pytest.raises(RequestError, match="is in no run's folder"):
        said(True)
    assert not (tmp_path / "out").exists()


# The proof.


def spoil_answers(run: Path, arm: str, mode: str) -> None:
    """Give saved answers other labels, as if the model had been another."""
    path = run / "predictions" / f"{arm}-{mode}-test.parquet"
    table = store.read_table(path)
    other = [toy.LABELS[(toy.LABELS.index(label) + 1) % 3] for label in table["label"].to_pylist()]
    place = table.column_names.index("label")
    store.write_table(path, table.set_column(place, "label", pa.array(other)), extra=store.table_extra(path))


@pytest.mark.parametrize(("arm", "mode"), [("label_only", "label"), ("reason_then_label", "reason")])
def test_another_answer_than_saywhys_fails_and_leaves_nothing(
    copied: Path, tmp_path: Path, arm: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_answers(copied, arm, mode)
    monkeypatch.setattr(export, "TIE", 0.0)
    with pytest.raises(WorkError, match=r"24 of 24 rows have another label.*saywhy evaluate"):
        export.write(copied / arm, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.setattr(export, "TIE", 1.0)
    assert (
        "0 of 24 rows have the same label (100.0% agree, 24 of them ties)"
        in export.write(copied / arm, tmp_path / "out")[1]
    )


def test_other_weights_than_those_that_answered_fail(
    finished: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_another(folder: Path, arm: str, model: Any, encoder: Any) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            model.get_output_embeddings().weight.copy_(torch.randn_like(model.get_output_embeddings().weight))
        save(folder, arm, model, encoder)

    monkeypatch.setattr(export, "save", save_another)
    for arm in ("label_only", "reason_then_label"):
        with pytest.raises(WorkError, match="nothing was written"):
            export.write(finished.folder / arm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rows", "others", "fails"), [(50, 1, True), (100, 2, True), (100, 1, False), (50, 0, False)])
def test_less_than_99_of_100_rows_with_the_same_label_fail(
    finished: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, others: int, fails: bool
) -> None:
    found = export.Agreement(rows, 0, tuple(f"r{i}" for i in range(others)), rows, rows)
    monkeypatch.setattr(export, "score_again", lambda *_: found)
    if fails:
        with pytest.raises(WorkError, match=f"{others} of {rows} rows have another label"):
            export.write(finished.folder / "label_only", tmp_path / "out")
    else:
        export.write(finished.folder / "label_only", tmp_path / "out")
    assert (tmp_path / "out").exists() is not fails


def test_fifty_rows_are_scored_again(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", tiny.byte_level())
    said = export.write(folder, tmp_path / "out", source=some_rows(tmp_path, 70))
    assert "50 of 50 rows have the same label" in said[1]


def test_what_is_scored_again_is_what_saywhy_scores(finished: toy.Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SCORED_AGAIN", 2 * toy.TEST)
    for arm in toy.ARMS:
        classifier = load(finished.folder / arm)
        asked = export._asked(classifier, finished.folder / arm, None)
        names = [f"{arm}-{mode}-test.parquet" for mode in ("label", "reason") if mode in classifier.modes]
        written = finished.folder / "predictions"
        saved = [line for name in names for line in store.read_table(written / name).to_pylist()]
        model = AutoModelForCausalLM.from_pretrained(finished.folder / arm, dtype=torch.float32)
        assert len(asked) == len(saved) == toy.TEST * (2 if arm == "both" else 1)
        assert {one.reasoning is None for one in asked} == {name.split("-")[1] == "label" for name in names}
        for one, line in zip(asked, saved, strict=True):
            _, ids = export._asked_prompt(classifier.lm.encoder, one)
            shares = export._shares(model, classifier.lm.encoder, arm, ids, toy.LABELS)
            assert shares.tolist() == pytest.approx(line["probabilities"], abs=2e-4)


def test_rows_are_spread_over_all_of_them() -> None:
    found = export._spread(list(range(1000)), 50)
    assert len(found) == 50 and found[0] == 0 and found[-1] == 999
    assert export._spread([1, 2, 3], 50) == [1, 2, 3]


def test_an_arm_that_answers_both_ways_is_asked_both_ways(
    finished: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load(finished.folder / "both")
    with monkeypatch.context() as patch:
        patch.setattr(export, "SCORED_AGAIN", 20)
        asked = export._asked(classifier, finished.folder / "both", None)
        assert [one.reasoning is None for one in asked] == [True] * 10 + [False] * 10
    asked = export._asked(classifier, finished.folder / "both", some_rows(tmp_path))
    assert [one.reasoning is None for one in asked] == [True] * 3 + [False] * 3
    assert len({one.row.id for one in asked}) == 6
    # A run that was evaluated one way is asked that way.
    (tmp_path / "predictions").mkdir()
    shutil.copy(finished.folder / "predictions" / "both-label-test.parquet", tmp_path / "predictions")
    assert {one.reasoning for one in export._asked(classifier, tmp_path / "both", None)} == {None}


def test_rows_come_from_a_file_where_there_is_no_run(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", tiny.byte_level(), arm="reason_then_label")
    with pytest.raises(RequestError, match=r"predictions/model-reason-test\.parquet.*--input FILE"):
        export.write(folder, tmp_path / "out")
    said = export.write(folder, tmp_path / "out", source=some_rows(tmp_path))
    assert "6 of 6 rows have the same label" in said[1]


def test_a_text_that_does_not_fit_is_not_scored_again_from_predictions(copied: Path, tmp_path: Path) -> None:
    folder = copied / "label_only"
    prompt = {**store.read_json(folder / "prompt.json"), "room": 6}
    del prompt["seal"]
    store.write_json(folder / "prompt.json", prompt)
    with pytest.raises(RequestError, match="none of its texts fits whole; give --input FILE"):
        export.write(copied / "label_only", tmp_path / "out")


# What is refused, and what is left behind.


def test_what_cannot_be_exported_is_refused(finished: toy.Done, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a reasoner: it writes reasonings conditional on the gold label"):
        export.write(finished.folder / "reasoner", tmp_path / "out")
    with pytest.raises(RequestError, match="neither a model folder"):
        export.write(tmp_path, tmp_path / "out")
    (copied / "label_only" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"base\.json"):
        export.write(copied / "label_only", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_as_it_is(quick_run: toy.Done, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "full", tmp_path / "full" / "mine.txt", quick_run.folder / "label_only"):
        with pytest.raises(RequestError, match="holds something already"):
            export.write(quick_run.folder / "label_only", place)
    assert (tmp_path / "full" / "mine.txt").read_text(encoding="utf-8") == "mine"
    (tmp_path / "empty").mkdir()
    export.write(quick_run.folder / "label_only", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
    export.write(quick_run.folder / "label_only", tmp_path / "new" / "folders" / "too")


@pytest.mark.parametrize(("raised", "seen"), [(OSError(28, "no space"), WorkError), (KeyboardInterrupt(), None)])
def test_what_is_interrupted_leaves_nothing(
    quick_run: toy.Done,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    seen: type[BaseException] | None,
) -> None:
    def fail(folder: Path, *_: Any) -> Callable[[], None]:
        assert (folder / "model.safetensors").exists() and folder.parent == tmp_path and folder.name != "out"
        assert not (tmp_path / "out").exists(), "it is not there before it is whole"
        raise raised

    monkeypatch.setattr(export, "write_rows", fail)
    with pytest.raises(seen or type(raised)):
        export.write(quick_run.folder / "label_only", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# What the page says.


def test_the_lines_on_the_page_do_what_the_page_says(
    exported: dict[str, tuple[Path, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    folder = exported["label_only"][0]
    by_hand, by_pipeline = (
        block.replace("exported/mail", folder.as_posix()).replace("my order has not come", "alone by the gate it barks")
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "trl" not in block
    )
    for name, block in (("hand.py", by_hand), ("pipeline.py", by_pipeline.replace("complaint", "cat"))):
        (tmp_path / name).write_text(
            block.replace('"question": None', '"dog": None').replace("praise", "bird"), "utf-8"
        )
        runpy.run_path(str(tmp_path / name))
    first, second = capsys.readouterr().out.strip().splitlines()
    (label,) = saywhy.load(folder).predict(["alone by the gate it barks"])
    assert first.strip() == label and f"'choice': '{label}'" in second
