"""Rare labels: balanced weights and balanced draws, what both do to probabilities, and that these are put right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from saywhy import classifier, cli, evaluate, export, metrics, predict, report, store
from saywhy.config import Arm, Train
from saywhy.config.settings import Scratch
from saywhy.lm.load import make_scratch
from saywhy.predict import answer, load
from saywhy.predict.modes import calibrated
from saywhy.records import Prediction, RequestError, Row, Task
from saywhy.report import story
from saywhy.train.folder import encode
from saywhy.train.steps import Example, plan_steps, shares_of
from saywhy.trees import Branch

BALANCES = ({"class_weights": "balanced"}, {"sampler": "balanced"})


def examples(groups: Sequence[str], sizes: int = 3) -> list[Example]:
    """Rows of these labels whose prompts are `sizes` tokens and more long."""
    return [
        Example((Branch(np.arange(sizes + at % 4), np.zeros(sizes + at % 4)),), 1, 1, group=group, label_weight=1.0)
        for at, group in enumerate(groups)
    ]


@given(
    groups=st.lists(st.sampled_from("abcd"), min_size=1, max_size=40),
    rows=st.integers(1, 9),
    steps=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_balanced_draws_take_labels_equally_often_and_rows_in_turn(
    groups: list[str], rows: int, steps: int, seed: int
) -> None:
    chosen = Train(steps=steps, rows_per_step=rows, sampler="balanced")
    plan = plan_steps(examples(groups), chosen, seed)
    assert [len(step) for step in plan] == [rows] * steps
    drawn = [row for step in plan for row in step]
    for end in (len(drawn), len(drawn) // 2):
        of_group = Counter({group: 0 for group in groups}) + Counter()
        counts = [sum(groups[row] == group for row in drawn[:end]) for group in set(groups)]
        assert max(counts) - min(counts) <= 1, of_group
        for group in set(groups):
            members = [row for row, one in enumerate(groups) if one == group]
            times = [drawn[:end].count(row) for row in members]
            assert max(times) - min(times) <= 1, "no row again before all others of its label were drawn"
    # The same rows in the same steps however long they are in an arm, and the same beginning of a longer plan.
    assert plan_steps(examples(groups, 17), chosen, seed) == plan
    assert plan_steps(examples(groups), chosen.model_copy(update={"steps": 50}), seed)[:steps] == plan


def test_balanced_draws_differ_by_seed_and_by_pass() -> None:
    groups = ["a"] * 40 + ["b"] * 10
    chosen = Train(steps=10, rows_per_step=10, sampler="balanced")
    first, other = ([row for step in plan_steps(examples(groups), chosen, seed) for row in step] for seed in (0, 1))
    assert first != other
    rare = [row for row in first if groups[row] == "b"]
    passes = [rare[at : at + 10] for at in range(0, 50, 10)]
    assert all(sorted(one) == list(range(40, 50)) for one in passes)
    assert all(one != two for one, two in pairwise(passes))
    turns = [tuple(groups[row] for row in first[at : at + 2]) for at in range(0, 100, 2)]
    assert set(turns) == {("a", "b"), ("b", "a")}


def test_epochs_are_as_many_rows_as_without_balance_and_tokens_fill_steps() -> None:
    groups = ["a"] * 9 + ["b"]
    shuffled, balanced = (
        plan_steps(examples(groups), Train(epochs=2, rows_per_step=4, sampler=sampler), 0)  # type: ignore[arg-type]
        for sampler in ("shuffled", "balanced")
    )
    assert len(shuffled) == len(balanced) == 5
    by_tokens = plan_steps(examples(groups), Train(epochs=2, tokens_per_step=30, sampler="balanced"), 0)
    assert sum(map(len, by_tokens)) == 20
    assert sum(groups[row] == "b" for step in by_tokens for row in step) == 10


# Probabilities.

distributions = st.lists(st.floats(0.02, 1), min_size=4, max_size=4).map(lambda x: np.array(x) / sum(x))


@given(likelihoods=st.lists(distributions, min_size=1, max_size=5), prior=distributions, taught=distributions)
def test_the_correction_is_bayes_rule_and_weighting_again_undoes_it(
    likelihoods: list[Any], prior: Any, taught: Any
) -> None:
    given_label = np.array(likelihoods)  # p(x | y) of some x, up to a constant of x
    under_prior, under_taught = (
        given_label * one / (given_label * one).sum(1, keepdims=True) for one in (prior, taught)
    )
    corrected = metrics.apply_prior(under_taught, prior / taught)
    assert corrected == pytest.approx(under_prior, abs=1e-12)
    assert metrics.apply_prior(corrected, taught / prior) == pytest.approx(under_taught, abs=1e-12)
    assert metrics.apply_prior(under_taught, np.ones(4)) == pytest.approx(under_taught, abs=1e-12)


PRIOR = np.array([0.7, 0.2, 0.08, 0.02])


def overconfident(rows: int, temperature: float, seed: int) -> tuple[Any, Any, Any]:
    """Gold labels under `PRIOR`, the truth about each row, and what an overconfident balanced model says of it."""
    random = np.random.default_rng(seed)
    gold = random.choice(4, size=rows, p=PRIOR)
    seen = 1.2 * np.eye(4)[gold] + random.normal(size=(rows, 4)) * 0.9
    logs = 1.2 / 0.9**2 * seen
    truth, balanced = (np.exp(logs) * one / (np.exp(logs) * one).sum(1, keepdims=True) for one in (PRIOR, 0.25))
    return gold, truth, metrics.apply_temperature(balanced, 1 / temperature)


def test_the_temperature_is_found_under_the_prior_and_the_truth_comes_back() -> None:
    gold, truth, said = overconfident(20_000, 2.5, 0)
    factors = PRIOR / 0.25
    found = metrics.fit_temperature(said, gold, factors)
    assert found == pytest.approx(2.5, rel=0.05)
    corrected = metrics.apply_prior(metrics.apply_temperature(said, found), factors)
    assert corrected == pytest.approx(truth, abs=0.03)
    assert corrected.mean(0) == pytest.approx(PRIOR, abs=0.01)
    # Before the temperature the known factors would be bent with the scores; without them nothing is right.
    bent = metrics.apply_prior(said, factors)
    before = metrics.apply_temperature(bent, metrics.fit_temperature(bent, gold))
    without = metrics.apply_temperature(said, metrics.fit_temperature(said, gold))
    best = metrics.nll(truth, gold)
    assert best is not None
    for other in (before, without):
        worse = metrics.nll(other, gold)
        assert worse is not None and worse > best + 0.02
    assert metrics.nll(corrected, gold) == pytest.approx(best, abs=0.002)


def test_the_label_given_is_best_for_mean_recall_and_the_likeliest_for_accuracy() -> None:
    gold, truth, said = overconfident(20_000, 2.5, 1)
    by_balance, by_truth = (metrics.count(gold, one.argmax(1), 4) for one in (said, truth))
    assert metrics.mean_recall(by_balance) > metrics.mean_recall(by_truth) + 0.1
    assert metrics.accuracy(by_truth) > metrics.accuracy(by_balance) + 0.05


def test_answers_carry_the_prior_into_every_figure(tmp_path: Path) -> None:
    labels = ("a", "b", "c", "d")
    task = Task("t", "Which one?", labels)
    gold, truth, said = overconfident(1500, 2.0, 2)
    rows = [Row(f"r{at}", "x", labels[one]) for at, one in enumerate(gold)]
    found = [Prediction(labels[one.argmax()], dict(zip(labels, one.tolist(), strict=True))) for one in said]
    factors = dict(zip(labels, (PRIOR / 0.25).tolist(), strict=True))
    scored = {}
    for name, facts in (("with", {"prior": factors}), ("without", {})):
        evaluate.answer(lambda _: found, rows, tmp_path / f"{name}.parquet", task, facts=facts)
        loaded = evaluate.load_answers(tmp_path / f"{name}.parquet", task)
        assert loaded.prior == facts.get("prior", {})
        assert np.array(loaded.probabilities) == pytest.approx(said), "what is kept is what the model said"
        assert loaded.labels == tuple(one.label for one in found), "and the label is the likeliest of it"
        scored[name] = evaluate.score(task, loaded, evaluate.temperature_of(task, loaded))
    with_prior, without = (evaluate.load_answers(tmp_path / f"{name}.parquet", task) for name in ("with", "without"))
    # The right factors move it little here, others much.
    odd = dict(zip(labels, (20.0, 1.0, 1.0, 0.05), strict=True))
    found_at = metrics.fit_temperature(said, gold, np.array(list(odd.values())))
    assert evaluate.temperature_of(task, replace(with_prior, prior=odd)) == pytest.approx(found_at)
    assert evaluate.temperature_of(task, without) != pytest.approx(found_at, rel=0.05)
    assert scored["with"]["accuracy"] == scored["without"]["accuracy"]
    assert scored["with"]["nll"] == pytest.approx(metrics.nll(truth, gold), abs=0.01)
    assert scored["without"]["nll"] > scored["with"]["nll"] + 0.02
    assert scored["with"]["ece"] < 0.05
    documents = [
        evaluate.metrics_json(
            task=task, dev={"m/label": one}, test={"m/label": one}, floor={}, train={"m": {}}, audit={}, versions={},
            seed=0, resamples=100,
        )["arms"]["m"]["modes"]["label"]
        for one in (with_prior, replace(with_prior, prior={}))
    ]  # fmt: skip
    assert [one.get("prior") for one in documents] == [factors, None]


# A training, where the truth is known: the text says nothing, so the answer is the prior.

TASK = Task("animals", "Which animal is it?", ("cat", "dog"))
ROWS = [Row(f"{at}", "it is there", "dog" if at % 5 == 0 else "cat") for at in range(20)]


def trained(folder: Path, rows: Sequence[Row] = ROWS, task: Task = TASK, **balance: Any) -> predict.Classifier:
    """A classifier that has learnt these rows by heart, as far as they can be."""
    base = folder / "base"
    base.mkdir()
    make_scratch(base, classifier.shown(task, rows), Scratch(width=16, layers=1, vocabulary=300, heads=2), 0)
    settings = Train(steps=120, rows_per_step=20, learning_rate=1e-2, precision="float32", layout="tree", **balance)
    plan = classifier.course(task, "label_only", str(base), settings, rows, 0, "cut", False)
    arm = Arm(name="label_only", arm="label_only", train=settings)
    (folder / "arm").mkdir()
    classifier.train(folder / "arm", task, arm, plan, classifier.lessons("label_only", rows, {}), (), "accuracy")
    return load(folder / "arm")


@pytest.mark.parametrize("balance", [{}, *BALANCES], ids=["none", "weights", "draws"])
def test_a_balanced_training_gives_the_shares_of_the_rows_once_corrected(
    balance: dict[str, Any], tmp_path: Path
) -> None:
    found = trained(tmp_path, **balance)
    (raw,) = answer(found, [Row("x", "it is there")], "label")
    (corrected,) = calibrated(found, [raw], "label")
    assert raw.probabilities["cat"] == pytest.approx(0.5 if balance else 0.8, abs=0.03)
    assert corrected.probabilities["cat"] == pytest.approx(0.8, abs=0.03)
    assert corrected.label == raw.label
    assert (tmp_path / "arm" / "prior.json").exists() == bool(balance)
    if balance:
        saved = store.read_json(tmp_path / "arm" / "prior.json")
        assert saved["rows"] == pytest.approx({"cat": 0.8, "dog": 0.2})
        assert saved["taught"] == pytest.approx({"cat": 0.5, "dog": 0.5})
        # The door for texts corrects too.
        asked = predict.open_classifier(tmp_path / "arm")
        assert asked("it is there").probabilities["cat"] == pytest.approx(0.8, abs=0.03)
        (tmp_path / "arm" / "prior.json").write_text('{"rows": {"cat": 1}}')
        with pytest.raises(RequestError, match=r"prior\.json is not one that saywhy wrote"):
            load(tmp_path / "arm")


def test_a_label_of_more_tokens_is_taught_less_under_even_label_weights_and_corrected_for_it(tmp_path: Path) -> None:
    task = replace(TASK, labels=("cat", "a very odd dog"))
    rows = [replace(row, label=task.labels[row.label == "dog"]) for row in ROWS]
    found = trained(tmp_path, rows, task, class_weights="balanced")
    saved = store.read_json(tmp_path / "arm" / "prior.json")
    assert saved["taught"]["a very odd dog"] < 0.4
    (raw,) = answer(found, [Row("x", "it is there")], "label", prune=0.0)
    (corrected,) = calibrated(found, [raw], "label")
    assert raw.probabilities == pytest.approx(saved["taught"], abs=0.03)
    assert corrected.probabilities["cat"] == pytest.approx(0.8, abs=0.03)


def test_class_weights_multiply_label_tokens_alone(base: Path) -> None:
    kept = {row.id: (f"it barks {row.id}",) for row in ROWS}
    even: dict[str, Any] = {"label_weight": "tokens"}
    plain, weighted = (
        encode(
            classifier.course(TASK, arm, str(base), Train(class_weights=weights, **even), ROWS, 0, "cut", False),
            classifier.lessons(arm, ROWS, kept),
        )
        for weights in ("none", "balanced")
        for arm in ("label_then_reason",)
    )
    for one, other in zip(plain.examples, weighted.examples, strict=True):
        (before,), (after,) = one.branches, other.branches
        changed = before.weights != after.weights
        assert changed.sum() == one.label_tokens < one.target_tokens
        wanted = 20 / (2 * 4) if one.group == "dog" else 20 / (2 * 16)
        assert after.weights[changed] == pytest.approx(wanted * before.weights[changed])
    assert shares_of(plain.examples, Train()) == pytest.approx({"dog": 0.2, "cat": 0.8})
    assert shares_of(weighted.examples, Train()) == pytest.approx({"dog": 0.5, "cat": 0.5})
    assert shares_of(plain.examples, Train(sampler="balanced")) == pytest.approx({"dog": 0.5, "cat": 0.5})


# A whole run.


@pytest.fixture(scope="module")
def balanced_run(tmp_path_factory: pytest.TempPathFactory) -> toy.Done:
    """A short run on rows of which most are cats, with balanced draws."""
    folder = tmp_path_factory.mktemp("balanced")
    data = toy.write_data(folder / "data")
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    rare = [line for line in lines if line["label"] != "cat"]
    toy.write_lines(data / "train.jsonl", [line for line in lines if line["label"] == "cat" or line in rare[:6]])
    changes = toy.quick(classifier__arms=["label_only", "both"])
    changes["classifier__train"] |= {"sampler": "balanced", "steps": 8}
    return toy.run(data, folder / "run", **changes)


def test_a_run_corrects_alike_wherever_it_gives_probabilities(balanced_run: toy.Done, tmp_path: Path) -> None:
    run = balanced_run.folder
    for arm, mode in (("label_only", "label"), ("both", "label"), ("both", "reason"), ("both", "adaptive")):
        found = load(run / arm)
        entry = balanced_run.metrics["arms"][arm]["modes"][mode]
        assert entry["prior"] == pytest.approx(dict(found.prior)) and len(found.prior) == 3
        assert found.prior["cat"] > 1 > found.prior["dog"]
        saved = evaluate.load_answers(run / "predictions" / f"{arm}-{mode}-test.parquet", found.task)
        assert saved.prior == entry["prior"]
        raw = [
            Prediction(label, dict(zip(found.task.labels, of_row, strict=True)), pruned=pruned)
            for label, of_row, pruned in zip(saved.labels, saved.probabilities, saved.pruned, strict=True)
        ]
        assert all(one.label == max(one.probabilities, key=one.probabilities.__getitem__) for one in raw)
        given_out = list(calibrated(found, raw, mode))
        gold = np.array([found.task.labels.index(label) for label in saved.gold])
        shares = np.array([[one.probabilities[label] for label in found.task.labels] for one in given_out])
        assert metrics.nll(shares, gold) == pytest.approx(entry["test"]["nll"])
    assert "prior.json" in {path.name for path in (run / "both").iterdir()}
    assert "put back" in (run / "label_only" / "README.md").read_text("utf-8")
    assert "put back" in (run / "report.html").read_text("utf-8")
    lines = export.write(run / "label_only", tmp_path / "out")
    assert store.read_json(tmp_path / "out" / "prior.json") == store.read_json(run / "label_only" / "prior.json")
    assert any("no decision.json: labels were balanced" in line for line in lines)


def test_the_report_shows_the_corrected_probability_of_a_label() -> None:
    prior = {"cat": 1.5, "dog": 0.5}
    one = story.System("m/label", "m", "label", "base", None, None, 2.0, True, prior)
    row = {"id": "r", "text": "x", "gold": "cat", "label": "dog", "probabilities": [0.2, 0.8]}
    shown = report._example({"task": {"labels": ["cat", "dog"]}}, one, row, None)
    # At temperature 2 the odds of dog are 2; the prior makes a third of them.
    assert shown["probability"] == pytest.approx((2 / 3) / (1 + 2 / 3))
    uncorrected = report._example({"task": {"labels": ["cat", "dog"]}}, replace(one, prior=None), row, None)
    assert uncorrected["probability"] == pytest.approx(2 / 3)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_weights": "balanced", "sampler": "balanced"},
            "classifier.train: class_weights and sampler are both balanced",
        ),
        ({"patience": 4}, "arm 'label_only': patience 4 never ends a training of 4 evaluations; raise evaluations"),
    ],
)
def test_training_settings_that_exclude_each_other_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), classifier__train=changes)
    for command in ("run", "check"):
        assert cli.main([command, str(config)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "data" / "runs").exists()


@pytest.mark.parametrize(
    ("common", "arms", "message"),
    [
        (
            {},
            [{"arm": "both", "train": {"sampler": "balanced"}}],
            "arm 'both': train.sampler is balanced, and shuffled",
        ),
        ({}, [{"arm": "both", "train": {"class_weights": "balanced"}}], "set it in classifier.train, for all arms"),
        (
            {"sampler": "balanced"},
            [{"arm": "both", "train": {"sampler": "shuffled"}}],
            "train.sampler is shuffled, and",
        ),
        ({"sampler": "balanced"}, [{"arm": "both", "train": {"class_weights": "balanced"}}], "two things at once"),
        ({"sampler": "balanced"}, [{"arm": "both", "train": {"epochs": 3}}], ""),
    ],
)
def test_arms_that_differ_in_balance_are_refused(
    common: dict[str, Any], arms: list[Any], message: str, tmp_path: Path
) -> None:
    changes = {"classifier__train": common, "classifier__arms": ["label_only", *arms]}
    if message:
        with pytest.raises(RequestError, match=message):
            toy.load(tmp_path, **changes)
    else:
        assert all(arm.train.sampler == "balanced" for arm in toy.load(tmp_path, **changes).classifier.arms)


def test_arms_that_together_balance_twice_and_reasoners_and_own_choices_are_refused(tmp_path: Path) -> None:
    own = [{"name": name, "arm": "label_only", "train": {"class_weights": "balanced"}} for name in ("a", "b")]
    with pytest.raises(RequestError, match="both would correct twice"):
        toy.load(tmp_path, classifier__train={"sampler": "balanced"}, classifier__arms=own)
    with pytest.raises(RequestError, match="worked cases have no labels to balance"):
        toy.load(tmp_path, reasoner__train={"sampler": "balanced"})
    with pytest.raises(RequestError, match="no dev rows judge the reasoner"):
        toy.load(tmp_path, reasoner__train={"patience": 1})
    choices = {"name": "t", "instruction": "Which?", "choices": "options"}
    with pytest.raises(RequestError, match=r"task\.choices gives each row its own answers"):
        toy.load(tmp_path, task=choices, classifier__train={"sampler": "balanced"})
