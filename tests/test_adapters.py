"""Adapters: trained as exactly as whole models, merged into what is evaluated, kept apart from a base, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

import tiny
import toy
from saywhy import evaluate, export, pipeline, store
from saywhy.config import Lora, Train
from saywhy.lm import adapters
from saywhy.lm import folder as model_folder
from saywhy.lm.forward import log_probs
from saywhy.lm.load import config_of, model_of, skeleton_of
from saywhy.predict import load
from saywhy.prompts import targets
from saywhy.records import RequestError
from saywhy.train import folder as train_folder
from saywhy.train.folder import Course, Lesson
from saywhy.train.loop import finetune
from saywhy.train.state import Trained
from saywhy.train.steps import Example
from saywhy.trees import Branch, Pack, pack_alone, pack_rows, pack_trees

SMALL = Lora(rank=4, alpha=8)


def settings(**changes: Any) -> Train:
    told = {
        "steps": 8,
        "rows_per_step": 4,
        "learning_rate": 2e-2,
        "precision": "float32",
        "layout": "tree",
        "lora": SMALL,
    }
    return Train(**{**told, **changes})


def some_branches(rows: int = 7, seed: int = 0) -> list[Branch]:
    """Rows behind one instruction, the second of each pair behind the text of the first."""
    draw = np.random.default_rng(seed)
    shared, text, found = draw.integers(3, tiny.VOCABULARY, 9).tolist(), [], []
    for row in range(rows):
        text = text if row % 2 else draw.integers(3, tiny.VOCABULARY, int(draw.integers(2, 7))).tolist()
        answer = draw.integers(3, tiny.VOCABULARY, int(draw.integers(2, 6))).tolist()
        weights = [0.0] * (len(shared) + len(text) + 1) + [1.0 / len(answer)] * len(answer)
        found.append(Branch(np.array([*shared, *text, *answer, 2]), np.array(weights)))
    return found


BRANCHES = some_branches()
EXAMPLES = [Example((branch,), 3, 2) for branch in BRANCHES]


def adapted(name: str = "llama", lora: Lora = SMALL, seed: int = 0) -> Any:
    model = tiny.model(name)
    adapters.attach(model, lora, seed)
    return model


@torch.no_grad()
def change(model: Any, size: float = 0.1, seed: int = 0) -> Any:
    """Set the second matrices, which begin as zero, by hand."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * size)
    return model


def trained_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 40)[None]).logits


