"""The training loop against a loop by hand, killed and run again, in two processes, and the folder it leaves."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from saywhy.config import Train
from saywhy.lm import folder as model_folder
from saywhy.lm.encode import text_ids
from saywhy.lm.forward import FLEX, PATHS, log_probs
from saywhy.prompts import REASONER, target, targets
from saywhy.records import RequestError, WorkError
from saywhy.train import checkpoints, optimizers, ways
from saywhy.train import folder as train_folder
from saywhy.train.folder import Course, Lesson, encode
from saywhy.train.loop import finetune
from saywhy.train.state import Trained
from saywhy.train.steps import Example, plan_steps, rate_at
from saywhy.trees import Branch, pack_trees

EXACT = {"precision": "float32", "layout": "tree"}


def settings(**changes: Any) -> Train:
    return Train(**{"steps": 8, "rows_per_step": 4, "learning_rate": 2e-3, "warmup": 0.3, **EXACT, **changes})


def some_examples(rows: int = 11, seed: int = 0) -> list[Example]:
    """Rows behind one instruction with one to three targets, each with a part of the row's weight."""
    draw = np.random.default_rng(seed)

    def words(low: int, high: int) -> list[int]:
        return draw.integers(3, tiny.VOCABULARY, int(draw.integers(low, high))).tolist()

    instruction = words(9, 10)
    found = []
    for row in range(rows):
        text, branches = words(2, 7), []
        for _ in range(1 + row % 3):
            answer = words(2, 6)
            weights = [0.0] * (9 + len(text)) + [0.0] + [1.0 / len(answer) / (1 + row % 3)] * len(answer)
            branches.append(Branch(np.array([*instruction, *text, *answer, 2]), np.array(weights)))
        found.append(Example(tuple(branches), sum(len(b.ids) for b in branches), 2))
    return found


