"""The floors on request: a base as it is, and an encoder finetuned, beside the arms that have to beat them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import toy
from saywhy import config, encoder, evaluate, pipeline, predict, report, store
from saywhy.data import read
from saywhy.records import Prediction, RequestError, Row
from saywhy.report import story

ROOM = 12


def words() -> PreTrainedTokenizerFast:
    known = [word for row in toy.records()["train"] for word in row["text"].split()]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=ROOM, **special)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT that was trained on nothing, as a user would name it in `evaluate.encoder`."""
    folder: Path = tmp_path_factory.mktemp("bert")
    tokenizer = words()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=ROOM, **size)).save_pretrained(
            folder
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quick_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "RATE", 1e-2)
    monkeypatch.setattr(encoder, "LEAST_STEPS", 40)


def asked(bert: Path, data: Any, rows: Sequence[Row], seed: int = 0) -> list[Prediction]:
    return encoder.finetuned(str(bert), data.task, data.train, data.dev, seed, False)(rows)


def test_an_encoder_learns_the_task_and_disturbs_nothing(bert: Path, tmp_path: Path) -> None:
    data = read(toy.load(toy.write_data(tmp_path)))
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore
    long = Row("long", f"{'it ' * 50}barks", "dog")
    found = asked(bert, data, [*data.test, long, Row("empty", "", "cat")])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # type: ignore
    right = sum(one.label == row.label for one, row in zip(found, data.test, strict=False))
    assert right >= 0.8 * toy.TEST, "two of the labels are wrong"
    for one in found:
        assert tuple(one.probabilities) == toy.LABELS and sum(one.probabilities.values()) == pytest.approx(1)
        assert one.label == max(one.probabilities, key=lambda label: one.probabilities[label])
    assert [one.tokens for one in found[-2:]] == [ROOM, 2], "a long text is cut at its end"
    assert asked(bert, data, data.test) == found[:-2]
    assert asked(bert, data, data.test, seed=1) != found[:-2]
    assert {path.suffix for path in bert.iterdir()} == {".json", ".safetensors"}, "nothing is left there"


def test_the_weights_that_dev_finds_best_stand(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read(toy.load(toy.write_data(tmp_path)))
    given = iter([0.3, 0.9, 0.5, 0.8])
    monkeypatch.setattr(encoder, "_macro_f1", lambda *_: next(given))
    best = asked(bert, data, data.test)
    assert next(given, None) is None, "dev was asked four times"
    halfway = iter([0.3, 0.9, 0.5, 0.0])
    monkeypatch.setattr(encoder, "_macro_f1", lambda *_: next(halfway))
    assert asked(bert, data, data.test) == best
    last = iter([0.3, 0.4, 0.5, 0.8])
    monkeypatch.setattr(encoder, "_macro_f1", lambda *_: next(last))
    assert asked(bert, data, data.test) != best


def test_floors_on_request_stand_beside_the_others(
    bert: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base as it is answers as an arm that learnt nothing does."""
    data = toy.write_data(tmp_path / "data")
    changes = toy.quick(
        base=str(base), evaluate__zero_shot=True, evaluate__encoder=str(bert), classifier__arms=["label_only"]
    )
    del changes["base__scratch"]
    changes["classifier__train"] |= {"learning_rate": 1e-30}
    done = toy.run(data, tmp_path / "run", **changes)
    found = done.metrics
    assert list(found["floors"]) == ["majority", "linear", "zero_shot", "encoder"]
    task = predict.read_task(done.folder / "label_only")
    saved = {
        name: evaluate.load_answers(done.folder / "predictions" / f"{name}-test.parquet", task)
        for name in ("label_only-label", "floors-zero_shot", "floors-encoder")
    }
    untaught = saved["label_only-label"]
    assert saved["floors-zero_shot"].labels == untaught.labels
    assert np.allclose(saved["floors-zero_shot"].probabilities, untaught.probabilities, atol=1e-5)
    assert found["floors"]["encoder"]["accuracy"] > 0.8 > found["floors"]["zero_shot"]["accuracy"]
    pairs = {(row["a"], row["b"]) for row in found["comparisons"]}
    assert pairs == {("label_only/label", f"floors/{name}") for name in ("linear", "zero_shot", "encoder")}
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "The fine-tuned encoder beats label_only by" in page
    card = (done.folder / "label_only" / "README.md").read_text(encoding="utf-8")
    assert "encoder (floor)" in card and "zero_shot (floor)" in card

    def never(*given: object) -> None:
        raise AssertionError("made again")

    for place in ("encoder.finetuned", "classifier.untrained", "evaluate.linear"):
        monkeypatch.setattr(f"saywhy.{place}", never)
    pipeline.run(done.config, done.folder)
    assert store.read_json(done.folder / "metrics.json")["floors"] == found["floors"]
    assert report.write(done.folder).read_text(encoding="utf-8") == page


def test_what_no_floor_could_be_made_of_is_refused_early(tmp_path: Path, bert: Path) -> None:
    small = "task: {name: a, instruction: b}\ndata: {train: x.csv}\n"

    def parse(*sets: str) -> config.Config:
        return config.parse(small, tmp_path / "config.yaml", sets)

    for sets in (["base=scratch"], ["base=hub/model", "classifier.base={scratch: {width: 64}}"]):
        with pytest.raises(RequestError, match=r"zero_shot=true: evaluate.zero_shot: a base from scratch knows"):
            parse(*sets, "evaluate.zero_shot=true")
    assert parse("base=scratch", "classifier.base=hub/model", "evaluate.zero_shot=true").evaluate.zero_shot
    assert parse("evaluate.encoder=./bert").evaluate.encoder == str(tmp_path / "bert")
    assert parse("evaluate.encoder=owner/bert").evaluate.encoder == "owner/bert"
    data = toy.write_data(tmp_path / "data")
    changes = toy.quick(evaluate__encoder=str(tmp_path / "nothing"))
    with pytest.raises(
        RequestError, match=r"evaluate\.encoder: .*nothing' cannot be loaded as a classifier of sequences"
    ):
        toy.run(data, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
    pipeline.refuse_early(toy.load(data, **changes), until="train")


def test_every_floor_that_is_compared_has_a_name() -> None:
    assert {f"floors/{name}" for name in story.FLOOR_NAMES} == {*evaluate.judge.COMPARED_FLOORS, "floors/majority"}