def gradients(model: Any, packs: Sequence[Pack]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for pack in packs:
        loss = -(torch.from_numpy(pack.weight).float() * log_probs(model, pack)).sum()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def by_rows(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by transformers' own forward, one row at a time."""
    model.zero_grad()
    total = 0.0
    for branch in BRANCHES:
        ids = torch.from_numpy(branch.ids)[None]
        nll = -torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        loss = (torch.from_numpy(branch.weights[1:]).float() * nll).sum()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.norm(found[name] - tensor) <= tolerance * torch.norm(tensor), name


# What is put into a model.


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_an_adapter_changes_nothing_at_first_and_alone_is_trained(name: str) -> None:
    plain, before = tiny.model(name), torch.get_rng_state()
    model = adapted(name)
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn from the global generator"
    assert type(model) is type(plain) and not any(module.training for module in model.modules())
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)
    assert all(".lora_" in key for key in trained_of(model))
    head = model.get_output_embeddings()
    assert not any(one is head for one in map(model.get_submodule, adapters.linear_layers(model, "all")))
    assert adapters.trained_parameters(plain, settings()) == sum(p.numel() for p in trained_of(model).values())
    assert adapters.trained_parameters(plain, settings(lora=None)) == sum(p.numel() for p in plain.parameters())


def test_first_matrices_come_from_the_seed() -> None:
    one, again, other = (trained_of(adapted(seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) == ("lora_B" in name) for name in one)
    first = one["model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert first.shape == (4, 32) and 0.8 < float(first.abs().max()) * 32**0.5 <= 1, "uniform up to 1 / √inputs"


def test_targets_are_what_names_end_with() -> None:
    model = adapted(lora=Lora(rank=2, targets=("q_proj", "1.mlp.up_proj", "lm_head")))
    changed = {name.rpartition(".lora_")[0] for name in trained_of(model)}
    attention = {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    assert changed == attention | {"model.layers.1.mlp.up_proj", "lm_head"}


def test_targets_that_are_not_there_and_a_tied_head_are_refused() -> None:
    with pytest.raises(
        RequestError, match=r"no linear layer of the base ends with 'proj'; there are down_proj, .*lm_head"
    ):
        adapted(lora=Lora(targets=("q_proj", "proj")))
    with pytest.raises(RequestError, match="the head of this base shares its weights with the embedding"):
        adapted("llama-tied", Lora(targets=("q_proj", "lm_head")))
    with pytest.raises(RequestError, match="a base of the type mamba reads past adapters; leave lora out"):
        adapted("mamba")


# Training is as exact as that of a whole model.


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gemma3", "mixtral", "stablelm", "deepseek"])
@pytest.mark.parametrize("lay", [pack_trees, pack_rows, pack_alone])
def test_packs_give_the_loss_and_gradients_of_the_rows(name: str, lay: Callable[..., list[Pack]]) -> None:
    model = change(adapted(name), 0.05)
    wanted, exact = by_rows(model)
    found, packed = gradients(model, lay(BRANCHES, 4096))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert_close(packed, exact, 1e-5)


def run(folder: Path, chosen: Train, name: str = "llama", dev: Callable[[Any], float] | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    model = tiny.model(name)
    adapters.prepare(model, chosen, 5)
    trained = finetune(model, EXAMPLES, chosen, 5, folder, "arm", None if dev is None else lambda: dev(model))
    return trained, model


def test_only_the_adapter_changes_and_two_runs_are_the_same(tmp_path: Path) -> None:
    before, started = dict(tiny.model("llama").named_parameters()), trained_of(adapted(seed=5))
    chosen = settings(steps=25, rows_per_step=7)
    trained, model = run(tmp_path / "one", chosen)
    _, again = run(tmp_path / "two", chosen)
    assert trained.curve[-1][1] < 0.8 * trained.curve[0][1]
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer", "")
        assert (
            not torch.equal(parameter, started[name]) if name in started else torch.equal(parameter, before[plain])
        ), name
    assert all(torch.equal(tensor, trained_of(again)[name]) for name, tensor in trained_of(model).items())


class Killed(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize(
    ("at", "name", "optimizer"), [(2, "llama", "adamw"), (4, "llama-tied", "muon"), (6, "gemma3", "adamw")]
)
def test_a_killed_training_ends_as_an_undisturbed_one(at: int, name: str, optimizer: str, tmp_path: Path) -> None:
    chosen = settings(
        steps=12,
        evaluations=6,
        checkpoint_every=3,
        optimizer=optimizer,
        gradient_checkpointing=True,
        lora=Lora(rank=4, dropout=0.3),
    )
    asked = 0

    def score(dies: bool) -> Callable[[Any], float]:
        def of(model: Any) -> float:
            nonlocal asked
            asked += dies
            if asked == at and dies:
                raise Killed
            return round(sum(float(p.double().sum()) for p in trained_of(model).values()) * 1e3) % 17 / 17

        return of

    wanted, whole = run(tmp_path / "whole", chosen, name, score(False))
    with pytest.raises(Killed):
        run(tmp_path / "killed", chosen, name, score(True))
    kept = sorted((tmp_path / "killed").glob("step-*/weights.safetensors"))
    assert len(kept) == 1 and all(".lora_" in key for key in load_file(kept[0])), "the base is not written again"
    again, found = run(tmp_path / "killed", chosen, name, score(False))
    assert (again.curve, again.best_step, again.dev) == (wanted.curve, wanted.best_step, wanted.dev)
    assert all(torch.equal(tensor, trained_of(found)[key]) for key, tensor in trained_of(whole).items())


def test_the_best_adapter_is_restored(tmp_path: Path) -> None:
    scores, kept = iter([0.9, 0.2]), []

    def score(model: Any) -> float:
        kept.append(trained_of(model))
        return next(scores)

    trained, model = run(tmp_path, settings(evaluations=2), dev=score)
    kept_weights = load_file(tmp_path / "best-00000004.safetensors")
    assert trained.best_step == 4 and all(".lora_" in name for name in kept_weights)
    assert all(torch.equal(tensor, kept[0][name]) for name, tensor in trained_of(model).items())


def test_dropout_is_on_in_training_alone(tmp_path: Path) -> None:
    without, _ = run(tmp_path / "without", settings())
    dropped, _ = run(tmp_path / "with", settings(lora=Lora(rank=4, alpha=8, dropout=0.5)))
    assert dropped.curve[0] == pytest.approx(without.curve[0]), "the second matrices begin as zero"
    assert dropped.curve[-1][1] != pytest.approx(without.curve[-1][1], rel=1e-3)
    model = change(adapted(lora=Lora(rank=4, dropout=0.5)))
    assert torch.equal(logits(model), logits(model))


# Layers that are computed again.


def dense(branches: Sequence[Branch], budget: int) -> list[Pack]:
    """Trees without their paths, so that attention takes the mask of the whole."""
    return [Pack(**{**vars(pack), "paths": None, "home": None}) for pack in pack_trees(branches, budget)]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "stablelm"])
@pytest.mark.parametrize("lay", [pack_trees, dense, pack_rows])
@pytest.mark.parametrize("lora", [None, SMALL])
def test_recomputed_layers_give_the_same_gradients_for_less_memory(
    name: str, lay: Callable[..., list[Pack]], lora: Lora | None
) -> None:
    packs, found = lay(BRANCHES, 4096), []
    for recomputed in (False, True):
        model = tiny.model(name)
        adapters.prepare(model, settings(lora=lora, gradient_checkpointing=recomputed), 0)
        change(model).train()
        held = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(-log_probs(model, pack).sum() for pack in packs)
        forward = held
        loss.backward()
        found.append((forward, {key: p.grad for key, p in model.named_parameters() if p.requires_grad}))
    (much, wanted), (little, again) = found
    assert little < 0.6 * much
    for key, gradient in wanted.items():
        assert (again[key] is None) == (gradient is None)
        assert gradient is None or torch.allclose(again[key], gradient, rtol=1e-6, atol=1e-7), key


def test_a_base_that_cannot_compute_its_layers_again_is_refused() -> None:
    model = tiny.model("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(RequestError, match="gradient_checkpointing: this base does not support it"):
        adapters.prepare(model, settings(gradient_checkpointing=True), 0)


# What is left of an adapter.


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_merged_model_is_the_adapted_one_and_has_the_bases_form(name: str) -> None:
    model, plain = change(adapted(name)), tiny.model(name)
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(plain), atol=1e-2)
    adapters.merge(model)
    assert torch.allclose(logits(model), wanted, atol=1e-4)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert torch.equal(model.get_output_embeddings().weight, plain.get_output_embeddings().weight)


INSTRUCTION = "Which emotion does the writer express?"
LESSONS = [
    Lesson("0", ("", "so alone", ""), tuple(targets("label_only", "sadness", ())), "sadness"),
    Lesson("1", ("", "a lovely morning", ""), tuple(targets("label_only", "joy", ())), "joy"),
]


def course(base: Path, **changes: Any) -> Course:
    return Course("label_only", str(base), INSTRUCTION, settings(steps=3), 0, **changes)


def leave(folder: Path, base: Path, save: str) -> Path:
    folder.mkdir(parents=True)
    train_folder.train(folder, course(base, save=save), LESSONS, "arm")
    return folder


@pytest.fixture(scope="module", params=["llama", "llama-tied"])
def both_ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with a base and the same training's adapter and merged model beside it."""
    where = tmp_path_factory.mktemp("both")
    tiny.model(request.param).save_pretrained(where / "base")
    tokenizer.save_pretrained(where / "base")
    for save in ("adapter", "merged"):
        leave(where / save, where / "base", save)
    return where


def test_an_adapter_alone_is_loaded_as_the_merged_model(both_ways: Path) -> None:
    apart, merged = (model_folder.load(both_ways / name)[1] for name in ("adapter", "merged"))
    assert torch.equal(logits(apart.model), logits(merged.model))
    assert not torch.allclose(logits(merged.model), logits(model_of(both_ways / "base")), atol=1e-3)
    assert type(apart.model) is type(merged.model) and apart.encoder.prompt == merged.encoder.prompt
    alone = {path.name for path in (both_ways / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "prompt.json", "tokenizer.json"} < alone
    assert not {"model.safetensors", "config.json", "work"} & alone
    assert not any(
        "lora" in key or "base_layer" in key for key in load_file(both_ways / "merged" / "model.safetensors")
    )
    facts = [store.read_json(both_ways / name / "train.json")["adapter"] for name in ("adapter", "merged")]
    assert [fact["merged"] for fact in facts] == [False, True] and facts[0]["rank"] == 4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_alone_reads_the_adapter(both_ways: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(both_ways / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(both_ways / "adapter")).eval()
    assert torch.allclose(logits(theirs), logits(model_folder.load(both_ways / "merged")[1].model), atol=1e-5)


def copied(both_ways: Path, to: Path) -> Path:
    shutil.copytree(both_ways, to / "elsewhere")
    return to / "elsewhere" / "adapter"


def test_an_adapter_moves_together_with_its_base_and_with_no_other(both_ways: Path, tmp_path: Path) -> None:
    folder = copied(both_ways, tmp_path)
    assert store.read_json(folder / "base.json")["base"] == "../base"
    assert torch.equal(
        logits(model_folder.load(folder)[1].model), logits(model_folder.load(both_ways / "merged")[1].model)
    )
    weights = load_file(folder / "../base" / "model.safetensors")
    save_file(
        {**weights, "model.norm.weight": weights["model.norm.weight"] * 1.01}, folder / "../base/model.safetensors"
    )
    with pytest.raises(RequestError, match=r"its base .*base is not what it was in training; bring that back"):
        model_folder.load(folder)
    (folder.parent / "base").rename(tmp_path / "away")
    with pytest.raises(
        RequestError, match=r"its base .*base is not there; bring it back, or write where it is now into"
    ):
        model_folder.load(folder)
    shutil.copytree(both_ways / "base", tmp_path / "whole")
    known = store.read_json(folder / "base.json")
    store.write_json(folder / "base.json", {**known, "base": str(tmp_path / "whole")})
    model_folder.load(folder)


def test_an_adapter_of_some_layers_is_loaded_into_these(base: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8, targets=("q_proj", "1.mlp.up_proj"))
    found = []
    for save in ("adapter", "merged"):
        plan = course(base, save=save)
        plan = replace(plan, settings=plan.settings.model_copy(update={"lora": lora}))
        (folder := tmp_path / save).mkdir()
        train_folder.train(folder, plan, LESSONS, "arm")
        found.append(logits(model_folder.load(folder)[1].model))
    assert torch.equal(*found)
    told = store.read_json(tmp_path / "adapter" / "adapter_config.json")
    assert "model.layers.1.mlp.up_proj" in told["target_modules"]


def test_a_base_without_linear_layers_has_no_place_for_an_adapter() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=64))
    with pytest.raises(RequestError, match="a base of the type gpt2 has no linear layers that an adapter fits"):
        adapters.attach(model, SMALL, 0)


def test_a_base_elsewhere_is_named_by_its_whole_path(base: Path, tmp_path: Path) -> None:
    folder = leave(tmp_path / "arm", base, "adapter")
    assert store.read_json(folder / "base.json")["base"] == str(base.resolve())
    told = store.read_json(folder / "adapter_config.json")
    assert told["base_model_name_or_path"] == str(base.resolve()) and told["r"] == 4
    assert told["target_modules"] == sorted(told["target_modules"])
    model_folder.load(folder)


def test_a_hub_base_is_loaded_at_its_commit(both_ways: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = copied(both_ways, tmp_path), []
    store.write_json(folder / "base.json", {"base": "some/base", "hash": "some/base@1a2b"})

    def loaded(base: str, revision: str) -> Any:
        asked.append((base, revision))
        return model_of(both_ways / "base")

    monkeypatch.setattr(adapters, "model_of", loaded)
    model_folder.load(folder)
    assert asked == [("some/base", "1a2b")]


def test_a_broken_adapter_is_refused(both_ways: Path, tmp_path: Path) -> None:
    folder = copied(both_ways, tmp_path)
    told = store.read_json(folder / "adapter_config.json")
    store.write_json(folder / "adapter_config.json", {**told, "r": 5})
    with pytest.raises(RequestError, match=r"does not fit adapter_config\.json and the base"):
        model_folder.load(folder)
    store.write_json(folder / "adapter_config.json", {"r": 4})
    with pytest.raises(RequestError, match="is not one that saywhy wrote"):
        model_folder.load(folder)
    store.write_json(folder / "adapter_config.json", told)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"adapter_model\.safetensors: cannot be read"):
        model_folder.load(folder)


def test_an_adapter_is_no_base(both_ways: Path) -> None:
    for reads in (config_of, model_of, skeleton_of):
        with pytest.raises(
            RequestError, match="holds an adapter without its base; `saywhy export` writes a whole model"
        ):
            reads(both_ways / "adapter")


def large(model: Any, examples: Sequence[Example], chosen: Train, *_: Any) -> Trained:
    """Stands for a training that changes much: the second matrices are set by hand."""
    if chosen.lora is not None:
        change(model, 30.0)
    return Trained(steps=1, rows=len(examples), precision="float32", layout="rows")


def test_a_merged_adapter_is_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_folder, "finetune", large)
    data = toy.write_data(tmp_path / "data")
    few = toy.quick()["classifier__train"]
    answers: dict[str, evaluate.Answers] = {}
    for name, save, lora in (("base", "merged", None), ("merged", "merged", {}), ("adapter", "adapter", {})):
        told = {
            "classifier__train": {**few, "lora": lora},
            "classifier__save": save,
            "classifier__arms": ["label_only"],
        }
        done = toy.run(data, tmp_path / name, **toy.quick(**told))
        path = done.folder / "predictions" / "label_only-label-test.parquet"
        answers[name] = evaluate.load_answers(path, load(done.folder / "label_only").task)
    shares = {name: np.array(one.probabilities) for name, one in answers.items()}
    assert sum(a != b for a, b in zip(answers["base"].labels, answers["merged"].labels, strict=True)) > 5
    assert np.abs(shares["merged"] - shares["base"]).max() > 0.03
    assert answers["merged"].labels == answers["adapter"].labels
    np.testing.assert_array_equal(shares["merged"], shares["adapter"])
    cards = [
        (tmp_path / name / "label_only" / "README.md").read_text("utf-8") for name in ("base", "merged", "adapter")
    ]
    assert "All weights were trained, in float32" in cards[0]
    assert "LoRA, rank 16, alpha 32, dropout 0.0, all linear layers" in cards[1]
    assert "holds the adapter alone" in cards[2] and "holds the adapter alone" not in cards[1]

    moved = (tmp_path / "adapter").rename(tmp_path / "moved")
    lines = export.write(moved, tmp_path / "out", rows=False)
    assert lines[1].startswith("scored again with transformers alone: 24 of 24")
    whole = load_file(tmp_path / "merged" / "label_only" / "model.safetensors")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert whole.keys() == exported.keys() and all(torch.equal(whole[name], exported[name]) for name in whole)


def test_a_trained_adapter_is_judged_as_it_is_evaluated(tmp_path: Path) -> None:
    """The dev rows that choose a checkpoint are asked before merging, the test rows after."""
    data = toy.write_data(tmp_path / "data")
    train = {**toy.quick()["classifier__train"], "lora": {"rank": 8}, "steps": 20, "dev_rows": 18}
    told = {"classifier__train": train, "classifier__save": "adapter", "classifier__arms": ["label_only"]}
    done = toy.run(data, tmp_path / "run", **toy.quick(**told), recommend_by="accuracy")
    arm = done.metrics["arms"]["label_only"]
    assert arm["train"]["dev"] == arm["modes"]["label"]["dev"]["accuracy"]
    assert arm["train"]["adapter"]["rank"] == 8


# Bases in 4 bits, and what is refused before anything is trained.


@pytest.mark.parametrize(
    ("package", "gpu", "why"),
    [
        (None, True, r"needs bitsandbytes; pip install 'saywhy\[quantized\]'"),
        ("there", False, "needs a GPU, and torch"),
    ],
)
def test_4_bits_are_refused_when_the_run_starts(
    package: str | None, gpu: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy.write_data(tmp_path / "data")
    monkeypatch.setattr(adapters, "find_spec", lambda _: package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    told = toy.quick(classifier__train={"lora": {}, "bits": 4, "steps": 2})
    with pytest.raises(RequestError, match=rf"classifier\.arms label_only: train\.bits: a base in 4 bits {why}"):
        toy.run(data, tmp_path / "run", **told)
    assert not (tmp_path / "run").exists()


def test_targets_are_looked_for_before_anything_is_trained(base: Path, tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    told = toy.quick(classifier__train={"lora": {"targets": ["query"]}, "steps": 2})
    del told["base__scratch"]
    config = toy.load(data, **told, base=str(base))
    with pytest.raises(
        RequestError, match=r"label_only: train\.lora\.targets: no linear layer of the base ends with 'query'"
    ):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_base_in_4_bits_is_trained_and_merged(tmp_path: Path, tokenizer: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    four_bits(tmp_path, tokenizer)


def four_bits(where: Path, tokenizer: Any) -> None:
    """Train over 4 bits, and compare what was in memory with what was written, both ways."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = type(tiny.CONFIGS["llama"]).from_dict({**tiny.CONFIGS["llama"].to_dict(), **sizes})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(where / "base")
    tokenizer.save_pretrained(where / "base")
    chosen = settings(steps=20, lora=Lora(rank=8), bits=4, evaluations=1, precision="auto")
    assert chosen.precision == "bf16"
    for save in ("merged", "adapter"):
        (where / save).mkdir()
        seen: list[torch.Tensor] = []

        def look(lm: Any, seen: list[torch.Tensor] = seen) -> float:
            seen.append(lm.model(input_ids=torch.arange(3, 40, device=lm.model.device)[None]).logits.float().cpu())
            return 1.0

        plan = Course("label_only", str(where / "base"), INSTRUCTION, chosen, 0, save=save)
        train_folder.train(where / save, plan, LESSONS, "arm", look)
        curve = store.read_json(where / save / "train.json")["curve"]
        assert curve[-1][1] < curve[0][1]
        loaded = model_folder.load(where / save)[1].model.cpu()
        assert "quantization_config" not in loaded.config.to_dict()
        apart = torch.norm(logits(loaded) - seen[-1]) / torch.norm(seen[-1])
        # bf16 alone, or with what 4 bits leave out of the base.
        assert apart < (0.02 if save == "merged" else 0.3)


def test_settings_of_an_adapter_are_kept_in_the_runs_config(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    arms = ["label_only", {"name": "whole", "arm": "label_only", "train": {"lora": None}}]
    told = toy.load(data, base="some/base", classifier={"train": {"lora": {"targets": ["q_proj"]}}, "arms": arms})
    first, second = (arm.train for arm in told.classifier.arms)
    assert (first.lora, first.learning_rate) == (Lora(targets=("q_proj",)), 2e-4)
    assert (second.lora, second.learning_rate) == (None, 2e-5)
    assert json.loads(json.dumps(first.model_dump(mode="json")))["lora"]["targets"] == ["q_proj"]