EXAMPLES = some_examples()


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def run(
    folder: Path,
    chosen: Train,
    name: str = "llama",
    dev_score: Callable[[Any], float] | None = None,
    examples: Sequence[Example] = EXAMPLES,
    model: Any = None,
    dev_rows: int = 0,
) -> tuple[Trained, dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    model = model or tiny.model(name)
    score = None if dev_score is None else lambda: dev_score(model)
    trained = finetune(model, examples, chosen, 5, folder, "arm", score, dev_rows)
    return trained, weights_of(model)


def losses(trained: Trained) -> list[float]:
    return [loss for _, loss in trained.curve]


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, weight in wanted.items():
        assert torch.norm(found[name] - weight) <= tolerance * torch.norm(weight), name


@torch.no_grad()
def muon_step(parameter: torch.Tensor, momentum: torch.Tensor, rate: float, decay: float) -> None:
    """Step by the formulas of the papers (Jordan 2024; 2502.16982, section 2.2)."""
    assert parameter.grad is not None
    momentum.lerp_(parameter.grad, 0.05)
    wide = parameter.grad.lerp(momentum, 0.95).bfloat16()
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.T if tall else wide
    wide = wide / wide.norm()
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    parameter.mul_(1 - rate * decay)
    parameter.sub_((wide.T if tall else wide) * rate * 0.2 * max(parameter.shape) ** 0.5)


def by_hand(chosen: Train) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with transformers, torch and the written rules alone, one row at a time."""
    model = tiny.model("llama")
    model.set_attn_implementation("eager")
    inside = [p for name, p in model.named_parameters() if "_proj" in name and chosen.optimizer == "muon"]
    matrices = [p for p in model.parameters() if p.ndim >= 2 and not any(p is other for other in inside)]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    momentum = [torch.zeros_like(p) for p in inside]
    steps, found = chosen.steps or 0, []
    rise = math.ceil(chosen.warmup * steps)
    for step, rows in enumerate(plan_steps(EXAMPLES, chosen, 5)):
        branches = [branch for row in rows for branch in EXAMPLES[row].branches]
        total = sum(branch.weights.sum() for branch in branches)
        value = 0.0
        for branch in branches:
            ids = torch.from_numpy(branch.ids)[None]
            nll = -torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            loss = (torch.from_numpy(branch.weights[1:]).float() * nll).sum() / total
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip)
        share = (step + 1) / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * share
        for parameter, kept in zip(inside, momentum, strict=True):
            muon_step(parameter, kept, chosen.learning_rate * share, chosen.weight_decay)
        optimizer.step()
        model.zero_grad()
        found.append(value)
    return found, weights_of(model)


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_training_is_what_a_loop_by_hand_does(layout: str, tmp_path: Path) -> None:
    chosen = settings(layout=layout, weight_decay=0.1, clip=0.5, pack_tokens=50)
    wanted, weights = by_hand(chosen)
    trained, found = run(tmp_path, chosen)
    assert losses(trained) == pytest.approx(wanted, rel=1e-5)
    assert_close(found, weights, 1e-3)
    assert trained.layout == layout


def test_muon_steps_as_its_papers_say(tmp_path: Path) -> None:
    chosen = settings(optimizer="muon", steps=4, weight_decay=0.3, learning_rate=1e-2)
    wanted, weights = by_hand(chosen)
    trained, found = run(tmp_path, chosen)
    assert losses(trained) == pytest.approx(wanted, rel=1e-3)
    assert_close(found, weights, 1e-2)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3", "mixtral"])
def test_muon_takes_the_matrices_inside_the_layers(name: str) -> None:
    model = tiny.model(name)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = optimizers.make(model, settings(optimizer="muon"))
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken == {name for name in names.values() if ".layers." in name and model.get_parameter(name).ndim == 2}
    assert taken | left == set(names.values()) and not taken & left


def test_muon_is_refused_where_torch_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RequestError, match=r"optimizer: muon needs torch 2\.9 or later.*set adamw"):
        run(tmp_path, settings(optimizer="muon"))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_parameter_changes_and_the_loss_falls(name: str, tmp_path: Path) -> None:
    before = weights_of(tiny.model(name))
    trained, after = run(tmp_path, settings(steps=25, rows_per_step=11), name)
    for key, weight in before.items():
        assert not torch.equal(weight, after[key]), key
    assert losses(trained)[-1] < 0.8 * losses(trained)[0]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_one_pack_of_eight_rows_equals_eight_packs_of_one(name: str, tmp_path: Path) -> None:
    runs = [
        run(tmp_path / str(at), settings(rows_per_step=8, pack_tokens=pack_tokens, layout=layout), name)
        for at, (pack_tokens, layout) in enumerate([(4096, "tree"), (16, "tree"), (60, "tree"), (4096, "rows")])
    ]
    for trained, weights in runs[1:]:
        assert losses(trained) == pytest.approx(losses(runs[0][0]), rel=1e-5)
        assert_close(weights, runs[0][1], 1e-3)
        assert trained.rows == runs[0][0].rows and trained.target_tokens == runs[0][0].target_tokens
    assert runs[0][0].tokens < runs[2][0].tokens < runs[1][0].tokens


def test_what_a_training_took_is_counted(tmp_path: Path) -> None:
    chosen = settings(steps=3, rows_per_step=11)
    trained, _ = run(tmp_path, chosen)
    branches = [branch for example in EXAMPLES for branch in example.branches]
    assert (trained.steps, trained.rows) == (3, 33)
    assert trained.tokens == 3 * pack_trees(branches, 4096)[0].tokens
    assert trained.target_tokens == 3 * sum(example.target_tokens for example in EXAMPLES)
    assert trained.label_tokens == 3 * 2 * 11
    assert [step for step, _ in trained.curve] == [1, 2, 3]
    assert (trained.dev, trained.best_step) == (None, 0) and trained.seconds > 0


class Killed(Exception):
    """Stands for a process that is gone."""


def dying(at: int) -> Callable[[Any], float]:
    asked = 0

    def score(model: Any) -> float:
        nonlocal asked
        asked += 1
        if asked == at:
            raise Killed
        # A score that only the weights decide, and that does not only rise.
        return round(float(model.get_input_embeddings().weight.detach().double().sum()) * 1e3) % 17 / 17

    return score


def with_dropout() -> Any:
    model = tiny.model("llama")
    model.config.attention_dropout = 0.2
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return model


@pytest.mark.parametrize("at", [1, 2, 4, 6])
@pytest.mark.parametrize(("precision", "optimizer"), [("float32", "adamw"), ("bf16", "adamw"), ("float32", "muon")])
def test_a_killed_training_ends_as_an_undisturbed_one(at: int, precision: str, optimizer: str, tmp_path: Path) -> None:
    chosen = settings(
        steps=12, evaluations=6, checkpoint_every=3, precision=precision, optimizer=optimizer, weight_decay=0.1
    )
    wanted, weights = run(tmp_path / "whole", chosen, dev_score=dying(0), model=with_dropout())
    with pytest.raises(Killed):
        run(tmp_path / "killed", chosen, dev_score=dying(at), model=with_dropout())
    steps = [path.name for path in (tmp_path / "killed").glob("step-*")]
    last = max(2 * at - 2, (2 * at - 1) // 3 * 3)
    assert steps == ([] if at == 1 else [f"step-{last:08d}"]), "one checkpoint is kept, of a dev evaluation too"
    again, found = run(tmp_path / "killed", chosen, dev_score=dying(0), model=with_dropout())
    assert replace(again, seconds=0) == replace(wanted, seconds=0)
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_dropout_is_on_in_training_and_off_in_judging(tmp_path: Path) -> None:
    def quiet(model: Any) -> float:
        return float(not model.training)

    without, _ = run(tmp_path / "without", settings(layout="rows"))
    trained, _ = run(tmp_path / "with", settings(layout="rows"), dev_score=quiet, model=with_dropout())
    assert losses(trained)[0] != pytest.approx(losses(without)[0], rel=1e-4)
    assert trained.dev == 1.0


@pytest.mark.parametrize("file", ["weights", "optimizer"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(checkpoint_every=2)
    wanted, weights = run(tmp_path / "whole", chosen)
    save = checkpoints.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if file in path.name and (tmp_path / "killed" / "step-00000002").exists():
            raise OSError(28, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(
            WorkError, match=rf"{file}\.safetensors cannot be written .*make room and run the same comm"
        ):
            run(tmp_path / "killed", chosen)
    assert [path.name for path in (tmp_path / "killed").glob("step-*")] == ["step-00000002"]
    again, found = run(tmp_path / "killed", chosen)
    assert losses(again) == losses(wanted)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_the_best_checkpoint_is_restored(tmp_path: Path) -> None:
    scores, kept = iter([0.5, 0.9, 0.9, 0.2]), []

    def score(model: Any) -> float:
        assert not model.training
        kept.append(weights_of(model))
        return next(scores)

    trained, weights = run(tmp_path, settings(evaluations=4), dev_score=score)
    assert (trained.dev, trained.best_step) == (0.9, 6), "of equals the later one"
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept[2].items())
    assert not torch.equal(kept[3]["lm_head.weight"], weights["lm_head.weight"])


@pytest.mark.parametrize(
    ("scores", "rows", "step"),
    [
        ((0.70, 0.69, 0.40, 0.40), 100, 4),  # one standard error is 4.6 points
        ((0.70, 0.67, 0.64, 0.40), 100, 4),  # measured from the best, not from the one that was kept
        ((0.70, 0.69, 0.40, 0.40), 0, 2),
        ((0.10, 0.70, 0.68, 0.66), 1000, 4),  # 1.4 points
        ((0.10, 0.70, 0.68, 0.69), 1000, 8),
    ],
)
def test_a_later_checkpoint_is_kept_where_the_rows_cannot_tell(
    scores: tuple[float, ...], rows: int, step: int, tmp_path: Path
) -> None:
    told = iter(scores)
    trained, _ = run(tmp_path, settings(evaluations=4), dev_score=lambda _: next(told), dev_rows=rows)
    assert (trained.best_step, trained.dev, trained.highest) == (step, scores[step // 2 - 1], max(scores))


# The second, at step 4, is the best, the third as good, and from the sixth on they would be better.
SCORES = (0.5, 0.6, 0.6, 0.55, 0.4, 0.9)


@pytest.mark.parametrize("every", [3, 4, 8])
@pytest.mark.parametrize("at", [2, 3, 4])
def test_patience_ends_a_training_and_one_that_was_killed_alike(at: int, every: int, tmp_path: Path) -> None:
    chosen = settings(steps=12, evaluations=6, checkpoint_every=every)
    patient = chosen.model_copy(update={"patience": 2})
    scores = iter(SCORES)
    planned, _ = run(tmp_path / "planned", chosen, dev_score=lambda _: next(scores))
    assert (planned.steps, planned.best_step, planned.ended) == (12, 12, "steps")

    def score_from(evaluation: int, killed_at: int = 0) -> Callable[[Any], float]:
        asked = evaluation

        def score(_: Any) -> float:
            nonlocal asked
            asked += 1
            if asked == killed_at:
                raise Killed
            return SCORES[asked - 1]

        return score

    wanted, weights = run(tmp_path / "whole", patient, dev_score=score_from(0))
    assert (wanted.steps, wanted.best_step, wanted.dev, wanted.stale, wanted.ended) == (8, 6, 0.6, 2, "patience")
    # The rates were those of all planned steps.
    assert wanted.curve == planned.curve[:8]
    with pytest.raises(Killed):
        run(tmp_path / "killed", patient, dev_score=score_from(0, at))
    # Every evaluation leaves a checkpoint, too.
    from_step = max(2 * at - 2, (2 * at - 1) // every * every)
    again, found = run(tmp_path / "killed", patient, dev_score=score_from(from_step // 2))
    assert replace(again, seconds=0) == replace(wanted, seconds=0)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    # Once more from the last checkpoint, which is where it ended.
    last, found = run(tmp_path / "killed", patient, dev_score=score_from(4))
    assert replace(last, seconds=0) == replace(wanted, seconds=0)


def test_patience_counts_evaluations_since_the_best_and_needs_dev_rows(tmp_path: Path) -> None:
    told = iter((0.5, 0.4, 0.6, 0.5, 0.7, 0.1))
    chosen = settings(steps=12, evaluations=6, patience=2)
    trained, _ = run(tmp_path / "rising", chosen, dev_score=lambda _: next(told), dev_rows=100)
    assert (trained.steps, trained.ended, trained.stale) == (12, "steps", 1)
    unjudged, _ = run(tmp_path / "unjudged", chosen)
    assert (unjudged.steps, unjudged.ended) == (12, "steps")


@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_tied_weights_stay_tied_through_checkpoints(name: str, tmp_path: Path) -> None:
    scores = iter([0.9, 0.1])
    model = tiny.model(name)
    run(tmp_path, settings(steps=6, evaluations=2, checkpoint_every=2), dev_score=lambda _: next(scores), model=model)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(WorkError, match=r"arm: the loss of step 1 is nan .*the base holds .* in model\.norm\.weight"):
        run(tmp_path, settings(), model=model)


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    model = tiny.model("llama")
    before = weights_of(model)
    model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(WorkError, match=r"arm: the loss of step 1 is .* and its gradient (nan|inf)"):
        run(tmp_path, settings(), model=model)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())


@pytest.mark.parametrize("cuda", [True, False])
def test_a_gpu_is_used_where_there_is_one(cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def accelerator(cpu: bool, **_: Any) -> None:
        asked.append(cpu)
        raise Killed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("saywhy.train.ranks.Accelerator", accelerator)
    with pytest.raises(Killed):
        run(tmp_path, settings())
    assert asked == [not cuda]


def test_without_examples_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="arm: there is nothing to train on"):
        run(tmp_path, settings(), examples=[])


def test_packs_that_are_not_exact_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saywhy.lm.forward.in_parts", lambda *_: False)
    monkeypatch.setattr("saywhy.lm.forward.by_path", lambda *_: False)
    monkeypatch.setattr("saywhy.lm.forward.allowed", lambda end, index: index[None, :] <= index[:, None])
    with pytest.raises(WorkError, match="packs leak"):
        run(tmp_path, settings())
    run(tmp_path, settings(layout="rows"))


@pytest.mark.parametrize("slow", ["rows", "bf16"])
def test_a_way_that_is_hopeless_when_it_warms_up_is_not_timed_again(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    asked: list[str] = []

    def seconds(_model: Any, _branches: Any, way: ways.Way) -> float:
        asked.append(str(way))
        return 1.6 if slow in str(way) else 1.0

    monkeypatch.setattr(ways, "_seconds", seconds)
    trained, _ = run(tmp_path, settings(precision="auto", layout="auto"))
    assert slow not in (trained.layout, trained.precision)
    assert sum(slow in way for way in asked) == 1
    assert len(asked) == 4 + 2 * ways.TIMED_STEPS


def test_flex_attention_is_compiled_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def seconds(_model: Any, _branches: Any, way: ways.Way) -> float:
        asked.append(way.attention)
        compiled = asked.count(FLEX) > 1
        return 1.0 if way.attention != FLEX else 0.5 if compiled else 90.0

    monkeypatch.setattr(ways, "_seconds", seconds)
    some = [ways.Way("tree", name, "float32", 2048) for name in (PATHS, FLEX)]
    assert ways._fastest(tiny.model("llama"), EXAMPLES[0].branches, some, {}).attention == FLEX


def test_a_layout_that_computes_many_times_the_tokens_is_not_even_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(ways, "_seconds", lambda _m, _b, way: tried.append(way.layout) or 1.0)
    head, draw = np.arange(200) % 90 + 3, np.random.default_rng(0)
    weights = np.zeros(202)
    weights[-1] = 1.0
    branches = [Branch(np.concatenate([head, draw.integers(3, 90, 2)]), weights) for _ in range(8)]
    run(tmp_path, settings(layout="auto", rows_per_step=8), examples=[Example((branch,), 1, 1) for branch in branches])
    assert set(tried) <= {"tree"}


def test_layout_and_precision_are_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    before = weights_of(tiny.model("llama"))
    clock = iter(np.cumsum([0.0] + [5.0, 9.0] * 100))
    monkeypatch.setattr(ways.time, "monotonic", lambda: float(next(clock)))
    model = tiny.model("llama")
    known = [ways.Way(layout, PATHS, "float32", 2048) for layout in ("tree", "rows")]
    assert ways._fastest(model, EXAMPLES[0].branches, known, {}) in known
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    monkeypatch.undo()
    chosen = settings(layout="auto", precision="auto", steps=2)
    trained, _ = run(tmp_path, chosen)
    assert "measured a step: tree float32" in said()
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert choice == {"layout": trained.layout, "attention": PATHS, "precision": trained.precision, "pack_tokens": 2048}
    other = {**choice, "layout": "rows" if trained.layout == "tree" else "tree", "precision": "float32"}
    (tmp_path / "choice.json").write_text(json.dumps({**other, "pack_tokens": 64}))
    again, _ = run(tmp_path, chosen)
    assert (again.layout, again.precision) == (other["layout"], other["precision"])
    assert again.pack_tokens == 64


def test_a_model_that_cannot_read_trees_is_trained_row_by_row_and_says_so(
    tmp_path: Path, said: Callable[[], str]
) -> None:
    trained, _ = run(tmp_path, settings(steps=3), "bloom")
    assert trained.layout == "alone"
    assert "cannot read token trees (it measures distance with ALiBi); it is trained row by row" in said()


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.integers(0, 3))
def test_steps_take_equally_many_rows_and_every_pass_takes_every_row(
    rows: int, each: int, epochs: float, seed: int
) -> None:
    examples = (EXAMPLES * 2)[:rows]
    batches = plan_steps(examples, Train(epochs=epochs, rows_per_step=each), seed)
    assert all(len(batch) == each for batch in batches)
    assert len(batches) == math.ceil(math.ceil(rows * epochs) / each)
    order = [row for batch in batches for row in batch]
    for start in range(0, len(order) - rows + 1, rows):
        assert sorted(order[start : start + rows]) == list(range(rows))
    assert plan_steps(examples, Train(epochs=epochs, rows_per_step=each), seed) == batches


def test_every_pass_and_every_seed_has_an_order_of_its_own() -> None:
    chosen = Train(epochs=2, rows_per_step=11)
    first, second = plan_steps(EXAMPLES, chosen, 0)
    assert first != second and plan_steps(EXAMPLES, chosen, 1)[0] != first
    assert len(plan_steps(EXAMPLES, Train(steps=7, epochs=1, rows_per_step=3), 0)) == 7


@given(st.integers(1, 12), st.integers(10, 200), st.sampled_from([1.0, 2.0]))
def test_tokens_a_step_bound_a_step_and_take_every_row_in_every_epoch(rows: int, tokens: int, epochs: float) -> None:
    examples = (EXAMPLES * 2)[:rows]
    sizes = [sum(len(branch.ids) for branch in example.branches) for example in examples]
    chosen = Train(epochs=epochs, tokens_per_step=tokens)
    assert chosen.rows_per_step is None
    batches = plan_steps(examples, chosen, 0)
    taken = [sum(sizes[row] for row in batch) for batch in batches]
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(taken, batches, strict=True))
    assert all(now + sizes[then[0]] > tokens for now, then in zip(taken, batches[1:], strict=False))
    assert Counter(row for batch in batches for row in batch) == dict.fromkeys(range(rows), int(epochs))
    assert len(plan_steps(examples, Train(steps=40, tokens_per_step=tokens), 0)) == 40


def test_the_learning_rate_rises_and_falls_by_its_schedule() -> None:
    def rates(schedule: str, warmup: float = 0.2) -> list[float]:
        chosen = Train(learning_rate=1.0, schedule=schedule, warmup=warmup)
        return [rate_at(step, 10, chosen) for step in range(10)]

    eighths = [step / 8 for step in range(8)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *(0.5 + 0.5 * math.cos(math.pi * s) for s in eighths)])
    assert rates("linear") == pytest.approx([0.5, 1.0, *(1 - s for s in eighths)])
    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("linear", 0.0) == pytest.approx([1 - step / 10 for step in range(10)])
    assert rate_at(0, 1, Train(learning_rate=3.0)) == 3.0
    # From 1 on it counts steps, however many there are of them.
    assert rates("linear", 2) == rates("linear", 0.2)
    assert rates("linear", 1) == pytest.approx([1 - max(0, step - 1) / 9 for step in range(10)])
    assert rates("cosine", 20) == pytest.approx([(step + 1) / 20 for step in range(10)])


INSTRUCTION = "Which emotion does the writer express?\n- sadness: loss\n- joy"
REASONINGS = ("it sings", "a word of joy")


def lesson(name: str, text: str, label: str, reasonings: tuple[str, ...]) -> Lesson:
    return Lesson(name, ("", text, ""), tuple(targets("reason_then_label", label, reasonings)), label)


LESSONS = [
    lesson("0", "so alone", "sadness", REASONINGS[:1]),
    lesson("1", "a lovely morning, the birds are singing", "joy", REASONINGS),
    lesson("2", "nobody calls", "sadness", REASONINGS[:1]),
]


def course(base: Path, **changes: Any) -> Course:
    return Course("reason_then_label", str(base), INSTRUCTION, **{"settings": settings(steps=4), "seed": 0, **changes})


def test_lessons_become_branches_that_weigh_one_a_row(base: Path) -> None:
    encoded = encode(course(base), LESSONS)
    for taught, example in zip(LESSONS, encoded.examples, strict=True):
        assert len(example.branches) == len(taught.targets)
        assert sum(branch.weights.sum() for branch in example.branches) == pytest.approx(1.0)
        label = len(text_ids(encoded.encoder, f" {taught.group}")) + 1
        assert example.label_tokens == label * len(taught.targets)
        for branch in example.branches:
            assert branch.ids[-1] == encoded.encoder.end and branch.weights[-1] > 0
            assert tuple(branch.ids[: len(encoded.encoder.before)]) == encoded.encoder.before


def test_class_weights_multiply_label_tokens_and_a_number_weighs_labels_against_reasonings(base: Path) -> None:
    plain = encode(course(base), LESSONS).examples[0].branches[0]
    weighted = encode(course(base, class_weights=(("sadness", 3.0), ("joy", 0.5))), LESSONS).examples[0].branches[0]
    ratio = weighted.weights[weighted.weights > 0] / plain.weights[plain.weights > 0]
    label = len(tiny.byte_level().encode(" sadness", add_special_tokens=False)) + 1
    assert ratio.tolist() == pytest.approx([1.0] * (len(ratio) - label) + [3.0] * label)
    numbered = encode(course(base, settings=settings(label_weight=5.0)), LESSONS).examples[0].branches[0]
    assert numbered.weights[numbered.weights > 0].tolist() == [1.0] * (len(ratio) - label) + [5.0] * label


def test_the_room_leaves_place_for_the_longest_answer(base: Path) -> None:
    encoded = encode(course(base, longest_answer=target("reason_then_label", "sadness", "")), LESSONS)
    encoder = encoded.encoder
    reasoning = max(len(text_ids(encoder, f" {reasoning}")) for reasoning in REASONINGS)
    assert encoder.prompt.limit == int(1.5 * reasoning)
    prompt = len(encoder.before) + encoder.prompt.room + len(encoder.after)
    around = sum(len(text_ids(encoder, part)) for part in ("Reasoning:", "\nLabel:", " sadness"))
    # Behind the reasoning stand the cue, the label and the end; an empty reasoning is one space.
    assert 512 - prompt >= encoder.prompt.limit + around + 1
    assert 512 - prompt <= encoder.prompt.limit + around + 2


def long_lessons() -> list[Lesson]:
    return [*LESSONS, replace(LESSONS[0], id="long", pieces=("", "so alone " * 400, ""))]


def test_what_does_not_fit_is_cut_dropped_or_an_error(base: Path) -> None:
    cut = encode(course(base), long_lessons())
    assert (cut.cut, cut.dropped, len(cut.examples)) == ({"sadness": 1}, {}, 4)
    assert max(len(branch.ids) for branch in cut.examples[3].branches) <= 512
    dropped = encode(course(base, on_overflow="drop"), long_lessons())
    assert (dropped.cut, dropped.dropped) == ({}, {"sadness": 1})
    assert [kept.id for kept in dropped.lessons] == ["0", "1", "2"]
    with pytest.raises(RequestError, match=r"row long does not fit into the 512 tokens of .*data.on_overflow"):
        encode(course(base, on_overflow="error"), long_lessons())
    with pytest.raises(RequestError, match=r"leave no room for a text in the 512 tokens"):
        encode(replace(course(base), instruction="word " * 2000), LESSONS)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as a training leaves it, and the model as it was in the trainer's memory."""
    folder = tmp_path_factory.mktemp("arm")
    seen: list[Any] = []
    train_folder.train(folder, course(base), LESSONS, "arm", lambda lm: float(not seen.append(lm)))
    return folder, seen[-1]


def test_a_training_leaves_exactly_these_files(trained: tuple[Path, Any]) -> None:
    folder, _ = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "prompt.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.json",
        "trained_on.parquet",
    ]
    assert "saywhy" not in (folder / "config.json").read_text(), "another program must be able to load it"
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    report = json.loads((folder / "train.json").read_text())
    assert report["steps"] == 4 and report["rows"] == 16 and report["best_step"] == 4 and report["cut"] == {}
    rows = pq.read_table(folder / "trained_on.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["0", "1", "1", "2"]
    assert rows[0]["target"] == "Reasoning: it sings\nLabel: sadness<eos>"
    assert rows[2]["target"] == "Reasoning: a word of joy\nLabel: joy<eos>"


def test_generation_stops_where_training_ended(trained: tuple[Path, Any]) -> None:
    folder, lm = trained
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["eos_token_id"][0] == lm.encoder.end == 2
    assert config["pad_token_id"] == 0


def test_a_loaded_folder_gives_the_same_log_probabilities(trained: tuple[Path, Any], base: Path) -> None:
    folder, lm = trained
    arm, loaded = model_folder.load(folder)
    assert arm == "reason_then_label"
    branches = [branch for example in encode(course(base), LESSONS).examples for branch in example.branches]
    pack = pack_trees(branches, 4096)[0]
    with torch.no_grad():
        assert torch.equal(log_probs(loaded.model, pack), log_probs(lm.model, pack))
    assert loaded.encoder.prompt == lm.encoder.prompt
    assert (loaded.encoder.before, loaded.encoder.after) == (lm.encoder.before, lm.encoder.after)
    assert loaded.reads_trees and not loaded.model.training


def copied(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_folder_whose_template_or_tokenizer_changed_is_refused(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder = copied(trained[0], tmp_path)
    (folder / "chat_template.jinja").write_text(tiny.CHATML)
    with pytest.raises(RequestError, match="the chat template is not the one the model was trained with"):
        model_folder.load(folder)
    (folder / "chat_template.jinja").unlink()
    model_folder.load(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:20]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"tokenizer\.json is not what the training wrote"):
        model_folder.load(folder)
    prompt = json.loads((folder / "prompt.json").read_text())
    del prompt["seal"]
    (folder / "prompt.json").write_text(json.dumps(prompt))
    with pytest.raises(RequestError, match="the tokenizer gives other ids than in training"):
        model_folder.load(folder)
    (folder / "prompt.json").unlink()
    with pytest.raises(RequestError, match=r"is no model folder of saywhy: it has no prompt\.json"):
        model_folder.load(folder)


def test_the_reasoners_folder_says_that_it_was_shown_the_label(base: Path, tmp_path: Path) -> None:
    lessons = [replace(one, targets=(target(REASONER, "", "it sings"),)) for one in LESSONS]
    train_folder.train(tmp_path, replace(course(base), arm=REASONER), lessons, "reasoner")
    prompt = json.loads((tmp_path / "prompt.json").read_text())
    assert (prompt["arm"], prompt["conditional_on_gold_label"]) == (REASONER, True)
    assert pq.read_table(tmp_path / "trained_on.parquet").to_pylist()[0]["target"] == "Reasoning: it sings<eos>"


def test_a_chat_models_folder_ends_with_the_templates_end(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "arm"
    tiny.model("qwen3").save_pretrained(base)
    tiny.byte_level(tiny.TURNS, tiny.CHATML).save_pretrained(base)
    folder.mkdir()
    train_folder.train(folder, course(base), LESSONS, "arm")
    _, lm = model_folder.load(folder)
    config = json.loads((folder / "generation_config.json").read_text())
    assert lm.encoder.tokenizer.convert_ids_to_tokens(config["eos_token_id"]) == ["<|im_end|>", "<eos>"]
    assert (folder / "chat_template.jinja").read_text() == tiny.CHATML


def test_a_killed_training_of_a_folder_goes_on(base: Path, tmp_path: Path) -> None:
    plan = course(base, settings=settings(steps=6, checkpoint_every=2, evaluations=3))
    asked = 0

    def score(_: Any) -> float:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise Killed
        return 0.5

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    train_folder.train(whole, plan, LESSONS, "arm", lambda _: 0.5)
    with pytest.raises(Killed):
        train_folder.train(killed, plan, LESSONS, "arm", score)
    assert (killed / "work").is_dir()
    train_folder.train(killed, plan, LESSONS, "arm", score)
    assert not (killed / "work").exists()
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
